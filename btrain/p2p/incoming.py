"""Blobs on their way in: what of a frame and of a blob has arrived, within the budgets and the rate."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable

from btrain.p2p.bulk_frames import BYE, BYE_ACK, CHUNK_BYTES, DATA, HEADER
from btrain.p2p.errors import PeerViolation
from btrain.p2p.limits import Budget, Limits, Rate


class _Store:
    """Room for a blob: filled piece by piece, then turned into bytes without a copy (which BytesIO can, in CPython)."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._file = io.BytesIO(bytes(size))

    def view(self, offset: int, length: int) -> memoryview:
        """A piece to write into; to be dropped before `data`."""
        return self._file.getbuffer()[offset : offset + length]

    def data(self) -> bytes:
        """The whole."""
        return self._file.getvalue()


class Receiver:
    """What of a frame and of a blob has arrived."""

    def __init__(self, limits: Limits, total: Budget, deliver: Callable[[bytes, bytes], None]) -> None:
        self._limits = limits
        self._budgets = (Budget(limits.bytes_in_flight_max), total)
        self._deliver = deliver
        now = time.monotonic()
        self._rate = Rate(limits.blobs_per_s_max, limits.blobs_per_s_max * limits.burst_s, now)
        self._not_before = now
        self._header = bytearray(HEADER.size)
        self._in_header = True
        self._wanted: int | None = None  # bytes that a budget must grant before the payload is read
        self._blob = _Store(0)
        self._blob_hash = b""
        self._digest = hashlib.sha256()
        self._offset = 0  # where the payload of the current frame begins in its blob
        self._small: tuple[bytes, _Store] | None = None
        self.target = memoryview(self._header)
        self.blocked = False
        self.bye_received = False
        self.bye_acknowledged = False

    @property
    def heard_bye(self) -> bool:
        """Whether nothing of interest follows."""
        return self.bye_received or self.bye_acknowledged

    @property
    def waits_for_peer(self) -> bool:
        """Whether the peer owes the rest of a frame or a blob."""
        return not self.blocked and (not self._in_header or len(self.target) < HEADER.size or bool(self._blob_hash))

    def give(self, size: int) -> None:
        """Return bytes to the budgets."""
        for budget in self._budgets:
            budget.give(size)

    def release(self) -> None:
        """Return what is held for a blob that will never be whole; delivered ones come back through `give`."""
        partial = self._blob.size if self._blob_hash else 0
        if self._small is not None:
            partial += self._small[1].size
        if partial:
            self.give(partial)

    def blocked_now(self) -> bool:
        """Whether reading must wait for the budget or the rate."""
        if self._wanted is not None and time.monotonic() >= self._not_before and self._take(self._wanted):
            self._wanted = None
            self._begin_payload()
        self.blocked = self._wanted is not None
        return self.blocked

    def _take(self, size: int) -> bool:
        own, total = self._budgets
        if not own.take(size):
            return False
        if not total.take(size):
            own.give(size)
            return False
        return True

    def received(self, count: int) -> None:
        """`count` bytes were written into `target`; raises PeerViolation."""
        self.target = self.target[count:]
        if self.target:
            return
        if self._in_header:
            self._read_header()
        else:
            self._end_payload()

    def _read_header(self) -> None:
        kind, length, size, blob_hash = HEADER.unpack(self._header)
        self.target = memoryview(self._header)
        if kind == BYE:
            self.bye_received = True
        elif kind == BYE_ACK:
            self.bye_acknowledged = True
        elif kind != DATA:
            raise PeerViolation(f"unknown frame type {kind} on the bulk connection")
        elif size > self._limits.blob_bytes_max:
            raise PeerViolation(f"oversized blob: {size} bytes, the limit is {self._limits.blob_bytes_max}")
        elif length > CHUNK_BYTES or length > size or (length == 0) != (size == 0):
            raise PeerViolation(f"a bulk frame of {length} bytes for a blob of {size}")
        elif self._continues(length, size, blob_hash):
            self._begin_payload()
        else:
            now = time.monotonic()
            self._not_before = now + self._rate.take(now)
            self._wanted = size

    def _continues(self, length: int, size: int, blob_hash: bytes) -> bool:
        """Whether the frame belongs to the large blob under way; raises PeerViolation if it should but does not."""
        if length == size:
            return False
        if not self._blob_hash:
            return False
        if blob_hash != self._blob_hash or size != self._blob.size or self._offset + length > size:
            raise PeerViolation("a chunk that does not continue the blob under way")
        return True

    def _begin_payload(self) -> None:
        _, length, size, blob_hash = HEADER.unpack(self._header)
        self._in_header = False
        if length == size:
            self._small = (blob_hash, _Store(size))
            self.target = self._small[1].view(0, size)
        else:
            if not self._blob_hash:
                self._blob, self._blob_hash, self._offset = _Store(size), blob_hash, 0
                self._digest = hashlib.sha256()
            self.target = self._blob.view(self._offset, length)
        if not length:
            self._end_payload()

    def _end_payload(self) -> None:
        self._in_header = True
        self.target = memoryview(self._header)
        if self._small is not None:
            blob_hash, store = self._small
            data = store.data()
            self._check(blob_hash, hashlib.sha256(data).digest())
            self._small = None
            self._deliver(blob_hash, data)
            return
        _, length, size, blob_hash = HEADER.unpack(self._header)
        self._digest.update(self._blob.view(self._offset, length))
        self._offset += length
        if self._offset == size:
            self._check(blob_hash, self._digest.digest())
            whole, self._blob, self._blob_hash = self._blob.data(), _Store(0), b""
            self._deliver(blob_hash, whole)

    @staticmethod
    def _check(promised: bytes, found: bytes) -> None:
        if promised != found:
            raise PeerViolation(f"a blob does not hash to {promised.hex()[:16]}...")
