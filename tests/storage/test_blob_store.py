import errno
import os
import resource
import shutil
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from btrain.storage.blob_store import ENTRY_HEADER, MARK, BlobStore, BlobStoreFull, CorruptBlob, WrongHash
from btrain.storage.durable import CorruptFile, StorageError, StorageFull

MIB = 1 << 20


def hash_of(data: bytes) -> bytes:
    return sha256(data).digest()


def put(store: BlobStore, data: bytes, round_: int) -> bytes:
    store.put(hash_of(data), data, round_)
    return hash_of(data)


class BlobMachine(RuleBasedStateMachine):
    """A store against a dictionary of blob -> round and one of case -> blob."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.store = BlobStore.open(self.directory / "custody", MIB)
        self.rounds: dict[bytes, int] = {}
        self.pins: dict[str, bytes] = {}

    @rule(data=st.binary(max_size=3), round_=st.integers(0, 5))
    def put(self, data: bytes, round_: int) -> None:
        put(self.store, data, round_)
        self.rounds[data] = max(round_, self.rounds.get(data, 0))

    @precondition(lambda self: self.rounds)
    @rule(case=st.sampled_from("ab"), data=st.data())
    def pin(self, case: str, data: st.DataObject) -> None:
        if case not in self.pins:
            self.pins[case] = data.draw(st.sampled_from(sorted(self.rounds)))
            self.store.pin(hash_of(self.pins[case]), case)

    @rule(case=st.sampled_from("ab"))
    def unpin(self, case: str) -> None:
        self.store.unpin(case)
        self.pins.pop(case, None)

    @rule(round_=st.integers(0, 6))
    def drop(self, round_: int) -> None:
        self.store.drop_before(round_)
        kept = {self.rounds[data] for data in self.pins.values() if data in self.rounds}
        self.rounds = {data: at for data, at in self.rounds.items() if at >= round_ or at in kept}

    @rule()
    def reopen(self) -> None:
        self.store.flush()
        self.store.close()
        self.store = BlobStore.open(self.directory / "custody", MIB)

    @invariant()
    def agrees(self) -> None:
        for data in self.rounds:
            assert self.store.has(hash_of(data))
            assert self.store.get(hash_of(data)) == data
        assert len(self.store) == len(self.rounds)

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.directory)


TestBlobStore = BlobMachine.TestCase
TestBlobStore.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_what_is_not_there(tmp_path: Path) -> None:
    store = BlobStore.open(tmp_path / "custody", MIB)
    assert store.get(bytes(32)) is None
    assert not store.has(bytes(32))
    with pytest.raises(WrongHash, match="a blob of 3 bytes"):
        store.put(bytes(32), b"abc", 1)
    assert store.size == 0


def test_a_blob_put_again_lives_as_long_as_its_last_round(tmp_path: Path) -> None:
    store = BlobStore.open(tmp_path / "custody", MIB)
    hash_ = put(store, b"result", 3)
    for round_ in (5, 4):
        put(store, b"result", round_)
    store.drop_before(5)
    assert store.get(hash_) == b"result"
    store.drop_before(6)
    assert store.get(hash_) is None


def test_the_bound_holds(tmp_path: Path) -> None:
    store = BlobStore.open(tmp_path / "custody", 1000)
    put(store, bytes(800), 1)
    with pytest.raises(BlobStoreFull, match="bound of 1000 bytes"):
        put(store, b"x" * 200, 2)
    store.drop_before(2)
    put(store, b"x" * 200, 2)
    assert store.rounds() == [2]


def test_a_damaged_blob_is_named_forgotten_and_put_again(tmp_path: Path) -> None:
    store = BlobStore.open(tmp_path / "custody", MIB)
    hashes = [put(store, b"blob %d" % number * 10, 7) for number in range(3)]
    pack = tmp_path / "custody" / "00000007.pack"
    whole = pack.read_bytes()
    with pack.open("r+b") as file:
        file.seek(whole.index(b"blob 1"))
        file.write(b"X")
    with pytest.raises(CorruptBlob, match=f"{pack}: byte .*: the blob {hashes[1].hex()} of round 7 is damaged"):
        store.get(hashes[1])
    assert not store.has(hashes[1])
    put(store, b"blob 1" * 10, 7)
    assert [store.get(hash_) for hash_ in hashes] == [b"blob %d" % number * 10 for number in range(3)]


def test_every_flipped_byte_costs_its_own_blob_only(tmp_path: Path) -> None:
    store = BlobStore.open(tmp_path / "custody", MIB)
    blobs = [b"first" * 3, b"second" * 3, b"third" * 3]
    hashes = [put(store, blob, 7) for blob in blobs]
    store.close()
    pack = tmp_path / "custody" / "00000007.pack"
    whole = pack.read_bytes()
    ends = [sum(ENTRY_HEADER.size + len(blob) for blob in blobs[: number + 1]) for number in range(3)]
    for index in range(len(whole)):
        pack.write_bytes(whole[:index] + bytes([whole[index] ^ 4]) + whole[index + 1 :])
        hit = sum(end <= index for end in ends)
        store = BlobStore.open(tmp_path / "custody", MIB)
        for number, hash_ in enumerate(hashes):
            if number != hit:
                assert store.get(hash_) == blobs[number]
            elif store.has(hash_):
                with pytest.raises(CorruptBlob):
                    store.get(hash_)
        store.close()


def test_a_blob_that_contains_entries_hides_no_other_when_damaged(tmp_path: Path) -> None:
    """Behind a damaged header the next entry is searched for in the blob's bytes; a hostile blob has a false one."""
    other = b"the blob that is to be hidden"
    forger = BlobStore.open(tmp_path / "forger", MIB)
    put(forger, other, 0)
    entry = bytearray((tmp_path / "forger" / "00000000.pack").read_bytes())
    entry[-1] ^= 1
    store = BlobStore.open(tmp_path / "custody", MIB)
    put(store, other, 3)
    put(store, bytes(entry) + MARK, 3)
    put(store, b"last", 3)
    store.close()
    pack = tmp_path / "custody" / "00000003.pack"
    damaged = bytearray(pack.read_bytes())
    damaged[ENTRY_HEADER.size + len(other)] ^= 1
    pack.write_bytes(damaged)
    store = BlobStore.open(tmp_path / "custody", MIB)
    assert store.get(hash_of(other)) == other
    assert store.get(hash_of(b"last")) == b"last"


