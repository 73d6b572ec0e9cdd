"""Random runs against a coalition that sees everything at once, says anything to anybody, and likes critical instants.

A run is a seed. It must end with one value, the same for all honest members, that lacks no item which an honest member
sent on time; nobody honest may sign twice in a slot.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btrain.protocol.agreement import (
    VOID,
    Agreement,
    Electorate,
    Final,
    Items,
    Lock,
    Payload,
    Proposal,
    Quit,
    Timing,
    Vote,
    item_pairs,
)
from btrain.protocol.agreement_messages import Certificate
from btrain.protocol.encoding import PeerId
from btrain.simulation.decision import (
    Authority,
    Item,
    Signed,
    Value,
    World,
    item_hash,
    item_key,
    items_digest,
    peer_ids,
)
from btrain.simulation.heap import Heap, Latency, NodeId

D = 1_000
INSTANTS = (0, 0, 1, D // 2, D - 1, D, D + 1, 2 * D - 1, 2 * D, 2 * D + 1, 3 * D, 4 * D, 6 * D, 7 * D - 1)
SIZES = [(3, 1), (4, 1), (5, 2), (9, 4), (16, 7)]
HORIZON = 60 * D  # faults of honest members end here


class Listening(Authority):
    """An authority that lets the coalition hear what honest members sign."""

    coalition: Coalition | None = None

    def sign(self, sender: PeerId, payload: Payload) -> bytes:
        envelope = super().sign(sender, payload)
        if self.coalition is not None and sender not in self.coalition.liars:
            self.coalition.hear(sender, payload)
        return envelope


class Coalition:
    """Byzantine members with one mind. `zeal` is the share of occasions it takes."""

    def __init__(
        self, world: World, rng: random.Random, liars: Sequence[PeerId], honest: Sequence[PeerId], victim: PeerId
    ) -> None:
        self.world = world
        self.victim = victim
        self.rng = rng
        self.liars = liars
        self.honest = honest
        self.zeal = rng.choice((0.0, 0.3, 0.7, 1.0))
        self.camp = frozenset(rng.sample(honest, rng.randint(1, len(honest))))
        self.values: dict[bytes, Items] = {}
        self.digests: dict[int, list[bytes]] = {}
        self.planned: set[int] = set()

    # --- choices ---

    def audience(self) -> list[PeerId]:
        """One, all, one camp, or anybody."""
        others = [peer for peer in self.honest if peer not in self.camp]
        some = self.rng.sample(self.honest, self.rng.randint(1, len(self.honest)))
        return self.rng.choice(
            ([self.rng.choice(self.honest)], list(self.honest), sorted(self.camp), others or some, some)
        )

    def when(self) -> int:
        """A critical instant from now on."""
        return self.world.heap.now + self.rng.choice(INSTANTS)

    def wants(self) -> bool:
        return self.rng.random() < self.zeal

    def say(self, sender: PeerId, to: Iterable[PeerId], packet: object, at: int) -> None:
        for peer in to:
            self.world.say(sender, peer, packet, at)

    # --- reactions ---

    def begin(self) -> None:
        """Items, in one or two versions, to some members, early or at the edge of the deadline."""
        edges = (0, D, 2 * D, 3 * D - D // 10, 3 * D - 1, 3 * D, 3 * D + 1, 4 * D)
        for peer in self.liars:
            for variant in range(self.rng.choice((1, 1, 1, 2))):
                for _ in range(self.rng.randint(0, 3)):
                    item = Item(item_key(peer), item_hash(peer, variant))
                    self.say(peer, self.audience(), item, self.rng.choice(edges))
            if self.wants():
                self.say(peer, self.audience(), Quit(self.rng.randint(0, 3), None), self.rng.randint(0, 4 * D))

    def hear(self, sender: PeerId, payload: Payload) -> None:
        """React to what an honest member has just signed."""
        if isinstance(payload, Vote):
            self.on_vote(payload)
        elif isinstance(payload, Quit):
            self.on_quit(payload)
        elif isinstance(payload, Lock):
            self.on_lock(payload)
        elif isinstance(payload, Proposal):
            self.remember(dict(payload.items))
            if self.wants():
                self.show_certificate(payload.attempt, self.world.heap.now)
        elif self.wants():
            self.finals(payload)

    def remember(self, items: Items) -> bytes:
        digest = items_digest(items)
        self.values[digest] = items
        return digest

    def on_vote(self, vote: Vote) -> None:
        known = self.digests.setdefault(vote.attempt, [])
        if vote.digest not in known:
            known.append(vote.digest)
        for member in map(self.world.member, self.honest):
            if vote.digest not in self.values and member is not None:
                items = member.engine.known_value(vote.digest)
                if items is not None:
                    self.remember(items)
        if self.wants():
            self.votes(vote.attempt, vote.digest)

    def votes(self, attempt: int, digest: bytes) -> None:
        audience, at = self.audience(), self.when()
        for peer in self.rng.sample(self.liars, self.rng.randint(1, len(self.liars))):
            self.say(peer, audience, Vote(attempt, digest), at)
        if self.rng.random() < 0.3:
            self.say(self.liars[0], audience, Signed(self.honest_votes(attempt, digest)), at)
        if digest in self.values and self.rng.random() < 0.3:
            self.say(self.liars[0], audience, Value(self.values[digest]), at)

    def on_quit(self, payload: Quit) -> None:
        for peer in self.liars:
            if self.wants():
                self.say(peer, self.audience(), payload, self.when())
        if self.wants():
            attempt = self.rng.randint(0, payload.attempt)
            for digest in self.digests.get(attempt, []):
                self.votes(attempt, digest)
        if self.wants():
            self.show_certificate(payload.attempt + 1, self.when())

    def on_lock(self, payload: Lock) -> None:
        if self.wants():
            self.show_certificate(payload.attempt, self.when())
        proposer = self.world.electorate.proposer(payload.attempt)
        if proposer is None or proposer not in self.liars or payload.attempt in self.planned or not self.wants():
            return
        self.planned.add(payload.attempt)
        for _ in range(self.rng.randint(1, 3)):
            items, certificate = self.suggestion(payload.attempt)
            proposal = Proposal(payload.attempt, item_pairs(items), certificate)
            digest = self.remember(items)
            at = self.when()
            self.say(proposer, self.audience(), proposal, at)
            if self.wants():
                self.world.heap.call(at, lambda digest=digest: self.votes(payload.attempt, digest))  # type: ignore[misc]

    def suggestion(self, attempt: int) -> tuple[Items, Certificate | None]:
        """A certified value, nothing, or most items, some of them left out or in a second version."""
        certificates = self.certificates(attempt)
        if certificates and self.rng.random() < 0.6:
            certificate = self.rng.choice(certificates)
            return dict(certificate.items), certificate
        if self.rng.random() < 0.1:
            return VOID, None
        items = {item_key(peer): item_hash(peer) for peer in self.honest}
        if self.rng.random() < 0.1:
            del items[self.rng.choice(sorted(items))]
        for peer in self.liars:
            if self.rng.random() < 0.7:
                items[item_key(peer)] = item_hash(peer, self.rng.choice((0, 0, 0, 1)))
        return items, None

    def certificates(self, before: int) -> list[Certificate]:
        """All certificates of earlier attempts that the coalition can make."""
        made = []
        electorate = self.world.electorate
        for attempt in range(max(0, before - 4), before):
            for digest in self.digests.get(attempt, []):
                enough = electorate.fast_quorum if attempt == 0 else electorate.quorum
                honest = self.honest_votes(attempt, digest)
                if digest in self.values and len(honest) + len(self.liars) >= enough:
                    votes = [self.world.authority.sign(peer, Vote(attempt, digest)) for peer in self.liars]
                    made.append(Certificate(attempt, item_pairs(self.values[digest]), (*votes, *honest)[:enough]))
        return made

    def honest_votes(self, attempt: int, digest: bytes) -> tuple[bytes, ...]:
        wanted = Vote(attempt, digest)
        return self.world.authority.envelopes(lambda sender, p: p == wanted and sender not in self.liars)

    def show_certificate(self, before: int, at: int) -> None:
        certificates = self.certificates(before)
        if certificates:
            certificate = self.rng.choice(certificates)
            peer = self.rng.choice(self.liars)
            self.say(peer, self.audience(), Quit(certificate.attempt, certificate), at)

    def finals(self, payload: Final) -> None:
        for peer in self.liars:
            digest = (
                payload.digest if self.rng.random() < 0.7 else self.rng.choice(sorted(self.values) or [payload.digest])
            )
            self.say(peer, self.audience(), Final(digest), self.when())


class Schemer(Coalition):
    """The same minds, patient: two camps, items at the edge for one of them, one proposal for each, votes kept back.

    Its actions are those of the scripted forks, at random among the instants that matter.
    """

    def begin(self) -> None:
        self.zeal = 1.0
        electorate, liars = self.world.electorate, len(self.liars)
        sizes = (electorate.fast_quorum - liars, electorate.quorum - liars, self.rng.randint(1, len(self.honest)))
        size = max(1, min(self.rng.choice(sizes), len(self.honest)))
        friends = self.rng.sample([peer for peer in self.honest if peer != self.victim], size - 1)
        self.camp = frozenset((self.victim, *friends))
        self.others = [peer for peer in self.honest if peer not in self.camp] or list(self.honest)
        self.late = self.rng.sample(self.liars, self.rng.randint(1, len(self.liars)))
        split = self.rng.random() < 0.5
        for peer in self.liars:
            audience = sorted(self.camp) if peer in self.late else list(self.honest)
            self.say(peer, audience, Item(item_key(peer), item_hash(peer)), self.rng.choice((0, D, 3 * D - 1)))
            if split and peer in self.late:
                self.say(peer, self.others, Item(item_key(peer), item_hash(peer, 1)), self.rng.choice((0, D, 4 * D)))
        if self.rng.random() < 0.5:
            self.prime()
        release_at = self.rng.choice((self.rng.randint(2, 6), self.rng.randint(1, 22))) * D
        self.world.heap.call(release_at + self.rng.choice((-2, -1, 0, 1, 2, D // 2)), self.release)

    def prime(self) -> None:
        """First votes and Finals for nothing, so that the ones that matter are second ones."""
        for peer in self.liars:
            audience = self.rng.choice((self.others, self.audience()))
            nothing = bytes([self.rng.randrange(256)]) * 32
            for attempt in range(5):
                self.say(peer, audience, Vote(attempt, nothing), 0)
            self.say(peer, audience, Final(nothing), 0)

    def release(self) -> None:
        """The votes of attempt 0 that were kept back go to one member or camp."""
        target = self.rng.choice(([self.victim], [self.victim], sorted(self.camp), self.others))
        for digest in self.digests.get(0, [])[:1]:
            for peer in self.liars:
                self.say(peer, target, Vote(0, digest), self.world.heap.now)
            self.say(self.liars[0], target, Signed(self.honest_votes(0, digest)), self.world.heap.now)

    def on_vote(self, vote: Vote) -> None:
        self.zeal = 0.0
        super().on_vote(vote)
        self.zeal = 1.0

    def on_quit(self, payload: Quit) -> None:
        if self.rng.random() < 0.5:
            for peer in self.liars:
                self.say(peer, list(self.honest), payload, self.world.heap.now)

    def on_lock(self, payload: Lock) -> None:
        proposer = self.world.electorate.proposer(payload.attempt)
        if payload.attempt in self.planned:
            return
        self.planned.add(payload.attempt)
        if proposer is not None and proposer in self.liars:
            self.scheme(proposer, payload.attempt)
        elif self.rng.random() < 0.5:
            self.world.heap.call(self.when(), lambda: self.show_certificate(payload.attempt, self.world.heap.now))

    def scheme(self, proposer: PeerId, attempt: int) -> None:
        now = self.world.heap.now
        certified = [dict(certificate.items) for certificate in self.certificates(attempt)]
        everything = {item_key(peer): item_hash(peer) for peer in (*self.honest, *self.liars)}
        poorer = {key: value for key, value in everything.items() if key not in set(map(item_key, self.late))}
        audiences = [sorted(self.camp), self.others, self.others, list(self.honest), [self.victim]]
        for _ in range(self.rng.choice((1, 1, 2))):
            items = self.rng.choice([everything, poorer, *certified])
            best = [c for c in self.certificates(attempt) if dict(c.items) == items]
            certificate = best[-1] if best and self.rng.random() < 0.9 else None
            audience = self.rng.choice(audiences)
            at = now + self.rng.choice((1, 1, D, 2 * D + 2, 3 * D + 2, 5 * D, 6 * D, 7 * D - 1))
            self.say(proposer, audience, Proposal(attempt, item_pairs(items), certificate), at)
            digest = self.remember(items)
            voted = at + self.rng.choice((1, 1, 1, D, 2 * D - 1, 2 * D))
            told = self.rng.choice((audience, audience, [self.rng.choice(audience)], list(self.honest)))
            for peer in self.rng.choice((self.liars, self.liars, self.liars[:1])):
                self.say(peer, told, Vote(attempt, digest), voted)

    def finals(self, payload: Final) -> None:
        """As soon as two members are final on different values, each gets what it lacks to decide."""
        held = {p: f.digest for p, f in self.world.authority.payloads() if p in self.honest and isinstance(f, Final)}
        if len(set(held.values())) > 1:
            for member, digest in held.items():
                for peer in self.liars:
                    self.say(peer, [member], Final(digest), self.world.heap.now)
        elif self.rng.random() < 0.1:
            for peer in self.liars:
                self.say(peer, [self.victim], Final(payload.digest), self.world.heap.now)


def latencies(rng: random.Random, honest: Sequence[PeerId], victim: PeerId) -> Latency:
    """How a run's network behaves: uniform, extreme, slow between two camps, or slow to and from one member."""
    mood = rng.choice(("uniform", "extremes", "camps", "victim"))
    camp = frozenset([victim] if mood == "victim" else rng.sample(honest, rng.randint(1, len(honest))))

    def latency(src: NodeId, dst: NodeId, packet: object) -> int:
        if mood == "uniform":
            return rng.randint(0, D)
        if mood == "extremes":
            return rng.choice((0, 1, D - 1, D))
        return D if (src in camp) != (dst in camp) else rng.randint(0, 1)

    return latency


