"""What can go wrong, each with the exit code that the command then has.

Messages are for people: what is wrong, where, and what to do.
"""

from __future__ import annotations

import errno

# Luigi's documented codes, passed through: https://luigi.readthedocs.io/en/stable/configuration.html#retcode
LUIGI_CODES = {
    10: "already running",
    20: "missing data",
    25: "not run",
    30: "task failed",
    35: "scheduling error",
    40: "unhandled exception",
}

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # of a disk that takes nothing
ALREADY_RUNNING = 75
TIMED_OUT = 124
STOPPED = 130


class StandpipeError(Exception):
    """An error that is told in one message and ends the command."""

    exit_code = 70


class InternalError(StandpipeError):
    """An error in Standpipe itself."""

    exit_code = 70


class UsageError(StandpipeError):
    """The command was called wrongly, or names a pipeline that this host does not know."""

    exit_code = 2


class EngineUnavailable(StandpipeError):
    """Docker does not answer."""

    exit_code = 69


class NotWritable(StandpipeError):
    """The ledger or the disk cannot be written."""

    exit_code = 73


class LedgerDamaged(NotWritable):
    """The ledger's file is no database any more, or one with faults."""


class AlreadyRunning(StandpipeError):
    """Another run, or a container started by hand, holds the pipeline."""

    exit_code = ALREADY_RUNNING


class BudgetShort(StandpipeError):
    """What is left of a budget is less than a run is expected to spend."""

    exit_code = 76


class BudgetsUnavailable(StandpipeError):
    """The books of the budgets cannot be read or kept."""

    exit_code = 73


class ConfigurationError(StandpipeError):
    """What was declared is wrong."""

    exit_code = 78


class CredentialsRefused(ConfigurationError):
    """AWS does not give, or does not take, a pipeline's credentials."""


class CredentialsUnavailable(CredentialsRefused):
    """STS does not answer."""

    exit_code = 69
