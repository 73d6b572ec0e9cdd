"""The sign-once log: what this key has signed, by slot, made durable before any of it is sent.

After `kill -9` and a restart a peer sends the recorded bytes again. Signing a slot a second time, with another body, is
equivocation and costs the seat for ever, so this log refuses to hold two envelopes of one slot, and after pruning it
refuses every slot of the rounds it has forgotten.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Self

import msgspec

from btrain.storage.durable import CorruptFile, StorageError
from btrain.storage.record_log import Frame, FrameLimits, RecordLog

KIND = b"sign"
LIMITS = FrameLimits(record_bytes_max=128 * 1024, frame_bytes_max=64 * 1024 * 1024)
COMPACT_BYTES_MIN = 1024 * 1024


class SlotAlreadySigned(StorageError):
    """Another envelope was signed for this slot; the message to send is the one on record."""


class SlotForgotten(StorageError):
    """The slot belongs to a round whose signatures were pruned: nobody can tell whether it was signed, so it is not."""


class SignedEnvelope(NamedTuple):
    """An envelope to put on record, with the round of its slot (in the slot's own prev and group)."""

    slot_key: bytes
    envelope: bytes
    round: int


class _Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A record: an envelope, or (empty slot key and envelope) the first round that the log still knows."""

    round: int
    slot_key: bytes
    envelope: bytes


_decoder = msgspec.msgpack.Decoder(_Entry)


class SignedLog:
    """Envelopes by slot key, in memory and on disk; safe to call from several threads."""

    def __init__(self) -> None:
        self._entries: dict[bytes, _Entry] = {}
        self._floor = 0
        self._live_bytes = 0
        self._lock = threading.Lock()
        self._log: RecordLog

    @classmethod
    def open(cls, path: Path) -> Self:
        """Create or read the log; raises CorruptFile, StorageFull, StorageError."""
        signed = cls()

        def load(frame: Frame) -> None:
            for record in frame.records:
                signed._load(path, frame.offset, record)

        signed._log = RecordLog.open(path, KIND, LIMITS, load)
        return signed

    def _load(self, path: Path, offset: int, record: bytes) -> None:
        try:
            entry = _decoder.decode(record)
        except msgspec.MsgspecError as error:
            raise CorruptFile(path, offset, f"is no signed envelope: {error}") from None
        if not entry.slot_key:
            self._floor = entry.round
            return
        known = self._entries.setdefault(entry.slot_key, entry)
        if known.envelope != entry.envelope:
            raise CorruptFile(path, offset, f"two envelopes for one slot of round {entry.round}")
        self._live_bytes += len(record)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, slot_key: bytes) -> bytes | None:
        """The envelope signed for the slot, or None."""
        entry = self._entries.get(slot_key)
        return None if entry is None else entry.envelope

    def envelopes(self) -> dict[bytes, bytes]:
        """Every envelope that is kept, by slot."""
        with self._lock:
            return {slot: entry.envelope for slot, entry in self._entries.items()}

    def put(self, slot_key: bytes, envelope: bytes, round: int) -> None:
        """Record one envelope; see `put_many`."""
        self.put_many([SignedEnvelope(slot_key, envelope, round)])

    def put_many(self, envelopes: Iterable[SignedEnvelope]) -> None:
        """Record envelopes, all of them or none, durable on return with one fsync; known ones are passed over.

        Raises SlotAlreadySigned, SlotForgotten, StorageFull, StorageError.
        """
        with self._lock:
            new: dict[bytes, _Entry] = {}
            for slot_key, envelope, round_ in envelopes:
                if not slot_key:
                    raise ValueError("a slot key is empty")
                known = self._entries.get(slot_key) or new.get(slot_key)
                if known is not None:
                    if known.envelope != envelope:
                        raise SlotAlreadySigned(f"{self._log.path}: a slot of round {round_} was signed before")
                    continue
                if round_ < self._floor:
                    raise SlotForgotten(
                        f"{self._log.path}: round {round_} is pruned (rounds from {self._floor} on are known)"
                    )
                new[slot_key] = _Entry(round_, slot_key, envelope)
            if not new:
                return
            records = [msgspec.msgpack.encode(entry) for entry in new.values()]
            self._log.append_many(records)
            self._entries.update(new)
            self._live_bytes += sum(map(len, records))

    def prune(self, before_round: int) -> None:
        """Forget the slots of earlier rounds; they cannot be signed any more. The file is compacted now and then."""
        with self._lock:
            if before_round <= self._floor:
                return
            self._floor = before_round
            self._entries = {slot: entry for slot, entry in self._entries.items() if entry.round >= before_round}
            self._live_bytes = sum(len(e.slot_key) + len(e.envelope) for e in self._entries.values())
            if self._log.size > COMPACT_BYTES_MIN + 2 * self._live_bytes:
                self._compact()

    def _compact(self) -> None:
        floor = [msgspec.msgpack.encode(_Entry(self._floor, b"", b""))]
        frames = [[msgspec.msgpack.encode(entry)] for entry in self._entries.values()]
        self._log.rewrite([floor, *frames])

    def close(self) -> None:
        """Close the file."""
        self._log.close()
