"""The service: ``python -m standpipe.runsocket``, as systemd starts it."""

import signal
import sys

from standpipe.engines.compose import ComposeEngine
from standpipe.runsocket.service import serve

signal.signal(signal.SIGTERM, lambda _signum, _frame: sys.exit(0))
serve(ComposeEngine())
