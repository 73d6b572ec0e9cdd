"""Simulated runs of the whole protocol on the smallest model."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from btrain.aggregation import get_rule
from btrain.protocol.behaviour import Behaviour
from btrain.protocol.encoding import PeerId
from btrain.protocol.ledger import Charter
from btrain.protocol.quorum import byzantine_limit, validators_max
from btrain.simulation.faults import Faults
from btrain.simulation.heap import LinkPlan
from btrain.simulation.quadratic import Quadratic
from btrain.simulation.signatures import Signatures, simulated_keys
from btrain.simulation.world import World

RULE = get_rule("centered_clip")
LINK = LinkPlan(1_000, 20_000)
DELTA_US = 500_000


class Run:
    """Makes worlds and judges them."""

    def __init__(self) -> None:
        self.rule = RULE
        self.delta_us = DELTA_US

    def charter(self, peers: int, rounds: int, **changes: object) -> Charter:
        """A contract for so many peers; b is the most they allow, deadlines do not depend on a history."""
        fields: dict[str, object] = {
            "rounds": rounds,
            "byzantine_max": byzantine_limit(peers, validators_max(peers, 1)),
            "audits_per_round": 1,
            "tolerance": 1e-4,
            "rule": RULE,
            "message_us": DELTA_US,
            "compute_us": DELTA_US,
            "transfer_us": DELTA_US,
            "probation_rounds": 4,
        }
        return Charter(**{**fields, **changes})  # type: ignore[arg-type]

    def world(
        self,
        peers: int,
        rounds: int,
        *,
        seed: int = 0,
        faults: Faults | None = None,
        link: LinkPlan = LINK,
        byzantine: Mapping[int, Behaviour] | None = None,
        numel: int = 2100,
        signatures: Signatures = "real",
        **changes: object,
    ) -> World:
        """A run that is set up and not started."""
        faults = faults or Faults()
        keys = simulated_keys(seed, peers, signatures)
        world = World(
            self.charter(peers, rounds, **changes),
            lambda: Quadratic(numel),
            peers,
            seed=seed,
            plan=faults.network(keys, link),
            byzantine=byzantine or {},
            signatures=signatures,
        )
        faults.schedule(world.heap, keys)
        return world

    def to_the_end(self, world: World, faults: Faults | None = None, patience_us: int = 300_000_000) -> World:
        """Run until every honest peer has ended; checks every invariant of an honest outcome on the way."""
        end = 0 if faults is None else faults.end_us
        deadline = end + patience_us
        rounds = world.charter.rounds
        world.run(rounds, deadline)
        world.heap.run(max(world.heap.now, end))
        while not world.at_rest and world.heap.now < deadline:
            world.heap.run(world.heap.now + 4 * world.charter.message_us)
        world.check()
        world.verify()
        assert world.at_rest, [(world.height(p), world.node(p)) for p in world.honest]
        assert all(map(world.has_ended, world.honest))
        assert not self.honest_drops(world)
        return world

    def honest_drops(self, world: World) -> list[str]:
        """Why honest peers closed connections to honest peers."""
        honest = {peer.hex() for peer in world.honest}
        events = (event for peer in world.honest for event in world.identities[peer].events)
        return [fields["reason"] for _, name, fields in events if name == "drop" and fields["peer"] in honest]

    def bans(self, world: World) -> dict[PeerId, tuple[str, int, int]]:
        """Who was banned: (deed, round of the deed, round of the ban)."""
        blocks = world.blocks(world.honest[0])
        return {ban.peer: (ban.deed, ban.round, block.round) for block in blocks for ban in block.bans}

    def random(self, seed: int) -> random.Random:
        """Where a plan's dice come from."""
        return random.Random(f"plan/{seed}")


@pytest.fixture(scope="session")
def run() -> Run:
    """Makes worlds and judges them."""
    return Run()
