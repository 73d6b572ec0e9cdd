"""A state in pieces: what its digest stands for, and getting it from several members at once.

A state is cut every MiB. Its manifest lists the pieces' hashes; the SHA-256 of the manifest is the digest that Commits
carry and a block certifies. So each piece proves itself, whoever gives it, and a fetch that was cut short goes on with
what the store already has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec

from btrain.protocol.desk import Desk
from btrain.protocol.effects import FetchBlob, PutBlob
from btrain.protocol.encoding import U64, Hash, PeerId, Record, decode, digest, encode
from btrain.protocol.errors import InconsistentMessage, RemoteProtocolError

PIECE_BYTES = 2**20
PIECES_MAX = 2**16
MANIFEST_BYTES_MAX = 34 * PIECES_MAX + 64
WINDOW = 8  # pieces asked for at a time

Progress = Literal["fetching", "nowhere", "here", "refused"]


class Manifest(Record, frozen=True):
    """The size of a state in bytes and the hashes of its pieces, in order."""

    version: Literal[1]
    size: U64
    pieces: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=PIECES_MAX)]

    @property
    def digest(self) -> bytes:
        """The state's digest."""
        return digest(encode(self))


@dataclass(frozen=True)
class CutState:
    """A state's manifest and its pieces."""

    manifest: Manifest
    pieces: tuple[bytes, ...]

    @property
    def digest(self) -> bytes:
        """The state's digest."""
        return self.manifest.digest


def cut(state: bytes) -> CutState:
    """Cut a state; quick for small states only, since it hashes all of it."""
    pieces = tuple(state[start : start + PIECE_BYTES] for start in range(0, len(state), PIECE_BYTES))
    return CutState(Manifest(1, len(state), tuple(map(digest, pieces))), pieces)


def open_manifest(data: bytes) -> Manifest:
    """Decode a manifest.

    Raises:
        OversizedMessage, MalformedMessage, NonCanonicalMessage, InconsistentMessage
    """
    manifest = decode(Manifest, data, MANIFEST_BYTES_MAX)
    if len(manifest.pieces) != -(-manifest.size // PIECE_BYTES):
        raise InconsistentMessage(f"manifest: {len(manifest.pieces)} pieces for {manifest.size} bytes")
    return manifest


def assemble(digest: bytes, read: Callable[[bytes], bytes | None]) -> bytes | None:
    """The state behind a digest, from a store that checks hashes; None if the manifest or a piece is not there.

    Raises:
        RemoteProtocolError: what the digest stands for is no manifest, or not that of its pieces.
    """
    data = read(digest)
    if data is None:
        return None
    manifest, pieces = open_manifest(data), []
    for hash in manifest.pieces:
        piece = read(hash)
        if piece is None:
            return None
        pieces.append(piece)
    state = b"".join(pieces)
    if len(state) != manifest.size or any(len(piece) > PIECE_BYTES for piece in pieces):
        raise InconsistentMessage(f"state of {manifest.size} bytes: its pieces hold {len(state)}")
    return state


@dataclass
class StateFetch:
    """Gets one state into the own store: the manifest, then `WINDOW` pieces at a time, each from another member first.

    Memory holds no more than the pieces under way. `keep_round` is the round whose custody the pieces share.
    `pieces_max` refuses a state that is too large to be what is looked for.
    """

    desk: Desk
    digest: bytes
    keep_round: int
    pieces_max: int = PIECES_MAX
    progress: Progress = "fetching"
    refusal: str = ""
    _sources: tuple[PeerId, ...] = ()
    _manifest: Manifest | None = None
    _waiting: list[bytes] = field(default_factory=list)  # pieces still to be asked for, the next one last
    _asked: set[bytes] = field(default_factory=set)
    _missed: list[bytes] = field(default_factory=list)  # nobody had them

    def go(self, sources: tuple[PeerId, ...]) -> None:
        """Begin, or try again what nobody had."""
        if self._asked or self.progress in ("here", "refused"):
            return
        self.progress, self._sources = "fetching", sources
        missed, self._missed = self._missed, []
        if self._manifest is None:
            self._ask(self.digest)
        else:
            self._waiting += reversed(missed)
            self._advance()

    def blob(self, hash: bytes, data: bytes | None) -> bool:
        """Bytes for a hash, checked, or None when nobody asked has them; whether they were asked for here."""
        if hash not in self._asked:
            return False
        self._asked.discard(hash)
        if data is None:
            self._missed.append(hash)
        elif hash == self.digest:
            self._on_manifest(data)
        elif len(data) > PIECE_BYTES:
            self._refuse(f"a piece of {len(data)} bytes")
        else:
            self.desk.emit(PutBlob(hash, data, self.keep_round))
        self._advance()
        return True

    def _on_manifest(self, data: bytes) -> None:
        try:
            manifest = open_manifest(data)
        except RemoteProtocolError as error:
            self._refuse(error.reason)
            return
        if len(manifest.pieces) > self.pieces_max:
            self._refuse(f"{len(manifest.pieces)} pieces, at most {self.pieces_max}")
            return
        self._manifest = manifest
        self.desk.emit(PutBlob(self.digest, data, self.keep_round))
        self._waiting = list(reversed(dict.fromkeys(manifest.pieces)))

    def _refuse(self, reason: str) -> None:
        self.progress, self.refusal = "refused", reason
        self._waiting, self._missed = [], []

    def _advance(self) -> None:
        """Ask on, or see what has come of it."""
        if self.progress != "fetching":
            return
        while self._waiting and len(self._asked) < WINDOW and not self._missed:
            self._ask(self._waiting.pop())
        if not self._asked:
            self.progress = "nowhere" if self._missed or self._waiting else "here"

    def _ask(self, hash: bytes) -> None:
        """Ask for a blob. Each starts with another member, so that they share the work and none can hold up all."""
        self._asked.add(hash)
        at = int.from_bytes(hash[:4], "big") % max(1, len(self._sources))
        self.desk.emit(FetchBlob(hash, self._sources[at:] + self._sources[:at]))
