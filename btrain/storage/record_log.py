"""An append-only file of records in frames; a frame is what one fsync made durable, whole or not at all.

    file    = 12 bytes "btrain-log1\\n", 4 bytes kind, frames
    frame   = u64 length of body | u32 CRC-32 of those 8 bytes | first 8 bytes of SHA-256(body) | body
    body    = records, each u32 length | bytes                                      (all integers little-endian)

The next frame is begun only after the last one's fsync returned. So only the last frame can be torn by a crash, and is
cut when the file is opened; a wrong byte anywhere else is damage and is never cut, but reported with its place. A last
frame of full length counts as torn only if a whole 512-byte sector of it was never written (reads as zeros), as after a
power failure; a flipped byte in it is damage: to forget a signature silently could make its owner sign a slot twice.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Self

from btrain.storage.durable import (
    CorruptFile,
    StorageError,
    replace_file,
    storage_error,
    sync_file,
    write_all,
)

MAGIC = b"btrain-log1\n"
KIND_BYTES = 4
HEADER_BYTES = len(MAGIC) + KIND_BYTES
FRAME_HEADER = struct.Struct("<QI8s")
RECORD_HEADER = struct.Struct("<I")
SECTOR_BYTES = 512
UNWRITTEN_BYTES_MIN = 8  # fewer zeros at the edge of a sector may be the record's own


class RecordTooLarge(StorageError):
    """A record or a batch exceeds the log's bound; nothing was written."""


class LogFailed(StorageError):
    """An earlier write could not be undone, so the file's end is unknown until the log is opened anew."""


@dataclass(frozen=True)
class Frame:
    """The records of one append and the offset of their frame in the file."""

    offset: int
    records: list[bytes]


@dataclass(frozen=True)
class FrameLimits:
    """Bounds of a log: one record, and all records of one frame with their headers, in bytes."""

    record_bytes_max: int
    frame_bytes_max: int


def encode_frame(records: Sequence[bytes], limits: FrameLimits, path: Path) -> bytes:
    """The bytes of one frame; raises RecordTooLarge."""
    for record in records:
        if len(record) > limits.record_bytes_max:
            raise RecordTooLarge(f"{path}: a record of {len(record)} bytes; at most {limits.record_bytes_max}")
    body = b"".join(piece for record in records for piece in (RECORD_HEADER.pack(len(record)), record))
    if len(body) > limits.frame_bytes_max:
        raise RecordTooLarge(f"{path}: a batch of {len(body)} bytes; at most {limits.frame_bytes_max}")
    length = struct.pack("<Q", len(body))
    return FRAME_HEADER.pack(len(body), zlib.crc32(length), sha256(body).digest()[:8]) + body


def scan(path: Path, kind: bytes, limits: FrameLimits) -> Iterator[Frame]:
    """The frames of a file in order, without changing it; a torn last frame is left out.

    Raises CorruptFile for damage, StorageError where the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            _check_file_header(path, file.read(HEADER_BYTES), kind)
            offset = HEADER_BYTES
            while offset < size:
                body = _read_body(path, file.read, offset, size, limits)
                if body is None:
                    return
                yield Frame(offset, _split(path, offset, body, limits))
                offset += FRAME_HEADER.size + len(body)
    except OSError as error:
        raise storage_error(path, "be read", error) from error


def _check_file_header(path: Path, header: bytes, kind: bytes) -> None:
    if header != MAGIC + kind:
        raise CorruptFile(path, 0, f"is no btrain file of the kind {kind.decode()!r}")


def _read_body(path: Path, read: Callable[[int], bytes], offset: int, size: int, limits: FrameLimits) -> bytes | None:
    """The verified body of the frame at `offset`; None if the frame is the torn end of the file."""
    header = read(FRAME_HEADER.size)
    if len(header) < FRAME_HEADER.size:
        return None
    length, length_check, body_check = FRAME_HEADER.unpack(header)
    left = size - offset - FRAME_HEADER.size
    if zlib.crc32(header[:8]) != length_check:
        if left <= limits.frame_bytes_max and _has_unwritten_sector(header + read(left), offset):
            return None
        raise CorruptFile(path, offset, "the header of a record is damaged")
    if length > limits.frame_bytes_max:
        raise CorruptFile(path, offset, f"a record of {length} bytes; at most {limits.frame_bytes_max} are legal")
    if length > left:
        return None
    body = read(length)
    if sha256(body).digest()[:8] != body_check:
        if length == left and _has_unwritten_sector(header + body, offset):
            return None
        raise CorruptFile(path, offset, "the checksum of a record does not match its bytes")
    return body


def _has_unwritten_sector(data: bytes, offset: int) -> bool:
    """Whether one of the file's sectors is all zeros as far as `data`, which begins at `offset` of it, covers it."""
    position = 0
    while position < len(data):
        end = min(len(data), position + SECTOR_BYTES - (offset + position) % SECTOR_BYTES)
        if end - position >= UNWRITTEN_BYTES_MIN and not any(data[position:end]):
            return True
        position = end
    return False


