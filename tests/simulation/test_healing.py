"""Peers whose parameters drift: they take the certified state over, nobody is banned, and liars gain nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from btrain.adversary.history import StatePoison
from btrain.aggregation import get_rule
from btrain.protocol.encoding import PeerId
from btrain.protocol.ledger import Charter
from btrain.protocol.pieces import assemble, cut
from btrain.protocol.quorum import byzantine_limit, validators_max
from btrain.simulation.faults import Faults, Outage
from btrain.simulation.heap import LinkPlan, NetworkPlan
from btrain.simulation.quadratic import Quadratic
from btrain.simulation.world import World, simulated_keys

SECOND = 1_000_000
SYNC = 4
DELTA_US = SECOND // 2


def world_of(peers: int, rounds: int, *, seed: int = 0, faults: Faults | None = None, **options: Any) -> World:
    """A run on the smallest model that certifies its state every `SYNC` rounds; set up, not started."""
    limit = byzantine_limit(peers, 0 if options.get("byzantine") else validators_max(peers, 1))
    charter = Charter(
        rounds=rounds, byzantine_max=limit, audits_per_round=1,
        tolerance=1e-4, rule=get_rule("centered_clip"), message_us=DELTA_US, compute_us=DELTA_US,
        transfer_us=DELTA_US, state_sync_every=SYNC, custody_rounds=SYNC,
    )  # fmt: skip
    charter = replace(charter, **options.pop("charter", {}))
    options.setdefault("plan", NetworkPlan(LinkPlan(1_000, 20_000)))
    world = World(charter, lambda: Quadratic(2100), peers, seed=seed, **options)
    (faults or Faults()).schedule(world.heap, world.keys)
    return world


def nudge(world: World, peer: PeerId, factor: float = 1.0) -> None:
    """Change the last bits of a few of the peer's parameters, as another processor or a memory error would."""
    node = world.node(peer)
    assert node is not None
    x = node.learner.x  # type: ignore[attr-defined]
    x[:64] = torch.nextafter(x[:64], torch.full((64,), torch.inf)) * factor
    world.drifted.add(peer)


def events(world: World, peer: PeerId, name: str) -> list[dict[str, Any]]:
    return [fields for _, event, fields in world.identities[peer].events if event == name]


def to_the_end(world: World, patience_us: int = 200 * SECOND) -> None:
    """Run until everybody has finished; the ledgers agree, nobody was banned, and all end with the same parameters."""
    world.run(world.charter.rounds, patience_us)
    while not world.at_rest and world.heap.now < patience_us:
        world.heap.run(world.heap.now + DELTA_US)
    world.check()
    world.verify()
    assert {world.height(peer) for peer in world.honest} == {world.charter.rounds}
    assert not any(block.bans for block in world.blocks(world.honest[0]))


def equal_in_the_end(world: World) -> bool:
    return len({world.node(peer).learner.state_bytes() for peer in world.honest}) == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("at_us", [200_000, 700_000])
def test_who_drifts_heals_and_is_not_banned(at_us: int) -> None:
    world = world_of(5, 4 * SYNC, seed=at_us)
    drifter = world.honest[2]
    world.heap.call(at_us, lambda: nudge(world, drifter))
    to_the_end(world)
    (drift,) = events(world, drifter, "drift")
    (loaded,) = events(world, drifter, "state_loaded")
    assert drift["own"] != drift["certified"]
    assert (loaded["round"], loaded["healed"], loaded["heals"]) == (drift["round"], True, 1)
    assert all(not events(world, peer, "drift") for peer in world.honest if peer != drifter)
    assert not any(block.absences for block in world.blocks(drifter))
    assert equal_in_the_end(world)


def test_nothing_heals_where_nothing_drifts() -> None:
    world = world_of(5, 2 * SYNC + 2)
    to_the_end(world)
    assert sum(len(block.state) for block in world.blocks(world.honest[0])) == 2
    assert not any(events(world, peer, name) for peer in world.honest for name in ("drift", "state_loaded"))


def test_who_drifts_again_heals_again() -> None:
    world = world_of(4, 4 * SYNC, seed=3)
    drifter = world.honest[1]
    for at_us in (300_000, 1_100_000):
        world.heap.call(at_us, lambda: nudge(world, drifter))
    to_the_end(world)
    assert [fields["heals"] for fields in events(world, drifter, "state_loaded")] == [1, 2]
    assert equal_in_the_end(world)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 40))])
def test_a_healing_peer_may_be_killed_at_any_moment(seed: int) -> None:
    """The certified state is fetched in pieces, taken over, and blocks are replayed: none of it may be cut in half."""
    world = world_of(5, 4 * SYNC, seed=seed)
    drifter = world.honest[seed % 5]
    world.heap.call(200_000, lambda: nudge(world, drifter))

    def kill_when_drifted() -> None:
        if not events(world, drifter, "drift"):
            world.heap.call(world.heap.now + 1_000, kill_when_drifted)
            return
        world.heap.crash(drifter, world.heap.now + 3_000 * seed)
        world.heap.restart(drifter, world.heap.now + 3_000 * seed + SECOND)

    world.heap.call(200_001, kill_when_drifted)
    to_the_end(world)
    assert equal_in_the_end(world)


