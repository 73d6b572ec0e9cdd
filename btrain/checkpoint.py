"""Checkpoints on disk: a folder `round-00000032` each, complete or not there at all.

state.safetensors   parameters and optimizer state (btrain.training.state)
block, certificate  what proves that the group certified this state, as the caller encodes it
manifest.json       the SHA-256 of each, and the state's digest
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from btrain.errors import ConfigError, VerificationError
from btrain.storage.durable import replace_file, storage_error, sync_directory
from btrain.training.state import State, StateError

VERSION = 1
STATE, BLOCK, CERTIFICATE, MANIFEST = "state.safetensors", "block", "certificate", "manifest.json"
MANIFEST_BYTES_MAX = 4096
PROOF_BYTES_MAX = 16 << 20

_NAME = re.compile(r"round-(\d{8,})")


class DamagedCheckpoint(VerificationError):
    """A file of a checkpoint is missing or is not what was written; the message names it."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint; `state_digest` is the digest of `state`, to be compared with the certified one."""

    path: Path
    round: int
    state: bytes
    state_digest: bytes
    block: bytes
    certificate: bytes


def save_checkpoint(
    directory: Path, round_number: int, state: bytes, *, block: bytes = b"", certificate: bytes = b"", keep: int = 3
) -> Path:
    """Write the checkpoint of a round durably, then remove all but the newest `keep`. Returns its folder.

    A crash at any time leaves the older checkpoints. One of the same round stays if it is the same and intact, else it
    is replaced. Raises StateError if `state` is none, StorageFull, StorageError.
    """
    if keep < 1 or round_number < 0:
        raise ConfigError(f"checkpoints: cannot keep {keep} of round {round_number}")
    files = {STATE: state, BLOCK: block, CERTIFICATE: certificate}
    manifest = {
        "version": VERSION,
        "round": round_number,
        "state_digest": State.from_bytes(state).digest().hex(),
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    files[MANIFEST] = _encoded(manifest)
    path = directory / f"round-{round_number:08d}"
    if _is_intact(path, files[MANIFEST]):
        return path
    unfinished = directory / f".{path.name}.new"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(directory)
        unfinished.mkdir()
        for name, data in files.items():
            replace_file(unfinished / name, data)
        _hide(path)
        unfinished.rename(path)
        sync_directory(directory)
        for old in checkpoint_paths(directory)[:-keep]:
            _hide(old)
        _remove_leftovers(directory)
    except OSError as error:
        raise storage_error(path, "be written", error) from error
    return path


def checkpoint_paths(directory: Path) -> list[Path]:
    """The folders of all checkpoints, oldest first; unread."""
    found = {int(match[1]): path for path in directory.glob("round-*") if (match := _NAME.fullmatch(path.name))}
    return [found[number] for number in sorted(found)]


def drop_checkpoints(directory: Path, has_fallen: Callable[[bytes], bool]) -> None:
    """Remove the checkpoints whose block has fallen: another chain stands. Raises StorageError."""
    try:
        for path in checkpoint_paths(directory):
            block = path / BLOCK
            if has_fallen(block.read_bytes() if block.exists() else b""):
                _hide(path)
        _remove_leftovers(directory)
    except OSError as error:
        raise storage_error(directory, "be cleared", error) from error


def latest_checkpoint(directory: Path) -> Checkpoint | None:
    """The newest checkpoint, verified, or None if there is none. Raises DamagedCheckpoint, StorageError."""
    paths = checkpoint_paths(directory)
    return load_checkpoint(paths[-1]) if paths else None


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in the folder `path`, every byte of it verified. Raises DamagedCheckpoint, StorageError."""
    round_number, state_digest, expected = _read_manifest(path)
    files = {}
    for name, digest in expected.items():
        files[name] = _read(path / name, None if name == STATE else PROOF_BYTES_MAX)
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise _damaged(path / name, "its SHA-256 is not the one in the manifest")
    try:
        found = State.from_bytes(files[STATE]).digest()
    except StateError as error:
        raise _damaged(path / STATE, str(error)) from error
    if found.hex() != state_digest:
        raise _damaged(path / STATE, "the state's digest is not the one in the manifest")
    return Checkpoint(path, round_number, files[STATE], found, files[BLOCK], files[CERTIFICATE])


def _is_intact(path: Path, manifest: bytes) -> bool:
    """Whether the checkpoint with exactly this manifest is there already."""
    try:
        return path.exists() and _read(path / MANIFEST, MANIFEST_BYTES_MAX) == manifest and bool(load_checkpoint(path))
    except DamagedCheckpoint:
        return False


def _read_manifest(path: Path) -> tuple[int, str, dict[str, str]]:
    """Round, state digest and the SHA-256 of every file."""
    file = path / MANIFEST
    data = _read(file, MANIFEST_BYTES_MAX)
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"no JSON: {error}") from error
    match manifest:
        case {"version": 1, "round": int() as number, "state_digest": str() as digest, "sha256": dict() as hashes} if (
            len(manifest) == 4 and hashes.keys() == {STATE, BLOCK, CERTIFICATE}
        ):
            if _encoded(manifest) != data:
                raise _damaged(file, "is not written as btrain writes it")
            if path.name != f"round-{number:08d}":
                raise _damaged(file, f"says round {number}, which is not its folder's")
            return number, digest, hashes
    if isinstance(manifest, Mapping) and manifest.get("version", VERSION) != VERSION:
        raise _damaged(file, f"version {manifest['version']!r}, this btrain reads {VERSION}")
    raise _damaged(file, "is not the manifest of a checkpoint")


def _encoded(manifest: object) -> bytes:
    return json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n"


def _read(file: Path, bytes_max: int | None) -> bytes:
    try:
        if bytes_max is not None and file.stat().st_size > bytes_max:
            raise _damaged(file, f"larger than {bytes_max} bytes")
        return file.read_bytes()
    except FileNotFoundError as error:
        raise _damaged(file, "is missing") from error
    except OSError as error:
        raise storage_error(file, "be read", error) from error


def _damaged(file: Path, what: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(f"{file}: {what}; remove the folder {file.parent} to go on from an older checkpoint")


def _hide(path: Path) -> None:
    """Take a checkpoint away in one step; what is hidden is removed at leisure."""
    if path.exists():
        path.rename(path.with_name(f".{path.name}.old"))


def _remove_leftovers(directory: Path) -> None:
    for leftover in directory.glob(".round-*"):
        shutil.rmtree(leftover)