def disturb(world: World, rng: random.Random, honest: Sequence[PeerId], at_once: int) -> set[PeerId]:
    """Crashes with restarts and freezes, never more than `at_once` members at a time; who was hit."""
    down: list[tuple[int, int, PeerId]] = []
    for _ in range(at_once):
        now = rng.randint(1, 10 * D)
        while now < HORIZON:
            length = rng.choice((D // 10, D // 2, D, 2 * D, 4 * D, 8 * D))
            free = [peer for peer in honest if all(p != peer or end <= now or now + length <= t for t, end, p in down)]
            if free:
                victim = rng.choice(free)
                down.append((now, now + length, victim))
                if rng.random() < 0.3:
                    world.heap.freeze(victim, now, now + length)
                else:
                    world.heap.crash(victim, now)
                    world.heap.restart(victim, now + length)
            now += length + rng.choice((1, 1, D, 3 * D))
    return {peer for _, _, peer in down}


def run(
    seed: int,
    members: int,
    faulty_max: int,
    *,
    skew: int = 0,
    absent: int = 0,
    faults: bool = False,
    engine: type[Agreement] = Agreement,
) -> tuple[World, list[str]]:
    """One run; returns the world and what went wrong."""
    rng = random.Random(seed)
    peers = list(peer_ids(members))
    shuffled = rng.sample(peers, members)
    gone, shuffled = shuffled[:absent], shuffled[absent:]
    byzantine = rng.randint(0, faulty_max - absent) if faults else faulty_max - absent
    liars, honest = sorted(shuffled[:byzantine]), sorted(shuffled[byzantine:])
    proposers = tuple(liars + honest if rng.random() < 0.5 else rng.sample(shuffled, len(shuffled)))
    victim = rng.choice(honest)
    heap = Heap(seed, latency=latencies(rng, honest, victim))
    authority = Listening()
    electorate = Electorate(tuple(peers), frozenset(shuffled), faulty_max, proposers)
    world = World(heap, electorate, Timing(D, 3 * D, 7 * D), engine=engine, authority=authority)
    for peer in honest:
        world.add_member(peer, begins_us=rng.choice((0, skew, rng.randint(0, skew))))
    for peer in (*liars, *gone):
        world.add_puppet(peer)
    if liars:
        minds = rng.choice((Coalition, Schemer))
        coalition = authority.coalition = minds(world, rng, liars, honest, victim)
        coalition.begin()
    hit = disturb(world, rng, honest, faulty_max - absent - byzantine) if faults else set()
    heap.run(lambda: len(world.certified) == len(honest) or heap.now > 500 * D + skew)
    return world, complaints(world, honest, hit)


def complaints(world: World, honest: Sequence[PeerId], hit: set[PeerId]) -> list[str]:
    wrong = []
    finals = {p.digest for sender, p in world.authority.payloads() if isinstance(p, Final) and sender in honest}
    if len(world.values()) > 1 or len(finals) > 1:
        wrong.append("fork")
    if len(world.certified) < len(honest):
        wrong.append("hang")
    owed = {item_key(peer) for peer in honest if peer not in hit}
    if any(not owed <= set(items) for _, items in world.decided.values()):
        wrong.append("validity")
    if any(sender in honest for sender, _, _ in world.authority.doubles):
        wrong.append("double")
    return wrong


CONDITIONS = [(0, False), (D, False), (20 * D, False), (D, True)]  # skew, faults of honest members
RUNS = {(3, 1): 50, (4, 1): 50, (5, 2): 50, (9, 4): 12, (16, 7): 3}


@pytest.mark.parametrize(("skew", "faults"), CONDITIONS)
@pytest.mark.parametrize(("members", "faulty_max"), SIZES)
def test_agreement_survives_a_random_coalition(members: int, faulty_max: int, skew: int, faults: bool) -> None:
    for seed in range(RUNS[members, faulty_max]):
        _, wrong = run(seed, members, faulty_max, skew=skew, faults=faults)
        assert not wrong, f"seed {seed}: {wrong}"


@pytest.mark.parametrize("faults", [False, True])
@pytest.mark.parametrize(("members", "faulty_max", "absent"), [(3, 1, 1), (5, 2, 1), (9, 4, 1), (9, 4, 3), (16, 7, 5)])
def test_absent_members_count_as_faulty_ones(members: int, faulty_max: int, absent: int, faults: bool) -> None:
    """With many of them attempt 0 is skipped."""
    for seed in range(RUNS[members, faulty_max]):
        _, wrong = run(seed, members, faulty_max, skew=D, absent=absent, faults=faults)
        assert not wrong, f"seed {seed}: {wrong}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("skew", "faults"), CONDITIONS)
@pytest.mark.parametrize(("members", "faulty_max"), SIZES)
def test_agreement_survives_many_random_coalitions(members: int, faulty_max: int, skew: int, faults: bool) -> None:
    for seed in range(1_000, 1_000 + 40 * RUNS[members, faulty_max]):
        _, wrong = run(seed, members, faulty_max, skew=skew, faults=faults)
        assert not wrong, f"seed {seed}: {wrong}"


@settings(max_examples=60)
@given(seed=st.integers(0, 2**62), skew=st.sampled_from((0, D, 5 * D, 30 * D)), faults=st.booleans())
def test_agreement_of_five_survives_any_seed(seed: int, skew: int, faults: bool) -> None:
    _, wrong = run(seed, 5, 2, skew=skew, faults=faults)
    assert not wrong


def test_equal_seeds_give_equal_runs() -> None:
    first, _ = run(7, 5, 2, skew=D, faults=True)
    second, _ = run(7, 5, 2, skew=D, faults=True)
    assert first.decided == second.decided
    assert first.authority.payloads() == second.authority.payloads()
