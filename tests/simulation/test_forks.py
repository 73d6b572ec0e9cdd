"""Two certified chains: more than b members were faulty, and afterwards the honest ones stand on one chain again.

The attacker is the strongest there is for this: one key with two lives, each of which talks to one half of a broken
network and works honestly with it. It has them from the beginning on, or copies itself when the network breaks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from torch import Tensor

from btrain.identity import SigningKey
from btrain.protocol import chronicle, pursuit
from btrain.protocol.behaviour import Behaviour, Replay
from btrain.protocol.effects import Effect, Recompute
from btrain.protocol.encoding import PeerId, digest
from btrain.protocol.errors import RemoteProtocolError
from btrain.protocol.evidence import open_evidence, verify_evidence
from btrain.protocol.messages import Verifier
from btrain.protocol.round import Round
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
        self.faces = {name: Face(port, name, half) for name, half in zip("ab", halves, strict=False)}
        self.lives = {
            name: SimulatedPeer(self.faces[name], identity) for name, identity in zip("ab", identities, strict=False)
        }

    def copy_itself(self, halves: Iterable[frozenset[PeerId]], now: int) -> None:
        """From now on there is a second life, with all that the first one remembers; each has its half."""
        (port, first), (left, right) = (self.faces["a"], self.lives["a"].identity), halves
        port.half, self.faces["b"] = left, Face(port, "b", right)
        second = Identity(**{**vars(first), "disk": copy.deepcopy(first.disk), "events": []})
        self.lives["b"] = SimulatedPeer(self.faces["b"], second)
        self.lives["b"].start(now)
        for peer in right - {first.key.public_key}:
            self.lives["b"].connected(peer, now)

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


class SlowAuditor(SimulatedPeer):
    """It recomputes others' gradients for some rounds."""

    def _compute(self, effect: Effect) -> None:
        if isinstance(effect, Recompute):
            asked = effect
            self._after(3 * SECOND, lambda now: self._recomputed(asked.token, asked.round, asked.batch_seed, now))
        else:
            super()._compute(effect)


def whole(peers: int, rounds: int, *, seed: int, twin: int, charter: dict[str, Any]) -> World:
    """A run of slow auditors whose network is whole for now, with one member that may copy itself."""
    world = world_of(peers, rounds, seed=seed, charter=charter, byzantine={twin: Behaviour()})
    everybody = frozenset(world.identities)
    for index, key in enumerate(world.keys):
        make = lambda port, identity=world.identities[key.public_key]: SlowAuditor(port, identity)  # noqa: E731
        if index == twin:
            make = lambda port, identity=world.identities[key.public_key]: TwoLives(port, [identity], [everybody])  # noqa: E731
        world.heap._host(key.public_key).factory = make
    return world


def break_in_two(world: World, left: Iterable[PeerId], right: Iterable[PeerId], twin: int) -> None:
    """From now on the halves do not hear each other, and the twin works with both."""
    halves, key = (frozenset(left), frozenset(right)), world.keys[twin].public_key
    cut = Cut(*halves, world.heap.now, 10**12)
    world.heap.plan = NetworkPlan(world.heap.plan.link, cuts=(cut,))
    node = world.heap.node(key)
    assert isinstance(node, TwoLives)
    node.copy_itself([half | {key} for half in halves], world.heap.reading(key))


def falling(world: World) -> tuple[int, list[PeerId]]:
    """Go on for a few blocks; where the chains part, and the honest members on the one that will not stand.

    Both blocks have as many honest signatures, so the smaller hash decides.
    """
    height = max(world.height(peer) for peer in world.honest) + 3
    until(world, lambda: min(world.height(peer) for peer in world.honest) > height, 200 * SECOND)
    chain = {peer: [digest(c.block) for c in world.identities[peer].disk.blocks[:height]] for peer in world.honest}
    stands = min(chain.values())
    losers = [peer for peer in world.honest if chain[peer] != stands]
    return next(i for i in range(height) if chain[losers[0]][i] != stands[i]), losers


def rolled_back(world: World, peers: Iterable[PeerId]) -> bool:
    return all(events(world, peer, "rolled_back") for peer in peers)


