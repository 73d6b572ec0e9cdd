"""What can go wrong between two machines, each under one name; every foreign exception is mapped to one of these."""

from __future__ import annotations

from btrain.errors import ConfigError, IdentityError, NetworkError


class MalformedAddress(ConfigError, NetworkError):
    """A text is no address of the form /ip4/HOST/tcp/PORT/p2p/PEER; the message says what is wrong with it."""

    exit_code = ConfigError.exit_code


class OwnIdentity(IdentityError, NetworkError):
    """The address to dial is of this very identity, which another process uses; the message names it."""

    exit_code = IdentityError.exit_code


class AddressInUse(NetworkError):
    """The address to listen on is taken by another process; the message names it."""


class AddressUnusable(NetworkError):
    """The address to listen on does not belong to this machine, or may not be used; the message names it."""


class PeerUnreachable(NetworkError):
    """Nobody answered; the message names the addresses and how long they were tried."""


class WrongPeer(NetworkError):
    """Another identity answers at the address; the message names both."""


class WrongRun(NetworkError):
    """The peer at the address takes part in another run."""


class ConnectionRefused(NetworkError):
    """The peer answered and refused; the message gives its reason."""


class PeerViolation(NetworkError):
    """A peer sent what no honest peer sends; the connection is closed and the peer kept away for a while."""


class LinkLost(NetworkError):
    """A connection ended or stalled; nobody is to blame."""
