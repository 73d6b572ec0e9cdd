from collections.abc import Callable
from pathlib import Path

import pytest

from btrain.storage import evidence_store
from btrain.storage.durable import CorruptFile, StorageError
from btrain.storage.evidence_store import EvidenceStore, TooMuchEvidence, read_evidence

ACCUSED = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X"


def test_evidence_is_written_once_under_its_name(tmp_path: Path) -> None:
    store = EvidenceStore(tmp_path / "evidence")
    path = store.write(12, ACCUSED, "wrong_gradient", b"proof")
    assert path == tmp_path / "evidence" / "000012-ft9HyQ6X-wrong_gradient.evidence"
    assert store.write(12, ACCUSED, "wrong_gradient", b"proof") == path
    second = store.write(12, ACCUSED, "wrong_gradient", b"another proof")
    assert second.name.endswith("-wrong_gradient-2.evidence")
    assert store.write(12, ACCUSED, "wrong_gradient", b"another proof") == second
    assert (read_evidence(path), read_evidence(second)) == (b"proof", b"another proof")
    third = store.write(3, ACCUSED, "equivocation", b"")
    assert store.paths() == [third, second, path]
    assert read_evidence(third) == b""


def test_every_flipped_or_missing_byte_is_named(tmp_path: Path) -> None:
    path = EvidenceStore(tmp_path).write(1, ACCUSED, "equivocation", b"two messages")
    whole = path.read_bytes()
    for index in range(len(whole)):
        for damaged in (whole[:index] + bytes([whole[index] ^ 2]) + whole[index + 1 :], whole[:index]):
            path.write_bytes(damaged)
            with pytest.raises(CorruptFile, match=f"{path}: byte "):
                read_evidence(path)
    path.write_bytes(whole + whole[16:])
    with pytest.raises(CorruptFile, match="single record"):
        read_evidence(path)


def test_one_deed_fills_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_store, "SAME_DEED_MAX", 3)
    store = EvidenceStore(tmp_path)
    for number in range(3):
        store.write(1, ACCUSED, "equivocation", b"%d" % number)
    with pytest.raises(TooMuchEvidence, match="3 proofs of 000001-"):
        store.write(1, ACCUSED, "equivocation", b"more")


@pytest.mark.parametrize("deed", ["", "../up", "Deed", "a b", "a" * 65])
def test_a_deed_is_a_plain_word(tmp_path: Path, deed: str) -> None:
    with pytest.raises(ValueError, match="a deed is named"):
        EvidenceStore(tmp_path).write(1, ACCUSED, deed, b"")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        read_evidence(tmp_path / "absent.evidence")


def test_killed_at_every_step(crash_at_every_step: Callable[..., int]) -> None:
    def scenario(directory: Path, ack: Callable[[int], None]) -> None:
        store = EvidenceStore(directory / "evidence")
        for number in range(3):
            store.write(number, ACCUSED, "equivocation", b"proof %d" % number)
            ack(number)

    def check(directory: Path, acknowledged: int) -> None:
        store = EvidenceStore(directory / "evidence")
        found = [read_evidence(path) for path in store.paths()]
        assert found == [b"proof %d" % number for number in range(len(found))]
        assert len(found) - (acknowledged + 1) in {0, 1}
        store.write(9, ACCUSED, "equivocation", b"after")

    assert crash_at_every_step(scenario, check) > 8
