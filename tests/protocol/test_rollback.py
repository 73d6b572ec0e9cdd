"""`rollback: proven_round` in whole runs: everybody restores the same parameters, whatever happens meanwhile."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor

from btrain.identity import SigningKey
from btrain.protocol.behaviour import Behaviour, Replay
from btrain.protocol.ledger import LedgerState
from btrain.protocol.round import Round
from btrain.protocol.trajectory import Undone
from btrain.simulation.faults import Faults, Outage
from btrain.simulation.world import World

SECOND = 1_000_000
SYNC = 4
Run = Any  # the fixture of conftest.py


@dataclass
class Cheat(Behaviour):
    """Commits in these rounds to its gradient, reversed and a thousand times as long."""

    rounds: Collection[int] = range(1, 1000)

    def gradient(self, own: Tensor, round: Round, replay: Replay) -> Tensor:
        return -1000 * own if round.round in self.rounds else own


def world_of(
    run: Run, seed: int, cheats: dict[int, Behaviour], *, peers: int = 5, rounds: int = 10, **options: Any
) -> World:
    options = {"rollback": True, "state_sync_every": SYNC, "signatures": "counted", "numel": 300, **options}
    world: World = run.world(peers, rounds, seed=seed, byzantine=cheats, **options)
    return world


def ended(run: Run, world: World, faults: Faults | None = None) -> LedgerState:
    """Run to the end; whatever was undone, all hold the same parameters, and each block restored what it says."""
    run.to_the_end(world, faults)
    nodes = [world.node(peer) for peer in world.staying]
    states = [node.member.state for node in nodes if node is not None]
    assert len({node.learner.state_bytes() for node in nodes if node is not None}) == 1
    way, x = states[0].trajectory, world.invariants._x
    assert all(x[span.last + 1] == x[span.first] for span in way.undone)
    assert states[0].step == states[0].charter.rounds - 1 - voids(world, way.steps)
    assert states[0].round == states[0].charter.rounds + way.rounds_undone
    return states[0]


def voids(world: World, stands: Any) -> int:
    return sum(block.void > 0 for block in world.blocks(world.honest[0]) if block.round and stands(block.round))


def events(world: World, name: str) -> list[list[dict[str, Any]]]:
    """Of every honest peer."""
    return [[f for _, event, f in world.identities[peer].events if event == name] for peer in world.honest]


def test_the_parameters_of_the_proven_round_are_restored_and_the_run_makes_up(run: Run) -> None:
    world = world_of(run, 1, {2: Cheat()})
    way = ended(run, world).trajectory
    ((deed, of, at),) = run.bans(world).values()
    assert deed == "wrong_gradient"
    assert way.undone == (Undone(of, at),)
    steps = [block.step for block in world.blocks(world.honest[0])]
    assert steps[at] == steps[of - 1] < steps[at - 1]
    told = {"round": at, "to_round": of, "from_step": steps[at - 1], "step": steps[at], "rounds_undone": at - of + 1}
    assert events(world, "restored") == [[told]] * 4
    assert not any(block.absences for block in world.blocks(world.honest[0]))


def test_without_the_option_nothing_is_restored(run: Run) -> None:
    world = world_of(run, 1, {2: Cheat()}, rollback=False)
    assert ended(run, world).trajectory.undone == ()
    assert run.bans(world)


def test_a_friend_proven_by_the_sweep_costs_only_what_it_did_since(run: Run) -> None:
    world = world_of(run, 3, {1: Cheat(), 3: Cheat()}, peers=7, rounds=14)
    way = ended(run, world).trajectory
    bans = sorted((at, of) for _, of, at in run.bans(world).values())
    assert len(bans) == 2
    assert way.undone[0].first == bans[0][1]
    assert way.undone[-1].last == bans[1][0]
    assert way.rounds_undone <= bans[1][0] - bans[0][1] + 1


def test_undone_rounds_are_audited_at_what_the_parameters_were(run: Run) -> None:
    """One of a pair is proven, what they did is undone, and the other is proven of the undone round all the same."""
    world = world_of(run, 5, {1: Cheat(range(1, 9)), 3: Cheat(range(1, 9))}, peers=7, rounds=14)
    way = ended(run, world).trajectory
    bans = sorted((at, of) for _, of, at in run.bans(world).values())
    assert len(bans) == 2
    assert not way.steps(bans[1][1]) and bans[1][1] <= bans[0][0]


class OnRestored:
    """Does something to a peer a while after it has begun to restore."""

    def __init__(self, world: World, peer: bytes, delay_us: int, act: Any) -> None:
        self.world, self.peer, self.delay_us, self.act = world, peer, delay_us, act
        world.heap.call(1, self.look)

    def look(self) -> None:
        heap = self.world.heap
        if any(name == "restored" for _, name, _ in self.world.identities[self.peer].events):
            heap.call(heap.now + self.delay_us, self.act)
        elif heap.now < 300 * SECOND:
            heap.call(heap.now + 1_000, self.look)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 40))])
def test_who_is_killed_while_it_restores_ends_with_the_same_parameters(run: Run, seed: int) -> None:
    world = world_of(run, seed, {2: Cheat()}, peers=6, rounds=30)
    victim, heap = world.honest[seed % 5], world.heap

    def kill() -> None:
        heap.crash(victim, heap.now)
        heap.restart(victim, heap.now + SECOND * (1 + seed % 4))

    OnRestored(world, victim, 700 * seed, kill)
    assert ended(run, world).trajectory.undone


AWAY = [
    ("crash", 1),
    *(pytest.param(kind, s, marks=pytest.mark.slow) for kind in ("crash", "freeze", "cut") for s in range(2, 8)),
]


@pytest.mark.parametrize(("kind", "seed"), AWAY)
def test_who_was_away_catches_up_over_a_rollback(run: Run, kind: Any, seed: int) -> None:
    faults = Faults((Outage(0, kind, 300_000, 15 * SECOND),))
    world = world_of(run, seed, {2: Cheat()}, peers=6, rounds=14, faults=faults)
    (span, *_) = ended(run, world, faults).trajectory.undone
    assert span.last not in {fields["round"] for fields in events(world, "block")[0]}  # it took that block from others


def test_a_newcomer_follows_a_run_that_went_back(run: Run) -> None:
    key = SigningKey.from_seed(bytes([9]) * 32)
    allowed = frozenset({key.public_key})
    options: dict[str, Any] = {"admission": "allowlist", "allowed": allowed, "signatures": "real"}
    world = world_of(run, 1, {2: Cheat()}, rounds=20, **options)
    world.add_newcomer(key, SECOND)
    way = ended(run, world).trajectory
    assert way.undone
    node = world.node(key.public_key)
    assert node is not None and node.member.state.roster.seat(key.public_key) is not None
    world.check()


def test_the_whole_window_takes_all_of_an_attack_back_that_is_proven_in_time(run: Run) -> None:
    world = world_of(run, 7, {1: Cheat(), 3: Cheat()}, peers=7, rounds=12, rollback_whole=True)
    way = ended(run, world).trajectory
    guilty = {world.keys[i].public_key for i in (1, 3)}
    assert set(run.bans(world)) == guilty
    assert min(of for _, of, _ in run.bans(world).values()) > 1
    standing = [block for block in world.blocks(world.honest[0]) if way.steps(block.round)]
    assert not any(guilty & set(block.contributors) for block in standing)
