"""The network shell around the protocol: one trio thread that feeds a `Member` and executes its effects in order.

Whatever must be durable is made so in one batch before the sends of the same batch leave. The thread never computes: jobs go to
worker threads, gradients and optimizer steps to the training loop's thread.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio
from torch import Tensor

from btrain.config import RunConfig, contract_difference
from btrain.errors import BtrainError, ContractError
from btrain.identity import SigningKey, peer_id_bytes, peer_id_text
from btrain.p2p import Limits, Network, open_network
from btrain.p2p.errors import LinkLost, PeerUnreachable
from btrain.peer.fetching import Fetching
from btrain.peer.learning import ComputeHere, Learning, Stop
from btrain.peer.store import DURABLE, Founded, Store
from btrain.peer.timers import Timers, now_us
from btrain.protocol.behaviour import Behaviour
from btrain.protocol.desk import Desk
from btrain.protocol.effects import (
    AppendBlock, Apply, CancelTimer, Compute, Drop, Effect, Event, FetchBlob, Halt, LoadState, PushBlob, Recompute, Send,
    SetTimer, Work,
)  # fmt: skip
from btrain.protocol.encoding import PeerId, sha256
from btrain.protocol.errors import RemoteProtocolError
from btrain.protocol.founding import Founders, Plan
from btrain.protocol.ledger import Genesis, open_block, open_genesis
from btrain.protocol.member import Member, Membership
from btrain.protocol.messages import Join, Verifier
from btrain.protocol.packets import AnyPacket, Envelopes, Founding, Offer, Refusal, decode_packet, encode_packet
from btrain.protocol.randomness import HashChain

logger = logging.getLogger(__name__)

JOIN_TRIES_S = 15.0  # how long an address is tried before its peer counts as unreachable
JOIN_PAUSE_S = 0.5
LINGER_DELTAS = 4  # a finished peer serves laggards so long

Listener = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Setting:
    """Everything that a shell needs to know; made by `btrain.Run`."""

    config: RunConfig
    key: SigningKey
    store: Store
    learning: Learning
    behaviour: Behaviour
    probe_norm: float
    x0: bytes
    numel: int
    listen: str
    announce: tuple[str, ...]
    join: tuple[str, ...]
    on_event: Listener


class Shell:
    """One peer's protocol thread. `run` is a trio main function; the other public methods may be called from any thread."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.config, self.store, self.learning = setting.config, setting.store, setting.learning
        self.verifier = Verifier()
        self.member: Member | None = None
        self.founders: Founders | None = None
        self.founded: Founding | None = None
        self._network: Network
        self._nursery: trio.Nursery
        self._token: trio.lowlevel.TrioToken | None = None
        self._timers = Timers(self._on_timer)
        self._fetching = Fetching(lambda peer, hash: self._network.request_blob(peer, hash), self._give_blob)
        self._outbox: list[Effect] = []
        self._outbox_filled = trio.Event()
        self._stopped: Stop | None = None
        self._stop_event = trio.Event()
        self._addresses: dict[PeerId, tuple[str, ...]] = {}
        self._targets: set[PeerId] = set()
        self._workers = trio.CapacityLimiter(2)
        self._certified_states: dict[int, bytes] = {}
        self.bytes_sent = 0

    # --- life ---

    async def run(self) -> None:
        """Serve until the run is finished, left, or failed; always ends with a Stop command for the training loop."""
        stop = Stop("left")
        try:
            await self._serve()
            stop = self._stopped or stop
        except BaseExceptionGroup as group:
            stop = Stop("failed", _first(group))
        except BtrainError as error:
            stop = Stop("failed", error)
        finally:
            self.learning.commands.put(stop)

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        setting = self.setting
        tag = sha256(b"btrain/network/v1", self.config.run.encode())
        async with open_network(
            setting.key, handler=self, run_tag=tag, listen=setting.listen, announce=setting.announce, limits=Limits()
        ) as network:
            self._network = network
            self._tell("started", peer_id=peer_id_text(setting.key.public_key), addresses=network.addresses)
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._timers.run)
                nursery.start_soon(self._execute_batches)
                self._begin()
                for address in setting.join:
                    nursery.start_soon(self._keep_joining, address)
                await self._stop_event.wait()
                nursery.cancel_scope.cancel()
            self.bytes_sent = sum(t.control_sent + t.bulk_sent for t in network.traffic().values())

    def _begin(self) -> None:
        known = self.store.genesis(self.verifier)
        self._addresses = self.store.addresses()
        salt = self.store.chain_salt(secrets.token_bytes(32))
        membership = Membership(
            self.config.contract_hash(), self.setting.x0, self.setting.probe_norm, salt, tuple(self._network.addresses[:8])
        )
        if known is not None:
            genesis, founded = known
            self.founded = Founding(founded.genesis, founded.signatures, ())
            self._become_member(genesis, membership)
            return
        self._found(membership)

    def _found(self, membership: Membership) -> None:
        key, config = self.setting.key, self.config
        members = config.members
        assembler = key.public_key == members[0] if members else not self.setting.join
        rounds = config.rounds
        plan = Plan(
            contract=config.contract_bytes(), membership=membership, numel=self.setting.numel,
            start_when=config.group.start_when, nonce=secrets.token_bytes(32),
            chain_end=HashChain(key.seed, membership.chain_salt, rounds).end,
            delta_us=self.store.charter.message_us, allowed=frozenset(members), assembler=assembler,
        )  # fmt: skip
        self.founders = Founders(plan, Desk(key, config.contract_hash(), self.verifier))
        self._membership = membership
        have = 1 if assembler else None
        self._tell("waiting", have=have, need=plan.start_when)
        self._give(self.founders.start(now_us()))
        self._check_founded()

    def _check_founded(self) -> None:
        founders = self.founders
        if founders is None or founders.founded is None or self.member is not None:
            return
        packet = founders.founded
        genesis = open_genesis(packet.genesis)
        self.store.save_genesis(Founded(packet.genesis, packet.signatures))
        self.founded = packet
        for data in packet.joins:
            self._learn_join(data)
        self.founders = None
        self._become_member(genesis, self._membership)

    def _learn_join(self, data: bytes) -> None:
        try:
            message = self.verifier.open(data, self.config.contract_hash())
        except RemoteProtocolError:
            return
        if isinstance(message.body, Join) and message.sender != self.setting.key.public_key:
            self._learn(message.sender, message.body.addresses)

    def _learn(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        if addresses and self._addresses.get(peer) != addresses:
            self._addresses[peer] = addresses
            self._network.learn(peer, addresses)
            self.store.save_addresses(self._addresses)

    def _become_member(self, genesis: Genesis, membership: Membership) -> None:
        state = self.store.ledger_state(genesis, self.verifier)
        checkpoint = self.store.checkpoint(state.round)
        if checkpoint is not None:
            self.learning.restart_at(*checkpoint)
        self.member = Member(
            self.setting.key, state, membership, self.store, x_round=self.learning.x_round,
            behaviour=self.setting.behaviour, verifier=self.verifier, draw=secrets.randbelow,
        )  # fmt: skip
        for peer, addresses in self._addresses.items():
            self._network.learn(peer, addresses)
        self._update_members()
        self._tell("founded", run_id=genesis.run.hex(), members=[peer_id_text(f.peer) for f in genesis.founders],
                   round=state.round)  # fmt: skip
        signed, journal = self.store.open_round(state.round)
        self._give(self.member.start(now_us(), signed, journal))
        for peer in self._network.peers:
            self._give(self.member.connected(peer, now_us()))

    def _update_members(self) -> None:
        assert self.member is not None
        roster = self.member.state.roster
        self._network.set_members(set(roster.members) | self.member.candidates)
        for peer in roster.banned:
            self._network.block(peer, "banned from the run")

    async def _keep_joining(self, address: str) -> None:
        """Stay connected to a peer of --join until the run is founded; then the members look for each other."""
        deadline = trio.current_time() + JOIN_TRIES_S
        reached = False
        while True:
            try:
                self._targets.add(await self._network.connect(address))
                reached = True
            except (PeerUnreachable, LinkLost) as error:
                if not reached and trio.current_time() > deadline and not self._network.peers:
                    raise PeerUnreachable(f"{error}; is that peer running, and is the address the one it printed?") from error
            await trio.sleep(JOIN_PAUSE_S)
            while self.member is not None:
                await trio.sleep(10 * JOIN_PAUSE_S)

    # --- from other threads ---

    def post(self, action: Callable[[Member], list[Effect]]) -> None:
        """Give the protocol an input from the training loop's thread."""
        if self._token is not None:
            try:
                self._token.run_sync_soon(self._enter, action)
            except trio.RunFinishedError:
                logger.debug("the protocol's thread is done")

    def leave(self) -> None:
        """Leave the run in order, from any thread: give the seat up, wait for the block that says so, stop."""
        if self._token is not None:
            try:
                self._token.run_sync_soon(self._begin_to_leave)
            except trio.RunFinishedError:
                logger.debug("the protocol's thread is done")

    def _begin_to_leave(self) -> None:
        member = self.member
        if member is None or self._stopped is not None:
            self._stop(Stop("left"))
            return
        self._give(member.leave(now_us()))
        self._timers.set("shell:left", now_us() + 3 * self.store.charter.message_us)

    def _enter(self, action: Callable[[Member], list[Effect]]) -> None:
        if self.member is not None:
            self._give(action(self.member))

    def _stop(self, stop: Stop) -> None:
        if self._stopped is None:
            self._stopped = stop
        self._stop_event.set()

    # --- the network's handler ---

    def control(self, peer: bytes, data: bytes) -> None:
        """A control packet: contracts and founding are dealt with here, the rest by the member."""
        try:
            packet = decode_packet(data)
            if isinstance(packet, Offer):
                self._on_offer(peer, packet)
            elif isinstance(packet, Refusal):
                self._on_refusal(peer, packet)
            elif self.member is not None:
                if not self._wants_genesis(packet):
                    self._give(self.member.packet(peer, data, now_us()))
                elif self.founded is not None:
                    self._network.send_control(peer, encode_packet(self.founded))
            elif self.founders is not None:
                self._give(self.founders.packet(peer, data, now_us()))
                self._check_founded()
        except RemoteProtocolError as error:
            self._tell("refused", peer=peer_id_text(peer), reason=error.reason)

    def _on_offer(self, peer: bytes, packet: Offer) -> None:
        difference = contract_difference(self.config.contract_bytes(), packet.contract)
        if not difference:
            return
        text = f"{peer_id_text(peer)} trains under another contract: {difference}"
        if peer in self._targets and self.member is None:
            self._stop(Stop("refused", ContractError(text)))
            return
        self._tell("refused", peer=peer_id_text(peer), reason=text)
        self._network.send_control(peer, encode_packet(Refusal(f"another contract: {difference}"[:1000])))

    def _on_refusal(self, peer: bytes, packet: Refusal) -> None:
        self._tell("refusal", peer=peer_id_text(peer), reason=packet.reason)
        if self.member is None and peer in self._targets:
            self._stop(Stop("refused", ContractError(f"{peer_id_text(peer)} refuses this peer: {packet.reason}")))

    def _wants_genesis(self, packet: AnyPacket) -> bool:
        """A Join to the contract, not yet to the run: with the genesis its sender can follow and ask for a seat."""
        if not isinstance(packet, Envelopes) or not packet.envelopes:
            return False
        try:
            message = self.verifier.open(packet.envelopes[0], self.config.contract_hash())
        except RemoteProtocolError:
            return False
        return isinstance(message.body, Join)

    def blob(self, peer: bytes, blob_hash: bytes, data: bytes) -> None:
        """Bytes that were asked for, or pushed."""
        if not self._fetching.arrived(blob_hash, data) and self.member is not None:
            self._give(self.member.blob(blob_hash, data, peer, now_us()))

    def blob_missing(self, peer: bytes, blob_hash: bytes) -> None:
        """The peer that was asked has it not."""
        self._fetching.missing(peer, blob_hash)

    def blob_wanted(self, peer: bytes, blob_hash: bytes) -> bytes | None:
        """A member asks for bytes in custody."""
        return self.store.blob(blob_hash)

    def connected(self, peer: bytes) -> None:
        """A link is up: say which contract this is, then where we are."""
        self._tell("connected", peer=peer_id_text(peer))
        self._network.send_control(peer, encode_packet(Offer(self.config.contract_bytes())))
        if self.member is not None:
            self._give(self.member.connected(peer, now_us()))
        elif self.founders is not None:
            self._give(self.founders.connected(peer, now_us()))

    def disconnected(self, peer: bytes, reason: str) -> None:
        """A link is gone."""
        self._tell("disconnected", peer=peer_id_text(peer), reason=reason)
        if self.member is not None:
            self._give(self.member.disconnected(peer, now_us()))
        elif self.founders is not None:
            self.founders.disconnected(peer)

    def misbehaved(self, peer: bytes, reason: str) -> None:
        """The network keeps a peer away for a while."""
        self._tell("misbehaved", peer=peer_id_text(peer), reason=reason)

    # --- timers ---

    def _on_timer(self, name: str) -> None:
        if name == "founding" and self.founders is not None:
            self._give(self.founders.timer(now_us()))
        elif name.startswith("shell:"):
            self._stop(Stop("left" if name == "shell:left" else "finished"))
        elif self.member is not None:
            self._give(self.member.timer(name, now_us()))

    # --- effects ---

    def _give(self, effects: list[Effect]) -> None:
        if effects:
            self.store.announce(effects)
            self._outbox += effects
            self._outbox_filled.set()

    async def _execute_batches(self) -> None:
        """The only place where effects happen: durable ones first, then everything in order."""
        while True:
            await self._outbox_filled.wait()
            self._outbox_filled = trio.Event()
            batch, self._outbox = self._outbox, []
            durable = [effect for effect in batch if isinstance(effect, DURABLE)]
            if durable:
                for event in await trio.to_thread.run_sync(self.store.commit, durable):
                    self._tell(**event)
            for effect in batch:
                self._execute(effect)

    def _execute(self, effect: Effect) -> None:
        match effect:
            case Send(packet, to, delay_us):
                self._send(packet, to, delay_us)
            case PushBlob(to, hash):
                data = self.store.blob(hash)
                if data is not None:
                    self._network.send_blob(to, hash, data)
            case FetchBlob(hash, sources):
                self._fetch(hash, sources)
            case SetTimer(name, at_us):
                self._timers.set(name, at_us)
            case CancelTimer(name):
                self._timers.cancel(name)
            case Event(name, fields):
                self._on_event(name, fields)
            case AppendBlock(round, block, certificate):
                self._keep_state(round, block, certificate)
            case Drop(peer, reason):
                self._network.disconnect(peer, reason)
            case Halt(reason, done):
                self._on_halt(reason, done)
            case _:
                self._compute(effect)

    def _compute(self, effect: Effect) -> None:
        match effect:
            case Work(token, job):
                self._nursery.start_soon(self._work, token, job)
            case Recompute(token, round, seed):
                self._nursery.start_soon(self._recompute, token, round, seed)
            case Compute():
                if self.member is not None and self.member.round is not None:
                    self.learning.commands.put(ComputeHere(effect, self.member.round))
            case Apply() | LoadState():
                self.learning.commands.put(effect)

    def _send(self, packet: bytes, to: PeerId | None, delay_us: int) -> None:
        if delay_us:
            self._nursery.start_soon(self._send_later, packet, to, delay_us)
            return
        for peer in [to] if to is not None else self._network.peers:
            self._network.send_control(peer, packet)

    async def _send_later(self, packet: bytes, to: PeerId | None, delay_us: int) -> None:
        await trio.sleep(delay_us / 1e6)
        self._send(packet, to, 0)

    def _fetch(self, hash: bytes, sources: tuple[PeerId, ...]) -> None:
        kept = self.store.blob(hash)
        if kept is not None:
            self._give_blob(hash, kept)
        else:
            self._fetching.fetch(hash, sources)

    def _give_blob(self, hash: bytes, data: bytes | None) -> None:
        if self.member is not None:
            self._give(self.member.blob(hash, data, None, now_us()))

    async def _work(self, token: str, job: Callable[[], Any]) -> None:
        result = await trio.to_thread.run_sync(job, limiter=self._workers)
        self._enter(lambda member: member.work_done(token, result, now_us()))

    async def _recompute(self, token: str, round: int, seed: bytes) -> None:
        gradient, x = await trio.to_thread.run_sync(self.learning.recompute, round, seed, limiter=self._workers)
        self._enter(lambda member: member.recomputed(token, gradient, x, now_us()))

    def applied(self, effect: Apply, state: bytes | None) -> None:
        """The training loop has stepped; from its thread."""
        if state is not None:
            self._certified_states[effect.round + 1] = state
            for old in sorted(self._certified_states)[:-2]:
                del self._certified_states[old]
        self.post(lambda member: member.applied(effect.round, state, now_us()))

    def computed(self, round: int, gradient: Tensor | None, seconds: float) -> None:
        """The training loop has computed; from its thread."""
        self.post(lambda member: member.computed(round, gradient, seconds, now_us()))

    def state_loaded(self, round: int, data: bytes) -> None:
        """The training loop has taken a certified state over; from its thread."""
        self.post(lambda member: member.state_loaded(round, now_us()))

    def _keep_state(self, round: int, block: bytes, certificate: tuple[bytes, ...]) -> None:
        """Write the checkpoint of a state that this block certifies."""
        certified = open_block(block).state
        state = self._certified_states.get(certified[0].round) if certified else None
        if certified and state is not None:
            keep = self.config.local.checkpoints.keep
            self._nursery.start_soon(
                trio.to_thread.run_sync, self.store.save_state, certified[0].round, state, block, certificate, keep
            )

    def _on_event(self, name: str, fields: dict[str, Any]) -> None:
        readable = {key: _readable(key, value) for key, value in fields.items()}
        if name in ("block", "caught_up", "banned") and self.member is not None:
            self._update_members()
            for peer, addresses in self.member.addresses.items():
                self._learn(peer, addresses)
            if self.setting.key.public_key in map(peer_id_bytes, readable.get("left", ())):
                self._stop(Stop("left"))
        self._tell(name, **readable)

    def _on_halt(self, reason: str, done: bool) -> None:
        if done:
            self._timers.set("shell:finished", now_us() + LINGER_DELTAS * self.store.charter.message_us)
        else:
            text = "this peer was banned from the run; its evidence stands in the ledger" if reason == "banned" else reason
            self._stop(Stop(reason, BtrainError(text)))

    def _tell(self, event: str, **fields: Any) -> None:
        self.setting.on_event({"event": event, **fields})


_PEER_FIELDS = {"peer", "absent", "admitted", "left"}


def _readable(key: str, value: Any) -> Any:
    """Peer ids of the protocol (hex) as text ids."""
    if key not in _PEER_FIELDS:
        return value
    if isinstance(value, list):
        return [peer_id_text(bytes.fromhex(item)) for item in value]
    return peer_id_text(bytes.fromhex(value))


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The exception that ended the nursery; trio wraps it."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error

