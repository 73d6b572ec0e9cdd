"""Who does what in a round, and how the flat gradient is cut into parts. Drawn from r[t-1], the same for everybody."""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass

from btrain.kernels import BLOCK
from btrain.protocol.encoding import PeerId
from btrain.protocol.randomness import drawn_count, permutation
from btrain.protocol.roster import Roster

RELAYS_KEPT = 4096  # pairs whose relays are remembered: each is asked about with every statement of a dispute
RELAYS = 3  # drawn for a worker and an aggregator


@dataclass(frozen=True)
class PartLayout:
    """The flat gradient of `numel` values cut at multiples of the codec's block: no block straddles two parts."""

    numel: int
    parts: int

    def bounds(self, part: int) -> tuple[int, int]:
        """First value and end of a part, in values; the end of the last part is `numel`."""
        blocks = -(-self.numel // BLOCK)
        start, end = (blocks * part // self.parts) * BLOCK, (blocks * (part + 1) // self.parts) * BLOCK
        return start, min(end, self.numel)

    def part_numel(self, part: int) -> int:
        """Values in a part, padding not counted."""
        start, end = self.bounds(part)
        return end - start


@dataclass(frozen=True)
class Roles:
    """Validators, workers and part owners of one round."""

    round: int
    present: tuple[PeerId, ...]
    validators: tuple[PeerId, ...]
    workers: tuple[PeerId, ...]  # in member order
    owners: tuple[PeerId, ...]  # workers in the order in which they own parts
    proposers: tuple[PeerId, ...]
    layout: PartLayout

    def aggregator(self, part: int, attempt: int, out: Collection[PeerId] = ()) -> PeerId | None:
        """Who reduces `part` in this attempt of `results`; whoever is out of the round does not."""
        if attempt == 0 and self.owners and self.owners[part] not in out:
            return self.owners[part]
        able = [owner for owner in self.owners if owner not in out]
        if not able:
            return None
        return able[(part + attempt) % len(able)]

    def owned(self, peer: PeerId) -> int | None:
        """The part that `peer` reduces in attempt 0, if it owns one."""
        first = self.owners[: self.layout.parts]
        return first.index(peer) if peer in first else None


@functools.lru_cache(RELAYS_KEPT)
def relays_of(randomness: bytes, worker: PeerId, aggregator: PeerId, present: tuple[PeerId, ...]) -> tuple[PeerId, ...]:
    """Who relays a part between the two, in the order in which they are asked."""
    others = [peer for peer in present if peer not in (worker, aggregator)]
    return permutation(randomness, f"relay/{worker.hex()}/{aggregator.hex()}", others)[:RELAYS]


def draw_roles(roster: Roster, randomness: bytes, round: int, numel: int, *, works: bool = True) -> Roles:
    """Roles of `round` from r[round - 1]. Round 0 only draws randomness; it and rounds that only audit have no workers.

    Validators are drawn among the members that were present in the round they audit and are not barred, and only while
    the others keep an honest majority: workers > 2 * (faulty members that are still present). Relieved workers own
    nothing.
    """
    present = roster.present
    proposers = permutation(randomness, "propose", present)
    if round == 0:
        return Roles(round, present, (), (), (), proposers, PartLayout(numel, 0))
    auditors = 0
    if round >= 2 and len(present) >= 4:
        faulty_present = max(0, roster.faulty_max - (len(roster.seats) - len(present)))
        auditors = min(drawn_count(randomness, roster.audits_per_round), len(present) - 2 * faulty_present - 1)
    eligible = [s.peer for s in roster.seats if not s.absent and not s.barred and s.present_since < round]
    validators = permutation(randomness, "validate", eligible)[: max(0, auditors)]
    if not works:
        return Roles(round, present, tuple(sorted(validators)), (), (), proposers, PartLayout(numel, 0))
    workers = tuple(peer for peer in present if peer not in validators)
    relieved = {seat.peer for seat in roster.seats if seat.relieved_until > round}
    able = [worker for worker in workers if worker not in relieved] or workers
    rest = [worker for worker in workers if worker not in able]
    owners = permutation(randomness, "own", able) + permutation(randomness, "own", rest)
    parts = min(len(able), -(-numel // BLOCK))
    return Roles(round, present, tuple(sorted(validators)), workers, owners, proposers, PartLayout(numel, parts))
