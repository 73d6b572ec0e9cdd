"""A link: the control stream to one peer, with a queue, a heartbeat and a pace; and what hangs on it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from btrain.errors import NetworkError
from btrain.p2p.bulk import BulkConnection
from btrain.p2p.errors import LinkLost, PeerViolation
from btrain.p2p.frames import FrameParser, Hello, Kind, frame
from btrain.p2p.limits import KIB, Limits, Rate, Traffic
from btrain.p2p.outgoing import Outbox

logger = logging.getLogger(__name__)

_BATCH_BYTES = 60 * KIB  # a little less than what one Yamux frame and one Noise message carry
_FRAMES_PER_TURN = 64
_RECOVERED = 0.125  # of its burst that a peer has saved up again when it is no longer slowed down


class ByteStream(Protocol):
    """What a link needs of its channel."""

    peer: bytes
    dialled: bool

    async def read(self) -> bytes: ...

    async def write(self, data: bytes) -> None: ...

    async def violation(self) -> PeerViolation: ...

    def close(self) -> None: ...

    def remote_address(self) -> tuple[str, int]: ...


class Link:
    """One peer that has been greeted. Everything is called in the trio thread.

    The link ends with its first error, `error`; then its scope is cancelled and `ended` is set by its owner.
    """

    def __init__(
        self, channel: ByteStream, parser: FrameParser, hello: Hello, limits: Limits, traffic: Traffic
    ) -> None:
        self.channel = channel
        self.peer = channel.peer
        self.hello = hello
        self.traffic = traffic
        self.outbox = Outbox(limits.bytes_in_flight_max)
        self.bulk: BulkConnection | None = None
        self.bulk_ended = trio.Event()
        self.requests: dict[bytes, float] = {}  # hash -> when to give up
        self.is_member = False
        self.both_members = trio.Event()
        self.peer_is_ready = False
        self.ended = trio.Event()
        self.error: NetworkError | None = None
        self._limits = limits
        self._parser = parser
        parser.payload_bytes_max = limits.control_message_bytes_max
        self._scope = trio.CancelScope()
        self._queue: deque[bytes] = deque()
        self._queue_bytes = 0
        self._filled = trio.Event()
        now = trio.current_time()
        self.since = self._heard = self._spoke = now
        self._slow_since: float | None = None
        self._rate = Rate(0.0, 0.0, now)
        self.set_member(False)

    def set_member(self, is_member: bool) -> None:
        """Grant a member's or a stranger's limits."""
        limits = self._limits
        self.is_member = is_member
        per_s = limits.messages_per_s_max if is_member else limits.stranger_messages_per_s_max
        self._rate = Rate(per_s, per_s * limits.burst_s, trio.current_time())
        if is_member:
            self.send(frame(Kind.BULK_READY))
            self.note_ready()

    def note_ready(self, peer_is_ready: bool = False) -> None:
        """The bulk connection may be dialled once each side counts the other a member."""
        self.peer_is_ready = self.peer_is_ready or peer_is_ready
        if self.is_member and self.peer_is_ready:
            self.both_members.set()

    def send(self, data: bytes) -> bool:
        """Queue a frame; an overflow ends the link. Never blocks."""
        if self.error is not None:
            return False
        limits = self._limits
        if len(self._queue) >= limits.queue_messages_max or self._queue_bytes + len(data) > limits.queue_bytes_max:
            self.fail(LinkLost(f"the queue of messages to it overflowed at {self._queue_bytes} bytes"))
            return False
        self._queue.append(data)
        self._queue_bytes += len(data)
        self._spoke = trio.current_time()
        self._filled.set()
        return True

    def fail(self, error: NetworkError) -> None:
        """End the link; only the first error counts."""
        if self.error is None:
            self.error = error
        self._scope.cancel()

    async def run(self, receive: Callable[[Kind, bytes], None]) -> NetworkError:
        """Read, write and watch until the link ends; returns why."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                for task in (self._read, self._write, self._watch, self._judge):
                    nursery.start_soon(self._guarded, task, receive)
        return self.error or LinkLost("closed")

    async def _guarded(
        self, task: Callable[[Callable[[Kind, bytes], None]], Awaitable[None]], receive: Callable[[Kind, bytes], None]
    ) -> None:
        try:
            await task(receive)
        except NetworkError as error:
            self.fail(error)
        except Exception as error:
            logger.exception("a link failed by an error of our own")
            self.fail(LinkLost(f"internal error: {type(error).__name__}"))

    async def _read(self, receive: Callable[[Kind, bytes], None]) -> None:
        while True:
            count = 0
            while (item := self._parser.next_frame()) is not None:
                await self._pace(len(item[1]))
                receive(*item)
                count += 1
                if count % _FRAMES_PER_TURN == 0:
                    await trio.lowlevel.checkpoint()
            self._parser.feed(await self.channel.read())
            self._heard = trio.current_time()

    async def _pace(self, size: int) -> None:
        """Slow a peer down to its rate; raises PeerViolation when it has not taken the hint for `flood_s`."""
        now = trio.current_time()
        longest = self._limits.stranger_message_bytes
        wait_s = self._rate.take(now, 1.0 if self.is_member else max(1, -(-size // longest)))
        if self._rate.spare(now) > _RECOVERED:
            self._slow_since = None
        if wait_s == 0.0:
            return
        if self._slow_since is None:
            self._slow_since = now
        elif now - self._slow_since > self._limits.flood_s:
            raise PeerViolation(f"flood: above its rate of messages for {self._limits.flood_s:g} s")
        await trio.sleep(wait_s)
        self._heard = trio.current_time()

    async def _write(self, _: Callable[[Kind, bytes], None]) -> None:
        while True:
            if not self._queue:
                self._filled = trio.Event()
                await self._filled.wait()
            batch = [self._queue.popleft()]
            size = len(batch[0])
            while self._queue and size + len(self._queue[0]) <= _BATCH_BYTES:
                size += len(self._queue[0])
                batch.append(self._queue.popleft())
            with trio.move_on_after(self._limits.write_s) as deadline:
                await self.channel.write(b"".join(batch))
            if deadline.cancelled_caught:
                raise LinkLost(f"it has taken no data for {self._limits.write_s:g} s")
            self._queue_bytes -= size

    async def _watch(self, _: Callable[[Kind, bytes], None]) -> None:
        beat_s, silence_s = self._limits.heartbeat_s, self._limits.heartbeat_s * self._limits.heartbeats_missed_max
        then = trio.current_time()
        while True:
            await trio.sleep(beat_s / 2)
            now = trio.current_time()
            if now - then > 2 * beat_s:  # this process itself stood still: what came in meanwhile is not yet read
                self._heard = now
            then = now
            if now - self._heard > silence_s:
                raise LinkLost(f"silent for {now - self._heard:.1f} s")
            if now - self._spoke >= beat_s / 2:
                self.send(frame(Kind.BEAT))

    async def _judge(self, _: Callable[[Kind, bytes], None]) -> None:
        raise await self.channel.violation()
