"""The network shell around the protocol: one trio thread that feeds a `Member`; an `Executor` carries out its effects.

The thread never computes: jobs go to worker threads, gradients and optimizer steps to the training loop's thread.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable
from typing import Any

import trio
from torch import Tensor

from btrain.errors import BtrainError, VerificationError
from btrain.identity import peer_id_bytes, peer_id_text
from btrain.p2p import Limits, Network, open_network
from btrain.p2p.addresses import parse_address
from btrain.p2p.errors import AddressInUse
from btrain.p2p.port import bind
from btrain.peer.clock import PeerClock
from btrain.peer.entrance import Entrance
from btrain.peer.executor import Executor
from btrain.peer.fetching import PREFIX as FETCH
from btrain.peer.fetching import Fetching
from btrain.peer.joining import Joining
from btrain.peer.learning import Stop
from btrain.peer.setting import Beginning, Setting
from btrain.peer.timers import Timers
from btrain.peer.whereabouts import Whereabouts
from btrain.protocol.clock import Clock
from btrain.protocol.effects import AppendBlock, Apply, Effect, Halt
from btrain.protocol.encoding import PeerId, sha256
from btrain.protocol.errors import RemoteProtocolError
from btrain.protocol.ledger import Genesis, LedgerState, open_block
from btrain.protocol.member import Member, Membership
from btrain.protocol.packets import Offer, Refusal, Where, decode_packet, encode_packet, says_it_is
from btrain.protocol.pieces import CutState
from btrain.protocol.seats import NOT_HERE

logger = logging.getLogger(__name__)

ADDRESSES_MAX = 8
LINGER_DELTAS = 4  # a finished peer waits so long for a member that is behind, and as long again after every sign of it
LINGER_DELTAS_MAX = 60
LEAVE_DELTAS = 3  # beside two rounds: the block that gives the seat up is the next one or the one after
LEAVE_ROUNDS_MAX = 2  # of the longest, while enough members are there to make that block: somebody may just have failed


class Shell:
    """One peer's protocol thread. `serve` is its main function; `leave`, `stop`, `applied`, `computed` and
    `state_loaded` may be called from any thread, everything else in the thread itself.
    """

    def __init__(self, setting: Setting, beginning: Beginning) -> None:
        self.setting, self.beginning = setting, beginning
        self.store, self.learning = setting.store, setting.learning
        self.member: Member | None = None
        self.bytes_sent = 0
        self._clock = PeerClock(self.store.charter.message_us)
        self._timers = Timers(self._clock, self._on_timer)
        self._whereabouts = Whereabouts(self.store)
        self._token: trio.lowlevel.TrioToken | None = None
        self._leave_asked = False
        self._leave_until = 0
        self._stopped: Stop | None = None
        self._stop_event: trio.Event
        self._network: Network
        self._nursery: trio.Nursery
        self._entrance: Entrance
        self._executor: Executor
        self._fetching: Fetching
        self._heights: dict[PeerId, int] = {}  # of members: the blocks that they say they have
        self._done_at: int | None = None
        self._round_us = 0  # how long the last round took
        self._members: frozenset[PeerId] = frozenset()
        self._leavers: frozenset[PeerId] = frozenset()  # gave their seats up in the last block, and are told so

    # --- life ---

    def serve(self) -> None:
        """Until the run is finished, left, or failed. The training loop gets a Stop as the last command."""
        stop = Stop("failed", BtrainError("the protocol's thread ended without a reason"))
        try:
            stop = trio.run(self._run)
        except BaseException as error:  # noqa: BLE001 - the training loop's thread raises it
            stop = Stop("failed", _cause(error))
        finally:
            self.learning.commands.put(stop)

    async def _run(self) -> Stop:
        self._stop_event = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        setting = self.setting
        tag = sha256(b"btrain/network/v1", setting.config.run.encode())
        listen = self._whereabouts.listen_again(setting.listen)
        async with open_network(
            setting.key, handler=self, run_tag=tag, announce=setting.announce, limits=Limits(),
            listen=listen if listen is not None and _is_free(listen) else setting.listen,
        ) as network:  # fmt: skip
            self._network = network
            self._whereabouts.open(network)
            self._fetching = Fetching(network.request_blob, self._fetched, self._set_fetch_timer)
            self._executor = Executor(self, self.store, self.learning, network, self._timers, self._fetching)
            joining = Joining(network, setting.join, lambda: self.member is not None)
            self._entrance = Entrance(
                setting, self._membership(), self.beginning.verifier, network, targets=joining.targets,
                give=self._executor.give, tell=self._tell, learn=self._whereabouts.learn, refuse=self._refuse,
            )  # fmt: skip
            self._tell("started", peer_id=peer_id_text(setting.key.public_key), addresses=network.addresses)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._clock.tick)
                nursery.start_soon(self._timers.run)
                nursery.start_soon(self._executor.run, nursery)
                self._nursery = nursery
                self._begin()
                nursery.start_soon(joining.run)
                await self._stop_event.wait()
                nursery.cancel_scope.cancel()
        self.bytes_sent = sum(t.control_sent + t.bulk_sent for t in network.traffic().values())
        return self._stopped or Stop("left")

    def _membership(self, genesis: Genesis | None = None) -> Membership:
        """What this peer says of itself; of x[0] what the genesis says, where the members give it."""
        start, addresses = self.setting.start, tuple(self._network.addresses[:ADDRESSES_MAX])
        x0, probe_norm = start.x0 or NOT_HERE, start.probe_norm
        if start.x0 is None and genesis is not None:
            x0, probe_norm = genesis.x0, genesis.probe_norm
        return Membership(
            self.setting.config.contract_hash(), x0, probe_norm, self.beginning.salt, addresses, start.probe_ms,
            self.setting.invitations,
        )  # fmt: skip

    def _begin(self) -> None:
        if self._leave_asked:  # before there was a thread to ask
            self._stop(Stop("left"))
        elif self.beginning.ledger is not None and self.beginning.founded is not None:
            self._entrance.return_to(self.beginning.founded, self._whereabouts.joins)
            self._become_member(self.beginning.ledger)
        else:
            self._enter_run(self._entrance.found(self.now()))

    def _enter_run(self, genesis: Genesis | None) -> None:
        """The run is founded, or its genesis has come."""
        if genesis is not None and self.member is None:
            assert self._entrance.founded is not None
            self._whereabouts.keep_joins(self._entrance.founded.joins)
            self._become_member(LedgerState.start(genesis, self.store.charter))

    def _become_member(self, ledger: LedgerState) -> None:
        self.member = Member(
            self.setting.key, ledger, self._membership(ledger.genesis), self.store, x_round=self.learning.x_round,
            behaviour=self.setting.behaviour, verifier=self.beginning.verifier, draw=secrets.randbelow,
        )  # fmt: skip
        self._update_members()
        self._tell("founded", run_id=ledger.run.hex(), round=ledger.round,
                   members=[peer_id_text(founder.peer) for founder in ledger.genesis.founders])  # fmt: skip
        signed, journal = self.store.open_round(ledger.round)
        self._executor.give(self.member.start(self.now(), signed, journal))
        for peer in self._network.peers:
            self._greet(peer)

    def _update_members(self) -> None:
        """Who has a seat or is on its way to one is let in and dialled; who was banned is kept away."""
        assert self.member is not None
        roster = self.member.state.roster
        members = (frozenset(roster.members) | self.member.candidates | self._leavers) - roster.banned
        for peer in members:
            if peer in self.member.addresses:
                self._whereabouts.learn(peer, self.member.addresses[peer])
        if members != self._members:
            self._members = members
            self._network.set_members(members)
            for peer in roster.banned:
                self._network.block(peer, "banned from the run")

    # --- from any thread ---

    def leave(self) -> None:
        """Leave the run in order: give the seat up, wait for the block that says so, stop."""
        self._leave_asked = True
        self._soon(self._begin_to_leave)

    def stop(self) -> None:
        """Stop without leaving in order; the network still says goodbye, which takes two seconds at most."""
        self._leave_asked = True
        self._soon(lambda: self._stop(Stop("stopped")))

    def applied(self, effect: Apply, state: CutState | None) -> None:
        """The training loop has stepped."""
        self._soon(lambda: self.enter(lambda member: member.applied(effect.round, state, self.now())))

    def computed(self, round: int, gradient: Tensor | None, seconds: float) -> None:
        """The training loop has computed."""
        self._soon(lambda: self.enter(lambda member: member.computed(round, gradient, seconds, self.now())))

    def state_loaded(self, round: int) -> None:
        """The training loop has taken a certified state over."""
        self._soon(lambda: self.enter(lambda member: member.state_loaded(round, self.now())))

    def _soon(self, action: Callable[[], None]) -> None:
        """Do it in the protocol's thread; an error of ours there ends this peer with that error."""

        def guarded() -> None:
            try:
                action()
            except Exception as error:  # noqa: BLE001 - raised in the training loop's thread
                self._stop(Stop("failed", error))

        if self._token is not None:
            try:
                self._token.run_sync_soon(guarded)
            except trio.RunFinishedError:
                logger.debug("the protocol's thread is done")

    def _begin_to_leave(self) -> None:
        member = self.member
        if member is None or self._stopped is not None:
            self._stop(Stop("left"))
            return
        self._tell("leaving", round=member.state.round)
        self._executor.give(member.leave(self.now()))
        longest_us = Clock.of(member.state).longest_us(member.state.roster.faulty_left)
        self._leave_until = self.now() + LEAVE_ROUNDS_MAX * longest_us
        usual_us = 2 * self._round_us + LEAVE_DELTAS * self.store.charter.message_us
        self._timers.set("leaving", self.now() + usual_us)

    def _go_or_wait(self) -> None:
        """No block says yet that the seat is given up. To go now is to fail, which the others may not bear."""
        assert self.member is not None
        roster = self.member.state.roster
        here = sum(roster.seat(peer) is not None for peer in self._network.peers) + 1
        if here < roster.quorum or self.now() >= self._leave_until:
            self._stop(Stop("left"))
        else:
            self._timers.set("leaving", self.now() + self.store.charter.message_us)

    def _stop(self, stop: Stop) -> None:
        if self._stopped is None:
            self._stopped = stop
        self._stop_event.set()

    def _refuse(self, error: BtrainError) -> None:
        self._stop(Stop("refused", error))

    # --- the executor's listener ---

    def now(self) -> int:
        """The peer's clock, microseconds."""
        return self._clock.now()

    def enter(self, action: Callable[[Member], list[Effect]]) -> None:
        """Give the protocol an input, and its effects to the executor."""
        if self.member is not None:
            self._executor.give(action(self.member))

    def audience(self) -> Iterable[PeerId]:
        """Connected members, and those who are let in without a seat."""
        return [peer for peer in self._network.peers if peer in self._members]

    def happened(self, name: str, fields: dict[str, Any]) -> None:
        """An event of the protocol, with the peer ids in it as text."""
        readable = {key: _readable(key, value) for key, value in fields.items()}
        self._tell(name, **readable)
        if name == "block":
            self._round_us = round(1e6 * sum(fields["seconds"].values()))
            self._leavers = frozenset(map(peer_id_bytes, readable.get("left", ())))
        if name in ("block", "caught_up", "banned") and self.member is not None:
            self._update_members()
            self._whereabouts.forget_all_but(set(self._members))
            if self.setting.key.public_key in map(peer_id_bytes, readable.get("left", ())):
                self._stop(Stop("left"))

    def appended(self, append: AppendBlock) -> None:
        """Write the checkpoint of a state that this block certifies, if it is time for one."""
        checkpoints, certified = self.setting.config.local.checkpoints, open_block(append.block).state
        if not certified:
            return
        if self.store.checkpoint_due(certified[0].round, checkpoints.every):
            self._nursery.start_soon(
                trio.to_thread.run_sync, self.store.save_certified, certified[0], append, checkpoints.keep
            )

    def halted(self, halt: Halt) -> None:
        """The run is over, or this peer's part in it."""
        if halt.done:
            self._done_at = self.now()
            for peer in self.audience():
                self._network.send_control(peer, encode_packet(self._where()))
            self._linger()
        else:
            self._stop(Stop(halt.reason, _ERRORS.get(halt.reason, BtrainError(halt.reason))))

    def _where(self) -> Where:
        assert self.member is not None
        return Where(self.member.state.round, self.member.state.head)

    def _linger(self) -> None:
        """Finished: stop when all members have, or when nobody who is behind has asked for anything for a while."""
        if self._done_at is None or self.member is None:
            return
        finished = {peer for peer, height in self._heights.items() if height >= self.member.state.round}
        if set(self.member.state.roster.members) <= finished | {self.setting.key.public_key}:
            self._stop(Stop("finished"))
            return
        delta_us = self.store.charter.message_us
        until = self.now() + LINGER_DELTAS * delta_us
        self._timers.set("shell:finished", min(until, self._done_at + LINGER_DELTAS_MAX * delta_us))

    # --- the network's handler ---

    def control(self, peer: bytes, data: bytes) -> None:
        """A control packet: contracts and founding are the entrance's, the rest is the member's."""
        try:
            self._take(peer, data)
        except RemoteProtocolError as error:
            self._tell("refused", peer=peer_id_text(peer), reason=error.reason)

    def _take(self, peer: bytes, data: bytes) -> None:
        if says_it_is(data, Offer, Refusal):  # the protocol's own are not decoded twice
            packet = decode_packet(data)
            if isinstance(packet, Offer):
                self._entrance.offered(peer, packet)
            elif isinstance(packet, Refusal):
                self._entrance.refused(peer, packet)
        elif self.member is None:
            self._enter_run(self._entrance.packet(peer, data, self.now()))
        elif peer in self._members:
            if says_it_is(data, Where):
                self._note_where(peer, data)
            self._to_member(peer, data)
        elif not self._entrance.answers_stranger(peer, decode_packet(data)):
            self._to_member(peer, data)

    def _to_member(self, peer: bytes, data: bytes) -> None:
        assert self.member is not None
        before = self.member.candidates
        self._executor.give(self.member.packet(peer, data, self.now()))
        if not self.member.candidates <= before:
            self._update_members()

    def _note_where(self, peer: bytes, data: bytes) -> None:
        packet = decode_packet(data)
        if isinstance(packet, Where):
            self._heights[peer] = packet.round
        self._linger()

    def blob(self, peer: bytes, blob_hash: bytes, data: bytes) -> None:
        """Bytes that were asked for, or pushed."""
        if not self._fetching.arrived(peer, blob_hash, data):
            self.enter(lambda member: member.blob(blob_hash, data, peer, self.now()))

    def blob_missing(self, peer: bytes, blob_hash: bytes) -> None:
        """The peer that was asked has it not."""
        self._fetching.missing(peer, blob_hash)

    def blob_wanted(self, peer: bytes, blob_hash: bytes) -> bytes | None:
        """A member asks for bytes in custody."""
        return self.setting.behaviour.gives(peer, blob_hash, self.store.blob(blob_hash))

    def connected(self, peer: bytes) -> None:
        """A link is up: say which contract this is, then where we are."""
        self._tell("connected", peer=peer_id_text(peer))
        self._entrance.connected(peer, self.now())
        self._greet(peer)

    def _greet(self, peer: PeerId) -> None:
        if peer in self._members:
            self._whereabouts.learn(peer, self._network.known_addresses(peer))
        self.enter(lambda member: member.connected(peer, self.now()))

    def disconnected(self, peer: bytes, reason: str) -> None:
        """A link is gone."""
        self._tell("disconnected", peer=peer_id_text(peer), reason=reason)
        self._entrance.disconnected(peer)
        self._fetching.gone(peer)
        self.enter(lambda member: member.disconnected(peer, self.now()))

    def misbehaved(self, peer: bytes, reason: str) -> None:
        """The network keeps a peer away for a while."""
        self._tell("misbehaved", peer=peer_id_text(peer), reason=reason)

    # --- timers and fetches ---

    def _on_timer(self, name: str) -> None:
        if name == "founding":
            self._enter_run(self._entrance.timer(self.now()))
        elif name == "leaving":
            self._go_or_wait()
        elif name.startswith("shell:"):
            self._stop(Stop(name.removeprefix("shell:")))
        elif name.startswith(FETCH):
            self._fetching.timer(name)
        else:
            self.enter(lambda member: member.timer(name, self.now()))

    def _set_fetch_timer(self, name: str) -> None:
        transfer_us = 3000 * self.member.state.transfer_ms if self.member is not None else 0
        self._timers.set(name, self.now() + self.store.charter.message_us + transfer_us)

    def _fetched(self, hash: bytes, data: bytes | None) -> None:
        self.enter(lambda member: member.blob(hash, data, None, self.now()))

    def _tell(self, event: str, **fields: Any) -> None:
        self.setting.on_event({"event": event, **fields})


_ERRORS: dict[str, BtrainError] = {
    "banned": BtrainError("this peer was banned from the run; the evidence stands in the ledger"),
    "two_chains": VerificationError(
        "two certified chains of this run were shown to this peer, which held no seat where they part and cannot tell "
        "which one is right: it follows neither. Start again, in a new --run-dir, when the members have settled on one"
    ),
}
_PEER_FIELDS = {"peer", "absent", "admitted", "left", "guilty"}


def _readable(key: str, value: Any) -> Any:
    """Peer ids of the protocol (hex) as text ids."""
    if key not in _PEER_FIELDS:
        return value
    if isinstance(value, list):
        return [peer_id_text(bytes.fromhex(item)) for item in value]
    return peer_id_text(bytes.fromhex(value))


def _is_free(listen: str) -> bool:
    try:
        bind(parse_address(listen)).socket.close()
    except AddressInUse:
        return False
    return True


def _cause(error: BaseException) -> BaseException:
    """What ended the nurseries: of several errors one of btrain's own, which says more."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    causes = [_cause(inner) for inner in error.exceptions]
    return next((cause for cause in causes if isinstance(cause, BtrainError)), causes[0])
