"""What people and programs read while a run goes on: events.jsonl, metrics.jsonl, status.json. Not fsynced."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from btrain.storage.durable import CorruptFile, replace_file, storage_error, write_all

FORMAT_VERSION = 1
_TAIL_BYTES = 64 * 1024


class JsonLines:
    """Appends one JSON object a line, each with `"v"` (format version) and `"time"` (Unix seconds) first.

    A line is written by one system call, so that readers see whole lines; a line cut by a crash is removed at opening.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file; raises StorageError."""
        self.path = path
        self._lock = threading.Lock()
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._size = self._whole_lines_end()
            os.ftruncate(self._descriptor, self._size)
        except OSError as error:
            raise storage_error(path, "be opened", error) from error

    def _whole_lines_end(self) -> int:
        end = os.fstat(self._descriptor).st_size
        while end > 0:
            start = max(0, end - _TAIL_BYTES)
            newline = os.pread(self._descriptor, end - start, start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
        return 0

    def write(self, fields: Mapping[str, Any]) -> None:
        """Append one object; numbers that JSON lacks (NaN, Inf) become null. Raises StorageFull, StorageError."""
        line = msgspec.json.encode({"v": FORMAT_VERSION, "time": round(time.time(), 3), **fields}) + b"\n"
        with self._lock:
            try:
                write_all(self._descriptor, line, self._size)
            except OSError as error:
                with contextlib.suppress(OSError):  # the next line is written over what stays
                    os.ftruncate(self._descriptor, self._size)
                raise storage_error(self.path, "be written", error) from error
            self._size += len(line)

    def close(self) -> None:
        """Close the file; more than once is harmless."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._descriptor = -1


def read_json_lines(path: Path, on_damage: Callable[[CorruptFile], None] | None = None) -> Iterator[dict[str, Any]]:
    """The objects of a JSON lines file; a last line still being written is left out.

    A line that is none is told to `on_damage` and left out: a power failure leaves such lines. Raises CorruptFile with
    the line's offset if nobody is to be told, StorageError.
    """
    offset = 0
    try:
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return
                try:
                    yield msgspec.json.decode(line, type=dict[str, Any])
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    damage = CorruptFile(path, offset, f"is no JSON object: {error}")
                    if on_damage is None:
                        raise damage from None
                    on_damage(damage)
                offset += len(line)
    except OSError as error:
        raise storage_error(path, "be read", error) from error


def write_status(path: Path, fields: Mapping[str, Any]) -> None:
    """Replace a status snapshot; a reader sees the old one or the new one. Raises StorageFull, StorageError."""
    status = {"v": FORMAT_VERSION, "time": round(time.time(), 3), **fields}
    replace_file(path, msgspec.json.encode(status) + b"\n", durable=False)


def read_status(path: Path) -> dict[str, Any] | None:
    """The last snapshot, None if there is none yet; raises CorruptFile, StorageError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CorruptFile(path, 0, f"is no status: {error}") from None
    except OSError as error:
        raise storage_error(path, "be read", error) from error
