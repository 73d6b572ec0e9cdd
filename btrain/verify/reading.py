"""A peer's run directory read offline: its genesis, its contract, its blocks, and the state that follows from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from btrain.charter import charter_of
from btrain.config import RunConfig, loads
from btrain.errors import ConfigError, VerificationError
from btrain.peer.store import Founded
from btrain.protocol.errors import RemoteProtocolError
from btrain.protocol.ledger import Block, Charter, Genesis, LedgerState, open_block, open_genesis
from btrain.storage.durable import CorruptFile, StorageError, storage_error
from btrain.storage.ledger_file import CorruptLedger, read_ledger

GENESIS, LEDGER = "genesis", "ledger"


class InvalidRecord(VerificationError):
    """A genesis, block, certificate or evidence file does not verify; the message names the place and the reason."""


@dataclass(frozen=True)
class StoredRound:
    """A block as it is stored, with its certificate's signatures."""

    height: int
    block: Block
    data: bytes
    certificate: tuple[bytes, ...]


@dataclass(frozen=True)
class Record:
    """What a run directory says about its run. Nothing is verified yet but that it can be read."""

    path: Path
    genesis: Genesis
    genesis_data: bytes = field(repr=False)
    signatures: tuple[bytes, ...] = field(repr=False)
    config: RunConfig = field(repr=False)
    charter: Charter = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> Record:
        """Read the genesis and the contract in it. Raises InvalidRecord, CorruptFile, StorageError."""
        file = path / GENESIS
        try:
            founded = msgspec.msgpack.decode(file.read_bytes(), type=Founded)
            genesis = open_genesis(founded.genesis)
        except FileNotFoundError:
            raise StorageError(f"{path}: is no run directory with a ledger: {file} is missing") from None
        except OSError as error:
            raise storage_error(file, "be read", error) from error
        except (msgspec.MsgspecError, RemoteProtocolError) as error:
            raise CorruptFile(file, 0, f"is no genesis: {error}") from None
        config = contract_of(genesis, str(file))
        return cls(path, genesis, founded.genesis, founded.signatures, config, charter_of(config))

    def rounds(self) -> Iterator[StoredRound]:
        """The blocks in order. Raises CorruptLedger, StorageError."""
        path = self.path / LEDGER
        if not path.exists():
            return
        for stored in read_ledger(path):
            try:
                block = open_block(stored.block)
            except RemoteProtocolError as error:
                raise CorruptLedger(path, stored.height, 0, f"is no block: {error}") from None
            try:
                certificate = msgspec.msgpack.decode(stored.certificate, type=tuple[bytes, ...])
            except msgspec.MsgspecError as error:
                raise CorruptLedger(path, stored.height, 0, f"its certificate cannot be read: {error}") from None
            yield StoredRound(stored.height, block, stored.block, certificate)

    def replay(self) -> tuple[list[Block], LedgerState]:
        """All blocks and the state after them; certificates are not checked. Raises as `rounds` and InvalidRecord."""
        blocks, state = [], LedgerState.start(self.genesis, self.charter)
        for stored in self.rounds():
            try:
                state = state.advance(stored.block)
            except RemoteProtocolError as error:
                raise InvalidRecord(f"{self.path / LEDGER}: {error}") from None
            blocks.append(stored.block)
        return blocks, state


def contract_of(genesis: Genesis, place: str) -> RunConfig:
    """The configuration that a genesis binds its run to. Raises InvalidRecord if this btrain cannot read it."""
    try:
        return loads(genesis.contract.decode(), f"{place}: contract")
    except (ConfigError, UnicodeDecodeError) as error:
        raise InvalidRecord(f"{place}: the contract in the genesis cannot be read: {error}") from None
