from collections.abc import Callable
from pathlib import Path

import pytest

from btrain.errors import VerificationError
from btrain.storage.ledger_file import KIND, LIMITS, CorruptLedger, LedgerFile, StoredBlock, read_ledger
from btrain.storage.record_log import RecordLog, scan

BLOCKS = [(b"block %d" % height * 5, b"certificate %d" % height) for height in range(5)]


def write_ledger(path: Path) -> None:
    ledger = LedgerFile.open(path)
    assert [ledger.append(*block) for block in BLOCKS] == [0, 1, 2, 3, 4]
    ledger.close()


def test_blocks_come_back_by_height_and_in_order(tmp_path: Path) -> None:
    write_ledger(tmp_path / "ledger")
    ledger = LedgerFile.open(tmp_path / "ledger")
    stored = [StoredBlock(height, *block) for height, block in enumerate(BLOCKS)]
    assert len(ledger) == 5
    assert list(ledger) == list(read_ledger(tmp_path / "ledger")) == stored
    assert ledger.read(3) == stored[3]
    assert ledger.append(b"next", b"") == 5
    assert ledger.read(5) == StoredBlock(5, b"next", b"")
    for height in (-1, 6):
        with pytest.raises(IndexError, match="the ledger has 6 blocks"):
            ledger.read(height)


def test_every_flipped_byte_names_its_block(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    write_ledger(path)
    whole = path.read_bytes()
    starts = [frame.offset for frame in scan(path, KIND, LIMITS)]
    for index in range(len(whole)):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 0x10]) + whole[index + 1 :])
        height = max(0, sum(start <= index for start in starts) - 1)
        for read in (LedgerFile.open, lambda damaged: list(read_ledger(damaged))):
            with pytest.raises(CorruptLedger, match=f"{path}: byte .*: block {height}: ") as raised:
                read(path)
            assert raised.value.height == height
            assert isinstance(raised.value, VerificationError)


def test_damage_after_opening_is_found_when_read(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    write_ledger(path)
    ledger = LedgerFile.open(path)
    whole = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(whole.index(b"block 2") + 3)
        file.write(b"X")
    assert ledger.read(1).block == BLOCKS[1][0]
    with pytest.raises(CorruptLedger, match="block 2: the checksum"):
        ledger.read(2)


def test_a_frame_that_is_no_block_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    write_ledger(path)
    log = RecordLog.open(path, KIND, LIMITS)
    log.append(b"a block without a certificate")
    log.close()
    with pytest.raises(CorruptLedger, match="block 5: is not a block and its certificate"):
        LedgerFile.open(path)


def test_killed_at_every_step(crash_at_every_step: Callable[..., int]) -> None:
    def scenario(directory: Path, ack: Callable[[int], None]) -> None:
        ledger = LedgerFile.open(directory / "ledger")
        for block, certificate in BLOCKS:
            ack(ledger.append(block, certificate))

    def check(directory: Path, acknowledged: int) -> None:
        ledger = LedgerFile.open(directory / "ledger")
        assert len(ledger) - (acknowledged + 1) in {0, 1}
        assert [(block, certificate) for _, block, certificate in ledger] == BLOCKS[: len(ledger)]
        for block, certificate in BLOCKS[len(ledger) :]:
            ledger.append(block, certificate)
        assert len(list(ledger)) == 5
        ledger.close()

    assert crash_at_every_step(scenario, check) > 10


def test_a_fork_cuts_the_ledger_and_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = LedgerFile.open(path)
    for height in range(5):
        ledger.append(b"block %d" % height, b"certificate")
    aside = ledger.roll_back(2)
    assert [stored.block for stored in ledger] == [b"block 0", b"block 1"]
    assert [stored.block for stored in read_ledger(aside)] == [b"block %d" % height for height in range(5)]
    assert ledger.append(b"another", b"certificate") == 2
    assert ledger.roll_back(2) != aside
    ledger.append(b"a third", b"certificate")
    ledger.close()
    assert [stored.block for stored in LedgerFile.open(path)] == [b"block 0", b"block 1", b"a third"]
