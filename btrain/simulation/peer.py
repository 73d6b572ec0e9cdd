"""The simulator's shell around a `Member`: effects become packets, timers and computations in virtual time."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from btrain.identity import SigningKey
from btrain.protocol.behaviour import Behaviour
from btrain.protocol.court import PARAMETERS_KEPT
from btrain.protocol.effects import (
    AppendBlock,
    Apply,
    CancelTimer,
    CompareStates,
    Compute,
    Drop,
    Effect,
    Event,
    FetchBlob,
    Halt,
    Journal,
    KeepParameters,
    LoadState,
    PersistSigned,
    PushBlob,
    PutBlob,
    Recompute,
    RollBack,
    SaveEvidence,
    Send,
    SetTimer,
    StartOver,
    Work,
)  # fmt: skip
from btrain.protocol.encoding import PeerId, digest
from btrain.protocol.errors import RemoteProtocolError
from btrain.protocol.ledger import LedgerState, check_certificate, open_block
from btrain.protocol.member import Member, Membership
from btrain.protocol.messages import Verifier
from btrain.protocol.pieces import assemble, cut
from btrain.protocol.round import Round
from btrain.simulation.disk import DURABLE, Disk
from btrain.simulation.heap import NodeId, Port
from btrain.simulation.sharing import SharedWork

ENVELOPE_BYTES = 16  # framing of a packet


class Learner(Protocol):
    """The learning side of a peer. x and gradients are float32 [d]."""

    def parameters(self) -> Tensor:
        """A copy of x."""

    def gradient(self, x: Tensor, batch_seed: bytes, *, flip_labels: bool = False) -> Tensor:
        """The gradient at x on the minibatch of a seed; pure."""

    def apply(self, update: Tensor, step: int) -> None:
        """Step the optimizer; `step` counts the steps after it."""

    def state_bytes(self) -> bytes:
        """Parameters and optimizer state, canonical."""

    def load_state(self, data: bytes) -> None:
        """Replace both."""

    def is_close(self, own: bytes, other: bytes, tolerance: float) -> bool:
        """Whether two states are the same but for rounding."""


@dataclass
class Timings:
    """How long things take, in virtual microseconds."""

    compute_us: int = 50_000
    compute_jitter_us: int = 10_000
    work_us: int = 1_000
    sync_us: int = 0  # how long a batch of writes takes to be durable; 0: as long as it takes to ask
    fetch_timeout_us: int = 2_000_000


@dataclass
class Identity:
    """Everything that makes a simulated peer, and outlives its crashes."""

    key: SigningKey
    origin: LedgerState  # the genesis; one object, so that equal peers share what follows from it
    membership: Membership
    make_learner: Callable[[], Learner]
    behaviour: Behaviour
    verifier: Verifier
    work: SharedWork
    contacts: tuple[PeerId, ...]
    seed: int
    timings: Timings = field(default_factory=Timings)
    disk: Disk = field(default_factory=Disk)
    events: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)
    digests: dict[int, bytes] = field(default_factory=dict)  # round -> SHA-256 of x[round], for the run's invariants


@dataclass
class _Fetch:
    sources: list[PeerId]
    attempt: int = 0


class SimulatedPeer:
    """A node of the heap. Rebuilt after every restart from its `Identity`."""

    def __init__(self, port: Port, identity: Identity) -> None:
        self.port, self.identity, self.disk = port, identity, identity.disk
        self.keep_rounds = identity.origin.charter.kept_rounds  # whose records the disk keeps
        self.random = random.Random(f"{identity.seed}/{identity.key.public_key.hex()}/{len(identity.events)}")
        self.halted: Halt | None = None
        self._later: dict[str, Callable[[int], list[Effect]]] = {}
        self._counter = 0
        self._outbox: list[Effect] = []  # effects behind the batch that is being made durable
        self._syncing = False
        self._fetches: dict[bytes, _Fetch] = {}
        self._snapshots: dict[int, Tensor] = {}
        self._pinned: frozenset[int] = frozenset()
        self._connected: set[PeerId] = set()
        self._audience: tuple[PeerId, ...] = ()  # the connected peers in member order
        self.now = 0
        if self.disk.unsynced:
            self.disk.recover(self.random, self.keep_rounds)
        self.learner = identity.make_learner()
        state, x_round = self._load()
        self.x_round = x_round
        self._snapshots[x_round] = self.learner.parameters()
        self.member = Member(
            identity.key, state, identity.membership, self.disk, x_round=x_round, behaviour=identity.behaviour,
            verifier=identity.verifier, draw=self.random.randrange,
        )  # fmt: skip

    def _load(self) -> tuple[LedgerState, int]:
        """The ledger, verified again, and the newest state here that it certifies."""
        identity = self.identity
        state = identity.origin
        for certified in self.disk.blocks:
            block = open_block(certified.block)
            check_certificate(block, certified.certificate, state, identity.verifier)
            state = state.advance(block)
        newest = self.disk.newest_state()
        if newest is None:
            return state, 0
        self.learner.load_state(newest[1])
        return state, newest[0]

    # --- the heap's node interface ---

    def start(self, now: int) -> None:
        """Begin, or begin again."""
        self.now = now
        open_round = self.member.state.round
        signed = {slot: envelope for slot, (_, envelope) in self.disk.signed.items()}
        journal = [entry for entry in self.disk.journal if entry[0] >= open_round]
        self._run(self.member.start(now, signed, journal))

    def packet(self, src: NodeId, payload: object, now: int) -> None:
        """Take a packet: control bytes, or a blob, or a request for one."""
        self.now = now
        assert isinstance(src, bytes) and isinstance(payload, tuple)
        kind, *rest = payload
        if kind == "control":
            self._run(self.member.packet(src, rest[0], now))
        elif kind == "push":
            self._run(self.member.blob(rest[0], rest[1], src, now))
        elif kind == "want":
            given = self.identity.behaviour.gives(src, rest[0], self.disk.blob(rest[0]))
            self._transmit(src, ("gone", rest[0]) if given is None else ("blob", rest[0], given))
        elif kind == "blob" and rest[0] in self._fetches:
            self._take_blob(src, rest[0], rest[1], now)
        elif kind == "gone" and rest[0] in self._fetches:
            self._next_source(rest[0])

    def timer(self, name: str, now: int) -> None:
        """A timer of the member, or the end of something that takes time."""
        self.now = now
        action = self._later.pop(name, None)
        self._run(action(now) if action is not None else self.member.timer(name, now))

    def connected(self, peer: NodeId, now: int) -> None:
        """A peer can be reached (again)."""
        self.now = now
        assert isinstance(peer, bytes)
        if peer not in self._connected:
            self._connected.add(peer)
            self._audience = tuple(sorted(self._connected - {self.identity.key.public_key}))
        self._run(self.member.connected(peer, now))

    def disconnected(self, peer: PeerId, now: int) -> None:
        """A peer is gone for good."""
        self.now = now
        self._connected.discard(peer)
        self._audience = tuple(one for one in self._audience if one != peer)
        self._run(self.member.disconnected(peer, now))

    def leave(self, now: int) -> None:
        """Give the seat up."""
        self.now = now
        self._run(self.member.leave(now))

    def _take_blob(self, src: PeerId, hash: bytes, data: bytes, now: int) -> None:
        """An answer to a request. As in the real network other bytes cost their sender the connection."""
        if digest(data) != hash:
            self.identity.events.append((now, "drop", {"peer": src.hex(), "reason": "bytes of another hash"}))
            self._next_source(hash)
        else:
            del self._fetches[hash]
            self._run(self.member.blob(hash, data, None, now))

    # --- effects ---

    def _run(self, effects: list[Effect]) -> None:
        if not self.identity.timings.sync_us:
            for effect in effects:
                self._execute(effect)
            return
        self._outbox += effects
        if not self._syncing:
            self._begin_batch()

    def _begin_batch(self) -> None:
        """As a real peer: what is durable in the batch first, then everything in its order."""
        self._syncing = True
        batch, self._outbox = self._outbox, []
        self.disk.begin(batch)
        if self.disk.unsynced:
            self._after(self.identity.timings.sync_us, lambda now: self._finish_batch(batch))
        else:
            self._finish_batch(batch)

    def _finish_batch(self, batch: list[Effect]) -> list[Effect]:
        self.disk.sync(self.keep_rounds)
        for effect in batch:
            if not isinstance(effect, DURABLE):
                self._execute(effect)
        self._syncing = False
        if self._outbox:
            self._begin_batch()
        return []

    def _execute(self, effect: Effect) -> None:
        match effect:
            case Send(packet, to, delay_us):
                self._send(packet, to, delay_us)
            case PushBlob(to, hash):
                data = self.disk.blob(hash)
                if data is not None:
                    self._transmit(to, ("push", hash, data))
            case FetchBlob(hash, sources):
                self._fetch(hash, sources)
            case SetTimer(name, at_us):
                self.port.set_timer(name, at_us)
            case CancelTimer(name):
                self.port.cancel_timer(name)
            case Event(name, fields):
                self.identity.events.append((self.now, name, fields))
            case Drop():
                self.identity.events.append((self.now, "drop", {"peer": effect.peer.hex(), "reason": effect.reason}))
            case Halt():
                self.halted = effect
            case AppendBlock() | PersistSigned() | Journal() | PutBlob() | SaveEvidence() | RollBack():
                self.disk.write(effect, self.keep_rounds)
            case _:
                self._compute(effect)

    def _compute(self, effect: Effect) -> None:
        timings = self.identity.timings
        duration = timings.compute_us + self.random.randrange(timings.compute_jitter_us + 1)
        match effect:
            case Work(token, job):
                result = self.identity.work.run(job)
                self._after(timings.work_us, lambda now: self.member.work_done(token, result, now))
            case Compute(round, seed):
                opened = self.member.round
                if opened is not None and opened.round == round:
                    self._after(duration, lambda now: self._computed(opened, seed, duration, now))
            case Recompute(token, round, seed):
                self._after(duration, lambda now: self._recomputed(token, round, seed, now))
            case KeepParameters(rounds):
                self._pinned = rounds
            case Apply(round, update, step, digest_due):
                self._apply(round, update, step, digest_due)
            case CompareStates(own, other, tolerance):
                close = self._compare(own, other, tolerance)
                self._after(timings.work_us, lambda now: self.member.compared(other, close, now))
            case StartOver(later_holds):
                self.learner = self.identity.make_learner()
                self._at(0, later_holds=later_holds)
                self._after(timings.work_us, lambda now: self.member.state_loaded(0, now))
            case LoadState(round, digest, later_holds):
                state = assemble(digest, self.disk.blob)
                assert state is not None, "the pieces were put before"
                self.learner.load_state(state)
                self._at(round, later_holds=later_holds)
                self._after(timings.work_us, lambda now: self.member.state_loaded(round, now))

    def _compare(self, own: bytes, other: bytes, tolerance: float) -> bool:
        try:
            ours, theirs = assemble(own, self.disk.blob), assemble(other, self.disk.blob)
        except RemoteProtocolError:
            return False
        return ours is not None and theirs is not None and self.learner.is_close(ours, theirs, tolerance)

    def _computed(self, opened: Round, seed: bytes, duration_us: int, now: int) -> list[Effect]:
        if self.member.round is not opened or self.x_round != opened.round:
            return []  # over, or given up for a round of the same number on another chain
        x = self._snapshots[opened.round]
        own = self.learner.gradient(x, seed)

        def replay(batch_seed: bytes, *, flip_labels: bool = False) -> Tensor:
            return self.learner.gradient(x, batch_seed, flip_labels=flip_labels)

        gradient = self._behave(own, opened, replay)
        return self.member.computed(opened.round, gradient, duration_us / 1e6, now)

    def _behave(self, own: Tensor, round: Round, replay: Any) -> Tensor:
        return self.identity.behaviour.gradient(own, round, replay)

    def _recomputed(self, token: str, round: int, seed: bytes, now: int) -> list[Effect]:
        x = self._snapshots.get(round)
        gradient = None if x is None else self.learner.gradient(x, seed)
        return self.member.recomputed(token, gradient, x, now)

    def _apply(self, round: int, update: Tensor | None, step: int, digest_due: bool) -> None:
        if update is not None:
            self.learner.apply(update, step)
        self._at(round + 1)
        state = cut(self.learner.state_bytes()) if digest_due else None
        self._after(self.identity.timings.work_us, lambda now: self.member.applied(round, state, now))

    def _at(self, round: int, *, later_holds: bool = True) -> None:
        self.x_round = round
        self._snapshots[round] = x = self.learner.parameters()
        self.identity.digests[round] = digest(x.numpy().tobytes())
        late = {r for r in self._snapshots if r + PARAMETERS_KEPT <= round} - self._pinned
        for old in late if later_holds else late | {r for r in self._snapshots if r > round}:
            del self._snapshots[old]

    def _after(self, delay_us: int, action: Callable[[int], list[Effect]]) -> None:
        self._counter += 1
        name = f"later:{self._counter}"
        self._later[name] = action
        self.port.set_timer(name, self.now + delay_us)

    # --- packets ---

    def _send(self, packet: bytes, to: PeerId | None, delay_us: int) -> None:
        receivers = (to,) if to is not None else self._listeners()
        if delay_us:
            self._after(delay_us, lambda now: self._send_now(packet, receivers))
        else:
            self._send_now(packet, receivers)

    def _send_now(self, packet: bytes, receivers: Sequence[PeerId]) -> list[Effect]:
        payload, size, send = ("control", packet), len(packet) + ENVELOPE_BYTES, self.port.send
        for peer in receivers:
            if peer in self._connected:
                send(peer, payload, size)
        return []

    def _listeners(self) -> list[PeerId]:
        seat, candidates = self.member.state.roster.seat, self.member.candidates
        return [peer for peer in self._audience if seat(peer) is not None or peer in candidates]

    def _transmit(self, to: PeerId, payload: tuple[object, ...]) -> None:
        size = sum(len(part) for part in payload if isinstance(part, bytes)) + ENVELOPE_BYTES
        if to in self._connected:
            self.port.send(to, payload, size)

    def _fetch(self, hash: bytes, sources: tuple[PeerId, ...]) -> None:
        kept = self.disk.blob(hash)
        if kept is not None:
            self._after(1, lambda now: self.member.blob(hash, kept, None, now))
        elif hash in self._fetches:
            self._fetches[hash].sources += [peer for peer in sources if peer not in self._fetches[hash].sources]
        else:
            self._fetches[hash] = _Fetch(list(sources))
            self._next_source(hash)

    def _next_source(self, hash: bytes) -> None:
        fetch = self._fetches[hash]
        fetch.attempt += 1
        attempt = fetch.attempt
        if not fetch.sources:
            del self._fetches[hash]
            self._after(1, lambda now: self.member.blob(hash, None, None, now))
            return
        self._transmit(fetch.sources.pop(0), ("want", hash))

        def expire(now: int) -> list[Effect]:
            current = self._fetches.get(hash)
            if current is not None and current.attempt == attempt:
                self._next_source(hash)
            return []

        self._after(self.identity.timings.fetch_timeout_us, expire)
