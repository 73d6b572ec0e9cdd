"""The journal of the open round: what a killed peer needs to go on where it stood (agreement state, held bodies)."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import msgspec

from btrain.storage.durable import CorruptFile
from btrain.storage.record_log import HEADER_BYTES, Frame, FrameLimits, RecordLog, RecordTooLarge

KIND = b"jrnl"
LIMITS = FrameLimits(record_bytes_max=16 * 1024 * 1024, frame_bytes_max=256 * 1024 * 1024)
COMPACT_BYTES_MIN = 4 * 1024 * 1024
ROUND_BYTES_MAX = 1024 * 1024 * 1024


class JournalEntry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One record of the journal: what kind of thing it is, its round, its bytes; the journal does not look inside."""

    kind: str
    round: int
    payload: bytes


_OPEN = ""  # the kind of the record that opens a round
_decoder = msgspec.msgpack.Decoder(JournalEntry)


class Journal:
    """Append-only within a round, emptied when the next one begins; safe to call from several threads."""

    def __init__(self) -> None:
        self._round = 0
        self._start = HEADER_BYTES  # offset of the frame that opened the round
        self._lock = threading.Lock()
        self._log: RecordLog

    @classmethod
    def open(cls, path: Path) -> Self:
        """Create or read the journal; raises CorruptFile, StorageFull, StorageError."""
        journal = cls()

        def load(frame: Frame) -> None:
            for entry in _entries(path, frame):
                if entry.kind == _OPEN:
                    journal._round, journal._start = entry.round, frame.offset

        journal._log = RecordLog.open(path, KIND, LIMITS, load)
        return journal

    @property
    def round(self) -> int:
        """The open round: that of the last `begin`, 0 before any."""
        return self._round

    def begin(self, round: int, carried: Iterable[JournalEntry] = ()) -> None:
        """Drop all entries but `carried` and open a round, atomically, durable on return; once for each block."""
        frame = [msgspec.msgpack.encode(JournalEntry(_OPEN, round, b""))]
        frame += [msgspec.msgpack.encode(entry) for entry in carried]
        with self._lock:
            if self._log.size > COMPACT_BYTES_MIN:
                self._log.rewrite([frame])
                self._start = HEADER_BYTES
            else:
                self._start = self._log.append_many(frame)
            self._round = round

    def append(self, kind: str, payload: bytes, round: int) -> None:
        """Append one entry, durable on return; see `append_many`."""
        self.append_many([JournalEntry(kind, round, payload)])

    def append_many(self, entries: Iterable[JournalEntry]) -> None:
        """Append entries, all of them or none, durable on return with one fsync.

        Raises RecordTooLarge (also past 1 GiB in one round), StorageFull, StorageError.
        """
        records = []
        for entry in entries:
            if entry.kind == _OPEN:
                raise ValueError("a journal entry needs a kind")
            records.append(msgspec.msgpack.encode(entry))
        if not records:
            return
        with self._lock:
            if self._log.size - self._start + sum(map(len, records)) > ROUND_BYTES_MAX:
                raise RecordTooLarge(f"{self._log.path}: more than {ROUND_BYTES_MAX} bytes in one round")
            self._log.append_many(records)

    def replay(self) -> Iterator[JournalEntry]:
        """The entries since the last `begin`, in order; after a crash before `begin` they may be of a closed round."""
        open_entries: list[JournalEntry] = []
        for frame in self._log.frames(self._start):
            for entry in _entries(self._log.path, frame):
                if entry.kind == _OPEN:
                    open_entries.clear()
                else:
                    open_entries.append(entry)
        return iter(open_entries)

    def close(self) -> None:
        """Close the file."""
        self._log.close()


def _entries(path: Path, frame: Frame) -> Iterator[JournalEntry]:
    for record in frame.records:
        try:
            yield _decoder.decode(record)
        except msgspec.MsgspecError as error:
            raise CorruptFile(path, frame.offset, f"is no journal entry: {error}") from None
