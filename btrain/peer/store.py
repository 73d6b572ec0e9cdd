"""The run directory as the protocol's disk: batches of durable effects, the ledger, blobs, checkpoints."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from btrain.checkpoint import DamagedCheckpoint, checkpoint_paths, drop_checkpoints, load_checkpoint, save_checkpoint
from btrain.identity import InvalidPeerId, peer_id_bytes, peer_id_text
from btrain.peer.initial import InitialState
from btrain.protocol.effects import AppendBlock, Effect, Journal, PersistSigned, PutBlob, RollBack, SaveEvidence
from btrain.protocol.errors import RemoteProtocolError
from btrain.protocol.forks import FORK_ROUNDS_MAX
from btrain.protocol.ledger import (
    CertifiedState,
    Charter,
    Genesis,
    LedgerState,
    check_certificate,
    check_genesis,
    open_block,
    open_genesis,
)
from btrain.protocol.messages import Verifier
from btrain.protocol.packets import CertifiedBlock
from btrain.protocol.pieces import assemble, cut
from btrain.storage.blob_store import CorruptBlob
from btrain.storage.durable import CorruptFile, replace_file
from btrain.storage.journal import JournalEntry
from btrain.storage.ledger_file import CorruptLedger
from btrain.storage.run_directory import CHAIN_SALT, GENESIS, RunDirectory
from btrain.storage.signed_log import SignedEnvelope
from btrain.training import states_close

logger = logging.getLogger(__name__)

DURABLE = (PersistSigned, Journal, PutBlob, AppendBlock, RollBack, SaveEvidence)


class Founded(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The file `genesis`: the genesis and its founders' signatures."""

    genesis: bytes
    signatures: tuple[bytes, ...]


