"""`final_sweep: N`: who cheats in the last rounds is banned before the run is over, for everybody in the same block."""

from __future__ import annotations

from typing import Any

import pytest

from btrain.protocol.closing import CLOSING_ROUNDS
from btrain.protocol.ledger import LedgerState
from btrain.simulation.faults import Faults, Outage
from btrain.simulation.world import World
from tests.protocol.test_rollback import SECOND, SYNC, Cheat

Run = Any  # the fixture of conftest.py
ROUNDS, LAST = 8, 3


def world_of(run: Run, seed: int, cheats: dict[int, Any], *, peers: int = 5, **options: Any) -> World:
    options = {"final_sweep": LAST, "state_sync_every": SYNC, "signatures": "counted", "numel": 300, **options}
    world: World = run.world(peers, ROUNDS, seed=seed, byzantine=cheats, **options)
    return world


def ended(run: Run, world: World, faults: Faults | None = None) -> LedgerState:
    """Run to the end: in the same block for all, whose last state is certified."""
    run.to_the_end(world, faults)
    nodes = [node for node in map(world.node, world.staying) if node is not None]
    (height,) = {node.member.state.round for node in nodes}
    assert len({node.learner.state_bytes() for node in nodes}) == 1
    state: LedgerState = nodes[0].member.state
    assert state.state is not None and state.state.round == height - 1
    assert nodes[0].member.condition.at(height - 1) == state.state.digest
    return state


def test_a_run_without_cheats_is_over_after_the_closing_rounds(run: Run) -> None:
    world = world_of(run, 1, {})
    state = ended(run, world)
    assert state.round == ROUNDS + CLOSING_ROUNDS
    assert [sweep.round for sweep in state.sweeps] == [ROUNDS - 3, ROUNDS - 2, ROUNDS - 1]
    blocks = world.blocks(world.honest[0])
    assert [block.void for block in blocks] == [1, *[0] * (ROUNDS - 1), *[1] * CLOSING_ROUNDS]
    assert not any(block.absences or block.bans for block in blocks)
    checked = {
        (f["peer"], f["round"]) for p in world.honest for _, n, f in world.identities[p].events if n == "checked"
    }
    workers = {(peer.hex(), block.round) for block in blocks[-LAST - CLOSING_ROUNDS :] for peer in block.contributors}
    assert workers <= checked


def test_without_the_option_the_run_is_over_at_once(run: Run) -> None:
    world = world_of(run, 1, {}, final_sweep=0)
    run.to_the_end(world)
    assert {world.height(peer) for peer in world.honest} == {ROUNDS}


@pytest.mark.parametrize("at", range(ROUNDS - LAST, ROUNDS))
def test_a_cheat_of_the_last_rounds_is_banned_before_the_end(run: Run, at: int) -> None:
    world = world_of(run, 3, {1: Cheat([at]), 3: Cheat([at])}, peers=7)
    ended(run, world)
    guilty = {world.keys[i].public_key for i in (1, 3)}
    shared = guilty & set(world.blocks(world.honest[0])[at].contributors)
    assert shared
    assert {peer: (deed, of) for peer, (deed, of, _) in run.bans(world).items()} == dict.fromkeys(
        shared, ("wrong_gradient", at)
    )


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 12))])
def test_with_rollback_a_late_cheat_is_not_in_the_final_model(run: Run, seed: int) -> None:
    world = world_of(
        run, seed, {1: Cheat(range(ROUNDS - 1, 99)), 3: Cheat(range(ROUNDS - 1, 99))}, peers=7, rollback=True
    )
    state = ended(run, world)
    guilty = {world.keys[i].public_key for i in (1, 3)}
    shared = {p for b in world.blocks(world.honest[0]) if b.round >= ROUNDS - 1 for p in b.contributors} & guilty
    assert set(run.bans(world)) == shared
    assert shared
    way = state.trajectory
    standing = [b for b in world.blocks(world.honest[0]) if way.steps(b.round) and b.round >= ROUNDS - 1]
    assert not any(guilty & set(block.contributors) for block in standing)
    assert state.step == ROUNDS - 1


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 12))])
def test_who_is_killed_while_the_run_is_closed_ends_with_the_others(run: Run, seed: int) -> None:
    faults = Faults((Outage(0, "crash", 1_400_000 + 40_000 * seed, 5 * SECOND),))
    ended(run, world_of(run, seed, {}, peers=6, faults=faults), faults)
