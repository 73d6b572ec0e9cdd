"""CHECK over the real protocol: a faulty part does not count in its own round, and whoever made it so is found."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from btrain.adversary.registry import get_adversary
from btrain.adversary.sender import Withholding, others
from btrain.protocol.agreement_messages import Items
from btrain.protocol.behaviour import Behaviour
from btrain.protocol.block_items import BlockItems, dispute_key, link_key, table_key
from btrain.protocol.decisions import BLOCK
from btrain.protocol.effects import Send
from btrain.protocol.encoding import ZERO, encode
from btrain.protocol.evidence import open_evidence, verify_evidence
from btrain.protocol.ledger import Block
from btrain.protocol.messages import Approval, Dispute, Message, Result, Reveal, Statement, Table, Verifier, sign
from btrain.protocol.packets import Envelopes, encode_packet
from btrain.protocol.round import Round
from btrain.simulation.faults import Faults, rolling_outages
from btrain.simulation.world import World

Run = Any  # the fixture of conftest.py
SECOND = 1_000_000
NUMEL = 6000


def attacked(run: Run, spec: str, members: tuple[int, ...] = (1,), *, peers: int = 5, rounds: int = 6, seed: int = 1,
             faults: Faults | None = None) -> World:  # fmt: skip
    keys = run.world(peers, rounds, seed=seed).keys
    coalition = frozenset(keys[i].public_key for i in members)
    byzantine = {i: get_adversary(spec, coalition=coalition, attack_from=2, seed=seed) for i in members}
    world = run.world(peers, rounds, seed=seed, numel=NUMEL, byzantine=byzantine, faults=faults)
    world.timings.compute_us = 200_000  # computing takes longer than proving, as with real models
    return world


def blocks_of(world: World) -> list[Block]:
    return world.blocks(world.honest[0])


def check_evidence(run: Run, world: World, deed: str) -> None:
    bundles = [
        data for peer in world.honest for _, _, name, data in world.identities[peer].disk.evidence if name == deed
    ]
    assert bundles
    for data in bundles:
        finding = verify_evidence(open_evidence(data), Verifier(), lambda _: run.rule)
        assert (finding.deed, finding.proof) == (deed, "bytes")
        assert finding.accused not in world.honest


def own_parts(world: World, block: Block) -> set[int]:
    """Parts of a block that attackers aggregated."""
    byzantine = {world.keys[i].public_key for i in world.byzantine}
    return {entry.part for entry in block.results if entry.aggregator in byzantine}


# --- honest runs ---


@pytest.mark.parametrize("peers", [1, 3, 5])
def test_honest_parts_all_count_in_attempt_0(run: Run, peers: int) -> None:
    world = run.to_the_end(run.world(peers, 6, seed=peers, numel=NUMEL))
    for block in blocks_of(world)[1:]:
        assert [entry.part for entry in block.tables] == [entry.part for entry in block.results] != []
        assert block.void_parts == block.disputes == block.absences == ()
    events = [name for peer in world.honest for _, name, _ in world.identities[peer].events]
    assert "table" not in events
    assert world.heap.now < 6 * SECOND  # no deadline of half a second was waited for in any of 15 decisions


def test_a_model_of_one_block_has_one_table(run: Run) -> None:
    world = run.to_the_end(run.world(4, 5, seed=9, numel=650))
    assert all(len(block.tables) == 1 and not block.void_parts for block in blocks_of(world)[1:])


class Killed(Behaviour):
    """Honest; killed between its link and its Table of round 1."""

    world: World

    def broadcast(self, desk: Any, message: Message, round: Round) -> None:
        desk.broadcast(message)
        heap = self.world.heap
        if isinstance(message.body, Reveal) and round.round == 1 and heap.now < 2 * SECOND:
            heap.crash(desk.me, heap.now + 1)
            heap.restart(desk.me, heap.now + 20 * SECOND)


def test_an_aggregator_killed_before_its_table_loses_one_slice_of_one_update(run: Run) -> None:
    killed = Killed()
    world = killed.world = run.world(5, 6, seed=3, numel=NUMEL, byzantine={2: killed})
    run.to_the_end(world)
    blocks, peer = blocks_of(world), world.keys[2].public_key
    assert blocks[1].absences == (peer,)
    assert set(blocks[1].void_parts) == own_parts(world, blocks[1]) != set()
    assert not any(block.void_parts or block.bans for block in blocks[2:])


# --- attackers ---

FOUND = {
    "wrong_reduce": "wrong_reduction",
    "wrong_reduce:shift=0.1": "wrong_reduction",
    "just_inside_sketch:errors=6": "wrong_reduction",
    "lie_table": "wrong_table",
    "drop_contributor": "wrong_reduction",
    "deny_row": "wrong_table",
    "wrong_tau": "wrong_table",
}


QUICK = {"wrong_reduce", "lie_table"}


@pytest.mark.parametrize("spec", [s if s in QUICK else pytest.param(s, marks=pytest.mark.slow) for s in FOUND])
def test_a_faulty_part_is_void_in_its_round_and_its_aggregator_banned_in_the_next_block(run: Run, spec: str) -> None:
    world = attacked(run, spec)
    run.to_the_end(world)
    blocks = blocks_of(world)
    first = next(block for block in blocks if block.void_parts)
    assert set(first.void_parts) == own_parts(world, first) != set()
    for block in blocks[2:]:
        assert own_parts(world, block) <= set(block.void_parts)
    ((_, (deed, of, banned)),) = run.bans(world).items()
    assert (of, banned) == (first.round, first.round + 1)
    assert deed in {FOUND[spec], "wrong_reduction"}
    check_evidence(run, world, deed)


@pytest.mark.parametrize(
    "spec", ["directed_rounding", pytest.param("just_inside_sketch:errors=2", marks=pytest.mark.slow)]
)
def test_a_shift_of_a_rounding_error_counts_once_and_is_found(run: Run, spec: str) -> None:
    world = attacked(run, spec)
    run.to_the_end(world)
    assert not any(block.void_parts for block in blocks_of(world))
    ((_, (deed, of, banned)),) = run.bans(world).items()
    assert (deed, banned) == ("wrong_reduction", of + 1)


@pytest.mark.slow
def test_forged_rows_of_friends_are_found_when_the_part_is_reduced_again(run: Run) -> None:
    world = attacked(run, "collude_table", (1, 4), peers=7, rounds=10)
    run.to_the_end(world)
    bans = run.bans(world)
    assert {deed for deed, _, _ in bans.values()} <= {"wrong_reduction", "wrong_table"}
    assert set(bans) == {world.keys[1].public_key, world.keys[4].public_key}


@pytest.mark.slow
def test_a_withheld_table_costs_the_part_and_the_seat(run: Run) -> None:
    world = attacked(run, "withhold_table")
    run.to_the_end(world)
    for block in blocks_of(world)[2:]:
        assert set(block.void_parts) == own_parts(world, block)
        assert bool(block.void_parts) == bool(block.absences)
    assert run.bans(world) == {}


@pytest.mark.parametrize("members", [(1,), (1, 4)])
def test_who_approves_nothing_costs_three_delta_and_no_further_attempt(run: Run, members: tuple[int, ...]) -> None:
    calm = run.to_the_end(run.world(5, 6, seed=1, numel=NUMEL)).heap.now
    world = attacked(run, "withhold_table:kind=approval", members)
    run.to_the_end(world)
    assert not any(block.void_parts or block.absences or block.disputes for block in blocks_of(world))
    assert world.heap.now < calm + 6 * 200_000 + 4 * 3.5 * world.charter.message_us


def test_a_false_dispute_voids_parts_once_and_costs_the_seat_for_ever(run: Run) -> None:
    world = attacked(run, "false_dispute")
    run.to_the_end(world)
    ((peer, (deed, of, banned)),) = run.bans(world).items()
    assert (peer, deed, banned) == (world.keys[1].public_key, "false_dispute", of + 1)
    blocks = blocks_of(world)
    assert [block.round for block in blocks if block.disputes] in ([of], [of, of + 1])
    assert not any(block.absences for block in blocks)
    check_evidence(run, world, "false_dispute")


@pytest.mark.parametrize(
    "kind", ["table", "result", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("approval", "dispute"))]
)
def test_two_statements_for_one_slot_of_this_phase_are_evidence(run: Run, kind: str) -> None:
    world = run.world(5, 6, seed=4, numel=NUMEL, byzantine={1: TwoFaced(kind)})
    run.to_the_end(world)
    (deed,) = [deed for deed, _, _ in run.bans(world).values()]
    assert deed == "equivocation" or (kind, deed) == ("dispute", "false_dispute")


def test_of_two_tables_for_one_part_neither_counts(run: Run) -> None:
    world = run.world(5, 6, seed=4, numel=NUMEL, byzantine={1: TwoFaced("table")})
    run.to_the_end(world)
    two_faced = next(block for block in blocks_of(world)[2:] if own_parts(world, block))
    (part,) = own_parts(world, two_faced)
    assert part not in {entry.part for entry in two_faced.tables}
    assert part in two_faced.void_parts


# --- attackers that choose the moment ---


class TwoFaced(Behaviour):
    """Signs a second statement of a kind and shows one to each half."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def approves(self, table: Message, right: bool, round: Round) -> bool:
        return right and self.kind != "dispute"

    def broadcast(self, desk: Any, message: Message, round: Round) -> None:
        if message.statement.kind != self.kind or round.round < 2:
            desk.broadcast(message)
            return
        second = sign(desk.key, self.other(message))
        for position, peer in enumerate(others(round)):
            desk.send(Envelopes(((second if position % 2 else message).data,)), peer)

    def other(self, message: Message) -> Statement:
        body = message.body
        if isinstance(body, Result):  # of the same bytes: which coefficients count must be the same for everybody
            return replace(
                message.statement, body=encode(replace(body, coefficients=tuple(2 * c for c in body.coefficients)))
            )
        if isinstance(body, Table):
            return replace(message.statement, body=encode(replace(body, tau=body.tau + 1)))
        return replace(message.statement, ctx=ZERO)


