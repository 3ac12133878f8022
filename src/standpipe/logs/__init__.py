"""The path of a run's log lines: the spool on the host, later the collector."""
