"""What goes wrong in a simulated run besides the attackers: a plan of faults by the positions of the peers.

Faults hold in the safety phase. At `end_us` they are over: who may restart is up, every link is calm, every clock
runs on as it ran; from then on the run must make progress.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from btrain.identity import SigningKey
from btrain.simulation.heap import Clock, Cut, Heap, LinkId, LinkPlan, NetworkPlan, SlowReader

CALM = LinkPlan(latency_min_us=1_000, latency_max_us=20_000)


@dataclass(frozen=True)
class Outage:
    """The peer of this index is not itself in [start_us, end_us).

    kind: 'crash' (killed, restarted at the end; for ever if there is none), 'freeze' (stopped and continued), 'cut' (no
    link works, what is sent is lost), 'deaf' and 'mute' (the same, but only to it, or from it), 'clog' (no link works,
    what is sent comes at the end).
    """

    peer: int
    kind: str
    start_us: int
    end_us: int | None

    @property
    def until_us(self) -> float:
        """The end, infinity if there is none."""
        return float("inf") if self.end_us is None else self.end_us


@dataclass(frozen=True)
class Partition:
    """Nothing that `sources` send reaches `destinations` in [start_us, end_us), nor back unless `one_way`.

    A clogged partition delivers at its end, any other loses.
    """

    sources: tuple[int, ...]
    destinations: tuple[int, ...]
    start_us: int
    end_us: int
    one_way: bool = False
    clogged: bool = False


@dataclass(frozen=True)
class Faults:
    """The faults of a run. `links` maps (sender, receiver) to the plan of that direction, `link` is that of all others.

    `sync_us`: how long a disk takes to make a batch of writes durable; a crash meanwhile loses part of it.
    `safety_us`: when faults without an end of their own are over; None: never.
    """

    outages: tuple[Outage, ...] = ()
    partitions: tuple[Partition, ...] = ()
    link: LinkPlan | None = None
    links: Mapping[tuple[int, int], LinkPlan] = field(default_factory=dict)
    clocks: Mapping[int, Clock] = field(default_factory=dict)
    readers: Mapping[int, SlowReader] = field(default_factory=dict)
    sync_us: int = 0
    safety_us: int | None = None

    @property
    def end_us(self) -> int:
        """When the last fault ends."""
        ends = [outage.start_us if outage.end_us is None else outage.end_us for outage in self.outages]
        ends += [partition.end_us for partition in self.partitions]
        ends += [reader.end_us for reader in self.readers.values()]
        return max((*ends, self.safety_us or 0))

    @property
    def gone(self) -> frozenset[int]:
        """Who crashes and does not come back."""
        return frozenset(outage.peer for outage in self.outages if outage.end_us is None)

    def network(self, keys: Sequence[SigningKey], link: LinkPlan) -> NetworkPlan:
        """The network under this plan; `link` is what calm links are like."""
        ids = [key.public_key for key in keys]
        links: dict[LinkId, LinkPlan] = {(ids[src], ids[dst]): plan for (src, dst), plan in self.links.items()}
        return NetworkPlan(
            self.link or link, links, self._cuts(ids), {ids[peer]: reader for peer, reader in self.readers.items()},
            None if self.safety_us is None else self.end_us, link,
        )  # fmt: skip

    def _cuts(self, ids: Sequence[bytes]) -> tuple[Cut, ...]:
        everybody = frozenset(ids)
        cuts = []
        for o in self.outages:
            if o.kind in ("cut", "clog", "deaf", "mute") and o.end_us is not None:
                one = frozenset({ids[o.peer]})
                sides = (everybody - one, one) if o.kind == "deaf" else (one, everybody - one)
                both_ways = o.kind in ("cut", "clog")
                cuts.append(Cut(*sides, o.start_us, o.end_us, both_ways, o.kind == "clog"))
        for p in self.partitions:
            sources, destinations = (frozenset(ids[peer] for peer in side) for side in (p.sources, p.destinations))
            cuts.append(Cut(sources, destinations, p.start_us, p.end_us, not p.one_way, p.clogged))
        return tuple(cuts)

    def schedule(self, heap: Heap, keys: Sequence[SigningKey]) -> None:
        """Put crashes and freezes on the heap."""
        for outage in self.outages:
            node = keys[outage.peer].public_key
            if outage.kind == "crash":
                heap.crash(node, outage.start_us)
                if outage.end_us is not None:
                    heap.restart(node, outage.end_us)
            elif outage.kind == "freeze" and outage.end_us is not None:
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
        if fits(outage, outages, at_once):
            outages.append(outage)
    return Faults(tuple(outages))


def fits(outage: Outage, others: Sequence[Outage], at_once: int) -> bool:
    """Whether with this outage too no peer is out twice and no more than `at_once` peers are out at any time."""
    together = [o for o in others if o.start_us < outage.until_us and outage.start_us < o.until_us]
    return len({o.peer for o in together}) < at_once and all(o.peer != outage.peer for o in together)


def power_cut(random: random.Random, peers: int, first_us: int, span_us: int, longest_us: int) -> Faults:
    """Everybody is killed at one moment and comes back at a time of its own."""
    at = first_us + random.randrange(span_us)
    return Faults(tuple(Outage(peer, "crash", at, at + 1_000 + random.randrange(longest_us)) for peer in range(peers)))
