"""The simulated network and its clock: determinism, order, faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btrain.simulation.heap import Cut, Heap, LinkPlan, NetworkPlan, NodeId, Port, SimulationError

FIXED = LinkPlan(latency_min_us=100, latency_max_us=100)


@dataclass
class Recorder:
    """Writes down everything that happens to it."""

    port: Port
    log: list[tuple[object, ...]]
    on_start: Callable[[Port], None] = field(default=lambda port: None)

    def start(self, now: int) -> None:
        self.log.append((now, "start"))
        self.on_start(self.port)

    def packet(self, src: NodeId, payload: object, now: int) -> None:
        self.log.append((now, "packet", src, payload))

    def timer(self, name: str, now: int) -> None:
        self.log.append((now, "timer", name))

    def connected(self, peer: NodeId, now: int) -> None:
        self.log.append((now, "connected", peer))


def pair(
    plan: NetworkPlan, a_starts: Callable[[Port], None] = lambda port: None, seed: int = 0
) -> tuple[Heap, list[tuple[object, ...]], list[tuple[object, ...]]]:
    """A heap with nodes "b" and "a", "a" acting at its start; returns it with the logs of a and b."""
    heap = Heap(seed, plan)
    log_a: list[tuple[object, ...]] = []
    log_b: list[tuple[object, ...]] = []
    heap.add("b", lambda port: Recorder(port, log_b))
    heap.add("a", lambda port: Recorder(port, log_a, a_starts))
    return heap, log_a, log_b


def packets(log: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    return [entry for entry in log if entry[1] == "packet"]


def timers(log: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    return [entry for entry in log if entry[1] == "timer"]


def send_many(count: int, size_bytes: int = 0) -> Callable[[Port], None]:
    def act(port: Port) -> None:
        for index in range(count):
            port.send("b", index, size_bytes)

    return act


@given(seed=st.integers(0, 2**32))
def test_equal_seeds_give_equal_runs(seed: int) -> None:
    plan = NetworkPlan(LinkPlan(0, 500, loss=0.2, duplication=0.2))
    logs = []
    for _ in range(2):
        heap, _, log_b = pair(plan, send_many(20), seed)
        heap.run(10_000)
        logs.append(log_b)
    assert logs[0] == logs[1]


def test_other_seeds_give_other_runs() -> None:
    logs = []
    for seed in range(2):
        heap, _, log_b = pair(NetworkPlan(), send_many(20), seed)
        heap.run(10_000)
        logs.append(log_b)
    assert logs[0] != logs[1]


def test_a_packet_precedes_a_timer_of_the_same_instant() -> None:
    heap, _, log_b = pair(NetworkPlan(FIXED), send_many(1))
    heap.call(0, lambda: heap.set_timer("b", "deadline", 100))
    heap.run(1_000)
    assert [entry[1] for entry in log_b if entry[1] in ("packet", "timer")] == ["packet", "timer"]


def test_a_timer_is_replaced_and_cancelled() -> None:
    heap, _, log_b = pair(NetworkPlan())
    for name, at in (("kept", 10), ("moved", 10), ("dropped", 10), ("moved", 30)):
        heap.call(0, lambda name=name, at=at: heap.set_timer("b", name, at))  # type: ignore[misc]
    heap.call(5, lambda: heap.cancel_timer("b", "dropped"))
    heap.run(1_000)
    assert timers(log_b) == [(10, "timer", "kept"), (30, "timer", "moved")]


def test_a_stream_keeps_the_order_and_a_datagram_network_does_not() -> None:
    for reordering, ordered in ((0.0, True), (1.0, False)):
        heap, _, log_b = pair(NetworkPlan(LinkPlan(0, 1_000, reordering=reordering)), send_many(50))
        heap.run(10_000)
        payloads = [entry[3] for entry in packets(log_b)]
        assert len(payloads) == 50
        assert (payloads == sorted(payloads)) is ordered  # type: ignore[type-var]


def test_bandwidth_serialises_the_packets_of_a_link() -> None:
    link = LinkPlan(100, 100, bandwidth_bytes_per_s=1_000_000)
    heap, _, log_b = pair(NetworkPlan(link), send_many(3, size_bytes=1_000))
    heap.run(10_000)
    assert [entry[0] for entry in packets(log_b)] == [1_100, 2_100, 3_100]
    assert heap.bytes_sent["a"] == 3_000


def test_loss_and_duplication_have_their_rates() -> None:
    heap, _, log_b = pair(NetworkPlan(LinkPlan(loss=0.5)), send_many(1_000))
    heap.run(10_000)
    assert 400 < len(packets(log_b)) < 600
    heap, _, log_b = pair(NetworkPlan(LinkPlan(duplication=0.5)), send_many(1_000))
    heap.run(10_000)
    assert 1_400 < len(packets(log_b)) < 1_600


def send_at(heap: Heap, src: str, dst: str, at: int) -> None:
    heap.call(at, lambda: heap.send(src, dst, at, 0))


def test_a_cut_drops_in_its_direction_and_tells_when_it_ends() -> None:
    cut = Cut(frozenset("a"), frozenset("b"), 10, 20, both_ways=False)
    heap, log_a, log_b = pair(NetworkPlan(FIXED, cuts=(cut,)))
    for at in (9, 10, 19, 20):
        send_at(heap, "a", "b", at)
        send_at(heap, "b", "a", at)
    heap.run(1_000)
    assert [entry[3] for entry in packets(log_b)] == [9, 20]
    assert [entry[3] for entry in packets(log_a)] == [9, 10, 19, 20]
    assert (20, "connected", "b") in log_a
    assert (20, "connected", "a") in log_b


def test_a_clogged_link_releases_its_packets_at_the_end() -> None:
    cut = Cut(frozenset("a"), frozenset("b"), 10, 500, clogged=True)
    heap, _, log_b = pair(NetworkPlan(FIXED, cuts=(cut,)))
    send_at(heap, "a", "b", 15)
    heap.run(1_000)
    assert packets(log_b) == [(600, "packet", "a", 15)]


def test_a_crash_loses_timers_and_packets_and_a_restart_builds_anew() -> None:
    heap, log_a, log_b = pair(NetworkPlan(FIXED))
    heap.call(0, lambda: heap.set_timer("b", "old", 300))
    send_at(heap, "a", "b", 10)
    heap.crash("b", 50)
    send_at(heap, "a", "b", 60)
    heap.restart("b", 200)
    send_at(heap, "a", "b", 210)
    heap.run(1_000)
    assert packets(log_b) == [(310, "packet", "a", 210)]
    assert timers(log_b) == []
    assert [entry for entry in log_b if entry[1] == "start"] == [(0, "start"), (200, "start")]
    assert (200, "connected", "b") in log_a
    assert (200, "connected", "a") in log_b


def test_a_frozen_node_gets_everything_in_order_at_the_thaw() -> None:
    heap, _, log_b = pair(NetworkPlan(FIXED))
    heap.freeze("b", 50, 500)
    heap.call(0, lambda: heap.set_timer("b", "alarm", 150))
    send_at(heap, "a", "b", 10)
    send_at(heap, "a", "b", 100)
    heap.run(1_000)
    assert [entry for entry in log_b if entry[0] == 500] == [
        (500, "packet", "a", 10),
        (500, "timer", "alarm"),
        (500, "packet", "a", 100),
    ]


def test_a_crash_ends_a_freeze() -> None:
    heap, _, log_b = pair(NetworkPlan(FIXED))
    heap.freeze("b", 50, 500)
    send_at(heap, "a", "b", 10)
    heap.crash("b", 200)
    heap.restart("b", 300)
    send_at(heap, "a", "b", 310)
    heap.run(1_000)
    assert packets(log_b) == [(410, "packet", "a", 310)]


def test_run_stops_at_a_predicate_and_at_the_limit_of_events() -> None:
    heap, _, log_b = pair(NetworkPlan(FIXED), send_many(3))
    heap.run(lambda: bool(packets(log_b)))
    assert len(packets(log_b)) == 1
    restless = Heap(0, events_max=100)

    class Restless(Recorder):
        def timer(self, name: str, now: int) -> None:
            self.port.set_timer(name, now)

    restless.add("a", lambda port: Restless(port, [], lambda port: port.set_timer("spin", 0)))
    with pytest.raises(SimulationError, match="limit of events"):
        restless.run(10)


def test_mistakes_in_the_setup_are_named() -> None:
    heap, _, _ = pair(NetworkPlan())
    with pytest.raises(SimulationError, match="added twice"):
        heap.add("a", lambda port: Recorder(port, []))
    with pytest.raises(SimulationError, match="no node 'c'"):
        heap.send("a", "c", None, 0)
    heap.run(100)
    with pytest.raises(SimulationError, match="past"):
        heap.call(50, lambda: None)


def test_an_injected_packet_needs_no_link_but_a_running_node() -> None:
    cut = Cut(frozenset("a"), frozenset("b"), 0, 1_000)
    heap, _, log_b = pair(NetworkPlan(FIXED, cuts=(cut,)))
    heap.freeze("b", 50, 100)
    for at in (10, 60, 210):
        heap.call(at, lambda at=at: heap.inject("a", "b", at))  # type: ignore[misc]
    heap.crash("b", 200)
    heap.restart("b", 300)
    heap.run(900)
    assert packets(log_b) == [(10, "packet", "a", 10), (100, "packet", "a", 60)]


def test_a_chosen_latency_takes_the_place_of_the_draw() -> None:
    heap = Heap(0, NetworkPlan(FIXED), latency=lambda src, dst, payload: 7 if payload == 1 else 3)
    log: list[tuple[object, ...]] = []
    heap.add("b", lambda port: Recorder(port, log))
    heap.add("a", lambda port: Recorder(port, [], send_many(2)))
    heap.run(100)
    assert packets(log) == [(3, "packet", "a", 0), (7, "packet", "a", 1)]
