"""What must hold in every simulated run, looked at again and again while it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from btrain.errors import BtrainError
from btrain.protocol.encoding import PeerId
from btrain.protocol.ledger import open_block

if TYPE_CHECKING:
    from btrain.simulation.world import World

BAN_BLOCKS_MAX = 2  # in a calm run a charge of round r bans in block r + 1; a late one has missed its Commits


class InvariantViolated(BtrainError):
    """A simulated run broke a promise: a fork, a false ban, a weight that is not finite. The seed reproduces it."""


class Invariants:
    """Checks a world, each block and event once.

    Honest peers have the same blocks and after the same blocks the same, finite parameters; none is banned, accused or
    charged by another. In a calm run whoever is charged on evidence that proves itself is banned by the next blocks.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.charged: dict[PeerId, int] = {}  # accused -> the round in which an honest peer first charged it
        self.banned: dict[PeerId, int] = {}  # -> the block
        self._honest: frozenset[PeerId] = frozenset()
        self._blocks: list[bytes] = []
        self._read: dict[PeerId, int] = {}  # blocks of each peer's ledger that were compared
        self._events: dict[PeerId, int] = {}
        self._x: dict[int, bytes] = {}  # round -> SHA-256 of x[round]

    def check(self) -> None:
        """Raises InvariantViolated: names peer, round and what was broken."""
        world = self.world
        self._honest = frozenset((*world.honest, *world.newcomers))
        for peer in sorted(self._honest):
            self._check_ledger(peer)
            self._check_parameters(peer)
            self._check_events(peer)
        if world.calm:
            self._check_bans()

    def _broken(self, text: str) -> InvariantViolated:
        return InvariantViolated(f"seed {self.world.seed}: {text}")

    def _check_ledger(self, peer: PeerId) -> None:
        ledger = self.world.identities[peer].disk.blocks
        for round in range(self._read.get(peer, 0), len(ledger)):
            block = ledger[round].block
            if round < len(self._blocks):
                if self._blocks[round] != block:
                    raise self._broken(f"{peer.hex()[:8]} forks at round {round}")
                continue
            self._blocks.append(block)
            for ban in open_block(block).bans:
                self.banned[ban.peer] = round
                if ban.peer in self._honest:
                    raise self._broken(f"honest {ban.peer.hex()[:8]} banned in round {round} for {ban.deed}")
        self._read[peer] = len(ledger)

    def _check_parameters(self, peer: PeerId) -> None:
        identity, fresh = self.world.identities[peer], False
        for round, digest in identity.digests.items():
            fresh = fresh or round not in self._x
            if peer not in self.world.drifted and self._x.setdefault(round, digest) != digest:
                raise self._broken(f"x[{round}] of {peer.hex()[:8]} differs")
        identity.digests.clear()
        node = self.world.node(peer)
        if fresh and node is not None and not bool(torch.isfinite(node.learner.parameters()).all()):
            raise self._broken(f"x[{node.x_round}] of {peer.hex()[:8]} is not finite")

    def _check_events(self, peer: PeerId) -> None:
        events = self.world.identities[peer].events
        for index in range(self._events.get(peer, 0), len(events)):
            _, name, fields = events[index]
            if name in ("charged", "accuses"):
                self._check_charge(peer, name, fields)
        self._events[peer] = len(events)

    def _check_charge(self, peer: PeerId, name: str, fields: Mapping[str, Any]) -> None:
        accused = bytes.fromhex(fields["peer"])
        if accused in self._honest:
            raise self._broken(f"{peer.hex()[:8]} {name} honest {accused.hex()[:8]} of round {fields['round']}")
        if name == "charged":
            self.charged[accused] = min(fields["seen"], self.charged.get(accused, fields["seen"]))

    def _check_bans(self) -> None:
        for accused, round in self.charged.items():
            if accused not in self.banned and len(self._blocks) > round + BAN_BLOCKS_MAX:
                raise self._broken(f"{accused.hex()[:8]}, charged in round {round}, is not banned by the next blocks")
