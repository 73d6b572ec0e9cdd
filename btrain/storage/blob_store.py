"""Custody: content-addressed blobs (parts, results), kept for some rounds and given back byte for byte.

All blobs of a round share one pack file, so that a whole round becomes durable with one fsync and goes with one unlink
(for 24 blobs a round a file each costs nine times as much). A pack is a row of entries:

    entry = 8 bytes "btrnblob" | 32 bytes SHA-256 of the blob | u64 length | u32 CRC-32 of those 48 bytes | blob

Bytes are checked against their hash whenever they are read. A damaged entry costs that blob, not those behind it: the
next entry is found by its mark, and since a blob is named by its hash, none can pass for another.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Self

import msgspec

from btrain.storage.durable import (
    CorruptFile,
    StorageError,
    replace_file,
    storage_error,
    sync_directory,
    sync_file,
    write_all,
)

MARK = b"btrnblob"
ENTRY_HEADER = struct.Struct("<8s32sQI")
_CHECKED = struct.Struct("<8s32sQ")
_SUFFIX = ".pack"

logger = logging.getLogger(__name__)


class BlobStoreFull(StorageError):
    """The store's own bound would be exceeded; nothing was written."""


class CorruptBlob(CorruptFile):
    """A stored blob no longer has its hash; the store has forgotten it, and it may be put again."""


class WrongHash(StorageError):
    """Bytes were to be stored under a hash that is not theirs."""


class _Place(NamedTuple):
    round: int
    offset: int
    length: int


