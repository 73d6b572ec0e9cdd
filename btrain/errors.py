"""The errors a user of btrain can meet, each with the exit code of the command line.

Exit codes: 0 done, 1 the run failed, 2 wrong usage or configuration, 3 a check of evidence or of a ledger failed,
4 a peer or the network could not be reached, 5 another contract, 6 identity in use or unreadable.
"""

from __future__ import annotations


class BtrainError(Exception):
    """Base of every error that btrain raises on purpose; `exit_code` is what the command line ends with."""

    exit_code = 1


class ConfigError(BtrainError):
    """A configuration or an argument is wrong; the message names the file, line and key and what was expected."""

    exit_code = 2


class VerificationError(BtrainError):
    """A ledger, certificate, checkpoint or evidence file does not verify; the message names the place."""

    exit_code = 3


class NetworkError(BtrainError):
    """A peer or an address cannot be reached or used; the message names it."""

    exit_code = 4


class ContractError(BtrainError):
    """A peer trains under another contract; the message names the field that differs."""

    exit_code = 5


class IdentityError(BtrainError):
    """A key file is busy, unreadable or readable by others; the message names the file and what to do."""

    exit_code = 6
