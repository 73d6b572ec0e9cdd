"""Newcomers and returning peers among liars: they end on the chain of the honest members, or nowhere."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from btrain.adversary.adversary import Adversary
from btrain.adversary.history import ForgedHistory, StatePoison
from btrain.identity import SigningKey
from btrain.protocol.encoding import PeerId
from btrain.simulation.faults import Faults, Outage
from btrain.simulation.heap import Cut, NetworkPlan
from btrain.simulation.world import World, simulated_keys
from tests.simulation.test_healing import SECOND, equal_in_the_end, events, to_the_end, world_of

NEWCOMER = SigningKey.from_seed(bytes([9]) * 32)
KINDS = ("short", "foreign", "old", "junk", "early")


def liars(seed: int, make: Any, peers: int = 5, count: int = 2) -> dict[int, Adversary]:
    keys = simulated_keys(seed, peers)
    coalition = frozenset(key.public_key for key in keys[peers - count :])
    return {peers - 1 - i: make(coalition=coalition) for i in range(count)}


def alone_with(world: World, friends: set[PeerId], until_us: int) -> None:
    """Until then the newcomer reaches nobody else."""
    others = frozenset(world.identities) - friends - {NEWCOMER.public_key}
    cut = Cut(frozenset({NEWCOMER.public_key}), others, 0, until_us)
    world.heap.plan = NetworkPlan(world.heap.plan.link, cuts=(cut,))
    world.heap.call(until_us, lambda: world.heap._reconnect(cut))


def met(world: World, start_us: int = SECOND) -> World:
    """Let a newcomer come; everybody ends alike, the newcomer too."""
    world.add_newcomer(NEWCOMER, start_us)
    to_the_end(world)
    newcomer = NEWCOMER.public_key
    while world.height(newcomer) < world.charter.rounds and world.heap.now < 400 * SECOND:
        world.heap.run(world.heap.now + SECOND)
    world.check()
    world.verify()
    assert world.blocks(newcomer) == world.blocks(world.honest[0])
    return world


@pytest.mark.parametrize("kind", ["altered", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS)])
def test_a_newcomer_that_meets_only_liars_first_follows_none_of_them(kind: str) -> None:
    made = liars(3, lambda **who: ForgedHistory(kind=kind, **who))
    world = world_of(5, 14, seed=3, byzantine=made, charter={"audits_per_round": 0})
    alone_with(world, {world.keys[i].public_key for i in made}, 2 * SECOND)
    world.heap.call(2 * SECOND - 1, lambda: alone.extend(world.blocks(NEWCOMER.public_key)))
    alone: list[Any] = []
    met(world)
    true = world.blocks(world.honest[0])
    assert alone == true[: len(alone)] and len(alone) <= (1 if kind == "old" else 0)


def test_who_returns_among_liars_returns_to_the_true_chain() -> None:
    faults = Faults((Outage(0, "crash", 500_000, 2 * SECOND),))
    made = liars(4, lambda **who: ForgedHistory(kind="short", **who))
    world = world_of(5, 12, seed=4, byzantine=made, faults=faults, charter={"audits_per_round": 0})
    to_the_end(world)
    assert equal_in_the_end(world)


def test_a_newcomer_among_poisoners_starts_from_the_true_state() -> None:
    made = liars(5, StatePoison)
    world = world_of(5, 24, seed=5, byzantine=made, charter={"audits_per_round": 0})
    met(world, 5 * SECOND // 2)
    newcomer = NEWCOMER.public_key
    assert events(world, newcomer, "state_loaded")
    x = {world.node(peer).learner.state_bytes() for peer in (*world.honest, newcomer)}  # type: ignore[union-attr]
    assert len(x) == 1


def test_a_newcomer_does_not_wait_between_the_blocks_of_a_long_past(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve packets of blocks, while one peer answers with the first block only. (One packet in Delta took five times
    as long.)"""
    for module in ("chronicle", "pursuit"):
        monkeypatch.setattr(f"btrain.protocol.{module}.BLOCKS_MAX", 2)
    made = liars(3, partial(ForgedHistory, kind="old"), peers=4, count=1)
    world = world_of(4, 40, seed=3, byzantine=made, signatures="counted")
    world.run(24, 400 * SECOND)
    started = world.heap.now
    world.add_newcomer(NEWCOMER, started)
    world.heap.run(started + 2 * world.charter.message_us)
    assert world.height(NEWCOMER.public_key) >= 24
    world.verify()
