"""How sound the own parameters are: the own state, compared with the one that a quorum certified, or with candidates.

A peer whose state differs in a bit (another processor, a memory error) is no liar: it takes the certified state over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from btrain.protocol.contest import Contest
from btrain.protocol.desk import Desk
from btrain.protocol.effects import CompareStates, PutBlob
from btrain.protocol.encoding import PeerId, encode
from btrain.protocol.ledger import CertifiedState
from btrain.protocol.pieces import CutState, StateFetch

OWN_MAX = 4  # digests of the own state that are remembered


@dataclass
class Condition:
    """The own state at the rounds in which it was due."""

    desk: Desk
    is_due: Callable[[int], bool]  # whether the state at the start of a round is to be listed
    heals: int = 0  # certified states taken over because the own one differed
    _own: dict[int, bytes] = field(default_factory=dict)
    _pieces: int = 0  # of the own state, the last time
    _drifted: CertifiedState | None = None  # the certified state that the own one differs from

    def own(self, round: int, state: CutState) -> None:
        """The own state at the start of `round`: kept for others, and to be listed."""
        for hash, piece in zip(state.manifest.pieces, state.pieces, strict=True):
            self.desk.emit(PutBlob(hash, piece, round))
        self.desk.emit(PutBlob(state.digest, encode(state.manifest), round))
        self._pieces = len(state.pieces)
        self._note(round, state.digest)

    def at(self, round: int) -> bytes | None:
        """The digest of the own state at the start of `round`, if it was due."""
        return self._own.get(round)

    @property
    def pieces_max(self) -> int:
        """No state like the own one has more pieces: its numbers may be written a little longer."""
        return self._pieces + 1

    def listed(self, round: int) -> tuple[bytes, ...]:
        """What the Commit of `round` says of the own state; nothing unless it is due."""
        return (self._own[round],) if round > 0 and self.is_due(round) and round in self._own else ()

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

    def undo(self, round: int) -> None:
        """Blocks from `round` on do not stand any more."""
        self._own = {at: own for at, own in self._own.items() if at <= round}
        self._drifted = None

    def _note(self, round: int, digest: bytes) -> None:
        self._own[round] = digest
        for old in sorted(self._own)[:-OWN_MAX]:
            del self._own[old]


@dataclass
class Comparison:
    """Looks at the candidates of the open contest, one after the other, and remembers which are like the own state."""

    desk: Desk
    condition: Condition
    tolerance: float
    close: list[bytes] = field(default_factory=list)
    _contest: Contest | None = None
    _left: list[bytes] = field(default_factory=list)
    _fetch: StateFetch | None = None
    _judging: bytes | None = None

    def go(self, contest: Contest | None, round: int, sources: tuple[PeerId, ...]) -> None:
        """Begin with a new contest, or go on; `round` is the open one."""
        if contest != self._contest:
            self._contest, self._fetch, self._judging, self.close = contest, None, None, []
            self._left = [] if contest is None else list(contest.candidates)
        own = None if contest is None else self.condition.at(contest.round)
        if own is None or self._judging is not None:
            return
        if own in self._left:
            self._left.remove(own)
            self.close.append(own)
        if self._left and self._fetch is None:
            self._fetch = StateFetch(self.desk, self._left[0], round, self.condition.pieces_max)
            self._fetch.go(sources)
        self._judge(own)

    def blob(self, hash: bytes, data: bytes | None) -> None:
        """Bytes of a candidate; None when nobody has them."""
        if self._fetch is None or self._contest is None or not self._fetch.blob(hash, data):
            return
        own = self.condition.at(self._contest.round)
        if own is not None:
            self._judge(own)

    def _judge(self, own: bytes) -> None:
        """Compare a candidate that is here; put off one that nobody gives until `go` is called again."""
        if self._fetch is None or self._fetch.progress == "fetching":
            return
        candidate = self._left.pop(0)
        if self._fetch.progress == "here":
            self._judging = candidate
            self.desk.emit(CompareStates(own, candidate, self.tolerance))
        elif self._fetch.progress == "nowhere":
            self._left.append(candidate)
        else:
            self.desk.event("candidate_refused", digest=candidate.hex(), reason=self._fetch.refusal)
        self._fetch = None

    def compared(self, candidate: bytes, close: bool) -> None:
        """The answer of a comparison."""
        if candidate != self._judging:
            return  # of a contest that is over
        self._judging = None
        self.desk.event("compared", digest=candidate.hex(), close=close)
        if close:
            self.close.append(candidate)
