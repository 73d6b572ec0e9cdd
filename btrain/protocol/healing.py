"""How sound the own parameters are: digests of the own state, compared with those that a quorum certified.

A peer whose state differs in a bit (another processor, a memory error) is no liar: it takes the certified state over.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from btrain.protocol.desk import Desk
from btrain.protocol.effects import PutBlob
from btrain.protocol.encoding import encode
from btrain.protocol.ledger import CertifiedState
from btrain.protocol.pieces import CutState

OWN_MAX = 4  # digests of the own state that are remembered


@dataclass
class Condition:
    """The own state at the rounds in which it was due."""

    desk: Desk
    sync_every: int
    heals: int = 0  # certified states taken over because the own one differed
    _own: dict[int, bytes] = field(default_factory=dict)
    _drifted: CertifiedState | None = None  # the certified state that the own one differs from

    def own(self, round: int, state: CutState) -> None:
        """The own state at the start of `round`: kept for others, and to be listed."""
        for hash, piece in zip(state.manifest.pieces, state.pieces, strict=True):
            self.desk.emit(PutBlob(hash, piece, round))
        self.desk.emit(PutBlob(state.digest, encode(state.manifest), round))
        self._note(round, state.digest)

    def listed(self, round: int) -> tuple[bytes, ...]:
        """What the Commit of `round` says of the own state; nothing unless it is due."""
        due = round > 0 and round % self.sync_every == 0
        return (self._own[round],) if due and round in self._own else ()

    def compare(self, certified: CertifiedState) -> Literal["unknown", "equal", "drifted"]:
        """How the own state of that round relates to the certified one."""
        own = self._own.get(certified.round)
        if own is None:
            return "unknown"
        if own == certified.digest:
            self._drifted = None
            return "equal"
        if self._drifted != certified:
            self._drifted = certified
            self.desk.event("drift", round=certified.round, own=own.hex(), certified=certified.digest.hex())
        return "drifted"

    def took_over(self, certified: CertifiedState) -> None:
        """The parameters are those of a certified state."""
        healed, self._drifted = self._drifted is not None, None
        self.heals += healed
        self.desk.event("state_loaded", round=certified.round, healed=healed, heals=self.heals)
        self._note(certified.round, certified.digest)

    def _note(self, round: int, digest: bytes) -> None:
        self._own[round] = digest
        for old in sorted(self._own)[:-OWN_MAX]:
            del self._own[old]
