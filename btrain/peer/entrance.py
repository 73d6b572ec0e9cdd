"""How a peer gets into a run: contracts are compared, the run is founded, or its genesis comes from a member."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from btrain.config import contract_difference
from btrain.errors import BtrainError, ContractError
from btrain.identity import peer_id_text
from btrain.p2p import Network
from btrain.peer.setting import Setting
from btrain.peer.store import Founded
from btrain.protocol.desk import Desk
from btrain.protocol.effects import Effect, PersistSigned
from btrain.protocol.encoding import PeerId
from btrain.protocol.errors import RemoteProtocolError
from btrain.protocol.founding import Founders, Plan
from btrain.protocol.ledger import Genesis, open_genesis
from btrain.protocol.member import Membership
from btrain.protocol.messages import Join, Verifier
from btrain.protocol.packets import AnyPacket, Envelopes, Founding, Offer, Refusal, encode_packet
from btrain.protocol.randomness import HashChain

REASON_MAX = 1000


class Entrance:
    """`targets`: whom this peer asked for by --join; only their refusal ends it. `refuse(error)` ends this peer."""

    def __init__(
        self,
        setting: Setting,
        membership: Membership,
        verifier: Verifier,
        network: Network,
        *,
        targets: set[PeerId],
        give: Callable[[list[Effect]], None],
        tell: Callable[..., None],
        learn: Callable[[PeerId, tuple[str, ...]], None],
        refuse: Callable[[BtrainError], None],
    ) -> None:
        self._setting, self._membership, self._verifier, self._network = setting, membership, verifier, network
        self._targets, self._give, self._tell, self._learn, self._refuse = targets, give, tell, learn, refuse
        self._contract = setting.config.contract_bytes()
        self._offer = encode_packet(Offer(self._contract))
        self.founders: Founders | None = None
        self.founded: Founding | None = None

    # --- founding ---

    def found(self, now: int) -> Genesis | None:
        """Look for the other founders; the genesis, if this peer founds a run alone."""
        setting, config = self._setting, self._setting.config
        members = config.members
        assembler = setting.key.public_key == members[0] if members else not setting.join
        plan = Plan(
            contract=self._contract, membership=self._membership, numel=setting.numel,
            start_when=config.group.start_when, nonce=secrets.token_bytes(32),
            chain_end=HashChain(setting.key.seed, self._membership.chain_salt, config.rounds).end,
            delta_us=setting.store.charter.message_us, allowed=frozenset(members), assembler=assembler,
            banned=setting.store.charter.banned, state=setting.start.state,
        )  # fmt: skip
        self.founders = Founders(plan, Desk(setting.key, config.contract_hash(), self._verifier))
        self._tell("waiting", have=1 if assembler else None, need=plan.start_when)
        self._do(self.founders.start(now))
        return self.check_founded()

    def check_founded(self) -> Genesis | None:
        """The genesis as soon as all founders have signed it, once; kept before anybody is told."""
        if self.founders is None or self.founders.founded is None:
            return None
        self.founded = self.founders.founded
        self.founders = None
        self._setting.store.save_genesis(Founded(self.founded.genesis, self.founded.signatures))
        self._learn_joins()
        return open_genesis(self.founded.genesis)

    def return_to(self, founded: Founded, joins: tuple[bytes, ...]) -> None:
        """The run is known from the run directory."""
        self.founded = Founding(founded.genesis, founded.signatures, joins)

    def timer(self, now: int) -> Genesis | None:
        """The founders' deadline is over."""
        if self.founders is not None:
            self._do(self.founders.timer(now))
        return self.check_founded()

    def _do(self, effects: list[Effect]) -> None:
        """What a peer says before the run has an id binds it to nothing: it may say it again with a new address."""
        self._give([effect for effect in effects if not isinstance(effect, PersistSigned)])

    def _learn_joins(self) -> None:
        assert self.founded is not None
        for data in self.founded.joins:
            try:
                message = self._verifier.open(data, self._setting.config.contract_hash())
            except RemoteProtocolError:
                continue
            if isinstance(message.body, Join) and message.sender != self._setting.key.public_key:
                self._learn(message.sender, message.body.addresses)

    # --- peers ---

    def connected(self, peer: PeerId, now: int) -> None:
        """A link is up: say which contract this is, and that we want to found a run together."""
        self._network.send_control(peer, self._offer)
        if self.founders is not None:
            self._do(self.founders.connected(peer, now))

    def disconnected(self, peer: PeerId) -> None:
        """A link is gone."""
        if self.founders is not None:
            self.founders.disconnected(peer)

    def packet(self, peer: PeerId, data: bytes, now: int) -> Genesis | None:
        """A packet while the run is not known here. Raises RemoteProtocolError."""
        if self.founders is not None:
            self._do(self.founders.packet(peer, data, now))
        return self.check_founded()

    def offered(self, peer: PeerId, packet: Offer) -> None:
        """Somebody says which contract it trains under."""
        difference = contract_difference(self._contract, packet.contract)
        if not difference:
            return
        text = f"{peer_id_text(peer)} trains under another contract: {difference}"
        if peer in self._targets and self.founded is None:
            self._refuse(ContractError(text))
            return
        self._tell("refused", peer=peer_id_text(peer), reason=text)
        self._network.send_control(peer, encode_packet(Refusal(f"another contract: {difference}"[:REASON_MAX])))

    def refused(self, peer: PeerId, packet: Refusal) -> None:
        """Somebody does not accept this peer."""
        fields: dict[str, Any] = {"peer": peer_id_text(peer), "reason": packet.reason}
        self._tell("refusal", **fields)
        if self.founded is None and peer in self._targets:
            self._refuse(ContractError(f"{fields['peer']} refuses this peer: {packet.reason}"))

    def answers_stranger(self, peer: PeerId, packet: AnyPacket) -> bool:
        """A Join to the contract, not yet to the run: with the genesis its sender can follow and ask for a seat."""
        if self.founded is None or not isinstance(packet, Envelopes) or not packet.envelopes:
            return False
        try:
            message = self._verifier.open(packet.envelopes[0], self._setting.config.contract_hash())
        except RemoteProtocolError:
            return False
        if not isinstance(message.body, Join):
            return False
        self._network.send_control(peer, encode_packet(self.founded))
        return True
