"""Members say what they hold of a decision that stands still, and are told what they lack and no more."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from btrain.protocol.chronicle import RETELLINGS_MAX
from btrain.protocol.effects import Send
from btrain.protocol.encoding import digest
from btrain.protocol.holdings import NOTHING, OFFSET_MAX, Holdings
from btrain.protocol.packets import Envelopes, Value, Where, decode_packet, encode_packet
from btrain.simulation.heap import Cut, NetworkPlan, NodeId
from btrain.simulation.peer import SimulatedPeer
from btrain.simulation.world import World

SECOND = 1_000_000
Run = Any  # the fixture of conftest.py

HASHES = st.sets(st.integers(0, 2**40).map(lambda i: digest(i.to_bytes(8, "big"))), max_size=60)


@given(HASHES, HASHES, st.integers(0, 1000))
def test_what_is_held_is_not_lacking_and_the_rest_is(held: set[bytes], others: set[bytes], count: int) -> None:
    lacking = Holdings.of(held, count).lacking(held | others)
    pieces = {hash[count % (OFFSET_MAX + 1) :][:3] for hash in held}
    assert not lacking & held
    assert others - held - lacking == {h for h in others - held if h[count % (OFFSET_MAX + 1) :][:3] in pieces}


def test_two_statements_with_a_piece_in_common_are_told_apart_the_next_time() -> None:
    one, other = b"abc" + bytes(29), b"abc" + b"\1" * 29
    assert not Holdings.of([one], 0).lacking([other])
    assert all(Holdings.of([one], count).lacking([other]) == {other} for count in range(1, OFFSET_MAX + 1))


def test_a_summary_fits_its_bound() -> None:
    summary = Holdings.of((digest(i.to_bytes(4, "big")) for i in range(20_000)), 7)
    assert decode_packet(encode_packet(Where(1, bytes(32), summary))) == Where(1, bytes(32), summary)


def halves(run: Run) -> World:
    """Four members of whom two hear each other and nobody else: no decision is possible."""
    world: World = run.world(4, 10, seed=5)
    left, right = frozenset(world.honest[:2]), frozenset(world.honest[2:])
    world.heap.plan = NetworkPlan(world.heap.plan.link, cuts=(Cut(left, right, 300_000, 10**12),))
    world.heap.run(8 * SECOND)
    return world


def member(world: World, index: int) -> SimulatedPeer:
    node = world.node(world.honest[index])
    assert node is not None
    return node


def answers(world: World, where: Where, now: int) -> list[bytes]:
    """What the first member hands the second for saying this."""
    effects = member(world, 0).member.packet(world.honest[1], encode_packet(where), now)
    packets = [decode_packet(effect.packet) for effect in effects if isinstance(effect, Send)]
    handed = [envelope for packet in packets if isinstance(packet, Envelopes) for envelope in packet.envelopes]
    return handed + [encode_packet(packet) for packet in packets if isinstance(packet, Value)]


def test_while_a_decision_stands_still_nothing_is_told_again_and_again(run: Run) -> None:
    world = halves(run)
    told: Counter[tuple[object, object, bytes]] = Counter()
    send = world.heap.send

    def watching(src: NodeId, dst: NodeId, payload: Any, size_bytes: int) -> None:
        packet = decode_packet(payload[1]) if payload[0] == "control" else None
        if isinstance(packet, Envelopes):
            told.update((src, dst, envelope) for envelope in packet.envelopes)
        send(src, dst, payload, size_bytes)

    world.heap.send = watching  # type: ignore[method-assign]
    world.heap.run(world.heap.now + 20 * SECOND)
    assert all(member(world, index).member.round is not None for index in range(4))
    assert 1 <= max(told.values()) <= 2  # signed, and handed on with others' Quits


def test_while_everybody_computes_little_is_said(run: Run) -> None:
    world = run.world(4, 3, compute_us=100 * SECOND)
    world.timings.compute_us = 60 * SECOND
    positions: Counter[object] = Counter()
    send = world.heap.send

    def watching(src: NodeId, dst: NodeId, payload: Any, size_bytes: int) -> None:
        positions[src] += payload[0] == "control" and isinstance(decode_packet(payload[1]), Where)
        send(src, dst, payload, size_bytes)

    world.heap.send = watching  # type: ignore[method-assign]
    world.run(3, 200 * SECOND)
    assert world.height(world.honest[0]) == 3
    assert max(positions.values()) <= 3 * (1 + 2 * 5 + 2)  # on connecting; after 4, 8, 16, 32, 64 Delta of two rounds


def test_a_member_is_told_what_it_lacks(run: Run) -> None:
    world = halves(run)
    held = member(world, 1).member.round.held
    state, now = member(world, 0).member.state, world.heap.now
    everything = answers(world, Where(state.round, state.head, NOTHING), now)
    assert everything
    assert answers(world, Where(state.round, state.head, Holdings.of(held, 3)), now) == []
    opened = member(world, 0).member.desk.verifier
    missing = next(m for m in (opened.open(e, state.run) for e in everything[:3]))
    later = now + 2 * world.charter.message_us
    assert answers(world, Where(state.round, state.head, Holdings.of(held - {missing.hash}, 4)), later) == [
        missing.data
    ]


def test_who_claims_to_hold_nothing_is_told_everything_twice_in_delta(run: Run) -> None:
    world = halves(run)
    state, now = member(world, 0).member.state, world.heap.now
    told = [answers(world, Where(state.round, state.head, NOTHING), now + i) for i in range(50)]
    assert sum(map(bool, told)) == RETELLINGS_MAX


def test_who_says_nothing_of_what_it_holds_is_told_blocks_only(run: Run) -> None:
    world = halves(run)
    state = member(world, 0).member.state
    assert answers(world, Where(state.round, state.head), world.heap.now) == []
