"""The sweep: a block that proves a cheat of round s has every gradient and every part of s audited again.

Each is audited by b + 1 members that the block's own randomness draws, one of them honest, so that everybody who
cheated in s is proven, whatever he does now. Who must audit what, and who may accuse whom, follows from the ledger.

Who validated in s sent no gradient in it. With probability b / n it is one of the coalition, and would take as long to
find as the first one did. So round s + 1 is swept too: it worked there, unless it was drawn twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from btrain.protocol.blocks import Ban
from btrain.protocol.cheats import CHEATS, Cheat
from btrain.protocol.encoding import PeerId, sha256
from btrain.protocol.randomness import permutation
from btrain.protocol.roster import Roster

SWEEP_ROUNDS = 16  # how long it may take: it runs beside training


@dataclass(frozen=True)
class Sweep:
    """The sweep of `round`, opened by the block of round `opened`."""

    run: bytes
    round: int
    opened: int
    closes: int  # the last round in which it may be accused
    randomness: bytes  # r[opened]: nobody knew it when he cheated
    members: tuple[PeerId, ...]  # who may be drawn, in member order
    auditors: int  # of each gradient and each part

    @cached_property
    def slot(self) -> bytes:
        """`prev` of the slots in which its accusations are signed, one for each accused and round."""
        return sha256(b"btrain/sweep/v1", self.run, self.round.to_bytes(8, "little"))

    def is_open(self, round: int) -> bool:
        """Whether an accusation signed in `round` belongs to it."""
        return self.opened < round <= self.closes

    def auditors_of(self, worker: PeerId) -> tuple[PeerId, ...]:
        """Who recomputes the gradient of a worker of the swept round, in order of urgency."""
        return self._drawn(b"gradient", worker)

    def reducers_of(self, part: int, aggregator: PeerId) -> tuple[PeerId, ...]:
        """Who reduces a part again, in order of urgency; not who reduced it."""
        return self._drawn(b"part" + part.to_bytes(8, "little"), aggregator)

    def _drawn(self, purpose: bytes, about: PeerId) -> tuple[PeerId, ...]:
        seed = sha256(b"btrain/sweep/draw/v1", self.slot, self.randomness, purpose, about)
        others = [member for member in self.members if member != about]
        return permutation(seed, "sweep", others)[: self.auditors]

    def gradients_for(self, me: PeerId, workers: Iterable[PeerId]) -> list[PeerId]:
        """Whose gradients `me` recomputes, the most urgent first: by how many are drawn before it."""
        drawn = {worker: self.auditors_of(worker) for worker in workers}
        mine = [worker for worker, auditors in drawn.items() if me in auditors]
        return sorted(mine, key=lambda worker: (drawn[worker].index(me), worker))

    def parts_for(self, me: PeerId, aggregators: dict[int, PeerId]) -> list[int]:
        """Which parts `me` reduces again, the most urgent first."""
        drawn = {part: self.reducers_of(part, aggregator) for part, aggregator in aggregators.items()}
        mine = [part for part, auditors in drawn.items() if me in auditors]
        return sorted(mine, key=lambda part: (drawn[part].index(me), part))


def sweeps_after(
    sweeps: Sequence[Sweep],
    run: bytes,
    round: int,
    randomness: bytes,
    cheats: Iterable[Ban | Cheat],
    roster: Roster,
    custody: int,
    last: Iterable[int] = (),
) -> tuple[Sweep, ...]:
    """The sweeps that are open or whose round is still in custody, once the block of `round` has proven these cheats.

    A round is swept once: what a sweep proves of its own round opens no other. Each proven cheat costs the attackers
    a seat, or has cost it, and opens at most two; the `last` rounds of a run come besides. roster: as the block leaves
    it. custody: how old a cheat may be.
    """
    kept = [sweep for sweep in sweeps if round <= max(sweep.closes, sweep.round + custody)]
    known = {sweep.round for sweep in kept}
    recent = range(max(1, round - custody), round + 1)
    proven = {cheat.round for cheat in cheats if cheat.deed in CHEATS and cheat.round in recent}
    fresh = proven - known
    followed = {of + 1 for of in fresh if of < round}
    for of in sorted(fresh | followed.union(last) - known):
        able = tuple(s.peer for s in roster.seats if not s.absent and not s.barred and s.present_since <= of)
        kept.append(Sweep(run, of, round, round + SWEEP_ROUNDS, randomness, able, roster.faulty_max + 1))
    return tuple(kept)
