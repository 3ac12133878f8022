"""Where runs execute: one module per engine, behind one small protocol."""