@dataclass
class Edge(Withholding):
    """Shows statements of some kinds to one member only, at a moment around the deadlines of `block`."""

    kinds: tuple[type, ...] = (Table,)
    late: float = 12.0
    lies: bool = False
    sent: list[int] = field(default_factory=list)

    def broadcast(self, desk: Any, message: Message, round: Round) -> None:
        if round.round < 2 or not isinstance(message.body, self.kinds):
            desk.broadcast(message)
            return
        self.withhold(message)
        dice = random.Random(f"{self.seed}/{round.round}/{message.statement.kind}/{message.statement.index}")
        peers = [peer for peer in others(round) if peer not in self.coalition]
        packet = encode_packet(Envelopes((message.data,)))
        for peer in dice.sample(peers, dice.randrange(1, len(peers))):
            desk.emit(Send(packet, peer, max(1, int(dice.uniform(0.0, self.late) * round.clock.delta_us))))

    def approves(self, table: Message, right: bool, round: Round) -> bool:
        return right and not (self.lies and round.round >= 2)


def edge_run(run: Run, edge: Mapping[str, Any], seed: int, faults: Faults | None = None, peers: int = 5) -> World:
    keys = run.world(peers, 5, seed=seed).keys
    members = (0, 3) if peers > 5 else (3,)
    coalition = frozenset(keys[i].public_key for i in members)
    byzantine = {i: Edge(coalition=coalition, seed=seed, **edge) for i in members}
    world = run.world(peers, 5, seed=seed, numel=NUMEL, byzantine=byzantine, faults=faults)
    return run.to_the_end(world, faults)


