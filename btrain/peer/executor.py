"""Effects of the protocol carried out: the durable ones of a batch first, then everything in its order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

import trio

from btrain.p2p import Network
from btrain.peer.fetching import Fetching
from btrain.peer.learning import ComputeHere, Learning, LoadHere
from btrain.peer.store import DURABLE, Store
from btrain.peer.timers import Timers
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
    KeepParameters,
    LoadState,
    PushBlob,
    Recompute,
    Send,
    SetTimer,
    StartOver,
    Work,
)  # fmt: skip
from btrain.protocol.encoding import PeerId
from btrain.protocol.member import Member
from btrain.storage.durable import StorageError

SMALL_NUMEL = 32 * 1024  # a job on so few elements is done sooner than handed to a thread


class Listener(Protocol):
    """What the executor tells its shell, in the trio thread."""

    member: Member | None

    def audience(self) -> Iterable[PeerId]:
        """Who gets what is sent to everybody."""

    def enter(self, action: Callable[[Member], list[Effect]]) -> None:
        """Give the protocol an input."""

    def now(self) -> int:
        """The peer's clock."""

    def happened(self, name: str, fields: dict[str, Any]) -> None:
        """An event of the protocol."""

    def appended(self, append: AppendBlock) -> None:
        """A block is in the ledger."""

    def halted(self, halt: Halt) -> None:
        """The protocol has come to an end."""


class Executor:
    """Executes for one peer; `run` is a task of the shell's nursery, in which it starts what takes time."""

    def __init__(
        self, listener: Listener, store: Store, learning: Learning, network: Network, timers: Timers, fetching: Fetching
    ) -> None:
        self._listener, self._store, self._learning = listener, store, learning
        self._network, self._timers, self._fetching = network, timers, fetching
        self._outbox: list[Effect] = []
        self._filled = trio.Event()
        self._workers = trio.CapacityLimiter(2)
        self._audits = trio.CapacityLimiter(1)  # audits run beside the round and never before it
        self._is_small = learning.trainer.numel <= SMALL_NUMEL
        self._nursery: trio.Nursery

    def give(self, effects: list[Effect]) -> None:
        """Queue effects; their blobs can be read at once."""
        if effects:
            self._store.announce(effects)
            self._outbox += effects
            self._filled.set()

    async def run(self, nursery: trio.Nursery) -> None:
        """Until cancelled. Raises StorageError when something cannot be made durable: nothing may be sent then."""
        self._nursery = nursery
        while True:
            await self._filled.wait()
            self._filled = trio.Event()
            batch, self._outbox = self._outbox, []
            durable = [effect for effect in batch if isinstance(effect, DURABLE)]
            if durable:
                for event in await trio.to_thread.run_sync(self._store.commit, durable):
                    self._listener.happened(event.pop("event"), event)
            for effect in batch:
                self._execute(effect)

    def _execute(self, effect: Effect) -> None:
        match effect:
            case Send(packet, to, delay_us):
                self._send(packet, to, delay_us)
            case PushBlob(to, hash):
                data = self._store.blob(hash)
                if data is not None:
                    self._network.send_blob(to, hash, data)
            case FetchBlob(hash, sources):
                self._fetch(hash, sources)
            case SetTimer(name, at_us):
                self._timers.set(name, at_us)
            case CancelTimer(name):
                self._timers.cancel(name)
            case Event(name, fields):
                self._listener.happened(name, fields)
            case AppendBlock():
                self._listener.appended(effect)
            case Drop(peer, reason):
                self._network.disconnect(peer, reason)
            case Halt():
                self._listener.halted(effect)
            case _:
                self._compute(effect)

    def _compute(self, effect: Effect) -> None:
        match effect:
            case Work(token, job) if self._is_small and token.startswith("round:"):
                result = job()
                self._listener.enter(lambda member: member.work_done(token, result, self._listener.now()))
            case Work(token, job):
                self._nursery.start_soon(self._work, token, job)
            case Recompute(token, round, seed):
                self._nursery.start_soon(self._recompute, token, round, seed)
            case KeepParameters(rounds):
                self._learning.pin(rounds)
            case Compute():
                member = self._listener.member
                if member is not None and member.round is not None and member.round.round == effect.round:
                    self._learning.commands.put(ComputeHere(effect, member.round))
            case CompareStates(own, other, tolerance):
                self._nursery.start_soon(self._compare, own, other, tolerance)
            case StartOver():
                self._nursery.start_soon(self._start_over, effect)
            case LoadState():
                self._nursery.start_soon(self._load, effect)
            case Apply():
                self._learning.commands.put(effect)

    def _send(self, packet: bytes, to: PeerId | None, delay_us: int) -> None:
        if delay_us:
            self._nursery.start_soon(self._send_later, packet, to, delay_us)
            return
        for peer in [to] if to is not None else self._listener.audience():
            self._network.send_control(peer, packet)

    async def _send_later(self, packet: bytes, to: PeerId | None, delay_us: int) -> None:
        await trio.sleep(delay_us / 1e6)
        self._send(packet, to, 0)

    def _fetch(self, hash: bytes, sources: tuple[PeerId, ...]) -> None:
        kept = self._store.blob(hash)
        if kept is None:
            self._fetching.fetch(hash, sources)
        else:
            self._listener.enter(lambda member: member.blob(hash, kept, None, self._listener.now()))

    async def _work(self, token: str, job: Callable[[], Any]) -> None:
        result = await trio.to_thread.run_sync(job, limiter=self._workers)
        self._listener.enter(lambda member: member.work_done(token, result, self._listener.now()))

    async def _compare(self, own: bytes, other: bytes, tolerance: float) -> None:
        job = partial(self._store.states_close, own, other, tolerance)
        close = await trio.to_thread.run_sync(job, limiter=self._audits)
        self._listener.enter(lambda member: member.compared(other, close, self._listener.now()))

    async def _start_over(self, effect: StartOver) -> None:
        initial = self._store.initial
        state = await trio.to_thread.run_sync(initial.intact, limiter=self._workers)
        if state is None:
            raise StorageError(f"{initial.path}: is lost or damaged, and the run has to return to it; start again")
        self._learning.commands.put(LoadHere(0, state, effect.later_holds))

    async def _load(self, effect: LoadState) -> None:
        state = await trio.to_thread.run_sync(self._store.state, effect.digest, limiter=self._workers)
        if state is None:
            raise StorageError(
                f"{self._store.directory.custody.directory}: a piece of the certified state of round {effect.round} "
                "is damaged; start again, it will be fetched anew"
            )
        self._learning.commands.put(LoadHere(effect.round, state, effect.later_holds))

    async def _recompute(self, token: str, round: int, seed: bytes) -> None:
        job = partial(self._learning.recompute, round, seed)
        gradient, x = await trio.to_thread.run_sync(job, limiter=self._audits, abandon_on_cancel=True)  # type: ignore[call-arg]
        self._listener.enter(lambda member: member.recomputed(token, gradient, x, self._listener.now()))
