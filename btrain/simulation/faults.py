"""What goes wrong in a simulated run besides the attackers: crashes, freezes, broken links. Drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from btrain.identity import SigningKey
from btrain.simulation.heap import Cut, Heap, LinkPlan, NetworkPlan


@dataclass(frozen=True)
class Outage:
    """The peer of this index is not itself in [start_us, end_us).

    kind: 'crash' (killed, restarted at the end), 'freeze' (stopped and continued), 'cut' (no link works, what is sent
    is lost), 'clog' (no link works, what is sent comes at the end).
    """

    peer: int
    kind: str
    start_us: int
    end_us: int


@dataclass(frozen=True)
class Faults:
    """Outages of a run. At the latest `end_us` everybody is up and connected."""

    outages: tuple[Outage, ...] = ()

    @property
    def end_us(self) -> int:
        """When the last outage ends."""
        return max((outage.end_us for outage in self.outages), default=0)

    def network(self, keys: Sequence[SigningKey], link: LinkPlan) -> NetworkPlan:
        """The network with the broken links of this plan."""
        everybody = frozenset(key.public_key for key in keys)
        cuts = []
        for outage in self.outages:
            if outage.kind in ("cut", "clog"):
                one = frozenset({keys[outage.peer].public_key})
                cuts.append(Cut(one, everybody - one, outage.start_us, outage.end_us, clogged=outage.kind == "clog"))
        return NetworkPlan(link, cuts=tuple(cuts))

    def schedule(self, heap: Heap, keys: Sequence[SigningKey]) -> None:
        """Put crashes and freezes on the heap."""
        for outage in self.outages:
            node = keys[outage.peer].public_key
            if outage.kind == "crash":
                heap.crash(node, outage.start_us)
                heap.restart(node, outage.end_us)
            elif outage.kind == "freeze":
                heap.freeze(node, outage.start_us, outage.end_us)


def rolling_outages(
    random: random.Random, peers: int, at_once: int, count: int, first_us: int, span_us: int, longest_us: int
) -> Faults:
    """`count` outages that begin in [first, first + span), never more than `at_once` peers out at the same time."""
    outages: list[Outage] = []
    for _ in range(count if at_once else 0):
        start = first_us + random.randrange(span_us)
        outage = Outage(
            random.randrange(peers), random.choice(("crash", "freeze", "cut", "clog")), start,
            start + 1_000 + int(longest_us * random.random() ** 3),
        )  # fmt: skip
        together = [o for o in outages if o.start_us < outage.end_us and outage.start_us < o.end_us]
        if len({o.peer for o in together}) < at_once and all(o.peer != outage.peer for o in together):
            outages.append(outage)
    return Faults(tuple(outages))


def power_cut(random: random.Random, peers: int, first_us: int, span_us: int, longest_us: int) -> Faults:
    """Everybody is killed at one moment and comes back at a time of its own."""
    at = first_us + random.randrange(span_us)
    return Faults(tuple(Outage(peer, "crash", at, at + 1_000 + random.randrange(longest_us)) for peer in range(peers)))
