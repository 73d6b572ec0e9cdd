"""Missing parts: who is left out on complaint, what receipts answer, and relays over the real protocol."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btrain.adversary.registry import get_adversary
from btrain.protocol.contribution import contribution_of, may_leave_out
from btrain.protocol.encoding import ZERO, PeerId, digest, encode
from btrain.protocol.ledger import Block, Complaint, Contribution, parted
from btrain.protocol.messages import Commit, Message, Missing, Receipt, Statement, sign
from btrain.protocol.roles import RELAYS, relays_of
from btrain.protocol.routes import ROUTE_ROUNDS, Routes
from btrain.simulation.heap import Cut, NetworkPlan
from btrain.simulation.world import World, simulated_keys

Run = Any  # the fixture of conftest.py

KEYS = simulated_keys(3, 16)
PEERS = [key.public_key for key in KEYS]


@given(st.integers(0, 7), st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), max_size=60))
def test_whatever_liars_complain_of_the_rest_keeps_its_honest_majority(
    faulty: int, edges: list[tuple[int, int]]
) -> None:
    complaints = [Complaint(PEERS[a], PEERS[b]) for a, b in edges if a != b and min(a, b) < faulty]
    out = parted(complaints)
    rest = [peer for peer in PEERS[:15] if peer not in out]
    liars = sum(peer in PEERS[:faulty] for peer in rest)
    assert len(rest) - liars > liars
    assert all({c.aggregator, c.worker} & out for c in complaints)


def test_many_aggregators_complaining_of_one_worker_leave_the_sum_with_one_of_them() -> None:
    assert parted([Complaint(PEERS[i], PEERS[0]) for i in range(1, 8)]) == {PEERS[0], PEERS[1]}


def test_a_result_leaves_out_nobody_one_pair_or_all() -> None:
    contribution = Contribution(ZERO, {}, (), tuple(PEERS[:5]))
    me, other, third = PEERS[0], PEERS[1], PEERS[2]
    assert may_leave_out((), me, contribution)
    assert may_leave_out((me, other), me, contribution)
    assert may_leave_out(tuple(PEERS[:5]), me, contribution)
    assert may_leave_out((other,), PEERS[9], contribution)  # an aggregator without a gradient has none to leave out
    for wrong in ((other,), (me,), (me, other, third), (me, PEERS[9])):
        assert not may_leave_out(wrong, me, contribution)


def statement(who: int, kind: str, body: Any, index: int = 0) -> Message:
    fields = {"version": 1, "run": ZERO, "group": 0, "prev": ZERO, "round": 3, "attempt": 0, "ctx": ZERO}
    return sign(KEYS[who], Statement(kind=kind, index=index, sender=PEERS[who], body=encode(body), **fields))  # type: ignore[arg-type]


def commits(count: int) -> list[Message]:
    leaves = [tuple(digest(bytes([who, part])) for part in range(count)) for who in range(count)]
    return [statement(who, "commit", Commit(leaves[who], (), (), (), (), (), 0, 0)) for who in range(count)]


@pytest.mark.parametrize(("worker", "part", "leaf", "answered"), [
    (2, 0, bytes([2, 0]), True), (2, 0, bytes([2, 1]), False), (2, 1, bytes([2, 1]), False),
    (3, 0, bytes([3, 0]), False),
])  # fmt: skip
def test_a_receipt_answers_the_complaint_about_its_own_bytes(
    worker: int, part: int, leaf: bytes, answered: bool
) -> None:
    complaint = statement(0, "missing", Missing(0, (PEERS[2], PEERS[4])), index=1)
    receipt = statement(1, "receipt", Receipt(PEERS[worker], part, digest(leaf)), index=part * 256 + worker)
    contribution, items = contribution_of([*commits(5), complaint, receipt])
    assert (contribution.missing == ()) is answered
    assert contribution.out == (frozenset() if answered else {PEERS[0], PEERS[2]})
    assert len(items) == 7 and set(contribution.disputes) == {complaint, receipt}


@given(st.binary(max_size=8), st.integers(0, 15), st.integers(0, 15), st.integers(2, 16))
def test_relays_are_drawn_among_the_others(seed: bytes, worker: int, aggregator: int, present: int) -> None:
    drawn = relays_of(digest(seed), PEERS[worker], PEERS[aggregator], tuple(PEERS[:present]))
    others = set(PEERS[:present]) - {PEERS[worker], PEERS[aggregator]}
    assert len(set(drawn)) == len(drawn) == min(RELAYS, len(others)) and set(drawn) <= others


def test_a_pair_keeps_its_relay_until_there_is_a_link_again_or_for_so_many_rounds() -> None:
    routes = Routes()
    one, other, third = PEERS[:3]
    routes.keep(one, other, 5)
    assert routes.relay_to(one, 5 + ROUTE_ROUNDS - 1) == other
    assert routes.relay_to(one, 5 + ROUTE_ROUNDS) == one
    routes.connected(one)
    assert routes.relay_to(one, 6) == one
    for round, peer in enumerate(PEERS):
        routes.carry((peer, third), round, 4)
    assert [routes.carries((peer, third), 16) for peer in PEERS] == [False] * 12 + [True] * 4


def test_relays_of_members_that_are_gone_are_forgotten() -> None:
    routes = Routes()
    for round in range(3 * ROUTE_ROUNDS):
        routes.keep(digest(round.to_bytes(2, "big")), PEERS[0], round)
    assert len(routes.via) == ROUTE_ROUNDS


# --- over the real protocol ---


def broken_link(run: Run, peers: int, rounds: int, *, both_ways: bool, seed: int = 0) -> World:
    """A run in which the link from peer 1 to peer 2 never works."""
    world: World = run.world(peers, rounds, seed=seed, numel=1024 * peers)
    one, other = (frozenset({world.keys[i].public_key}) for i in (1, 2))
    world.heap.plan = NetworkPlan(world.heap.plan.link, cuts=(Cut(one, other, 0, 10**12, both_ways=both_ways),))
    return world


def ledger(run: Run, world: World) -> list[Block]:
    run.to_the_end(world)
    blocks: list[Block] = world.blocks(world.honest[0])
    assert not any(block.bans for block in blocks)
    return blocks


def seconds_a_round(world: World, peer: PeerId) -> list[float]:
    ends = [at for at, name, _ in world.identities[peer].events if name == "block"]
    return [(end - start) / 1e6 for start, end in pairwise(ends)]


@pytest.mark.parametrize("peers", [4, 5])
def test_a_link_broken_one_way_keeps_both_in_the_sum(run: Run, peers: int) -> None:
    blocks = ledger(run, broken_link(run, peers, 10, both_ways=False))
    assert all(block.contributors == tuple(sorted(block.contributors)) and not block.missing for block in blocks)
    assert [len(block.contributors) for block in blocks[1:]] == [peers] + [peers - 1] * 8
    assert not any(block.absences or block.void for block in blocks[1:])


def test_who_withholds_its_part_from_all_leaves_the_sum_with_one_other(run: Run) -> None:
    coalition = frozenset({simulated_keys(0, 5)[1].public_key})
    byzantine = {1: get_adversary("withhold_part", coalition=coalition, attack_from=1, seed=0)}
    world = run.world(5, 8, byzantine=byzantine, numel=5 * 1024)
    blocks = ledger(run, world)
    assert not any(block.void for block in blocks[1:])
    assert all(len(block.contributors) >= 2 for block in blocks[1:])
