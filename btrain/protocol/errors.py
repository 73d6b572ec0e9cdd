"""Every way in which a message of a peer can be wrong: one named class per misdeed, raised before anybody reads it."""

from __future__ import annotations

from btrain.errors import BtrainError


class RemoteProtocolError(BtrainError):
    """The sender's fault. The message is dropped; `reason` is what the event log says."""

    @property
    def reason(self) -> str:
        """The class's name in words and the details."""
        return f"{type(self).__name__}: {self}"


class OversizedMessage(RemoteProtocolError):
    """Longer than its kind may be."""


class MalformedMessage(RemoteProtocolError):
    """Not MessagePack, or a field is missing, unknown, of the wrong type or out of its bounds."""


class NonCanonicalMessage(RemoteProtocolError):
    """Decodes, but is not the one encoding of its content."""


class WrongSignature(RemoteProtocolError):
    """The signature does not verify under the sender's identity."""


class ForeignMessage(RemoteProtocolError):
    """Belongs to another run or group."""


class StaleMessage(RemoteProtocolError):
    """Belongs to a round that is over (a replay), or to one too far ahead."""


class NotAMember(RemoteProtocolError):
    """The sender holds no seat, or not the role that this message needs."""


class InconsistentMessage(RemoteProtocolError):
    """Well formed, but contradicts the ledger (a wrong part count, an unknown commitment, a link off its chain)."""


class InvalidCertificate(RemoteProtocolError):
    """Too few, repeated or foreign signatures for what it claims to certify."""


class InvalidInvitation(RemoteProtocolError):
    """For another run, peer or time, used before, or not signed by a member."""


class InvalidEvidence(RemoteProtocolError):
    """Does not prove what it claims."""


class LocalProtocolError(BtrainError):
    """Our own mistake: the caller broke the contract of a state machine."""
