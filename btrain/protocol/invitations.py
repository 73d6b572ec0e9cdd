"""Invitations: members of a run let a peer in by their signatures. Each is for one peer and one seat, and expires.

So many different members must have invited a newcomer as the contract says (b + 1 unless it says otherwise: one of
them is honest then), and they are members when its request is judged.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Final, Literal

from btrain.identity import SigningKey, verify
from btrain.protocol.encoding import U32, Hash, PeerId, Record, Signature, decode, encode
from btrain.protocol.errors import InvalidInvitation, RemoteProtocolError
from btrain.protocol.ledger import LedgerState
from btrain.protocol.messages import INVITATION_BYTES_MAX

DOMAIN: Final = b"btrain/invitation/v1\0"
PREFIX: Final = "btrain-invite-"


class Invitation(Record, frozen=True):
    """'I invite `guest` to this run; that holds from round `since` to round `until`.'"""

    version: Literal[1]
    run: Hash
    inviter: Hash
    guest: Hash
    since: U32
    until: U32


class SignedInvitation(Record, frozen=True):
    """An invitation and the inviter's signature over `DOMAIN` and its canonical bytes."""

    invitation: Invitation
    signature: Signature


def invite(key: SigningKey, run: bytes, guest: PeerId, since: int, until: int) -> bytes:
    """The canonical bytes of a signed invitation."""
    invitation = Invitation(1, run, key.public_key, guest, since, until)
    return encode(SignedInvitation(invitation, key.sign(DOMAIN + encode(invitation))))


def open_invitation(data: bytes) -> Invitation:
    """Decode an invitation and check its signature.

    Raises:
        OversizedMessage, MalformedMessage, NonCanonicalMessage, InvalidInvitation
    """
    signed = decode(SignedInvitation, data, INVITATION_BYTES_MAX)
    invitation = signed.invitation
    if not verify(invitation.inviter, DOMAIN + encode(invitation), signed.signature):
        raise InvalidInvitation("the signature is not the inviter's")
    return invitation


def check_invitation(invitation: Invitation, guest: PeerId, state: LedgerState) -> None:
    """Whether an invitation lets `guest` in now.

    Raises:
        InvalidInvitation: for another run or peer, too early or too late, used before, or not by a member.
    """
    past = state.roster.former.get(guest)
    if invitation.run != state.run:
        raise InvalidInvitation("for another run")
    if invitation.guest != guest:
        raise InvalidInvitation("for another peer")
    if not invitation.since <= state.round <= invitation.until:
        raise InvalidInvitation(f"for rounds {invitation.since} to {invitation.until}, now is {state.round}")
    if past is not None and invitation.since <= past.left:
        raise InvalidInvitation(f"used: the peer has had a seat until round {past.left}")
    if state.roster.seat(invitation.inviter) is None:
        raise InvalidInvitation("its signer holds no seat")


def inviters(invitations: Iterable[bytes], guest: PeerId, state: LedgerState) -> frozenset[PeerId]:
    """The members that have invited `guest`, by those invitations that hold."""
    found = set()
    for data in invitations:
        try:
            invitation = open_invitation(data)
            check_invitation(invitation, guest, state)
        except RemoteProtocolError:
            continue
        found.add(invitation.inviter)
    return frozenset(found)


def invitation_text(data: bytes) -> str:
    """An invitation as people pass it on."""
    return PREFIX + base64.urlsafe_b64encode(data).decode().rstrip("=")


def invitation_bytes(text: str) -> bytes:
    """Read what `invitation_text` has written.

    Raises:
        InvalidInvitation: not such a text.
    """
    code = text.strip().removeprefix(PREFIX)
    try:
        if not text.strip().startswith(PREFIX) or len(code) > 2 * INVITATION_BYTES_MAX:
            raise InvalidInvitation(f"expected a text that begins with {PREFIX}")
        return base64.b64decode(code + "=" * (-len(code) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInvitation(f"not the text that `btrain invite` wrote: {error}") from None
