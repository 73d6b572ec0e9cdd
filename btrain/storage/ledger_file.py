"""The ledger on disk: one frame a block, with its certificate; appended, never rewritten but when a fork is healed."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

from btrain.storage.durable import CorruptFile, replace_file, storage_error
from btrain.storage.record_log import Frame, FrameLimits, RecordLog, scan

KIND = b"ledg"
LIMITS = FrameLimits(record_bytes_max=64 * 1024 * 1024, frame_bytes_max=128 * 1024 * 1024)


class StoredBlock(NamedTuple):
    """A block's bytes and its certificate's, as they were appended."""

    height: int
    block: bytes
    certificate: bytes


class CorruptLedger(CorruptFile):
    """A block's stored bytes are damaged; `height` says which."""

    def __init__(self, path: Path, height: int, offset: int, what: str) -> None:
        super().__init__(path, offset, f"block {height}: {what}")
        self.height = height


def _at_height(error: CorruptFile, height: int) -> CorruptLedger:
    return error if isinstance(error, CorruptLedger) else CorruptLedger(error.path, height, error.offset, error.what)


def read_ledger(path: Path) -> Iterator[StoredBlock]:
    """The blocks of a ledger file from height 0 on, read only; raises CorruptLedger, StorageError."""
    height = 0
    try:
        for frame in scan(path, KIND, LIMITS):
            yield _stored(path, height, frame)
            height += 1
    except CorruptFile as error:
        raise _at_height(error, height) from None


def _stored(path: Path, height: int, frame: Frame) -> StoredBlock:
    if len(frame.records) != 2:
        raise CorruptLedger(path, height, frame.offset, "is not a block and its certificate")
    return StoredBlock(height, frame.records[0], frame.records[1])


class LedgerFile:
    """The ledger open for appending, with an index of heights in memory."""

    def __init__(self) -> None:
        self._offsets: list[int] = []
        self._lock = threading.RLock()
        self._log: RecordLog

    @classmethod
    def open(cls, path: Path) -> Self:
        """Create or read the file, verifying every frame; raises CorruptLedger, StorageFull, StorageError."""
        ledger = cls()

        def load(frame: Frame) -> None:
            _stored(path, len(ledger._offsets), frame)
            ledger._offsets.append(frame.offset)

        try:
            ledger._log = RecordLog.open(path, KIND, LIMITS, load)
        except CorruptFile as error:
            raise _at_height(error, len(ledger._offsets)) from None
        return ledger

    def append(self, block: bytes, certificate: bytes) -> int:
        """Append the next block, durable on return; returns its height. Raises StorageFull, StorageError."""
        with self._lock:
            self._offsets.append(self._log.append_many((block, certificate)))
            return len(self._offsets) - 1

    def roll_back(self, height: int) -> Path:
        """End before `height`, durable on return: another chain stands. The whole old file is kept beside; its path.

        Raises CorruptLedger, StorageFull, StorageError; the old content then stands.
        """
        path = self._log.path
        with self._lock:
            kept = [self.read(below) for below in range(height)]
            aside = next(name for number in itertools.count(1)
                         if not (name := path.with_name(f"{path.name}.fork-{height}-{number}")).exists())  # fmt: skip
            try:
                replace_file(aside, path.read_bytes())
            except OSError as error:
                raise storage_error(aside, "be written", error) from error
            self._log.rewrite([(stored.block, stored.certificate) for stored in kept])
            self._offsets = [frame.offset for frame in scan(path, KIND, LIMITS)]
        return aside

    def read(self, height: int) -> StoredBlock:
        """The block at a height; raises IndexError past the end, CorruptLedger if its bytes have changed since."""
        with self._lock:
            if not 0 <= height < len(self._offsets):
                raise IndexError(f"height {height}: the ledger has {len(self._offsets)} blocks")
            offset = self._offsets[height]
            try:
                return _stored(self._log.path, height, Frame(offset, self._log.read(offset)))
            except CorruptFile as error:
                raise _at_height(error, height) from None

    def __len__(self) -> int:
        return len(self._offsets)

    def __iter__(self) -> Iterator[StoredBlock]:
        return (self.read(height) for height in range(len(self._offsets)))

    def close(self) -> None:
        """Close the file."""
        self._log.close()
