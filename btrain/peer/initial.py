"""x[0] on disk: where a chain that is given up early returns to, and what newcomers ask for where no seed gives it."""

from __future__ import annotations

import logging
from pathlib import Path

from btrain.protocol.encoding import digest, encode
from btrain.protocol.pieces import cut
from btrain.storage.durable import replace_file, storage_error
from btrain.storage.run_directory import INITIAL
from btrain.training.state import State, StateError

logger = logging.getLogger(__name__)


class InitialState:
    """The file `initial.safetensors` of a run directory. Safe from any thread once `serve` has returned."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / INITIAL
        self._places: dict[bytes, tuple[int, int]] = {}  # of the pieces: offset, length
        self._manifest: dict[bytes, bytes] = {}
        self._fingerprint = ""  # of what was kept

    def keep(self, state: bytes) -> None:
        """Write it, unless it is there already. Raises StorageFull, StorageError."""
        self._fingerprint = State.from_bytes(state).digest().hex()
        if self.intact(self._fingerprint) is None:
            replace_file(self.path, state)

    def intact(self, fingerprint: str | None = None) -> bytes | None:
        """The state, if it is here and the one of the fingerprint, without one that which was kept; a damaged one is as
        good as none. Raises StorageError."""
        state = self.read()
        try:
            if state is None or State.from_bytes(state).digest().hex() == (fingerprint or self._fingerprint):
                return state
        except StateError:
            pass
        logger.warning("%s: is not the state that the run begins with", self.path)
        return None

    def read(self) -> bytes | None:
        """The state, if it is here. Raises StorageError."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(self.path, "be read", error) from error

    def serve(self, state: bytes) -> bytes:
        """From now on `blob` gives the pieces of `state`, which is in the file; returns its digest."""
        whole, offset = cut(state), 0
        for hash, piece in zip(whole.manifest.pieces, whole.pieces, strict=True):
            self._places[hash] = (offset, len(piece))
            offset += len(piece)
        self._manifest = {whole.digest: encode(whole.manifest)}
        return whole.digest

    def blob(self, hash: bytes) -> bytes | None:
        """The manifest, or a piece; None for other hashes, and for a piece that no longer has its hash."""
        if hash not in self._places:
            return self._manifest.get(hash)
        offset, length = self._places[hash]
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                data = file.read(length)
        except OSError:
            return None
        return data if digest(data) == hash else None
