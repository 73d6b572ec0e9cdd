"""Churn: in every period half of the peers go, most in order, some by a crash, and as many new identities come.

Attackers stay; the place of one that is banned goes to a new identity that attacks as the next of the plan does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, cycle

from btrain.adversary import get_adversary
from btrain.aggregation import get_rule
from btrain.identity import SigningKey
from btrain.protocol.behaviour import Behaviour
from btrain.protocol.encoding import PeerId
from btrain.protocol.ledger import Charter, LedgerState
from btrain.protocol.quorum import byzantine_limit, validators_max
from btrain.simulation.faults import CALM
from btrain.simulation.heap import NetworkPlan
from btrain.simulation.peer import Timings
from btrain.simulation.quadratic import Quadratic
from btrain.simulation.signatures import simulated_keys
from btrain.simulation.world import World

SECOND = 1_000_000
OVERLAP = 3  # newcomers come as a period begins; whom they replace goes when one such part of it is over


@dataclass(frozen=True)
class ChurnPlan:
    """What changes: `replaced` of the honest peers go in a period, in every `crash_every`-th period one by a crash.

    The seat of one that crashed stays for 64 rounds, absent and counted against b, which carries no more of them.
    """

    peers: int = 16
    attacks: tuple[str, ...] = ("just_inside_tolerance", "sign_flip", "rubber_stamp")
    periods: int = 30
    period_us: int = 60 * SECOND
    replaced: int = 8
    crash_every: int | None = 3
    compute_us: int = 10 * SECOND
    seed: int = 0


@dataclass(frozen=True)
class Goodput:
    """What came of a run: certified blocks, those that were not void, identities that came, bans of attackers."""

    rounds: int
    good_rounds: int
    joined: int
    banned: int


class Churn:
    """One run of a plan."""

    def __init__(self, plan: ChurnPlan) -> None:
        self.plan = plan
        self._keys = self._all_keys()
        self._attacks = cycle(plan.attacks)
        first = plan.peers - len(plan.attacks)
        founders = simulated_keys(plan.seed, plan.peers, "counted")
        charter = Charter(
            rounds=plan.periods * plan.period_us // plan.compute_us + 1,  # more than are made
            byzantine_max=byzantine_limit(plan.peers, validators_max(plan.peers, 1)), audits_per_round=1,
            tolerance=1e-4, rule=get_rule("centered_clip"), message_us=SECOND, compute_us=plan.compute_us * 3 // 2,
            transfer_us=SECOND, admission="allowlist", allowed=frozenset(self._listed(founders)),
        )  # fmt: skip
        self.world = World(
            charter, lambda: Quadratic(300), plan.peers, seed=plan.seed,
            byzantine={first + i: self._attacker() for i in range(len(plan.attacks))}, plan=NetworkPlan(CALM),
            timings=Timings(compute_us=plan.compute_us), signatures="counted",
        )  # fmt: skip
        self.joined = 0
        self._here = self.world.honest  # honest peers that have not been told to go, the oldest first
        self._attackers = [key.public_key for key in self.world.keys[first:]]

    def _all_keys(self) -> Iterator[SigningKey]:
        return (simulated_keys(self.plan.seed, 1, "counted", first=1_000 + i)[0] for i in count())

    def _listed(self, founders: list[SigningKey]) -> Iterator[PeerId]:
        """Everybody who may ever come."""
        yield from (key.public_key for key in founders)
        later = self._all_keys()
        yield from (next(later).public_key for _ in range(self.plan.periods * self.plan.peers))

    def _attacker(self) -> Behaviour:
        return get_adversary(next(self._attacks), seed=self.plan.seed)

    def run(self) -> Goodput:
        """To the end of the last period.

        Raises:
            InvariantViolated: a promise was broken.
        """
        plan, heap = self.plan, self.world.heap
        for period in range(plan.periods):
            begin_us = period * plan.period_us
            if period and plan.replaced:
                self._come(plan.replaced)
                self._until(begin_us + plan.period_us // OVERLAP)
                self._go(crashes=plan.crash_every is not None and period % plan.crash_every == 0)
            self._until(begin_us + plan.period_us)
            assert heap.now == begin_us + plan.period_us
        self.world.verify()
        blocks = self.world.blocks(self._longest())
        banned = sum(len(block.bans) for block in blocks)
        return Goodput(len(blocks), sum(block.void == 0 for block in blocks), self.joined, banned)

    def _until(self, at_us: int) -> None:
        while self.world.heap.now < at_us:
            self.world.heap.run(min(at_us, self.world.heap.now + SECOND))
            self.world.check()
            self._retire_departed()

    def _longest(self) -> PeerId:
        return max(self._here, key=lambda peer: (self.world.height(peer), peer))

    def _state(self) -> LedgerState:
        node = self.world.node(self._longest())
        assert node is not None
        return node.member.state

    def _come(self, newcomers: int) -> None:
        now = self.world.heap.now
        for _ in range(newcomers):
            key = next(self._keys)
            self.world.add_newcomer(key, now)
            self._here.append(key.public_key)
        banned = self._state().roster.banned
        for attacker in [peer for peer in self._attackers if peer in banned]:
            self._attackers.remove(attacker)
            if self.world.node(attacker) is not None:
                self.world.retire(attacker)
            key = next(self._keys)
            self.world.add_newcomer(key, now, self._attacker())
            self._attackers.append(key.public_key)
        self.joined += newcomers

    def _go(self, crashes: bool) -> None:
        """The oldest go; the last of them may crash."""
        going, self._here = self._here[: self.plan.replaced], self._here[self.plan.replaced :]
        in_order = self.plan.replaced - crashes
        for peer in going[:in_order]:
            self.world.leave(peer)
        for peer in going[in_order:]:
            self.world.retire(peer)

    def _retire_departed(self) -> None:
        """Who left in order and has no seat any more ends."""
        roster = self._state().roster
        for peer in [*self.world.honest, *self.world.newcomers]:
            node = self.world.node(peer)
            if peer not in self._here and node is not None and node.member.leaving and roster.seat(peer) is None:
                self.world.retire(peer)
