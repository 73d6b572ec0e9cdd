"""A whole run in one process: founders, faults, rounds, and the invariants that must hold after every one of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from btrain.errors import BtrainError
from btrain.identity import SigningKey
from btrain.protocol.behaviour import Behaviour
from btrain.protocol.encoding import PeerId, digest
from btrain.protocol.ledger import Block, Charter, Founder, Genesis, LedgerState, check_certificate, open_block
from btrain.protocol.member import Membership
from btrain.protocol.randomness import HashChain
from btrain.simulation.heap import Heap, NetworkPlan
from btrain.simulation.peer import Identity, Learner, SimulatedPeer, Timings
from btrain.simulation.signatures import Signatures, simulated_keys, simulated_verifier

__all__ = ["InvariantViolated", "World", "found", "simulated_keys"]


class InvariantViolated(BtrainError):
    """A simulated run broke a promise: a fork, a false ban, a weight that is not finite. The seed reproduces it."""


def found(keys: Sequence[SigningKey], charter: Charter, contract: bytes, learner: Learner, seed: int) -> Genesis:
    """A genesis of these founders; the nonce takes the seed."""
    nonce = hashlib.sha256(f"btrain/simulation/nonce/{seed}".encode()).digest()
    x = learner.parameters()
    founders = tuple(Founder(key.public_key, HashChain(key.seed, nonce, charter.rounds).end) for key in keys)
    return Genesis(1, contract, nonce, x.numel(), digest(x.numpy().tobytes()), 0.0, founders)


@dataclass
class World:
    """The peers of a run on one heap. `byzantine` maps the attackers to their behaviours."""

    charter: Charter
    make_learner: Callable[[], Learner]
    peers: int
    seed: int = 0
    byzantine: Mapping[int, Behaviour] = field(default_factory=dict)
    plan: NetworkPlan = field(default_factory=NetworkPlan)
    timings: Timings = field(default_factory=Timings)
    contract: bytes = b"simulated"
    signatures: Signatures = "real"

    def __post_init__(self) -> None:
        self.heap = Heap(self.seed, self.plan)
        self.keys = simulated_keys(self.seed, self.peers, self.signatures)
        self.genesis = found(self.keys, self.charter, self.contract, self.make_learner(), self.seed)
        self.verifier = simulated_verifier(self.signatures)
        self.identities: dict[PeerId, Identity] = {}
        for index, key in enumerate(self.keys):
            self._add(key, self.byzantine.get(index, Behaviour()))
        self.newcomers: list[PeerId] = []
        self.drifted: set[PeerId] = set()  # whose parameters a fault has changed, until it has healed
        self._checked: dict[PeerId, int] = {}
        self._blocks: dict[int, bytes] = {}
        self._digests: dict[int, bytes] = {}  # round -> SHA-256 of x[round]

    def _add(self, key: SigningKey, behaviour: Behaviour, start_us: int = 0) -> None:
        membership = Membership(digest(self.contract), self.genesis.x0, 0.0, self.genesis.nonce)
        contacts = tuple(k.public_key for k in self.keys)
        identity = Identity(
            key, self.genesis, self.charter, membership, self.make_learner, behaviour, self.verifier, contacts,
            self.seed, self.timings,
        )  # fmt: skip
        self.identities[key.public_key] = identity
        self.heap.add(key.public_key, lambda port: SimulatedPeer(port, identity), start_us)

    def add_newcomer(self, key: SigningKey, start_us: int, behaviour: Behaviour | None = None) -> None:
        """A peer that is no founder and starts later."""
        self._add(key, behaviour or Behaviour(), start_us)
        if behaviour is None:
            self.newcomers.append(key.public_key)

    @property
    def honest(self) -> list[PeerId]:
        """The founders that are no attackers."""
        return [key.public_key for index, key in enumerate(self.keys) if index not in self.byzantine]

    def node(self, peer: PeerId) -> SimulatedPeer | None:
        """The running node of a peer."""
        node = self.heap.node(peer)
        assert node is None or isinstance(node, SimulatedPeer)
        return node

    def height(self, peer: PeerId) -> int:
        """Certified blocks that a peer has."""
        return len(self.identities[peer].disk.blocks)

    def run(self, rounds: int, until_us: int) -> None:
        """Until every honest peer that is up has `rounds` certified blocks, or virtual time is over.

        Raises:
            InvariantViolated: names peer, round and what was broken.
        """

        def reached() -> bool:
            self.check()
            return all(self.height(peer) >= rounds for peer in self.honest)

        limit = until_us
        while self.heap.now < limit and not reached():
            before = self.heap.now
            self.heap.run(min(limit, self.heap.now + self.charter.message_us))
            if self.heap.now == before:
                break
        self.check()

    def check(self) -> None:
        """No fork among honest ledgers, nobody honest banned, equal parameters after equal blocks.

        Raises:
            InvariantViolated: names peer, round and what was broken.
        """
        honest = {*self.honest, *self.newcomers}
        for peer in sorted(honest):
            identity = self.identities[peer]
            for round in range(self._checked.get(peer, 0), len(identity.disk.blocks)):
                self._check_block(peer, round, identity.disk.blocks[round].block, honest)
            self._checked[peer] = len(identity.disk.blocks)
            for round, digest_x in identity.digests.items():
                if peer not in self.drifted and self._digests.setdefault(round, digest_x) != digest_x:
                    raise InvariantViolated(f"seed {self.seed}: x[{round}] of {peer.hex()[:8]} differs")
            identity.digests.clear()

    def _check_block(self, peer: PeerId, round: int, block: bytes, honest: set[PeerId]) -> None:
        known = self._blocks.get(round)
        if known is None:
            self._blocks[round] = block
            for ban in open_block(block).bans:
                if ban.peer in honest:
                    raise InvariantViolated(
                        f"seed {self.seed}: honest {ban.peer.hex()[:8]} banned in round {round} for {ban.deed}"
                    )
        elif known != block:
            raise InvariantViolated(f"seed {self.seed}: {peer.hex()[:8]} forks at round {round}")

    def verify(self) -> None:
        """Every honest ledger, read again from the genesis by somebody who knows nothing else.

        Raises:
            RemoteProtocolError: names the block and what is wrong with it.
        """
        verifier = simulated_verifier(self.signatures)
        for peer in (*self.honest, *self.newcomers):
            state = LedgerState.start(self.genesis, self.charter)
            for certified in self.identities[peer].disk.blocks:
                block = open_block(certified.block)
                check_certificate(block, certified.certificate, state, verifier)
                state = state.advance(block)

    @property
    def at_rest(self) -> bool:
        """Whether every honest peer is up and has ended its run."""
        nodes = [self.node(peer) for peer in self.honest]
        return all(node is not None and node.halted is not None and node.halted.done for node in nodes)

    def blocks(self, peer: PeerId) -> list[Block]:
        """A peer's ledger."""
        return [open_block(certified.block) for certified in self.identities[peer].disk.blocks]
