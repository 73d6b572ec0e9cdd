"""The deterministic core of every simulation: nodes, packets and timers on one heap of virtual time.

Seed in, run out: no event loop, no wall clock, no threads. Time is an integer count of microseconds. Events are ordered
by (time, rank, sequence); a packet ranks before a timer of the same instant, so that a bound on delays is inclusive.

A node is built by a factory, which is called again at each restart: whatever shall survive a crash lives outside the
node, in what the factory closes over. A frozen node (SIGSTOP) gets its packets and due timers, in order, when it thaws.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeAlias

from btrain.errors import BtrainError

NodeId: TypeAlias = Hashable
LinkId: TypeAlias = tuple[NodeId, NodeId]
Latency: TypeAlias = Callable[[NodeId, NodeId, object], int]  # (source, destination, payload) -> microseconds

PACKET_RANK = 0
TIMER_RANK = 1


class SimulationError(BtrainError):
    """A simulation is set up wrongly (unknown node, time in the past) or ran over its limit of events."""


class Node(Protocol):
    """What the heap drives. `now` is what the node's own clock shows, in microseconds."""

    def start(self, now: int) -> None:
        """Begin, or begin again after a restart."""

    def packet(self, src: NodeId, payload: object, now: int) -> None:
        """Take a packet that `src` sent."""

    def timer(self, name: str, now: int) -> None:
        """Act on the timer `name`, which is no longer set."""

    def connected(self, peer: NodeId, now: int) -> None:
        """Know that what was sent to `peer` before may be lost, and that it is reachable again."""


@dataclass(frozen=True)
class LinkPlan:
    """How one direction of a link treats packets.

    Latency is uniform in [latency_min_us, latency_max_us]; a bandwidth adds the time of transfer, one packet after the
    other. `loss` and `duplication` are probabilities per packet. `reordering` is the share of packets that may overtake
    earlier ones of the link: 1 is a datagram network, 0 a stream.
    """

    latency_min_us: int = 0
    latency_max_us: int = 1_000
    bandwidth_bytes_per_s: int | None = None
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 1.0