def test_pins_outlive_a_restart(tmp_path: Path) -> None:
    store = BlobStore.open(tmp_path / "custody", MIB)
    pinned, other = put(store, b"pinned", 1), put(store, b"other", 2)
    store.pin(pinned, "case of round 1")
    store.close()
    store = BlobStore.open(tmp_path / "custody", MIB)
    store.drop_before(9)
    assert store.get(pinned) == b"pinned"
    assert store.get(other) is None
    store.unpin("case of round 1")
    store.drop_before(9)
    assert store.get(pinned) is None
    assert list((tmp_path / "custody").glob("*.pack")) == []


def test_a_damaged_list_of_pins_is_named(tmp_path: Path) -> None:
    store = BlobStore.open(tmp_path / "custody", MIB)
    store.pin(put(store, b"pinned", 1), "case")
    store.close()
    pins = tmp_path / "custody" / "pins.json"
    whole = pins.read_bytes()
    pins.write_bytes(b"[" + whole[1:])
    with pytest.raises(CorruptFile, match=r"pins\.json: byte 0: is no list of pinned blobs"):
        BlobStore.open(tmp_path / "custody", MIB)


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    store = BlobStore.open(tmp_path / "custody", MIB)
    kept = put(store, b"kept", 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StorageFull, match="cannot store a blob: no space left"):
            put(store, bytes(2000), 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "custody" / "00000001.pack").stat().st_size == store.size
    after = put(store, bytes(2000), 1)
    store.close()
    store = BlobStore.open(tmp_path / "custody", MIB)
    assert (store.get(kept), store.get(after)) == (b"kept", bytes(2000))


def test_after_a_failed_flush_nothing_is_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    store = BlobStore.open(tmp_path / "custody", MIB)
    put(store, b"blob", 1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fail)
        with pytest.raises(StorageError, match="Input/output error"):
            store.flush()
    for again in (store.flush, lambda: put(store, b"more", 1)):
        with pytest.raises(StorageError, match="after a failed fsync"):
            again()


def test_flush_syncs_what_was_put_and_what_a_killed_process_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    store = BlobStore.open(tmp_path / "custody", MIB)
    put(store, b"a", 1)
    put(store, b"b", 2)
    assert synced == []
    store.flush()
    store.flush()
    assert [Path(name).name for name in synced] == ["00000001.pack", "00000002.pack"]
    store.close()
    BlobStore.open(tmp_path / "custody", MIB).flush()
    assert len(synced) == 4


def test_killed_at_every_step(crash_at_every_step: Callable[..., int]) -> None:
    """Flushed blobs of the rounds in custody are there, whole; the others are whole or absent."""
    blobs = [[b"round %d blob %d" % (round_, number) * 20 for number in range(4)] for round_ in range(6)]

    def scenario(directory: Path, ack: Callable[[int], None]) -> None:
        store = BlobStore.open(directory / "custody", MIB)
        for round_ in range(6):
            for blob in blobs[round_]:
                put(store, blob, round_)
            store.flush()
            if round_ == 1:
                store.pin(hash_of(blobs[1][0]), "case")
            ack(round_)
            store.drop_before(round_ - 1)

    def check(directory: Path, acknowledged: int) -> None:
        store = BlobStore.open(directory / "custody", MIB)
        for round_ in range(6):
            for blob in blobs[round_]:
                if acknowledged - 1 <= round_ <= acknowledged or (round_ == 1 and acknowledged >= 1):
                    assert store.get(hash_of(blob)) == blob
                else:
                    assert store.get(hash_of(blob)) in {None, blob}
        put(store, b"new", 6)
        store.close()

    assert crash_at_every_step(scenario, check) > 30
