"""Two certified chains: more than b members were faulty, and afterwards the honest ones stand on one chain again.

The attacker is the strongest there is for this: one key with two lives, each of which talks to one half of a broken
network and works honestly with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from btrain.identity import SigningKey
from btrain.protocol.behaviour import Behaviour
from btrain.protocol.encoding import PeerId
from btrain.protocol.errors import RemoteProtocolError
from btrain.protocol.evidence import open_evidence, verify_evidence
from btrain.protocol.messages import Verifier
from btrain.simulation.disk import Disk
from btrain.simulation.heap import Cut, NetworkPlan, NodeId, Port
from btrain.simulation.peer import Identity, SimulatedPeer
from btrain.simulation.world import World
from tests.simulation.test_healing import SECOND, SYNC, events, world_of

ROUNDS = 40


class Face(Port):
    """The port of one life: it reaches its own half only."""

    def __init__(self, port: Port, name: str, half: frozenset[PeerId]) -> None:
        super().__init__(port._heap, port.node_id)
        self._name, self.half = name, half

    def send(self, dst: NodeId, payload: object, size_bytes: int = 0) -> None:
        if dst in self.half:
            super().send(dst, payload, size_bytes)

    def set_timer(self, name: str, at_us: int) -> None:
        super().set_timer(f"{self._name}/{name}", at_us)

    def cancel_timer(self, name: str) -> None:
        super().cancel_timer(f"{self._name}/{name}")


class TwoLives:
    """A node of the heap that is two peers with one key. One that is shown what the other signed may trip over it."""

    def __init__(self, port: Port, identities: Iterable[Identity], halves: Iterable[frozenset[PeerId]]) -> None:
        named = zip("ab", identities, halves, strict=True)
        self.faces = {name: Face(port, name, half) for name, _, half in named}
        self.lives = {
            name: SimulatedPeer(self.faces[name], identity) for name, identity in zip("ab", identities, strict=True)
        }

    def _each(self, act: Callable[[SimulatedPeer], None], peer: NodeId | None = None, face: str = "ab") -> None:
        for name, life in list(self.lives.items()):
            if name in face and (peer is None or peer in self.faces[name].half):
                try:
                    act(life)
                except RemoteProtocolError:
                    del self.lives[name]

    def start(self, now: int) -> None:
        self._each(lambda life: life.start(now))

    def packet(self, src: NodeId, payload: object, now: int) -> None:
        self._each(lambda life: life.packet(src, payload, now), src)

    def timer(self, name: str, now: int) -> None:
        face, _, rest = name.partition("/")
        self._each(lambda life: life.timer(rest, now), face=face)

    def connected(self, peer: NodeId, now: int) -> None:
        self._each(lambda life: life.connected(peer, now), peer)


def forked(left: tuple[int, ...], right: tuple[int, ...], *, seed: int, two_lives: tuple[int, ...]) -> World:
    """A run whose network is broken in two from the beginning on, with members that live in both halves."""
    peers = len(left) + len(right) + len(two_lives)
    byzantine = dict.fromkeys(two_lives, Behaviour())
    world = world_of(peers, ROUNDS, seed=seed, charter={"audits_per_round": 0}, byzantine=byzantine)
    keys = [key.public_key for key in world.keys]
    halves = [frozenset(keys[i] for i in (*half, *two_lives)) for half in (left, right)]
    alone = [frozenset(keys[i] for i in half) for half in (left, right)]
    cut = Cut(alone[0], alone[1], 0, 10**12)
    world.heap.plan = NetworkPlan(world.heap.plan.link, cuts=(cut,))
    for index in two_lives:
        first = world.identities[keys[index]]
        second = Identity(**{**vars(first), "disk": Disk(), "events": []})
        make = lambda port, pair=(first, second): TwoLives(port, pair, halves)  # noqa: E731
        world.heap._host(keys[index]).factory = make
    return world


def mend(world: World) -> None:
    """The network is whole again."""
    (cut,) = world.heap.plan.cuts
    world.heap.plan = NetworkPlan(world.heap.plan.link)
    world.heap._reconnect(cut)


def until(world: World, reached: Any, patience_us: int) -> None:
    while world.heap.now < patience_us and not reached():
        world.heap.run(world.heap.now + SECOND // 4)


def chains(world: World) -> set[tuple[bytes, ...]]:
    return {tuple(certified.block for certified in world.identities[peer].disk.blocks) for peer in world.honest}


def one_chain(world: World) -> bool:
    nodes = [world.node(peer) for peer in world.honest]
    done = all(node is not None and node.halted is not None and node.halted.done for node in nodes)
    return done and len(chains(world)) == 1


def check_healed(world: World, guilty: set[PeerId]) -> None:
    """One chain, verified; the same parameters everywhere; nobody banned but those with two lives, on evidence."""
    assert one_chain(world), {peer.hex()[:6]: world.height(peer) for peer in world.honest}
    world.verify()
    assert len({world.node(peer).learner.state_bytes() for peer in world.honest}) == 1  # type: ignore[union-attr]
    bans = {ban.peer: ban for block in world.blocks(world.honest[0]) for ban in block.bans}
    assert set(bans) == guilty
    assert {ban.deed for ban in bans.values()} == {"equivocation"}
    for peer in world.honest:
        for accused, _, deed, data in world.identities[peer].disk.evidence:
            assert accused in guilty and deed == "equivocation"
            verify_evidence(open_evidence(data), Verifier(), lambda _: world.charter.rule)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 30))])
def test_two_halves_of_a_broken_network_end_on_one_chain(seed: int) -> None:
    world = forked((0, 1), (2, 3), seed=seed, two_lives=(4,))
    until(world, lambda: min(world.height(peer) for peer in world.honest) > seed % 20, 60 * SECOND)
    assert len({chain[0] for chain in chains(world)}) == 2
    mend(world)
    until(world, lambda: one_chain(world), 200 * SECOND)
    check_healed(world, {world.keys[4].public_key})
    assert len([peer for peer in world.honest if events(world, peer, "rolled_back")]) == 2


def test_a_fork_deeper_than_a_certified_state_is_healed_from_one() -> None:
    """Both halves certify states of their own; the losers start from one of the chain that stands."""
    world = forked((0, 1), (2, 3), seed=3, two_lives=(4,))
    until(world, lambda: min(world.height(peer) for peer in world.honest) > 2 * SYNC + 1, 90 * SECOND)
    mend(world)
    until(world, lambda: one_chain(world), 200 * SECOND)
    check_healed(world, {world.keys[4].public_key})
    losers = [peer for peer in world.honest if events(world, peer, "rolled_back")]
    assert all(events(world, peer, "state_loaded") for peer in losers)


@pytest.mark.slow
def test_a_member_that_was_away_during_a_fork_finds_the_chain_that_stands() -> None:
    world = forked((0, 1), (2, 3), seed=6, two_lives=(4,))
    until(world, lambda: min(world.height(peer) for peer in world.honest) > 3, 60 * SECOND)
    for peer in world.honest[:3:2]:
        world.heap.crash(peer, world.heap.now + 1)
        world.heap.restart(peer, world.heap.now + 3 * SECOND)
    world.heap.run(world.heap.now + SECOND)
    mend(world)
    until(world, lambda: one_chain(world), 200 * SECOND)
    check_healed(world, {world.keys[4].public_key})


def test_a_newcomer_that_is_shown_two_chains_follows_neither() -> None:
    world = forked((0, 1), (2, 3), seed=1, two_lives=(4,))
    until(world, lambda: min(world.height(peer) for peer in world.honest) > 2, 60 * SECOND)
    newcomer = SigningKey.from_seed(bytes([9]) * 32)
    world.add_newcomer(newcomer, world.heap.now + 1)  # it reaches both halves, which do not reach each other
    world.heap.run(world.heap.now + 20 * SECOND)
    node = world.node(newcomer.public_key)
    assert node is not None and node.halted is not None
    assert (node.halted.reason, node.halted.done) == ("two_chains", False)
