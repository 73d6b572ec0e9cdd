"""A whole run of a configuration with attackers, in one process and virtual time: one seed, one document."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from btrain.adversary import attack_name, first_round, get_adversary
from btrain.adversary.registry import BROKEN_LINK, HONEST, KILL, RESTART_MID_ROUND
from btrain.aggregation import get_rule
from btrain.config import RunConfig
from btrain.errors import ConfigError
from btrain.identity import SigningKey
from btrain.protocol.behaviour import Behaviour
from btrain.protocol.encoding import PeerId, digest
from btrain.protocol.ledger import Block, Charter, LedgerState, open_block
from btrain.protocol.quorum import byzantine_limit, validators_max
from btrain.simulation.faults import CALM, Faults
from btrain.simulation.heap import Cut, NetworkPlan
from btrain.simulation.invariants import InvariantViolated
from btrain.simulation.learning import SharedLearning
from btrain.simulation.peer import Timings
from btrain.simulation.report import (
    EvidenceKey,
    Final,
    Part,
    Report,
    false_bans,
    loss_ratio,
    peer_reports,
    rounds_to_bans,
)
from btrain.simulation.signatures import Signatures, simulated_keys
from btrain.simulation.world import World

STALLED_DELTAS = 2_000  # without a new block for so long the run is over
DOWN_US = (20_000, 4_000_000)  # how long a killed peer stays away
UP_US = (200_000, 3_000_000)
FOR_EVER_US = 2**62


def charter_of(config: RunConfig) -> Charter:
    """The contract as the protocol reads it."""

    def microseconds(seconds: float | None) -> int | None:
        return None if seconds is None else round(seconds * 1e6)

    verification, deadlines, rule = config.verification, config.deadlines, config.aggregation
    tolerance = verification.tolerance.bf16 if config.precision == "bf16" else verification.tolerance.fp32
    return Charter(
        rounds=config.rounds,
        byzantine_max=config.group.byzantine_max,
        audits_per_round=verification.audits_per_round,
        tolerance=tolerance,
        rule=get_rule(rule.rule, **rule.options()),
        message_us=round(deadlines.message_s * 1e6),
        compute_us=microseconds(deadlines.compute_s),
        transfer_us=microseconds(deadlines.transfer_s),
        admission=config.group.admission,
        probation_rounds=config.group.probation_rounds,
        invitations=config.group.invitations,
        allowed=frozenset(config.members),
        state_sync_every=config.state_sync_every,
        custody_rounds=verification.custody_rounds,
        sweep=verification.sweep,
        state_tolerance=verification.state_tolerance,
        rollback=verification.rollback != "none",
        rollback_whole=verification.rollback == "window",
        final_sweep=verification.final_sweep,
    )


def with_peers(config: RunConfig, peers: int, rounds: int | None = None) -> RunConfig:
    """The configuration for local peers: as many founders, the most Byzantine ones that they allow, these rounds."""
    update: dict[str, Any] = {} if rounds is None else {"rounds": rounds}
    if config.group.start_when != peers or config.group.members:
        limit = byzantine_limit(peers, validators_max(peers, config.verification.audits_per_round))
        group = {"start_when": peers, "byzantine_max": limit, "members": (), "admission": "open"}
        update["group"] = config.group.model_copy(update=group)
    return config.model_copy(update=update)


def cast_attackers(
    keys: Sequence[SigningKey], byzantine: int, attacks: Sequence[str], attack_from: int, seed: int
) -> tuple[list[Part], dict[int, Behaviour]]:
    """The part of every peer in member order, and the behaviours of the attackers by position.

    The last `byzantine` peers take the attacks in turn; one with a fate (`HONEST`) is honest. Raises ConfigError.
    """
    if byzantine and not attacks:
        raise ConfigError(f"--byzantine {byzantine}: name what they do with --attack, for example sign_flip")
    if attacks and not byzantine:
        raise ConfigError(f"--attack {attacks[0]}: say how many attack with --byzantine")
    first = len(keys) - byzantine
    specs = {first + i: attacks[i % len(attacks)] for i in range(byzantine)}
    hostile = {i for i, spec in specs.items() if attack_name(spec) not in HONEST}
    coalition = frozenset(keys[i].public_key for i in hostile)
    behaviours: dict[int, Behaviour] = {}
    cast = []
    for i, key in enumerate(keys):
        spec = specs.get(i)
        starts = attack_from
        if spec is not None:
            starts = first_round(spec, attack_from)
            if i in hostile:
                behaviours[i] = get_adversary(spec, coalition=coalition, attack_from=attack_from, seed=seed)
        cast.append(Part(key.public_key, i in hostile, spec, starts))
    return cast, behaviours


@dataclass(frozen=True)
class Liveness:
    """Once the faults are over the run makes so many rounds that are not void within this time."""

    rounds: int = 5
    within_us: int = 300_000_000


@dataclass
class Scenario:
    """One simulated run. `report` can be asked for at any time."""

    config: RunConfig
    cast: list[Part]
    world: World
    learning: SharedLearning
    stop_when_banned: bool = False
    faults: Faults = field(default_factory=Faults)
    liveness: Liveness | None = None
    _steps_at_end: int | None = None

    def run(self, on_round: Callable[[int], None] | None = None) -> None:
        """Until every honest peer has the last block, all attackers are banned (if asked), or nothing moves.

        Raises:
            InvariantViolated: a promise was broken, or there was no progress after the faults.
        """
        world, heap = self.world, self.world.heap
        step_us = world.charter.message_us
        height, moved_us = -1, self.faults.end_us
        while not self._done():
            heap.run(heap.now + step_us)
            world.check()
            self._check_liveness()
            if self._height() > height:
                height, moved_us = self._height(), max(heap.now, self.faults.end_us)
                if on_round is not None:
                    on_round(height)
            elif heap.now - moved_us > STALLED_DELTAS * step_us:
                return

    def _check_liveness(self) -> None:
        if self.liveness is None or self.world.heap.now < self.faults.end_us:
            return
        steps = self._steps()
        if self._steps_at_end is None:
            self._steps_at_end = steps
        late = self.world.heap.now > self.faults.end_us + self.liveness.within_us
        made, due = steps - self._steps_at_end, self.liveness.rounds
        if late and made < due:
            within_s = self.liveness.within_us / 1e6
            raise InvariantViolated(
                f"seed {self.world.seed}: {made} rounds within {within_s:g} s of the end of the faults, not {due}"
            )

    def _steps(self) -> int:
        """Rounds so far that were not void, or were undone."""
        last = self.world.identities[self.longest()].disk.blocks[-1:]
        nodes = (self.world.node(peer) for peer in self.world.honest)
        undone = max((node.member.state.trajectory.rounds_undone for node in nodes if node is not None), default=0)
        return (open_block(last[0].block).step if last else 0) + undone

    def _height(self) -> int:
        return max(self.world.height(peer) for peer in self.world.honest)

    def _done(self) -> bool:
        world = self.world
        if all(map(world.has_ended, world.staying)):
            return True
        attackers = [part.peer for part in self.cast if part.byzantine]
        if not self.stop_when_banned or not attackers:
            return False
        heads = [node.member.state for node in map(world.node, world.honest) if node is not None]
        return bool(heads) and all(peer in state.roster.banned for state in heads for peer in attackers)

    def longest(self) -> PeerId:
        """The honest peer with the longest ledger."""
        return max(self.world.honest, key=lambda peer: (self.world.height(peer), peer))

    def ledger(self) -> tuple[list[Block], LedgerState]:
        """The longest honest ledger and the state after it."""
        blocks = self.world.blocks(self.longest())
        state = LedgerState.start(self.world.genesis, self.world.charter)
        for block in blocks:
            state = state.advance(block)
        return blocks, state

    def final(self) -> Final:
        """Median over the honest peers that are up of the evaluation on the whole held-out split; NaN if none is."""
        nodes = [node for node in map(self.world.node, self.world.honest) if node is not None]
        found = [self.learning.evaluate(node.learner.parameters()) for node in nodes]
        if not found:
            return Final(math.nan, math.nan)
        loss = median(e.loss for e in found)
        return Final(loss, median(e.loss if e.metric is None else e.metric for e in found))

    def digests_equal(self) -> bool:
        """Whether honest peers agree on every block that two of them have, and on the parameters where they stand."""
        blocks: dict[int, bytes] = {}
        x: dict[int, bytes] = {}
        for peer in self.world.honest:
            for round, certified in enumerate(self.world.identities[peer].disk.blocks):
                if blocks.setdefault(round, certified.block) != certified.block:
                    return False
            node = self.world.node(peer)
            if node is not None:
                here = digest(node.learner.parameters().numpy().tobytes())
                if x.setdefault(node.x_round, here) != here:
                    return False
        return True

    def evidence(self) -> dict[EvidenceKey, list[str]]:
        """SHA-256 of the evidence bundles that honest peers hold."""
        found: dict[EvidenceKey, set[str]] = {}
        for peer in self.world.honest:
            for accused, round, deed, data in self.world.identities[peer].disk.evidence:
                found.setdefault((accused, round, deed), set()).add(digest(data).hex())
        return {key: sorted(hashes) for key, hashes in found.items()}

    def bytes_sent_per_parameter(self, rounds: int) -> float:
        """Median over the honest peers, per round."""
        sent = [self.world.heap.bytes_sent.get(peer, 0) for peer in self.world.honest]
        return float(median(sent)) / max(1, rounds) / self.world.genesis.numel

    def report(self, baseline_loss: float | None = None) -> Report:
        """The document so far."""
        blocks, state = self.ledger()
        rows = peer_reports(self.cast, blocks, state, self.evidence())
        first, last = rounds_to_bans(self.cast, blocks)
        final = self.final()
        return Report(
            run_id=self.world.genesis.run.hex(),
            rounds=len(blocks),
            final=final,
            peers=rows,
            false_bans=false_bans(rows),
            digests_equal=self.digests_equal(),
            rounds_to_first_ban=first,
            rounds_to_all_banned=last,
            loss_ratio=None if baseline_loss is None else loss_ratio(final.loss, baseline_loss),
            bytes_sent_per_parameter=self.bytes_sent_per_parameter(len(blocks)),
        )


def stage(
    config: RunConfig,
    *,
    peers: int,
    byzantine: int = 0,
    attacks: Sequence[str] = (),
    attack_from: int = 0,
    rounds: int | None = None,
    seed: int = 0,
    faults: Faults | None = None,
    liveness: Liveness | None = None,
    signatures: Signatures = "real",
    stop_when_banned: bool = False,
    base: Path | None = None,
) -> Scenario:
    """Make the run ready. Raises ConfigError, for `byzantine` above the limit with the limit."""
    config = with_peers(config, peers, rounds)
    if byzantine > config.group.byzantine_max:
        raise ConfigError(f"--byzantine {byzantine}: {peers} peers can take at most {config.group.byzantine_max}")
    keys, calm = simulated_keys(seed, peers, signatures), faults is None
    faults = faults or Faults()
    cast, behaviours = cast_attackers(keys, byzantine, attacks, attack_from, seed)
    learning = SharedLearning(config, base)
    world = World(
        charter_of(config), learning.learner, peers, seed=seed, byzantine=behaviours,
        plan=_with_broken_links(faults.network(keys, CALM), cast), contract=learning.config.contract_bytes(),
        signatures=signatures, timings=Timings(sync_us=faults.sync_us), clocks=faults.clocks,
        gone=faults.gone | {index for index, part in enumerate(cast) if part.attack == KILL},
        calm=calm and all(part.attack is None or part.byzantine for part in cast),
    )  # fmt: skip
    faults.schedule(world.heap, keys)
    for part in cast:
        fate = random.Random(f"{seed}/{part.peer.hex()}")
        if part.attack == RESTART_MID_ROUND:
            _Restarter(world, part.peer, fate).arm()
        elif part.attack == KILL:
            world.heap.crash(part.peer, fate.randint(*UP_US))
    return Scenario(config, cast, world, learning, stop_when_banned, faults, liveness)


def _with_broken_links(plan: NetworkPlan, cast: Sequence[Part]) -> NetworkPlan:
    """The network in which every peer with a broken link never reaches the first honest peer, nor that one it."""
    other = next((frozenset({part.peer}) for part in cast if part.attack is None), frozenset[PeerId]())
    broken = [frozenset({part.peer}) for part in cast if part.attack == BROKEN_LINK]
    return replace(plan, cuts=(*plan.cuts, *(Cut(one, other, 0, FOR_EVER_US) for one in broken)))


@dataclass
class _Restarter:
    """Kills an honest peer again and again, in whatever phase it is, and starts it after a while."""

    world: World
    peer: PeerId
    random: random.Random

    def arm(self) -> None:
        """Until the end of the run."""
        self.world.heap.call(self.world.heap.now + self.random.randint(*UP_US), self._kill)

    def _kill(self) -> None:
        heap = self.world.heap
        if self.world.has_ended(self.peer):
            return
        if self.world.node(self.peer) is not None:
            back_us = heap.now + self.random.randint(*DOWN_US)
            heap.crash(self.peer, heap.now)
            heap.restart(self.peer, back_us)
            heap.call(back_us, self.arm)
        else:
            self.arm()


def simulate(
    config: RunConfig,
    *,
    peers: int,
    byzantine: int = 0,
    attacks: Sequence[str] = (),
    attack_from: int = 0,
    rounds: int | None = None,
    seed: int = 0,
    baseline: bool = False,
    faults: Faults | None = None,
    liveness: Liveness | None = None,
    signatures: Signatures = "real",
    stop_when_banned: bool = False,
    base: Path | None = None,
    on_round: Callable[[int], None] | None = None,
) -> Report:
    """Run a configuration in virtual time; equal arguments give equal documents.

    attacks: NAME[:key=value,...], taken in turn by the attackers. baseline: run it without attackers too and give the
    ratio of the losses. Raises ConfigError.
    """
    scenario = stage(
        config, peers=peers, byzantine=byzantine, attacks=attacks, attack_from=attack_from, rounds=rounds, seed=seed,
        faults=faults, liveness=liveness, signatures=signatures, stop_when_banned=stop_when_banned, base=base,
    )  # fmt: skip
    scenario.run(on_round)
    report = scenario.report()
    if not baseline:
        return report
    honest = stage(config, peers=peers, rounds=rounds, seed=seed, faults=faults, signatures=signatures, base=base)
    honest.run()
    return replace(report, loss_ratio=loss_ratio(report.final.loss, honest.final().loss))