EDGES: dict[str, dict[str, Any]] = {
    "table": {"kinds": (Table,)},
    "link": {"kinds": (Reveal,)},
    "link and table": {"kinds": (Reveal, Table)},
    "approval": {"kinds": (Approval,)},
    "dispute": {"kinds": (Dispute,), "lies": True},
    "all": {"kinds": (Reveal, Table, Dispute, Approval), "lies": True},
}


@pytest.mark.parametrize("edge", ["link and table", "all"])
def test_what_comes_at_the_edge_forks_nobody_and_stops_nobody(run: Run, edge: str) -> None:
    world = edge_run(run, EDGES[edge], seed=len(edge))
    assert set(run.bans(world)) <= {world.keys[3].public_key}
    honest = set(world.honest)
    for block in blocks_of(world):
        assert not honest & set(block.absences)


@pytest.mark.slow
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("seed", range(12))
def test_many_edges(run: Run, edge: str, seed: int) -> None:
    world = edge_run(run, EDGES[edge], seed=1000 + seed, peers=7 if seed % 3 == 0 else 5)
    honest = set(world.honest)
    assert not any(honest & {ban.peer for ban in block.bans} for block in blocks_of(world))
    assert not any(honest & set(block.absences) for block in blocks_of(world))


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**20), st.sampled_from(["lie_table", "wrong_reduce", "withhold_table", "false_dispute"]))
def test_attacks_among_crashes_and_broken_links(run: Run, seed: int, spec: str) -> None:
    faults = rolling_outages(run.random(seed), 7, 1, 4, SECOND, 8 * SECOND, 4 * SECOND)
    world = attacked(run, spec, (5,), peers=7, rounds=8, seed=seed % 97, faults=faults)
    run.to_the_end(world, faults)
    assert set(run.bans(world)) <= {world.keys[5].public_key}


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**20))
def test_honest_runs_under_faults_ban_nobody(run: Run, seed: int) -> None:
    faults = rolling_outages(run.random(seed), 5, 1, 5, SECOND // 10, 6 * SECOND, 4 * SECOND)
    world = run.to_the_end(run.world(5, 10, seed=seed % 89, numel=NUMEL, faults=faults), faults)
    blocks = blocks_of(world)
    assert not any(block.bans or block.disputes for block in blocks)
    assert all(entry.verdict == 0 for block in blocks for entry in block.tables)


# --- the items of the decision ---

PEER = bytes(range(32))


@pytest.mark.parametrize(
    "key",
    ["", "link", "link:", "link:zz", f"link:{PEER.hex().upper()}", "table:1:0", "table:00001:00", "table:00001",
     "table:-0001:0", f"dispute:1:{PEER.hex()}", "dispute:00001", "result:00001:0", f"link:{PEER.hex()}:0"],
)  # fmt: skip
def test_what_is_no_item_of_a_block(key: str) -> None:
    assert BlockItems.read({key: ZERO}) is None


def test_items_are_read_as_they_are_named() -> None:
    items: Items = {link_key(PEER): ZERO, table_key(3, 2): PEER, table_key(1, 0): ZERO, dispute_key(3, PEER): ZERO}
    found = BlockItems.read(items)
    assert found is not None
    assert found.links == {PEER: ZERO}
    assert [(entry.part, entry.verdict) for entry in found.table_entries] == [(1, 0), (3, 2)]
    assert [(entry.part, entry.peer) for entry in found.dispute_entries] == [(3, PEER)]
    assert BlockItems.read({table_key(3, 2): PEER, table_key(3, 0): PEER}) is None


def test_a_value_with_a_table_that_nobody_judged_so_is_not_voted_for(run: Run) -> None:
    world = run.world(4, 3, seed=8, numel=NUMEL)
    seen: list[tuple[bool, bool, bool]] = []

    class Probe(Behaviour):
        def broadcast(self, desk: Any, message: Message, round: Round) -> None:
            desk.broadcast(message)
            engine = round.engines[BLOCK]
            if message.statement.kind == "vote" and (round.round, message.statement.index) == (1, BLOCK):
                assert engine is not None
                held = dict(engine.state.held)
                rules = engine.rules
                key = next(key for key in held if key.startswith("table:"))
                other = {k: v for k, v in held.items() if k != key} | {key[:-1] + "2": held[key]}
                unknown = held | {key: ZERO}
                seen.append((rules.acceptable(held, 0), rules.acceptable(other, 0), rules.acceptable(unknown, 0)))
                assert rules.digest(held) != rules.digest(other) != rules.digest(held | {"nonsense": ZERO})

    world = run.world(4, 3, seed=8, numel=NUMEL, byzantine={0: Probe()})
    run.to_the_end(world)
    assert set(seen) == {(True, False, False)}