@dataclass(frozen=True)
class Clock:
    """A node's clock, `offset_us` ahead at the start and `drift_ppm` millionths too fast ever after."""

    offset_us: int = 0
    drift_ppm: int = 0

    def reading(self, at_us: int) -> int:
        """What the clock shows at a virtual time."""
        if not self.drift_ppm:
            return self.offset_us + at_us
        return self.offset_us + at_us * (1_000_000 + self.drift_ppm) // 1_000_000

    def when(self, reading_us: int) -> int:
        """The first virtual time at which the clock shows this or more."""
        if not self.drift_ppm:
            return reading_us - self.offset_us
        return -((self.offset_us - reading_us) * 1_000_000 // (1_000_000 + self.drift_ppm))


@dataclass(frozen=True)
class SlowReader:
    """What arrives in [start_us, end_us) is read at so many bytes a second; at the end the rest is read at once."""

    bytes_per_s: int
    start_us: int
    end_us: int

    def done_us(self, arrival_us: int, free_us: int, size_bytes: int) -> int:
        """When a packet has been read, if what came before it is read by `free_us`."""
        if not self.start_us <= arrival_us < self.end_us:
            return arrival_us
        done_us = max(arrival_us, free_us) + size_bytes * 1_000_000 // self.bytes_per_s
        return min(done_us, max(self.end_us, arrival_us))


@dataclass(frozen=True)
class Cut:
    """Links from `sources` to `destinations` are broken for packets sent in [start_us, end_us).

    `both_ways` breaks the opposite direction too. A clogged cut keeps packets and releases them at its end, any other
    drops them; at the end of a dropping cut both sides are told that they are connected again.
    """

    sources: frozenset[NodeId]
    destinations: frozenset[NodeId]
    start_us: int
    end_us: int
    both_ways: bool = True
    clogged: bool = False

    def covers(self, src: NodeId, dst: NodeId, now: int) -> bool:
        """Whether a packet from `src` to `dst` sent at `now` meets this cut."""
        if not self.start_us <= now < self.end_us:
            return False
        forward = src in self.sources and dst in self.destinations
        return forward or (self.both_ways and dst in self.sources and src in self.destinations)


@dataclass(frozen=True)
class NetworkPlan:
    """The plan of every link, exceptions by (source, destination), the cuts, slow readers.

    From `calm_from_us` on, if given, every link is `calm` and only cuts still hold.
    """

    link: LinkPlan = LinkPlan()
    links: Mapping[LinkId, LinkPlan] = field(default_factory=dict)
    cuts: tuple[Cut, ...] = ()
    readers: Mapping[NodeId, SlowReader] = field(default_factory=dict)
    calm_from_us: int | None = None
    calm: LinkPlan = LinkPlan()

    def link_of(self, link_id: LinkId, now: int) -> LinkPlan:
        """The plan of a link for a packet sent now."""
        if self.calm_from_us is not None and now >= self.calm_from_us:
            return self.calm
        return self.links.get(link_id, self.link)


class Port:
    """What a node acts through: its network card and its alarm clock."""

    def __init__(self, heap: Heap, node_id: NodeId) -> None:
        self._heap = heap
        self.node_id = node_id

    def send(self, dst: NodeId, payload: object, size_bytes: int = 0) -> None:
        """Send `payload` to `dst`; `size_bytes` counts against the bandwidth and in the statistics."""
        self._heap.send(self.node_id, dst, payload, size_bytes)

    def set_timer(self, name: str, at_us: int) -> None:
        """Set the timer `name`, in place of one of that name; a time in the past means now."""
        self._heap.set_timer(self.node_id, name, at_us)

    def cancel_timer(self, name: str) -> None:
        """Forget the timer `name` if it is set."""
        self._heap.cancel_timer(self.node_id, name)


@dataclass
class _Host:
    """A node's place in the heap; `life` counts its starts and crashes, so that an event of an earlier life is void."""

    factory: Callable[[Port], Node]
    clock: Clock = Clock()
    node: Node | None = None
    life: int = 0
    timers: dict[str, int] = field(default_factory=dict)
    thaw_at: int | None = None
    waiting: list[Callable[[], None]] = field(default_factory=list)


class Heap:
    """Run nodes over a simulated network; equal seeds, plans and nodes give equal runs.

    `latency`, if given, chooses each packet's latency in place of the link's uniform draw: a scripted schedule.
    `trace`, if set, takes in every packet and timer that reaches a node: equal runs have equal digests.
    """

    def __init__(
        self,
        seed: int,
        plan: NetworkPlan | None = None,
        *,
        latency: Latency | None = None,
        events_max: int = 10_000_000,
    ) -> None:
        self.now = 0
        self.random = random.Random(seed)
        self.plan = plan or NetworkPlan()
        self.latency = latency
        self.packets_sent = 0
        self.bytes_sent: dict[NodeId, int] = {}
        self._events_left = events_max
        self._sequence = 0
        self._events: list[tuple[int, int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._hosts: dict[NodeId, _Host] = {}
        self._busy_until: dict[LinkId, int] = {}
        self._last_arrival: dict[LinkId, int] = {}
        self._read_until: dict[NodeId, int] = {}
        self.trace: hashlib._Hash | None = None
        for cut in self.plan.cuts:
            if not cut.clogged:
                self.call(cut.end_us, lambda cut=cut: self._reconnect(cut))  # type: ignore[misc]

    def add(
        self, node_id: NodeId, factory: Callable[[Port], Node], start_us: int = 0, clock: Clock | None = None
    ) -> None:
        """Build a node and start it at `start_us`; until then it is not there and what is sent to it is lost."""
        if node_id in self._hosts:
            raise SimulationError(f"node {node_id!r} was added twice")
        self._hosts[node_id] = _Host(factory, clock or Clock())
        self.call(start_us, lambda: self._start(node_id))

    def call(self, at_us: int, action: Callable[[], None]) -> None:
        """Run `action` at a virtual time: a fault, a script, a measurement."""
        if at_us < self.now:
            raise SimulationError(f"{at_us} us is in the past, it is {self.now} us")
        self._push(at_us, PACKET_RANK, action)

    def crash(self, node_id: NodeId, at_us: int) -> None:
        """Kill the node at a time: its timers, its memory and the packets under way to it are lost."""
        self.call(at_us, lambda: self._crash(node_id))

    def restart(self, node_id: NodeId, at_us: int) -> None:
        """Build a crashed node anew and start it; everyone who is up is told that it is connected."""
        self.call(at_us, lambda: self._start(node_id))

    def freeze(self, node_id: NodeId, at_us: int, until_us: int) -> None:
        """Stop the node's execution in [at_us, until_us); packets and timers wait."""
        self.call(at_us, lambda: self._freeze(node_id, until_us))

    def reading(self, node_id: NodeId) -> int:
        """What the node's clock shows now."""
        return self._host(node_id).clock.reading(self.now)

    def node(self, node_id: NodeId) -> Node | None:
        """Return the running node, None while it is crashed or not yet started."""
        return self._host(node_id).node

    def run(self, until: int | Callable[[], bool]) -> int:
        """Run up to and including a time, or until a predicate holds or nothing is left; return the time reached.

        Raises SimulationError when more than `events_max` events ran: a node that never rests.
        """
        end, reached = (until, None) if isinstance(until, int) else (None, until)
        while self._events and (end is None or self._events[0][0] <= end):
            if reached is not None and reached():
                return self.now
            if self._events_left == 0:
                raise SimulationError(f"the limit of events was reached at {self.now} us")
            self._events_left -= 1
            self.now, _, _, action, arguments = heapq.heappop(self._events)
            action(*arguments)
        if end is not None:
            self.now = max(self.now, end)
        return self.now

    def send(self, src: NodeId, dst: NodeId, payload: object, size_bytes: int) -> None:
        """Put a packet on the link from `src` to `dst`, subject to the plan."""
        life = self._host(dst).life
        self.packets_sent += 1
        self.bytes_sent[src] = self.bytes_sent.get(src, 0) + size_bytes
        link_id = (src, dst)
        link = self.plan.link_of(link_id, self.now)
        departure = self._departure(src, dst) if self.plan.cuts else self.now
        if departure is None or self.random.random() < link.loss:
            return
        copies = 2 if self.random.random() < link.duplication else 1
        for _ in range(copies):
            arrival = self._arrival(link, link_id, departure, payload, size_bytes)
            self._push(arrival, PACKET_RANK, self._deliver, src, dst, life, payload)

    def inject(self, src: NodeId, dst: NodeId, payload: object) -> None:
        """Have a packet arrive now, whatever the links; a crashed node misses it, a frozen one gets it later."""
        self._deliver(src, dst, self._host(dst).life, payload)

    def set_timer(self, node_id: NodeId, name: str, at_us: int) -> None:
        """See Port.set_timer."""
        host = self._host(node_id)
        sequence = self._sequence + 1
        host.timers[name] = sequence
        self._push(max(host.clock.when(at_us), self.now), TIMER_RANK, self._fire, node_id, name, sequence)

    def cancel_timer(self, node_id: NodeId, name: str) -> None:
        """See Port.cancel_timer."""
        self._host(node_id).timers.pop(name, None)

    def _push(self, at_us: int, rank: int, action: Callable[..., None], *arguments: Any) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (at_us, rank, self._sequence, action, arguments))

    def _host(self, node_id: NodeId) -> _Host:
        host = self._hosts.get(node_id)
        if host is None:
            raise SimulationError(f"there is no node {node_id!r}")
        return host

    def _departure(self, src: NodeId, dst: NodeId) -> int | None:
        """When a packet of now enters the link; None if a cut drops it."""
        departure = self.now
        for cut in self.plan.cuts:
            if cut.covers(src, dst, self.now):
                if not cut.clogged:
                    return None
                departure = max(departure, cut.end_us)
        return departure

    def _arrival(self, link: LinkPlan, link_id: LinkId, departure: int, payload: object, size_bytes: int) -> int:
        if link.bandwidth_bytes_per_s is not None:
            begin = max(departure, self._busy_until.get(link_id, 0))
            departure = begin + -(-size_bytes * 1_000_000 // link.bandwidth_bytes_per_s)
            self._busy_until[link_id] = departure
        if self.latency is not None:
            arrival = departure + self.latency(*link_id, payload)
        else:
            arrival = departure + self._uniform(link.latency_min_us, link.latency_max_us)
        last = self._last_arrival.get(link_id, 0)
        if self.random.random() >= link.reordering and arrival < last:
            arrival = last
        if arrival > last:
            self._last_arrival[link_id] = arrival
        reader = self.plan.readers.get(link_id[1])
        if reader is not None:
            arrival = reader.done_us(arrival, self._read_until.get(link_id[1], 0), size_bytes)
            self._read_until[link_id[1]] = max(arrival, self._read_until.get(link_id[1], 0))
        return arrival

    def _uniform(self, least: int, most: int) -> int:
        """As `random.randint`, the same draws, without its three layers: one for every packet."""
        span = most - least + 1
        bits, draw = span.bit_length(), self.random.getrandbits
        offset = draw(bits)
        while offset >= span:
            offset = draw(bits)
        return least + offset

    def _deliver(self, src: NodeId, dst: NodeId, life: int, payload: object) -> None:
        host = self._hosts[dst]
        node = host.node
        if node is None or host.life != life:
            return
        if self.trace is not None:
            self.trace.update(repr((self.now, src, dst, payload)).encode())
        if host.thaw_at is None:
            node.packet(src, payload, host.clock.reading(self.now))
        else:
            host.waiting.append(lambda: node.packet(src, payload, host.clock.reading(self.now)))

    def _fire(self, node_id: NodeId, name: str, sequence: int) -> None:
        host = self._hosts[node_id]
        if host.timers.get(name) == sequence:
            self._when_thawed(host, self._ring, host, node_id, name, sequence)

    def _ring(self, host: _Host, node_id: NodeId, name: str, sequence: int) -> None:
        if host.node is not None and host.timers.get(name) == sequence:
            del host.timers[name]
            if self.trace is not None:
                self.trace.update(repr((self.now, node_id, name)).encode())
            host.node.timer(name, host.clock.reading(self.now))

    def _when_thawed(self, host: _Host, action: Callable[..., None], *arguments: Any) -> None:
        if host.thaw_at is None:
            action(*arguments)
        else:
            host.waiting.append(partial(action, *arguments))

    def _start(self, node_id: NodeId) -> None:
        host = self._host(node_id)
        if host.node is not None:
            raise SimulationError(f"node {node_id!r} is already running")
        host.life += 1
        host.node = host.factory(Port(self, node_id))
        host.node.start(host.clock.reading(self.now))
        for peer in self._hosts:
            if peer != node_id:
                self._tell_connected(node_id, peer)
                self._tell_connected(peer, node_id)

    def _crash(self, node_id: NodeId) -> None:
        host = self._host(node_id)
        host.node = None
        host.life += 1
        host.timers.clear()
        host.waiting.clear()
        host.thaw_at = None

    def _freeze(self, node_id: NodeId, until_us: int) -> None:
        host = self._host(node_id)
        if host.node is None:
            return
        host.thaw_at = max(until_us, host.thaw_at or 0)
        life = host.life
        self._push(until_us, PACKET_RANK, self._thaw, host, life)

    def _thaw(self, host: _Host, life: int) -> None:
        if host.life != life or host.thaw_at is None or self.now < host.thaw_at:
            return
        host.thaw_at = None
        waiting, host.waiting = host.waiting, []
        for action in waiting:
            action()

    def _reconnect(self, cut: Cut) -> None:
        for src in self._present(cut.sources):
            for dst in self._present(cut.destinations):
                if src != dst:
                    self._tell_connected(src, dst)
                    self._tell_connected(dst, src)

    def _present(self, ids: Collection[NodeId]) -> list[NodeId]:
        return [node_id for node_id in self._hosts if node_id in ids]

    def _tell_connected(self, node_id: NodeId, peer: NodeId) -> None:
        host = self._host(node_id)
        node = host.node
        if node is None or self._host(peer).node is None:
            return
        self._when_thawed(host, lambda: node.connected(peer, host.clock.reading(self.now)))
