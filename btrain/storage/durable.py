"""The few file operations everything durable here is made of, and the errors of storage."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from btrain.errors import BtrainError, VerificationError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class StorageError(BtrainError):
    """The operating system refused a file operation; the message names the file and the reason."""


class StorageFull(StorageError):
    """No space is left for a file; nothing of what was to be written stays behind."""


class CorruptFile(VerificationError):
    """A stored file's bytes are not what was written; the message names file and offset."""

    def __init__(self, path: str | os.PathLike[str], offset: int, what: str) -> None:
        super().__init__(f"{os.fspath(path)}: byte {offset}: {what}")
        self.path = Path(path)
        self.offset = offset
        self.what = what


def storage_error(path: str | os.PathLike[str], doing: str, error: OSError) -> StorageError:
    """The named error for what the operating system said."""
    if error.errno in _FULL:
        return StorageFull(f"{os.fspath(path)}: cannot {doing}: no space left; free some and start again")
    return StorageError(f"{os.fspath(path)}: cannot {doing}: {os.strerror(error.errno or 0)}")


def sync_file(descriptor: int) -> None:
    """Return when the file's bytes and length survive a power failure."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(descriptor)
    else:
        os.fsync(descriptor)


def sync_directory(path: Path) -> None:
    """Return when names made, replaced or removed in the directory survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes, offset: int) -> None:
    """Write everything at `offset`, or raise OSError (some of it may then stand in the file)."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written


def replace_file(path: Path, data: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
    """Put a whole new content in place of `path`: a reader, or a restart, sees the old one or the new one.

    Raises StorageFull, StorageError; the old content then stands.
    """
    unfinished = path.with_name(f".{path.name}.new")
    try:
        try:
            descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
            try:
                write_all(descriptor, data, 0)
                if durable:
                    sync_file(descriptor)
            finally:
                os.close(descriptor)
            unfinished.replace(path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise
        if durable:
            sync_directory(path.parent)
    except OSError as error:
        raise storage_error(path, "be written", error) from error