class _Pack:
    """One round's open file: its length, and whether bytes in it still await their fsync."""

    def __init__(self, path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> None:
        self.path = path
        self.is_new = not path.exists()
        self.descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
        self.size = os.fstat(self.descriptor).st_size
        self.dirty = True  # a killed process may have left the last entries in the page cache only

    def entries(self) -> Iterator[tuple[bytes, int, int]]:
        """(hash, offset of the blob, length) of every whole entry.

        Behind a damaged place marks may be a blob's own bytes: from there on an entry counts if its blob has its hash.
        """
        offset = 0
        damaged = False
        while offset + ENTRY_HEADER.size <= self.size:
            header = os.pread(self.descriptor, ENTRY_HEADER.size, offset)
            mark, hash_, length, check = ENTRY_HEADER.unpack(header)
            start = offset + ENTRY_HEADER.size
            whole = (
                mark == MARK and zlib.crc32(header[: _CHECKED.size]) == check and start + length <= self.size
            ) and not (damaged and sha256(os.pread(self.descriptor, length, start)).digest() != hash_)
            if whole:
                yield hash_, start, length
                offset = start + length
            else:
                damaged = True
                following = self._find_mark(offset + 1)
                logger.warning("%s: byte %d: cut short or damaged; skipped to byte %d", self.path, offset, following)
                offset = following

    def _find_mark(self, offset: int) -> int:
        """Offset of the next mark, or the end of the file."""
        step = 1 << 20
        while offset < self.size:
            found = os.pread(self.descriptor, step + len(MARK) - 1, offset).find(MARK)
            if found >= 0:
                return offset + found
            offset += step
        return self.size


class BlobStore:
    """Blobs by hash in packs by round; safe to call from several threads. Opened by one process at a time."""

    def __init__(self, directory: Path, bytes_max: int) -> None:
        self.directory = directory
        self.bytes_max = bytes_max
        self._packs: dict[int, _Pack] = {}
        self._places: dict[bytes, _Place] = {}
        self._pins: dict[str, set[bytes]] = {}
        self._failed: str | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(cls, directory: Path, bytes_max: int) -> Self:
        """Create or read a store; raises CorruptFile (the list of pins), StorageFull, StorageError."""
        store = cls(directory, bytes_max)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for path in sorted(directory.glob(f"*{_SUFFIX}"), key=lambda pack: pack.name):
                if path.stem.isdigit():
                    store._load(int(path.stem), path)
            store._load_pins()
        except OSError as error:
            store.close()
            raise storage_error(directory, "be opened", error) from error
        return store

    @classmethod
    def read(cls, directory: Path) -> Self:
        """What is there, for `get` only: nothing is changed, a peer may be writing. Raises StorageError."""
        store = cls(directory, bytes_max=0)
        try:
            for path in directory.glob(f"*{_SUFFIX}"):
                if path.stem.isdigit():
                    store._index(int(path.stem), _Pack(path, os.O_RDONLY))
        except OSError as error:
            store.close()
            raise storage_error(directory, "be read", error) from error
        return store

    def _index(self, round_: int, pack: _Pack) -> int:
        """Take in a pack's entries; returns where the last one ends."""
        self._packs[round_] = pack
        end = 0
        for hash_, offset, length in pack.entries():
            self._places[hash_] = _Place(round_, offset, length)
            end = offset + length
        return end

    def _load(self, round_: int, path: Path) -> None:
        pack = _Pack(path)
        end = self._index(round_, pack)
        if end < pack.size:
            os.ftruncate(pack.descriptor, end)
            pack.size = end

    def _load_pins(self) -> None:
        path = self._pins_path
        if not path.exists():
            return
        try:
            pins = msgspec.json.decode(path.read_bytes(), type=dict[str, list[str]])
            self._pins = {case: {bytes.fromhex(hash_) for hash_ in hashes} for case, hashes in pins.items()}
        except (msgspec.MsgspecError, ValueError) as error:
            raise CorruptFile(path, 0, f"is no list of pinned blobs ({error}); remove it to unpin all") from None

    @property
    def _pins_path(self) -> Path:
        return self.directory / "pins.json"

    def __len__(self) -> int:
        return len(self._places)

    @property
    def size(self) -> int:
        """Bytes on disk, headers included."""
        return sum(pack.size for pack in self._packs.values())

    def rounds(self) -> list[int]:
        """The rounds that have a pack, ascending."""
        return sorted(self._packs)

    def has(self, hash_: bytes) -> bool:
        """Whether the blob is stored (its bytes are checked only by `get`)."""
        return hash_ in self._places

    def put(self, hash_: bytes, data: bytes, round: int) -> None:
        """Store a blob until `drop_before` passes the round; durable after the next `flush`.

        Raises WrongHash, BlobStoreFull, StorageFull, StorageError.
        """
        if sha256(data).digest() != hash_:
            raise WrongHash(f"{self.directory}: a blob of {len(data)} bytes does not have the hash {hash_.hex()}")
        checked = _CHECKED.pack(MARK, hash_, len(data))
        header = checked + struct.pack("<I", zlib.crc32(checked))
        with self._lock:
            self._check_usable()
            known = self._places.get(hash_)
            if known is not None and known.round >= round:
                return
            if self.size + len(header) + len(data) > self.bytes_max:
                raise BlobStoreFull(f"{self.directory}: would exceed its bound of {self.bytes_max} bytes")
            try:
                pack = self._packs.get(round)
                if pack is None:
                    pack = self._packs[round] = _Pack(self.directory / f"{round:08d}{_SUFFIX}")
                try:
                    write_all(pack.descriptor, header + data, pack.size)
                except OSError:
                    os.ftruncate(pack.descriptor, pack.size)
                    raise
            except OSError as error:
                raise storage_error(self.directory, "store a blob", error) from error
            self._places[hash_] = _Place(round, pack.size + len(header), len(data))
            pack.size += len(header) + len(data)
            pack.dirty = True

    def flush(self) -> None:
        """Return when everything put before is durable: before a Commit or Result that promises it is sent.

        Reads and puts go on meanwhile. Raises StorageError, from then on at every put and flush: what the disk holds
        after a failed fsync is known only when the store is opened anew.
        """
        with self._lock:
            self._check_usable()
            dirty = [pack for pack in self._packs.values() if pack.dirty]
            names_are_new = any(pack.is_new for pack in dirty)
            descriptors = [os.dup(pack.descriptor) for pack in dirty]
            for pack in dirty:
                pack.dirty = pack.is_new = False
        try:
            for descriptor in descriptors:
                sync_file(descriptor)
            if names_are_new:
                sync_directory(self.directory)
        except OSError as error:
            self._failed = os.strerror(error.errno or 0)
            raise storage_error(self.directory, "be made durable", error) from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _check_usable(self) -> None:
        if self._failed is not None:
            raise StorageError(f"{self.directory}: cannot be used after a failed fsync: {self._failed}")

    def get(self, hash_: bytes) -> bytes | None:
        """The blob, or None if it is not stored; raises CorruptBlob, StorageError."""
        with self._lock:
            place = self._places.get(hash_)
            if place is None:
                return None
            pack = self._packs[place.round]
            try:
                data = os.pread(pack.descriptor, place.length, place.offset)
            except OSError as error:
                raise storage_error(pack.path, "be read", error) from error
            if sha256(data).digest() != hash_:
                del self._places[hash_]
                raise CorruptBlob(pack.path, place.offset, f"the blob {hash_.hex()} of round {place.round} is damaged")
            return data

    def pin(self, hash_: bytes, case: str) -> None:
        """Keep the blob's whole round while the case is open, across restarts; raises StorageFull, StorageError."""
        with self._lock:
            hashes = self._pins.get(case, set())
            if hash_ not in hashes:
                self._save_pins({**self._pins, case: hashes | {hash_}})

    def unpin(self, case: str) -> None:
        """Close a case: its blobs go with the next `drop_before`; raises StorageFull, StorageError."""
        with self._lock:
            if case in self._pins:
                self._save_pins({name: hashes for name, hashes in self._pins.items() if name != case})

    def _save_pins(self, pins: dict[str, set[bytes]]) -> None:
        listed = {case: sorted(hash_.hex() for hash_ in hashes) for case, hashes in pins.items()}
        replace_file(self._pins_path, msgspec.json.encode(listed))
        self._pins = pins

    def drop_before(self, round: int) -> None:
        """Remove the packs of earlier rounds in which nothing is pinned; raises StorageError."""
        with self._lock:
            pinned = set[bytes]().union(*self._pins.values())
            kept = {self._places[hash_].round for hash_ in pinned if hash_ in self._places}
            dropped = {old for old in self._packs if old < round and old not in kept}
            if not dropped:
                return
            self._places = {hash_: place for hash_, place in self._places.items() if place.round not in dropped}
            for old in dropped:
                pack = self._packs.pop(old)
                os.close(pack.descriptor)
                try:
                    pack.path.unlink(missing_ok=True)
                except OSError as error:
                    raise storage_error(pack.path, "be removed", error) from error

    def close(self) -> None:
        """Close the packs; more than once is harmless."""
        with self._lock:
            while self._packs:
                _, pack = self._packs.popitem()
                with contextlib.suppress(OSError):
                    os.close(pack.descriptor)
            self._places.clear()
