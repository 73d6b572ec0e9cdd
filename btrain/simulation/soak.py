"""Random runs for the soak: a seed draws peers, attackers, faults and network; the run must keep every promise.

Never more than b of the peers are malicious, down, frozen or cut off at once, since more is promised to nobody. Packets
are lost for good in runs without attackers only: with attackers the protocol counts on Delta.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from btrain.adversary import adversary_names, adversary_variants, get_adversary
from btrain.adversary.registry import HONEST
from btrain.aggregation import get_rule
from btrain.protocol.behaviour import Behaviour
from btrain.protocol.ledger import Charter
from btrain.protocol.quorum import byzantine_limit, validators_max
from btrain.simulation.faults import CALM, Faults, Outage, fits
from btrain.simulation.heap import Clock, LinkPlan, SlowReader
from btrain.simulation.invariants import InvariantViolated
from btrain.simulation.peer import Timings
from btrain.simulation.quadratic import Quadratic
from btrain.simulation.signatures import Signatures, simulated_keys
from btrain.simulation.world import World

SECOND = 1_000_000
DELTA_US = 500_000
ROUND_US = 170_000  # what a calm round takes
PATIENCE_US = 60 * SECOND  # for each round, once the faults are over: b that vote for nothing take 50 Delta a round
ATTACKS = (*(name for name in adversary_names() if name not in HONEST), *adversary_variants())
SCHEDULES = ("", "every=2", "every=5,on=2", "from=9", "from=4,every=3")
KINDS = ("crash", "crash", "freeze", "cut", "clog", "deaf", "mute")


@dataclass(frozen=True)
class Case:
    """One run: who attacks how, and what goes wrong besides."""

    seed: int
    peers: int
    rounds: int
    numel: int
    attacks: tuple[str, ...]  # of the last peers in member order
    attack_from: int
    faults: Faults
    rollback: bool = False
    final_sweep: int = 0

    @property
    def faulty_max(self) -> int:
        """b."""
        return byzantine_limit(self.peers, validators_max(self.peers, 1))

    @property
    def has_faults(self) -> bool:
        """Whether network or honest peers fail."""
        return self.faults != Faults()


@dataclass(frozen=True)
class Outcome:
    """What a run came to. An honest peer-round is a block that an honest peer has appended."""

    honest_peer_rounds: int
    bans: int
    absences: int
    void_rounds: int
    writes_lost: int


def draw_case(seed: int, sizes: tuple[int, ...] = (4, 4, 5, 5, 6, 7, 8)) -> Case:
    """The run of a seed."""
    dice = random.Random(f"btrain/soak/{seed}")
    peers = dice.choice(sizes)
    faulty_max = byzantine_limit(peers, validators_max(peers, 1))
    byzantine = dice.randint(0, faulty_max)
    attacks = tuple(draw_attack(dice) for _ in range(byzantine))
    calm = dice.random() < 0.1
    rounds = dice.randint(8, 40)
    span_us = int(rounds * ROUND_US * dice.uniform(0.5, 1.5))
    faults = Faults() if calm else draw_faults(dice, peers, byzantine, faulty_max, span_us)
    numel, attack_from = dice.choice((300, 1500, 2100)), dice.randint(0, 6)
    rollback, final_sweep = dice.random() < 0.3, dice.choice((0, 3))
    return Case(seed, peers, rounds, numel, attacks, attack_from, faults, rollback, final_sweep)


def draw_attack(dice: random.Random) -> str:
    """One attack, or two that one attacker makes, some of them in strikes or late."""
    parts = []
    for name in dice.sample(ATTACKS, 2 if dice.random() < 0.3 else 1):
        schedule = dice.choice(SCHEDULES) if dice.random() < 0.3 else ""
        parts.append(name + (f"{',' if ':' in name else ':'}{schedule}" if schedule else ""))
    return "+".join(parts)


def draw_faults(dice: random.Random, peers: int, byzantine: int, faulty_max: int, span_us: int) -> Faults:
    """Faults of honest peers, at most b - byzantine of them at a time, and of the network, begun within a span."""
    honest, spare = peers - byzantine, faulty_max - byzantine
    outages: list[Outage] = []
    if spare and dice.random() < 0.15:
        outages.append(Outage(dice.randrange(honest), "crash", dice.randrange(span_us), None))
    longest_us = dice.choice((300_000, 3 * SECOND, 20 * SECOND))
    for _ in range(dice.choice((0, 1, 2, 4, 8)) if spare else 0):
        start_us = dice.randrange(span_us)
        end_us = start_us + 1_000 + int(longest_us * dice.random() ** 3)
        outage = Outage(dice.randrange(honest), dice.choice(KINDS), start_us, end_us)
        if fits(outage, outages, spare):
            outages.append(outage)
    readers = {o.peer: SlowReader(dice.choice((3_000, 30_000)), o.start_us, o.end_us)
               for o in outages if o.kind == "clog" and o.end_us is not None and dice.random() < 0.5}  # fmt: skip
    kept = tuple(o for o in outages if not (o.kind == "clog" and o.peer in readers))
    faults = Faults(
        kept, (), _link(dice, byzantine), {}, _clocks(dice, peers), readers, dice.choice((0, 0, 2_000, 20_000))
    )
    return replace(faults, safety_us=max(faults.end_us, span_us))


def _link(dice: random.Random, byzantine: int) -> LinkPlan:
    loss = dice.choice((0.0, 0.0, 0.01)) if byzantine == 0 else 0.0
    least, most = dice.choice(((1_000, 20_000), (1_000, 60_000), (20_000, 150_000)))
    return LinkPlan(
        least, most, dice.choice((None, 2_000_000)), loss, dice.choice((0.0, 0.05)), dice.choice((0.0, 1.0))
    )


def _clocks(dice: random.Random, peers: int) -> dict[int, Clock]:
    if dice.random() < 0.5:
        return {}
    return {peer: Clock(dice.randrange(10**12), dice.randint(-2_000, 2_000)) for peer in range(peers)}


def set_up(case: Case, signatures: Signatures = "real") -> World:
    """The world of a case, ready to run."""
    keys = simulated_keys(case.seed, case.peers, signatures)
    first = case.peers - len(case.attacks)
    coalition = frozenset(key.public_key for key in keys[first:])
    byzantine: dict[int, Behaviour] = {
        first + i: get_adversary(attack, coalition=coalition, attack_from=case.attack_from, seed=case.seed)
        for i, attack in enumerate(case.attacks)
    }
    charter = Charter(
        rounds=case.rounds, byzantine_max=case.faulty_max, audits_per_round=1, tolerance=1e-4,
        rule=get_rule("centered_clip"), message_us=DELTA_US, compute_us=DELTA_US, transfer_us=DELTA_US,
        state_sync_every=8, custody_rounds=8, rollback=case.rollback, final_sweep=case.final_sweep,
    )  # fmt: skip
    world = World(
        charter, lambda: Quadratic(case.numel), case.peers, seed=case.seed, byzantine=byzantine,
        plan=case.faults.network(keys, CALM), timings=Timings(sync_us=case.faults.sync_us), signatures=signatures,
        clocks=case.faults.clocks, gone=case.faults.gone, calm=not case.has_faults,
    )  # fmt: skip
    case.faults.schedule(world.heap, keys)
    return world


def play(case: Case, signatures: Signatures = "real", look: Callable[[World], None] | None = None) -> Outcome:
    """Run a case to its end; `look` sees the world after every Delta.

    Raises:
        InvariantViolated: a promise was broken, or the run did not come to its end.
        RemoteProtocolError: a ledger does not verify.
    """
    world = set_up(case, signatures)
    deadline_us = case.faults.end_us + case.rounds * PATIENCE_US
    while not _over(world, case) and world.heap.now < deadline_us:
        world.heap.run(world.heap.now + DELTA_US)
        world.check()
        if look is not None:
            look(world)
    if not _over(world, case):
        heights = sorted(world.height(peer) for peer in world.staying)
        raise InvariantViolated(f"seed {case.seed}: no progress, honest heights {heights} of {case.rounds}: {case}")
    world.verify()
    return _outcome(world)


def _over(world: World, case: Case) -> bool:
    return world.heap.now >= case.faults.end_us and world.at_rest


def _outcome(world: World) -> Outcome:
    blocks = world.blocks(world.staying[0])
    return Outcome(
        honest_peer_rounds=sum(world.height(peer) for peer in world.honest),
        bans=sum(len(block.bans) for block in blocks),
        absences=sum(len(block.absences) for block in blocks),
        void_rounds=sum(block.void > 0 for block in blocks[1:]),
        writes_lost=sum(world.identities[peer].disk.lost for peer in world.honest),
    )
