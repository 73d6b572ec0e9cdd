"""What a peer that is started again makes of a damaged run directory: an error of verification that names the file."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from btrain.charter import charter_of
from btrain.config import load
from btrain.peer.store import Store
from btrain.protocol.messages import Verifier
from btrain.storage.durable import CorruptFile
from btrain.storage.ledger_file import CorruptLedger, StoredBlock
from btrain.storage.run_directory import RunDirectory
from tests.verify.test_ledger import Tamper, flip, rewrite, same


@pytest.fixture
def path(run_dir: Path) -> Path:
    return run_dir / "peer-0"


def started(path: Path) -> int:
    """The height to which a peer verifies its own ledger."""
    config, verifier = load(path / "config.yaml"), Verifier()
    directory = RunDirectory.open(path, contract=config.contract_hash(), identity=bytes(range(32)))
    with closing(directory):
        store = Store(directory, charter_of(config))
        known = store.genesis(verifier)
        assert known is not None
        return store.ledger_state(known[0], verifier).round


def test_a_whole_directory_is_verified(path: Path) -> None:
    assert started(path) == 12


def test_every_flipped_byte_of_the_genesis_is_found(path: Path) -> None:
    file = path / "genesis"
    whole = file.read_bytes()
    for position in (*range(0, len(whole), len(whole) // 30), -1):
        flip(file, position)
        with pytest.raises(CorruptFile, match="genesis: byte 0: is no genesis"):
            started(path)
        file.write_bytes(whole)


def without_signatures(blocks: list[StoredBlock]) -> list[tuple[bytes, bytes]]:
    return [*same(blocks)[:5], (blocks[5].block, b"\x90"), *same(blocks)[6:]]


def with_nonsense(blocks: list[StoredBlock]) -> list[tuple[bytes, bytes]]:
    return [*same(blocks)[:5], (blocks[5].block, b"nonsense"), *same(blocks)[6:]]


def with_a_gap(blocks: list[StoredBlock]) -> list[tuple[bytes, bytes]]:
    return [*same(blocks)[:5], *same(blocks)[6:]]


def with_another_block(blocks: list[StoredBlock]) -> list[tuple[bytes, bytes]]:
    return [*same(blocks)[:5], (b"nonsense", blocks[5].certificate)]


@pytest.mark.parametrize("tamper", [without_signatures, with_nonsense, with_a_gap, with_another_block])
def test_a_ledger_that_does_not_follow_is_refused_by_its_block(path: Path, tamper: Tamper) -> None:
    rewrite(path / "ledger", tamper)
    with pytest.raises(CorruptLedger, match="block 5: ") as raised:
        started(path)
    assert raised.value.exit_code == 3
