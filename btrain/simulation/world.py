"""A whole run in one process: founders, faults, rounds, and the invariants that must hold after every one of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from btrain.identity import SigningKey
from btrain.protocol.behaviour import Behaviour
from btrain.protocol.encoding import PeerId, digest
from btrain.protocol.ledger import Block, Charter, Founder, Genesis, LedgerState, check_certificate, open_block
from btrain.protocol.member import Membership
from btrain.protocol.randomness import HashChain
from btrain.simulation.heap import Clock, Heap, NetworkPlan
from btrain.simulation.invariants import Invariants, InvariantViolated
from btrain.simulation.peer import Identity, Learner, SimulatedPeer, Timings
from btrain.simulation.sharing import SharedWork
from btrain.simulation.signatures import Signatures, simulated_keys, simulated_verifier

__all__ = ["InvariantViolated", "World", "found", "simulated_keys"]


def found(keys: Sequence[SigningKey], charter: Charter, contract: bytes, learner: Learner, seed: int) -> Genesis:
    """A genesis of these founders; the nonce takes the seed."""
    nonce = hashlib.sha256(f"btrain/simulation/nonce/{seed}".encode()).digest()
    x = learner.parameters()
    founders = tuple(Founder(key.public_key, HashChain(key.seed, nonce, charter.rounds).end) for key in keys)
    return Genesis(1, contract, nonce, x.numel(), digest(x.numpy().tobytes()), 0.0, founders)


@dataclass
class World:
    """The peers of a run on one heap, by position in member order.

    byzantine: the attackers' behaviours. clocks: of those whose clock is off. gone: honest peers that crash for ever.
    calm: neither network nor honest peers have faults, so that bans are due in time.
    """

    charter: Charter
    make_learner: Callable[[], Learner]
    peers: int
    seed: int = 0
    byzantine: Mapping[int, Behaviour] = field(default_factory=dict)
    plan: NetworkPlan = field(default_factory=NetworkPlan)
    timings: Timings = field(default_factory=Timings)
    contract: bytes = b"simulated"
    signatures: Signatures = "real"
    clocks: Mapping[int, Clock] = field(default_factory=dict)
    gone: frozenset[int] = frozenset()
    calm: bool = False

    def __post_init__(self) -> None:
        self.heap = Heap(self.seed, self.plan)
        self.keys = simulated_keys(self.seed, self.peers, self.signatures)
        self.genesis = found(self.keys, self.charter, self.contract, self.make_learner(), self.seed)
        self.origin = LedgerState.start(self.genesis, self.charter)
        self.verifier = simulated_verifier(self.signatures)
        self.work = SharedWork()
        self.identities: dict[PeerId, Identity] = {}
        for index, key in enumerate(self.keys):
            self._add(key, self.byzantine.get(index, Behaviour()), clock=self.clocks.get(index))
        self.newcomers: list[PeerId] = []
        self.drifted: set[PeerId] = set()  # whose parameters a fault has changed, until it has healed
        self.invariants = Invariants(self)

    def _add(self, key: SigningKey, behaviour: Behaviour, start_us: int = 0, clock: Clock | None = None) -> None:
        membership = Membership(digest(self.contract), self.genesis.x0, 0.0, self.genesis.nonce)
        contacts = tuple(k.public_key for k in self.keys)
        identity = Identity(
            key, self.origin, membership, self.make_learner, behaviour, self.verifier, self.work, contacts,
            self.seed, self.timings,
        )  # fmt: skip
        self.identities[key.public_key] = identity
        self.heap.add(key.public_key, lambda port: SimulatedPeer(port, identity), start_us, clock)

    def add_newcomer(self, key: SigningKey, start_us: int, behaviour: Behaviour | None = None) -> None:
        """A peer that is no founder and starts later."""
        self._add(key, behaviour or Behaviour(), start_us)
        if behaviour is None:
            self.newcomers.append(key.public_key)

    def leave(self, peer: PeerId) -> None:
        """Have a running peer give its seat up."""
        node = self.node(peer)
        assert node is not None
        node.leave(self.heap.reading(peer))

    def retire(self, peer: PeerId) -> None:
        """Stop a peer for good; the others notice that its connections are gone."""
        self.heap.crash(peer, self.heap.now)
        self.heap.run(self.heap.now)
        for other in self.identities:
            node = self.node(other)
            if node is not None:
                node.disconnected(peer, self.heap.reading(other))

    @property
    def honest(self) -> list[PeerId]:
        """The founders that are no attackers."""
        return [key.public_key for index, key in enumerate(self.keys) if index not in self.byzantine]

    @property
    def staying(self) -> list[PeerId]:
        """Honest founders that do not crash for ever."""
        return [key.public_key for i, key in enumerate(self.keys) if i not in self.byzantine and i not in self.gone]

    def node(self, peer: PeerId) -> SimulatedPeer | None:
        """The running node of a peer."""
        node = self.heap.node(peer)
        assert node is None or isinstance(node, SimulatedPeer)
        return node

    def height(self, peer: PeerId) -> int:
        """Certified blocks that a peer has."""
        return len(self.identities[peer].disk.blocks)

    def has_ended(self, peer: PeerId) -> bool:
        """Whether a peer that is up has every block of the run."""
        node = self.node(peer)
        return node is not None and node.member.state.over and self.height(peer) == node.member.state.round

    def run(self, rounds: int, until_us: int) -> None:
        """Until every honest peer that stays has `rounds` certified blocks, or virtual time is over.

        Raises:
            InvariantViolated: names peer, round and what was broken.
        """

        def reached() -> bool:
            self.check()
            return all(self.height(peer) >= rounds for peer in self.staying)

        limit = until_us
        while self.heap.now < limit and not reached():
            before = self.heap.now
            self.heap.run(min(limit, self.heap.now + self.charter.message_us))
            if self.heap.now == before:
                break
        self.check()

    def check(self) -> None:
        """Look at the invariants.

        Raises:
            InvariantViolated: names peer, round and what was broken.
        """
        self.invariants.check()

    def verify(self) -> None:
        """Every honest ledger, read again from the genesis by somebody who knows nothing else.

        Raises:
            RemoteProtocolError: names the block and what is wrong with it.
        """
        verifier, origin = simulated_verifier(self.signatures), LedgerState.start(self.genesis, self.charter)
        held = []  # so that equal blocks are followed once: a state knows the next ones while somebody holds them
        for peer in (*self.honest, *self.newcomers):
            state = origin
            for certified in self.identities[peer].disk.blocks:
                block = open_block(certified.block)
                check_certificate(block, certified.certificate, state, verifier)
                state = state.advance(block)
                held.append(state)

    @property
    def at_rest(self) -> bool:
        """Whether every honest peer that stays is up and has ended its run."""
        nodes = [self.node(peer) for peer in self.staying]
        return all(node is not None and node.halted is not None and node.halted.done for node in nodes)

    def blocks(self, peer: PeerId) -> list[Block]:
        """A peer's ledger."""
        return [open_block(certified.block) for certified in self.identities[peer].disk.blocks]