def check_honest(world: World) -> None:
    """Nothing that was checked of an honest peer was found wrong, and nobody was accused or dropped for it.

    While the network was broken what the other half keeps could not be had.
    """
    for peer in world.honest:
        assert all(check["outcome"] in ("equal", "unavailable") for check in events(world, peer, "checked"))
        assert all(check["outcome"] in ("equal", "lost") for check in events(world, peer, "reduced_again"))
        assert not events(world, peer, "accuses")
        assert not [drop for drop in events(world, peer, "drop") if bytes.fromhex(drop["peer"]) in world.honest]


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


# --- what was under way on the chain that fell ---

AUDITED = {"audits_per_round": 2, "byzantine_max": 1}


@pytest.mark.parametrize("seed", [4, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(5, 15))])
def test_audits_of_the_chain_that_fell_convict_nobody_on_the_other(seed: int) -> None:
    world = whole(7, 14, seed=seed, twin=6, charter=AUDITED)
    until(world, lambda: min(world.height(peer) for peer in world.honest) > 2, 60 * SECOND)
    break_in_two(world, world.honest[:3], world.honest[3:], 6)
    first, losers = falling(world)

    def pending() -> bool:
        dockets = (world.node(peer).member.court.docket for peer in losers)  # type: ignore[union-attr]
        return any(question[1] >= first for docket in dockets for question in docket.doubts)

    until(world, pending, 200 * SECOND)
    mend(world)
    until(world, lambda: one_chain(world), 300 * SECOND)
    check_healed(world, {world.keys[6].public_key})
    assert len(losers) == 3 and rolled_back(world, losers)
    check_honest(world)


def test_chains_that_part_late_in_a_run_of_many_are_healed() -> None:
    """A packet does not hold as many blocks as are shown of another chain: their parting is in the next one."""
    world = whole(7, 34, seed=2, twin=6, charter=AUDITED)
    until(world, lambda: min(world.height(peer) for peer in world.honest) > 24, 100 * SECOND)
    break_in_two(world, world.honest[:3], world.honest[3:], 6)
    first, losers = falling(world)
    mend(world)
    until(world, lambda: one_chain(world), 300 * SECOND)
    check_healed(world, {world.keys[6].public_key})
    assert first > 24 and rolled_back(world, losers)


@pytest.mark.slow
def test_deep_forks_whose_blocks_fill_many_packets_are_healed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (chronicle, pursuit):
        monkeypatch.setattr(module, "PACKET_BYTES_MAX", 16 * 1024)
    world = whole(7, 80, seed=2, twin=6, charter=AUDITED)
    until(world, lambda: min(world.height(peer) for peer in world.honest) > 8, 100 * SECOND)
    break_in_two(world, world.honest[:3], world.honest[3:], 6)
    until(world, lambda: min(world.height(peer) for peer in world.honest) > 52, 900 * SECOND)
    mend(world)
    until(world, lambda: one_chain(world), world.heap.now + 200 * SECOND)
    check_healed(world, {world.keys[6].public_key})


class Lapse(Behaviour):
    """Cheats while it is told to."""

    now = False

    def gradient(self, own: Tensor, round: Round, replay: Replay) -> Tensor:
        return -1000 * own if self.now else own


def test_nobody_is_accused_of_what_it_did_on_the_chain_that_fell() -> None:
    """On the other chain it did not do it: whoever reads that ledger finds no such Commit."""
    world = whole(7, 16, seed=2, twin=6, charter=AUDITED)
    lapses = {peer: Lapse() for peer in world.honest}
    for peer, lapse in lapses.items():
        world.identities[peer].behaviour = lapse
    until(world, lambda: min(world.height(peer) for peer in world.honest) > 2, 60 * SECOND)
    break_in_two(world, world.honest[:3], world.honest[3:], 6)
    first, losers = falling(world)
    lapse = lapses[losers[0]]
    lapse.now = True
    until(world, lambda: any(events(world, peer, "accuses") for peer in losers), 200 * SECOND)
    lapse.now = False
    mend(world)
    until(world, lambda: rolled_back(world, losers), 300 * SECOND)
    for peer in losers:
        court = world.node(peer).member.court  # type: ignore[union-attr]
        known = {of for _, _, of in court.verdicts} | {of for _, of in (*court.docket.findings, *court.docket.doubts)}
        assert all(of < first for of in known)
    until(world, lambda: one_chain(world), 300 * SECOND)
    check_healed(world, {world.keys[6].public_key})
