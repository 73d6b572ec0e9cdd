"""Blobs on their way out: the outbox that the network fills, and what of it is on the wire."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from btrain.p2p.bulk_frames import BYE, BYE_ACK, CHUNK_BYTES, DATA, HEADER, NO_HASH

BlobSource = bytes | memoryview | Path


class Outbox:
    """Blobs on their way to one peer: filled by the network's thread, emptied by the connection's."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._lock = threading.Lock()
        self._small: deque[tuple[bytes, BlobSource, int]] = deque()
        self._large: deque[tuple[bytes, BlobSource, int]] = deque()
        self.wake: Callable[[], None] = _nothing

    def put(self, blob_hash: bytes, source: BlobSource, size: int) -> bool:
        """Append a blob; False if there is no room for it."""
        with self._lock:
            if self._bytes + size > self._bytes_max:
                return False
            self._bytes += size
            (self._small if size <= CHUNK_BYTES else self._large).append((blob_hash, source, size))
        self.wake()
        return True

    def take_small(self) -> tuple[bytes, BlobSource, int] | None:
        """The next blob that fits one frame."""
        with self._lock:
            return self._small.popleft() if self._small else None

    def take_large(self) -> tuple[bytes, BlobSource, int] | None:
        """The next blob that goes in chunks."""
        with self._lock:
            return self._large.popleft() if self._large else None

    def sent(self, size: int) -> None:
        """Make the room of a blob that has been sent available."""
        with self._lock:
            self._bytes -= size


def _nothing() -> None:
    pass


class Sender:
    """What of the outbox is on the wire."""

    def __init__(self, outbox: Outbox, missing: Callable[[bytes], None]) -> None:
        self._outbox = outbox
        self._missing = missing
        self._pieces: deque[memoryview] = deque()
        self._large: tuple[bytes, memoryview, int] | None = None
        self._done_bytes = 0  # of the blob whose last piece is pending
        self._small_next = True
        self.bye_sent = False
        self.bye_answered = False

    @property
    def pending(self) -> memoryview:
        """The bytes to hand to TLS next; the same until `consumed`, as OpenSSL demands."""
        return self._pieces[0]

    @property
    def busy(self) -> bool:
        """Whether bytes of a begun frame or blob are still to be sent."""
        return bool(self._pieces) or self._large is not None or self._done_bytes > 0

    def consumed(self, count: int) -> None:
        """TLS has taken `count` bytes of `pending`."""
        rest = self._pieces[0][count:]
        self._pieces.popleft()
        if rest:
            self._pieces.appendleft(rest)

    def say_bye(self) -> None:
        """Announce that nothing follows."""
        self.bye_sent = True
        self._pieces.append(memoryview(HEADER.pack(BYE, 0, 0, NO_HASH)))

    def answer_bye(self) -> None:
        """Acknowledge all that came before the peer's farewell; what is queued for it is void."""
        self.bye_answered = True
        self._large, self._done_bytes = None, 0
        self._pieces.append(memoryview(HEADER.pack(BYE_ACK, 0, 0, NO_HASH)))

    def advance(self) -> bool:
        """Make sure that `pending` has bytes; False if there is nothing to send."""
        if self._pieces:
            return True
        if self._done_bytes:
            self._outbox.sent(self._done_bytes)
            self._done_bytes = 0
        if self.bye_sent or self.bye_answered:
            return False
        self._small_next = not self._small_next
        turns = (self._next_small, self._next_large) if self._small_next else (self._next_large, self._next_small)
        return turns[0]() or turns[1]()

    def _next_small(self) -> bool:
        while (item := self._outbox.take_small()) is not None:
            blob_hash, source, size = item
            data = self._load(blob_hash, source, size)
            if data is not None:
                self._pieces.append(memoryview(HEADER.pack(DATA, size, size, blob_hash) + data))
                self._done_bytes = size
                return True
        return False

    def _next_large(self) -> bool:
        while self._large is None:
            item = self._outbox.take_large()
            if item is None:
                return False
            blob_hash, source, size = item
            data = self._load(blob_hash, source, size)
            if data is not None:
                self._large = (blob_hash, data, 0)
        blob_hash, data, offset = self._large
        chunk = data[offset : offset + CHUNK_BYTES]
        self._pieces.append(memoryview(HEADER.pack(DATA, len(chunk), len(data), blob_hash)))
        self._pieces.append(chunk)
        offset += len(chunk)
        if offset == len(data):
            self._large, self._done_bytes = None, len(data)
        else:
            self._large = (blob_hash, data, offset)
        return True

    def _load(self, blob_hash: bytes, source: BlobSource, size: int) -> memoryview | None:
        """The blob's bytes; None, and `missing` is told, if its file cannot be read or changed its size."""
        try:
            data = memoryview(source.read_bytes() if isinstance(source, Path) else source).cast("B")
        except OSError:
            data = memoryview(b"")
        if len(data) == size:
            return data
        self._outbox.sent(size)
        self._missing(blob_hash)
        return None
