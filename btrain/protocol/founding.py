"""How a run begins: the founders send Joins to one of them, who puts a genesis together that all of them sign.

The assembler (the peer started without --join, or the first of the members listed in the contract) has no power over
the run: the genesis names every founder and its chain, and a founder signs only one that has its own Join and x[0] in
it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from btrain.protocol.clock import FIRST_COMPUTE_FACTOR
from btrain.protocol.desk import Desk
from btrain.protocol.effects import Effect, SetTimer
from btrain.protocol.encoding import ZERO, PeerId, encode
from btrain.protocol.errors import InconsistentMessage, RemoteProtocolError
from btrain.protocol.ledger import Founder, Genesis, check_genesis, open_genesis
from btrain.protocol.member import Membership
from btrain.protocol.messages import GenesisSignature, Join, Message
from btrain.protocol.packets import Envelopes, Founding, Refusal, decode_packet
from btrain.protocol.seats import NOT_HERE, PROBE_TOLERANCE


@dataclass(frozen=True)
class Plan:
    """What the founders must agree on, and who may be one."""

    contract: bytes
    membership: Membership
    numel: int
    start_when: int
    nonce: bytes  # this peer's, used if it assembles
    chain_end: bytes
    delta_us: int
    allowed: frozenset[PeerId] = frozenset()  # empty: whoever comes first
    banned: frozenset[PeerId] = frozenset()  # in the run that this one goes on from
    state: tuple[bytes, ...] = ()  # digest of the state at x[0], where that is not built from a seed
    assembler: bool = False


@dataclass
class Founders:
    """Until the run is founded. `desk.run` is the contract's hash: the run has no id yet."""

    plan: Plan
    desk: Desk
    joins: dict[PeerId, Message] = field(default_factory=dict)  # in the order of arrival
    proposal: Genesis | None = None
    signatures: dict[PeerId, bytes] = field(default_factory=dict)
    founded: Founding | None = None

    def start(self, now: int) -> list[Effect]:
        """Make the own Join."""
        body = self.plan.membership.join(self.plan.chain_end)
        self.joins[self.desk.me] = self.desk.sign(self.desk.statement(body, prev=ZERO, round=0))
        self._assemble(now)
        return self.desk.take()

    def connected(self, peer: PeerId, now: int) -> list[Effect]:
        """Tell a peer that we want to take part; repeat a proposal that it may have missed."""
        if not self.plan.assembler:
            self.desk.send(Envelopes((self.joins[self.desk.me].data,)), peer)
        elif self.proposal is not None and any(founder.peer == peer for founder in self.proposal.founders):
            self.desk.send(self._packet(self.proposal), peer)
        return self.desk.take()

    def packet(self, sender: PeerId, data: bytes, now: int) -> list[Effect]:
        """A packet of somebody who wants to take part, or who puts the genesis together.

        Raises:
            RemoteProtocolError: why it is refused.
        """
        packet = decode_packet(data)
        if isinstance(packet, Envelopes):
            for envelope in packet.envelopes:
                self._take(envelope, sender, now)
        elif isinstance(packet, Founding):
            self._on_founding(packet, sender)
        return self.desk.take()

    def timer(self, now: int) -> list[Effect]:
        """Who has not signed by now makes room for the next."""
        if self.proposal is not None and self.founded is None:
            for founder in self.proposal.founders:
                if founder.peer not in self.signatures:
                    self.desk.event("no_signature", peer=founder.peer.hex())
                    self.joins.pop(founder.peer, None)
            self.proposal, self.signatures = None, {}
            self._assemble(now)
        return self.desk.take()

    def disconnected(self, peer: PeerId) -> None:
        """A peer that waited is gone: it sends its Join again when it is back."""
        if self.proposal is None and peer != self.desk.me:
            self.joins.pop(peer, None)

    @property
    def have(self) -> int:
        """Founders so far."""
        return len(self.joins)

    def _take(self, envelope: bytes, sender: PeerId, now: int) -> None:
        if self.proposal is not None:
            try:
                message = self.desk.verifier.open(envelope, self.proposal.run)
            except RemoteProtocolError:
                message = self.desk.verifier.open(envelope, self.desk.run)
        else:
            message = self.desk.verifier.open(envelope, self.desk.run)
        if isinstance(message.body, Join):
            self._on_join(message, message.body, sender, now)
        elif isinstance(message.body, GenesisSignature) and self.proposal is not None:
            self._on_signature(message, message.body)

    def _on_join(self, message: Message, body: Join, sender: PeerId, now: int) -> None:
        plan = self.plan
        if not plan.assembler:
            return
        reason = None
        if body.contract != plan.membership.contract:
            reason = "another contract"
        elif message.sender in plan.banned:
            reason = "this identity was banned in the run that this one goes on from"
        elif body.x0 == NOT_HERE:
            reason = "a founder needs the parameters that the run starts from; without them join once it is founded"
        elif body.x0 != plan.membership.x0:
            reason = "the model starts from other parameters: another version of the model's code or of torch?"
        elif not math.isclose(body.probe_norm, plan.membership.probe_norm, rel_tol=PROBE_TOLERANCE):
            reason = "a gradient of the same samples differs: another version of the data, the model or the task?"
        elif plan.allowed and message.sender not in plan.allowed:
            reason = "the run admits only the peers under group.members"
        if reason is not None:
            self.desk.send(Refusal(reason), sender)
            self.desk.event("refused", peer=message.sender.hex(), reason=reason)
            return
        if message.sender not in self.joins and self.proposal is None:
            self.joins[message.sender] = message
            self.desk.event("waiting", have=self.have, need=plan.start_when)
        self._assemble(now)

    def _assemble(self, now: int) -> None:
        plan = self.plan
        if not plan.assembler or self.proposal is not None or len(self.joins) < plan.start_when:
            return
        chosen = sorted(list(self.joins)[: plan.start_when])
        joins = {peer: join for peer in chosen if isinstance(join := self.joins[peer].body, Join)}
        founders = tuple(Founder(peer, join.chain_end) for peer, join in joins.items())
        slowest_ms = max(join.probe_ms for join in joins.values())
        member = plan.membership
        self.proposal = Genesis(
            1, plan.contract, plan.nonce, plan.numel, member.x0, member.probe_norm, founders, slowest_ms, plan.state
        )
        self._sign(self.proposal)
        for peer in chosen:
            if peer != self.desk.me:
                self.desk.send(self._packet(self.proposal), peer)
        self.desk.emit(SetTimer("founding", now + 3 * plan.delta_us))
        self._conclude()

    def _sign(self, genesis: Genesis) -> Message:
        desk = Desk(self.desk.key, genesis.run, self.desk.verifier)
        message = desk.sign(desk.statement(GenesisSignature(genesis.run), prev=ZERO, round=0))
        self.signatures[self.desk.me] = message.data
        return message

    def _packet(self, genesis: Genesis) -> Founding:
        joins = tuple(self.joins[founder.peer].data for founder in genesis.founders if founder.peer in self.joins)
        return Founding(encode(genesis), tuple(self.signatures.values()), joins)

    def _on_signature(self, message: Message, body: GenesisSignature) -> None:
        if self.proposal is not None and body.genesis == self.proposal.run:
            self.signatures[message.sender] = message.data
            self._conclude()

    def _conclude(self) -> None:
        genesis = self.proposal
        if genesis is None or self.founded is not None:
            return
        if all(founder.peer in self.signatures for founder in genesis.founders):
            self.founded = self._packet(genesis)
            for founder in genesis.founders:
                if founder.peer != self.desk.me:
                    self.desk.send(self.founded, founder.peer)

    def _check(self, genesis: Genesis) -> None:
        """The genesis is of this contract and starts where this peer does; who has not got x[0] takes their word."""
        plan, x0 = self.plan, self.plan.membership.x0
        if (genesis.contract, genesis.numel) != (plan.contract, plan.numel):
            raise InconsistentMessage("a genesis of another contract")
        if x0 != NOT_HERE and (genesis.x0, genesis.state) != (x0, plan.state):
            raise InconsistentMessage("a genesis that starts from another state")
        if x0 == NOT_HERE and not genesis.state:
            raise InconsistentMessage("a genesis that does not name the state it starts from")
        if plan.banned & {founder.peer for founder in genesis.founders}:
            raise InconsistentMessage("a genesis of a founder that was banned in the parent run")

    def _on_founding(self, packet: Founding, sender: PeerId) -> None:
        """A proposal to sign, or the founded run."""
        genesis = open_genesis(packet.genesis)
        self._check(genesis)
        member = self.plan.membership
        try:
            check_genesis(genesis, packet.signatures, self.desk.verifier)
        except RemoteProtocolError:
            mine = Founder(self.desk.me, self.plan.chain_end)
            if mine not in genesis.founders:
                raise InconsistentMessage("a genesis to sign that does not hold our own join") from None
            if FIRST_COMPUTE_FACTOR * genesis.compute_ms < member.probe_ms:
                raise InconsistentMessage("a genesis to sign that leaves us too little time") from None
            self.desk.send(Envelopes((self._sign(genesis).data,)), sender)
        else:
            peers = {founder.peer for founder in genesis.founders}
            if len(peers) != self.plan.start_when or (self.plan.allowed and not peers <= self.plan.allowed):
                raise InconsistentMessage("a genesis of other founders than the contract asks for")
            self.founded = packet
