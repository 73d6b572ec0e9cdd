"""A member's invitation, written from its run directory, also while its peer runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from btrain.errors import ConfigError
from btrain.identity import peer_id_text, read_key
from btrain.protocol.encoding import PeerId
from btrain.protocol.invitations import invitation_text, invite
from btrain.protocol.ledger import LedgerState
from btrain.storage.run_directory import run_was_founded
from btrain.verify.reading import Record


@dataclass(frozen=True)
class Invited:
    """An invitation as text, the rounds in which it holds, and of how many members the guest needs one."""

    text: str
    since: int
    until: int
    needed: int

    @property
    def advice(self) -> str:
        """What the guest does with it."""
        many = "" if self.needed == 1 else f"; it needs one from each of {self.needed} members"
        return f"for rounds {self.since} to {self.until}; the guest puts it under local.invitations{many}"


def write_invitation(run_dir: Path, identity: Path, guest: PeerId, rounds: int) -> Invited:
    """Invite `guest` for so many rounds from the ledger's head on, with the key in the file `identity`.

    Raises:
        ConfigError: there is no run, it has no use for invitations, or none for this one.
        VerificationError: the ledger is damaged.
        IdentityError: the key cannot be read.
    """
    if not run_was_founded(run_dir):
        raise ConfigError(f"{run_dir}: holds no run; name the run directory of a member")
    key, record = read_key(identity), Record.open(run_dir)
    _, state = record.replay()
    _check(run_dir, state, key.public_key, guest)
    text = invitation_text(invite(key, state.run, guest, state.round, state.round + rounds))
    return Invited(text, state.round, state.round + rounds, state.charter.invitations)


def _check(run_dir: Path, state: LedgerState, me: PeerId, guest: PeerId) -> None:
    """An invitation that nobody would accept is not written."""
    if state.charter.admission != "invite":
        raise ConfigError(
            f"{run_dir}: the run's group.admission is {state.charter.admission}: nobody asks for invitations"
        )
    if state.roster.seat(me) is None:
        raise ConfigError(f"{peer_id_text(me)} holds no seat in the run now: its invitations would count for nothing")
    if guest in state.roster.banned:
        raise ConfigError(f"{peer_id_text(guest)} was banned from the run: no invitation lets it in again")
    if state.roster.seat(guest) is not None:
        raise ConfigError(f"{peer_id_text(guest)} has a seat in the run: it needs no invitation")