def _split(path: Path, offset: int, body: bytes, limits: FrameLimits) -> list[bytes]:
    records = []
    position = 0
    while position < len(body):
        start = position + RECORD_HEADER.size
        length = RECORD_HEADER.unpack_from(body, position)[0] if start <= len(body) else len(body)
        if length > limits.record_bytes_max or start + length > len(body):
            raise CorruptFile(path, offset, "the lengths of its records do not fill the frame")
        records.append(body[start : start + length])
        position = start + length
    return records


class RecordLog:
    """A log open for appending; safe to call from several threads. The caller sees to it that one process has it."""

    def __init__(self, path: Path, kind: bytes, limits: FrameLimits, descriptor: int, size: int) -> None:
        self.path = path
        self.kind = kind
        self.limits = limits
        self.size = size
        self._descriptor = descriptor
        self._failed: str | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls, path: Path, kind: bytes, limits: FrameLimits, on_frame: Callable[[Frame], None] | None = None
    ) -> Self:
        """Create the file or read it through `on_frame`, cutting a torn end.

        What was read is made durable before this returns: a killed process may have left it in the page cache only.
        Raises CorruptFile, StorageFull, StorageError.
        """
        if not path.exists():
            replace_file(path, MAGIC + kind)
        end = HEADER_BYTES
        for frame in scan(path, kind, limits):
            if on_frame is not None:
                on_frame(frame)
            end = frame.offset + _frame_size(frame)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.ftruncate(descriptor, end)
                sync_file(descriptor)
            except OSError:
                os.close(descriptor)
                raise
        except OSError as error:
            raise storage_error(path, "be opened", error) from error
        return cls(path, kind, limits, descriptor, end)

    def append(self, record: bytes) -> int:
        """Append one record, durable on return; see `append_many`."""
        return self.append_many((record,))

    def append_many(self, records: Sequence[bytes]) -> int:
        """Append all records as one frame with one fsync; all of them are durable on return, or none is there.

        Returns the frame's offset. Raises RecordTooLarge, StorageFull, StorageError, LogFailed.
        """
        frame = encode_frame(records, self.limits, self.path)
        with self._lock:
            self._check_usable()
            offset = self.size
            try:
                write_all(self._descriptor, frame, offset)
            except OSError as error:
                self._cut_back()
                raise storage_error(self.path, "be written", error) from error
            try:
                sync_file(self._descriptor)
            except OSError as error:
                # After a failed fsync the kernel may have dropped the pages: what the disk holds is unknown.
                self._failed = os.strerror(error.errno or 0)
                self._cut_back()
                raise storage_error(self.path, "be made durable", error) from error
            self.size = offset + len(frame)
            return offset

    def read(self, offset: int) -> list[bytes]:
        """The records of the frame at an offset that `append_many` or a frame gave; raises CorruptFile."""
        with self._lock:
            self._check_usable()
            position = offset

            def read(count: int) -> bytes:
                nonlocal position
                data = os.pread(self._descriptor, count, position)
                position += len(data)
                return data

            try:
                body = _read_body(self.path, read, offset, self.size, self.limits)
            except OSError as error:
                raise storage_error(self.path, "be read", error) from error
        if body is None:
            raise CorruptFile(self.path, offset, "the record is cut short")
        return _split(self.path, offset, body, self.limits)

    def frames(self, offset: int = HEADER_BYTES) -> Iterator[Frame]:
        """The frames from an offset on, read from disk again."""
        while offset < self.size:
            frame = Frame(offset, self.read(offset))
            yield frame
            offset += _frame_size(frame)

    def rewrite(self, frames: Sequence[Sequence[bytes]]) -> None:
        """Replace the whole content by these frames, atomically.

        Raises as `append_many` does; the old content then stands, or the log is failed until it is opened anew.
        """
        content = MAGIC + self.kind + b"".join(encode_frame(frame, self.limits, self.path) for frame in frames)
        with self._lock:
            self._check_usable()
            try:
                replace_file(self.path, content)
                descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            except (OSError, StorageError) as error:
                if not self._is_at_path():
                    self._failed = "it was replaced, but not reliably"
                if isinstance(error, StorageError):
                    raise
                raise storage_error(self.path, "be opened", error) from error
            os.close(self._descriptor)
            self._descriptor = descriptor
            self.size = len(content)

    def close(self) -> None:
        """Close the file; more than once is harmless."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._descriptor = -1
            self._failed = "it is closed"

    def _check_usable(self) -> None:
        if self._failed is not None:
            raise LogFailed(f"{self.path}: cannot be used: {self._failed}")

    def _is_at_path(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except OSError:
            return False

    def _cut_back(self) -> None:
        try:
            os.ftruncate(self._descriptor, self.size)
        except OSError as error:
            self._failed = os.strerror(error.errno or 0)


def _frame_size(frame: Frame) -> int:
    return FRAME_HEADER.size + sum(RECORD_HEADER.size + len(record) for record in frame.records)