class Addresses(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file `peers.json`: where members were last reached, where this peer listened (port 0 takes that port again),
    and the founders' Joins, for newcomers."""

    peers: dict[str, tuple[str, ...]] = {}
    own: tuple[str, ...] = ()
    joins: tuple[bytes, ...] = ()


@dataclass
class Store:
    """One peer's disk. `commit` runs in a worker thread; everything else is quick and safe from any thread."""

    directory: RunDirectory
    charter: Charter

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._checkpointing = threading.Lock()  # one is written at a time, and none of a block that has fallen
        self._pending: dict[bytes, bytes] = {}  # blobs on their way to the disk
        self._journal: list[JournalEntry] = list(self.directory.journal.replay())
        self.initial = InitialState(self.directory.path)

    # --- beginning ---

    def genesis(self, verifier: Verifier) -> tuple[Genesis, Founded] | None:
        """The genesis of the run that this directory belongs to, verified; None before it is founded.

        Raises:
            CorruptFile: the file is damaged.
        """
        path = self.directory.path / GENESIS
        if not path.exists():
            return None
        try:
            founded = msgspec.msgpack.decode(path.read_bytes(), type=Founded)
            genesis = open_genesis(founded.genesis)
            check_genesis(genesis, founded.signatures, verifier)
        except (msgspec.MsgspecError, RemoteProtocolError) as error:
            raise CorruptFile(path, 0, f"is no genesis: {error}") from None
        return genesis, founded

    def save_genesis(self, founded: Founded) -> None:
        """Keep the genesis; a run directory has one."""
        replace_file(self.directory.path / GENESIS, msgspec.msgpack.encode(founded))

    def chain_salt(self, fresh: bytes) -> bytes:
        """The salt of this peer's hash chain: `fresh` the first time, then always the same."""
        path = self.directory.path / CHAIN_SALT
        if not path.exists():
            replace_file(path, fresh)
        salt = path.read_bytes()
        if len(salt) != 32:
            raise CorruptFile(path, 0, "is not 32 bytes long")
        return salt

    def addresses(self) -> Addresses:
        """Where members were last reached; empty if the file is lost or damaged, which costs nothing but time."""
        try:
            known = msgspec.json.decode((self.directory.path / "peers.json").read_bytes(), type=Addresses)
            for text in known.peers:
                peer_id_bytes(text)
        except (OSError, UnicodeDecodeError, msgspec.MsgspecError, InvalidPeerId):
            return Addresses()
        return known

    def save_addresses(self, known: Addresses) -> None:
        """Remember where members are reached."""
        replace_file(self.directory.path / "peers.json", msgspec.json.encode(known), durable=False)

    def ledger_state(self, genesis: Genesis, verifier: Verifier) -> LedgerState:
        """The ledger verified from the genesis on.

        Raises:
            CorruptLedger: a block or its certificate is damaged, or does not follow.
        """
        state = LedgerState.start(genesis, self.charter)
        for stored in self.directory.ledger:
            try:
                block = open_block(stored.block)
                certificate = msgspec.msgpack.decode(stored.certificate, type=tuple[bytes, ...])
                check_certificate(block, certificate, state, verifier)
                state = state.advance(block)
            except (msgspec.MsgspecError, RemoteProtocolError) as error:
                raise CorruptLedger(self.directory.path / "ledger", stored.height, 0, str(error)) from None
        return state

    def certified_state(self, ledger: LedgerState) -> tuple[int, bytes] | None:
        """The newest state here that the ledger certifies and that leads to the parameters of now: (round, state
        bytes); of custody or of a checkpoint."""
        passes = ledger.trajectory.passes
        oldest = min(self.directory.custody.rounds(), default=ledger.round)
        for height in range(ledger.round - 1, oldest - 1, -1):
            for certified in self._certified_by(height):
                kept = self.state(certified.digest) if passes(certified.round) else None
                if kept is not None:
                    return certified.round, kept
        for path in reversed(checkpoint_paths(self.directory.checkpoints)):
            try:
                found = load_checkpoint(path)
                height = open_block(found.block).round
            except (DamagedCheckpoint, RemoteProtocolError) as damage:
                logger.warning("%s: %s; it is passed over", path, damage)
                continue
            certified = CertifiedState(found.round, cut(found.state).digest)
            if certified in self._certified_by(height) and passes(found.round):
                return found.round, found.state
        return None

    def _certified_by(self, height: int) -> tuple[CertifiedState, ...]:
        """What a block of the ledger certifies: a state of its own round or, after a contest, of an earlier one."""
        stored = self.read(height)
        return () if stored is None else open_block(stored.block).state

    def open_round(self, round: int) -> tuple[dict[bytes, bytes], list[tuple[int, str, bytes]]]:
        """What was signed so far, and the journal of `round` and of what was open after it."""
        signed = self.directory.signed.envelopes()
        return signed, [(entry.round, entry.kind, entry.payload) for entry in self._journal if entry.round >= round]

    # --- while running ---

    def announce(self, effects: Iterable[Effect]) -> None:
        """Make the blobs of a batch readable before they are on disk."""
        with self._lock:
            self._pending |= {effect.hash: effect.data for effect in effects if isinstance(effect, PutBlob)}

    def commit(self, effects: list[Effect]) -> list[dict[str, Any]]:
        """Make a batch durable, one fsync for each file; returns an event for every evidence file written."""
        for at, effect in enumerate(effects):
            if isinstance(effect, RollBack):  # what comes after it is of the chain that stands
                written = self.commit(effects[:at])
                self._roll_back(effect.round)
                return written + self.commit(effects[at + 1 :])
        directory = self.directory
        signed = [SignedEnvelope(e.slot, e.envelope, e.round) for e in effects if isinstance(e, PersistSigned)]
        entries = [JournalEntry(e.kind, e.round, e.data) for e in effects if isinstance(e, Journal)]
        blobs = [e for e in effects if isinstance(e, PutBlob)]
        for blob in blobs:
            directory.custody.put(blob.hash, blob.data, blob.round)
        if blobs:
            directory.custody.flush()
        directory.signed.put_many(signed)
        directory.journal.append_many(entries)
        self._journal += entries
        for effect in effects:
            if isinstance(effect, AppendBlock):
                self._append(effect)
        with self._lock:
            for blob in blobs:
                self._pending.pop(blob.hash, None)
        return [self._save(e) for e in effects if isinstance(e, SaveEvidence)]

    def _append(self, append: AppendBlock) -> None:
        directory, charter = self.directory, self.charter
        directory.ledger.append(append.block, msgspec.msgpack.encode(append.certificate))
        self._journal = [entry for entry in self._journal if entry.round > append.round]
        directory.journal.begin(append.round + 1, self._journal)
        directory.signed.prune(append.round - 1 - max(charter.custody_rounds, FORK_ROUNDS_MAX))
        directory.custody.drop_before(append.keep_from)

    def _roll_back(self, round: int) -> None:
        """Return to block `round`; a crash on the way leaves nothing that the chain that stands would build upon."""
        with self._checkpointing:
            drop_checkpoints(self.directory.checkpoints, lambda block: _is_from(block, round))
            self.directory.ledger.roll_back(round)
        self._journal = []
        self.directory.journal.begin(round)

    def _save(self, effect: SaveEvidence) -> dict[str, Any]:
        accused = effect.accused
        path = self.directory.evidence.write(effect.round, peer_id_text(accused), effect.deed, effect.data)
        return {
            "event": "evidence",
            "peer": accused.hex(),
            "round": effect.round,
            "deed": effect.deed,
            "path": str(path),
        }

    def checkpoint_due(self, round: int, every: int) -> bool:
        """Whether `every` rounds, in whole steps of it, have gone by since the newest checkpoint."""
        rounds = [int(path.name.rpartition("-")[2]) for path in checkpoint_paths(self.directory.checkpoints)]
        return round // every > max(rounds, default=0) // every

    def save_state(self, round: int, state: bytes, block: bytes, certificate: tuple[bytes, ...], keep: int) -> None:
        """Write a checkpoint of x[round]; `block` is the one that certifies it, or the last one before it."""
        save_checkpoint(
            self.directory.checkpoints,
            round,
            state,
            block=block,
            certificate=msgspec.msgpack.encode(certificate),
            keep=keep,
        )

    def save_certified(self, certified: CertifiedState, append: AppendBlock, keep: int) -> None:
        """Write a checkpoint of a state that a block certifies, unless this peer has drifted and has it not."""
        state = self.state(certified.digest)
        with self._checkpointing:
            stored = self.read(append.round)
            if state is not None and stored is not None and stored.block == append.block:
                self.save_state(certified.round, state, append.block, append.certificate, keep)

    def save_last(self, round: int, state: bytes, keep: int) -> None:
        """Keep the parameters that the run ended with, beside the last block."""
        last = self.read(round - 1)
        if last is not None:
            with self._checkpointing:
                self.save_state(round, state, last.block, last.certificate, keep)

    def blob(self, hash: bytes) -> bytes | None:
        """Bytes in custody, or of x[0]; damaged ones are as good as none, others have them too."""
        with self._lock:
            pending = self._pending.get(hash)
        if pending is None:
            pending = self.initial.blob(hash)
        if pending is not None:
            return pending
        try:
            return self.directory.custody.get(hash)
        except CorruptBlob as damage:
            logger.warning("%s", damage)
            return None

    def state(self, digest: bytes) -> bytes | None:
        """The state behind a digest, if all its pieces are in custody."""
        return assemble(digest, self.blob)

    def states_close(self, own: bytes, other: bytes, tolerance: float) -> bool:
        """Whether the states behind two digests are the same but for rounding."""
        ours = self.state(own)
        try:
            theirs = self.state(other)
        except RemoteProtocolError:
            return False
        return ours is not None and theirs is not None and states_close(ours, theirs, tolerance)

    def read(self, round: int) -> CertifiedBlock | None:
        """A block of the ledger with its certificate."""
        try:
            stored = self.directory.ledger.read(round)
        except IndexError:
            return None
        return CertifiedBlock(stored.block, msgspec.msgpack.decode(stored.certificate, type=tuple[bytes, ...]))


def _is_from(data: bytes, round: int) -> bool:
    """Whether these bytes are a block of `round` or a later one, or none at all."""
    try:
        return open_block(data).round >= round
    except RemoteProtocolError:
        return True
