"""`python -m standpipe` is the command `standpipe`."""

import sys

from standpipe.cli import main

sys.exit(main())