def test_outages_and_drift_together() -> None:
    faults = Faults((Outage(0, "crash", 800_000, 3 * SECOND), Outage(3, "freeze", 4 * SECOND, 9 * SECOND)))
    world = world_of(5, 5 * SYNC, seed=5, faults=faults)
    world.drifted.update(world.honest)  # with one away and two drifted no state has a quorum: any may be taken over
    for peer, at_us in ((world.honest[1], 600_000), (world.honest[3], 5 * SECOND // 2)):
        world.heap.call(at_us, lambda peer=peer: nudge(world, peer))  # type: ignore[misc]
    to_the_end(world)
    assert equal_in_the_end(world)


def contests(world: World) -> list[int]:
    """Rounds whose blocks name candidates."""
    return [block.round for block in world.blocks(world.honest[0]) if block.candidates]


def settled(world: World) -> dict[int, int]:
    """Round of a state -> round of the block that certifies it."""
    return {known.round: block.round for block in world.blocks(world.honest[0]) for known in block.state}


def test_without_a_quorum_on_one_state_all_take_over_one_that_is_close() -> None:
    world = world_of(5, 3 * SYNC, seed=1)
    for number, peer in enumerate(world.honest[:4]):  # four peers with four states, none of which has a quorum
        world.heap.call(100_000, lambda p=peer, n=number: [nudge(world, p) for _ in range(n + 1)])  # type: ignore[misc]
    world.drifted.add(world.honest[4])  # whichever state is taken over, it is that of one of the others
    to_the_end(world)
    assert contests(world) == [SYNC]
    assert SYNC < settled(world)[SYNC] <= SYNC + 3
    assert settled(world)[2 * SYNC] == 2 * SYNC
    certified = next(known.digest for block in world.blocks(world.honest[0]) for known in block.state)
    healed = [peer for peer in world.honest if events(world, peer, "state_loaded")]
    assert len(healed) == 4
    assert any(certified.hex() in fields["certified"] for peer in healed for fields in events(world, peer, "drift"))
    assert equal_in_the_end(world)


def test_a_state_that_is_too_far_off_is_never_taken_over() -> None:
    world = world_of(5, 3 * SYNC, seed=1)
    for number, peer in enumerate(world.honest[:4]):
        world.heap.call(100_000, lambda p=peer, n=number: nudge(world, p, factor=1 + 1e-4 * (n + 1)))  # type: ignore[misc]
    world.run(world.charter.rounds, 60 * SECOND)
    assert contests(world) == [SYNC, 2 * SYNC]
    assert settled(world) == {}
    assert not any(fields["close"] for peer in world.honest for fields in events(world, peer, "compared"))


def poisoners(world_keys: int, count: int, seed: int) -> dict[int, StatePoison]:
    """The last `count` peers poison their states together."""
    keys = simulated_keys(seed, world_keys)
    coalition = frozenset(key.public_key for key in keys[world_keys - count :])
    return {world_keys - 1 - i: StatePoison(coalition=coalition) for i in range(count)}


def test_a_poisoned_state_is_outvoted() -> None:
    world = world_of(5, 3 * SYNC, seed=2, byzantine=poisoners(5, 2, 2), charter={"audits_per_round": 0})
    to_the_end(world)
    assert settled(world) == {SYNC: SYNC, 2 * SYNC: 2 * SYNC}
    assert not any(events(world, peer, "drift") for peer in world.honest)
    assert equal_in_the_end(world)


@pytest.mark.parametrize("seed", [2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 20))])
def test_a_poisoned_state_is_no_candidate_that_honest_members_take_over(seed: int) -> None:
    """Two of three honest members drift, so no state has a quorum; both liars find the poison close."""
    world = world_of(5, 3 * SYNC, seed=seed, byzantine=poisoners(5, 2, seed), charter={"audits_per_round": 0})
    for number, peer in enumerate(world.honest):
        world.drifted.add(peer)
        world.heap.call(100_000, lambda p=peer, n=number: [nudge(world, p) for _ in range(n)])  # type: ignore[misc]
    to_the_end(world)
    poison = {
        behaviour.state(cut(state), SYNC).digest for behaviour in world.byzantine.values() for state in states(world)
    }
    assert contests(world)[0] == SYNC and SYNC in settled(world)
    assert not {known.digest for block in world.blocks(world.honest[0]) for known in block.state} & poison
    assert equal_in_the_end(world)


def states(world: World) -> list[bytes]:
    """The states that honest peers still have."""
    found = (assemble(known.digest, world.identities[peer].disk.blob) for peer in world.honest
             for block in world.blocks(peer) for known in block.state)  # fmt: skip
    return [state for state in found if state is not None]
