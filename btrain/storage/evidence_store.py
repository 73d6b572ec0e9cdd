"""Evidence files: written once, readable by anyone without the run, damage found and named."""

from __future__ import annotations

import os
import re
from pathlib import Path

from btrain.identity import short_id
from btrain.storage.durable import CorruptFile, StorageError, storage_error, sync_directory, sync_file, write_all
from btrain.storage.record_log import MAGIC, FrameLimits, encode_frame, scan

KIND = b"evid"
EVIDENCE_BYTES_MAX = 2**32 - 1 - 4
LIMITS = FrameLimits(record_bytes_max=EVIDENCE_BYTES_MAX, frame_bytes_max=EVIDENCE_BYTES_MAX + 4)
SAME_DEED_MAX = 16

_DEED = re.compile(r"[a-z0-9_]{1,64}")


class TooMuchEvidence(StorageError):
    """One peer's one deed of one round is proven often enough."""


def read_evidence(path: Path) -> bytes:
    """The evidence in a file; raises CorruptFile, StorageError."""
    frames = list(scan(path, KIND, LIMITS))
    if len(frames) != 1 or len(frames[0].records) != 1:
        raise CorruptFile(path, 0, "is no whole evidence file: it holds no single record")
    return frames[0].records[0]


class EvidenceStore:
    """The folder of evidence files, `<round>-<short id>-<deed>.evidence`; further proofs of one deed get `-2`, `-3`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, round: int, accused: str, deed: str, evidence: bytes) -> Path:
        """Write evidence against the peer id text `accused`, whole and durable on return; returns its file.

        The same evidence again changes nothing. Raises TooMuchEvidence, StorageFull, StorageError.
        """
        if not _DEED.fullmatch(deed):
            raise ValueError(f"a deed is named by lower-case letters, digits and underscores, not {deed!r}")
        content = MAGIC + KIND + encode_frame((evidence,), LIMITS, self.directory)
        stem = f"{round:06d}-{short_id(accused)}-{deed}"
        for number in range(1, SAME_DEED_MAX + 1):
            path = self.directory / f"{stem}{'' if number == 1 else f'-{number}'}.evidence"
            try:
                if path.exists():
                    if path.read_bytes() == content:
                        return path
                    continue
                self._create(path, content)
            except OSError as error:
                raise storage_error(path, "be written", error) from error
            return path
        raise TooMuchEvidence(f"{self.directory}: {SAME_DEED_MAX} proofs of {stem} are kept already")

    def _create(self, path: Path, content: bytes) -> None:
        self.directory.mkdir(exist_ok=True)
        unfinished = path.with_name(f".{path.name}.new")
        try:
            descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            try:
                write_all(descriptor, content, 0)
                sync_file(descriptor)
            finally:
                os.close(descriptor)
            unfinished.rename(path)
        finally:
            unfinished.unlink(missing_ok=True)
        sync_directory(self.directory)

    def paths(self) -> list[Path]:
        """All evidence files, by round."""
        return sorted(self.directory.glob("*.evidence"))
