"""Which updates are in the parameters: a block that bans a proven cheat may take back what was built on its work.

With `verification.rollback: proven_round` or `window` a block t that bans somebody for what is in the parameters
restores x[s]: x[t+1] = x[s], optimizer state and step count included. s is the first round that stands, from the proven
one on (with `window`: of all that are kept), in which the banned had a share. Rounds s to t are undone. Their numbers
are not used again, and their x stays what was computed at it: audits of undone rounds go on.

All of it follows from the blocks. A round is undone once at most, and for no member more than `window` + 1 of them:
what is proven of it counts in the block of its ban, or later, if that block stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from btrain.protocol.blocks import Ban, Block, CertifiedState
from btrain.protocol.cheats import Cheat
from btrain.protocol.encoding import PeerId

ROLLBACK_ROUNDS_MAX = 16  # how far back a block may restore
_GRADIENT = "wrong_gradient"
_REDUCTION = frozenset({"wrong_reduction", "wrong_table"})


@dataclass(frozen=True)
class Past:
    """A round that stands: optimizer steps before it, and whose work is in its update (nobody's, if it is void)."""

    round: int
    step: int
    workers: frozenset[PeerId]
    aggregators: frozenset[PeerId]

    @classmethod
    def of(cls, block: Block, step: int) -> Past:
        """What a block says of its round; `step`: optimizer steps before it."""
        if block.void:
            return cls(block.round, step, frozenset(), frozenset())
        counted = {entry.aggregator for entry in block.results if entry.part not in block.void_parts}
        return cls(block.round, step, frozenset(block.contributors), frozenset(counted))

    def is_spoiled_by(self, proof: Ban | Cheat, *, ever: bool) -> bool:
        """Whether the guilty had a share in the update, in the proven round or since; or `ever`.

        An illegal encoding or result is in no sum, and breaches of the agreement's or the courts' rules spoil none.
        """
        sharing = self.workers if proof.deed == _GRADIENT else self.aggregators if proof.deed in _REDUCTION else ()
        return (ever or self.round >= proof.round) and proof.peer in sharing


@dataclass(frozen=True)
class Undone:
    """Rounds `first` to `last` are taken back: x[last + 1] = x[first]."""

    first: int
    last: int


@dataclass(frozen=True)
class Trajectory:
    """The way from x[0] to the parameters of now. `undone` is in order and apart; `states` in order, all on the way."""

    window: int = 0  # rounds that a block may go back beyond its own; 0: nothing is ever undone
    whole: bool = False  # whether rounds before the proven one are undone too
    reach: int = 0  # rounds for which members keep what leads on from a certified state
    pasts: tuple[Past, ...] = ()  # rounds that can be undone
    undone: tuple[Undone, ...] = ()
    states: tuple[CertifiedState, ...] = ()  # from which every x that may be restored is rebuilt

    @property
    def state(self) -> CertifiedState | None:
        """The newest certified state on the way."""
        return self.states[-1] if self.states else None

    @property
    def anchor(self) -> int:
        """The round from whose x everything that may be needed is rebuilt."""
        return self.states[0].round if self.states else 0

    @property
    def rounds_undone(self) -> int:
        """How many rounds were taken back so far."""
        return sum(span.last - span.first + 1 for span in self.undone)

    def passes(self, round: int) -> bool:
        """Whether x[round] is on the way to the parameters of now."""
        return not any(span.first < round <= span.last for span in self.undone)

    def steps(self, round: int) -> bool:
        """Whether the update of `round` is."""
        return not any(span.first <= round <= span.last for span in self.undone)

    def after_undone(self, round: int) -> int:
        """The round whose x is the same as x[round]: the one behind what was undone from `round` on, or itself."""
        return next((span.last + 1 for span in self.undone if span.first == round), round)

    def undone_by(self, round: int) -> Undone | None:
        """What the block of `round` took back, and what that had taken back before."""
        return next((span for span in self.undone if span.last == round), None)

    def restored_by(self, block: Block, step: int, proofs: Sequence[Ban | Cheat]) -> Past | None:
        """The round at whose start `block` puts the parameters, if it does.

        step: optimizer steps before it; proofs: what it proves of members.
        """
        if not self.window:
            return None
        recent = (past for past in self.pasts if past.round >= block.round - self.window)
        rebuilt = (past for past in recent if self._base(past.round) >= block.round - self.reach)
        candidates = (*rebuilt, Past.of(block, step))
        return next(
            (past for past in candidates if any(past.is_spoiled_by(proof, ever=self.whole) for proof in proofs)), None
        )

    def _base(self, round: int) -> int:
        """The round of the certified state from which x[round] is rebuilt; 0: from the beginning."""
        return max((state.round for state in self.states if state.round <= round), default=0)

    def after(self, block: Block, step: int, proofs: Sequence[Ban | Cheat]) -> Trajectory:
        """The way after a block; `step` and `proofs` as for `restored_by`."""
        restored = self.restored_by(block, step, proofs)
        if restored is None:
            return self._went_on(block, Past.of(block, step))
        first = restored.round
        return replace(
            self,
            pasts=tuple(past for past in self.pasts if past.round < first),
            undone=(*(span for span in self.undone if span.last < first), Undone(first, block.round)),
            states=tuple(state for state in self._with(block.state) if state.round <= first),
        )

    def _went_on(self, block: Block, past: Past) -> Trajectory:
        oldest = block.round + 1 - self.window  # what the next block may restore
        states = self._with(block.state)
        base = max((state.round for state in states if state.round <= oldest), default=0)
        return replace(
            self,
            pasts=tuple(past for past in (*self.pasts, past) if past.round >= oldest) if self.window else (),
            states=tuple(state for state in states if state.round >= base) if self.window else states[-1:],
        )

    def _with(self, certified: Iterable[CertifiedState]) -> tuple[CertifiedState, ...]:
        fresh = (state for state in certified if self.passes(state.round))
        return tuple(sorted((*self.states, *fresh), key=lambda state: state.round))
