"""`python -m standpipe` is the command `standpipe`."""

from standpipe.cli import command

command()
