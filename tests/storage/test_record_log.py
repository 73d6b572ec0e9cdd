import errno
import os
import resource
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from btrain.errors import VerificationError
from btrain.storage.durable import CorruptFile, StorageError, StorageFull
from btrain.storage.record_log import (
    HEADER_BYTES,
    SECTOR_BYTES,
    Frame,
    FrameLimits,
    LogFailed,
    RecordLog,
    RecordTooLarge,
    encode_frame,
    scan,
)

LIMITS = FrameLimits(record_bytes_max=5000, frame_bytes_max=20_000)
RECORDS = st.lists(st.binary(max_size=40) | st.just(bytes(600)), max_size=4)


def open_log(path: Path) -> tuple[RecordLog, list[list[bytes]]]:
    frames: list[list[bytes]] = []
    log = RecordLog.open(path, b"test", LIMITS, lambda frame: frames.append(frame.records))
    return log, frames


def write_log(path: Path, *batches: list[bytes]) -> None:
    log, _ = open_log(path)
    for batch in batches:
        log.append_many(batch)
    log.close()


class LogMachine(RuleBasedStateMachine):
    """A log under appends, rewrites, reopenings and torn ends, against a list of lists."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.path = self.directory / "log"
        self.model: list[list[bytes]] = []
        self.log, _ = open_log(self.path)

    @rule(records=RECORDS)
    def append(self, records: list[bytes]) -> None:
        offset = self.log.append_many(records)
        self.model.append(records)
        assert self.log.read(offset) == records

    @rule(frames=st.lists(RECORDS, max_size=3))
    def rewrite(self, frames: list[list[bytes]]) -> None:
        self.log.rewrite(frames)
        self.model = list(frames)

    @rule()
    def reopen(self) -> None:
        self.log.close()
        self.log, frames = open_log(self.path)
        assert frames == self.model

    @rule(records=RECORDS, data=st.data())
    def tear(self, records: list[bytes], data: st.DataObject) -> None:
        """A killed process has written a part of its last frame."""
        self.log.close()
        frame = encode_frame(records, LIMITS, self.path)
        written = data.draw(st.integers(0, len(frame) - 1))
        with self.path.open("ab") as file:
            file.write(frame[:written])
        self.log, frames = open_log(self.path)
        assert frames == self.model

    @invariant()
    def the_file_holds_the_model(self) -> None:
        assert [frame.records for frame in scan(self.path, b"test", LIMITS)] == self.model
        assert [frame.records for frame in self.log.frames()] == self.model

    def teardown(self) -> None:
        self.log.close()
        shutil.rmtree(self.directory)


TestLogMachine = LogMachine.TestCase
TestLogMachine.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


def test_every_flipped_byte_is_found_and_nothing_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write_log(path, [b"first"], [b"second", b""], [b"third" * 100])
    whole = path.read_bytes()
    starts = [frame.offset for frame in scan(path, b"test", LIMITS)]
    for index in range(len(whole)):
        damaged = bytearray(whole)
        damaged[index] ^= 0x40
        path.write_bytes(damaged)
        with pytest.raises(CorruptFile) as raised:
            open_log(path)
        place = 0 if index < HEADER_BYTES else max(start for start in starts if start <= index)
        assert raised.value.offset == place
        assert str(raised.value).startswith(f"{path}: byte {place}: ")
        assert isinstance(raised.value, VerificationError)
        assert path.read_bytes() == damaged


def test_a_file_cut_anywhere_holds_the_whole_frames_before_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "log"
    batches = [[b"first"], [b"second", b""], [b"third"]]
    write_log(path, *batches)
    whole = path.read_bytes()
    ends = [*(frame.offset for frame in scan(path, b"test", LIMITS)), len(whole)][1:]
    for length in range(HEADER_BYTES, len(whole)):
        path.write_bytes(whole[:length])
        kept = sum(end <= length for end in ends)
        log, frames = open_log(path)
        assert frames == batches[:kept]
        log.append(b"next")
        log.close()
        assert open_log(path)[1] == [*batches[:kept], [b"next"]]


def test_an_end_whose_sectors_were_never_written_is_cut(tmp_path: Path) -> None:
    """After a power failure: the file has its length, but some of its last frame's sectors are zeros."""
    path = tmp_path / "log"
    write_log(path, [b"kept"], [os.urandom(3000)])
    whole = path.read_bytes()
    for sector in range(1, len(whole) // SECTOR_BYTES):
        lost = bytearray(whole)
        lost[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES] = bytes(SECTOR_BYTES)
        path.write_bytes(lost)
        assert [frame.records for frame in scan(path, b"test", LIMITS)] == [[b"kept"]]
    path.write_bytes(whole + bytes(700))
    log, frames = open_log(path)
    assert len(frames) == 2
    assert path.stat().st_size == len(whole)
    log.close()


def test_zeros_in_the_middle_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write_log(path, [os.urandom(3000)], [b"last"])
    lost = bytearray(path.read_bytes())
    lost[1024:1536] = bytes(512)
    path.write_bytes(lost)
    with pytest.raises(CorruptFile, match="checksum"):
        open_log(path)


@pytest.mark.parametrize("content", [b"", b"btrain-log1\n", b"btrain-log1\nelse", b"\0" * 40, b"text"])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match="kind 'test'"):
        open_log(path)
    assert path.read_bytes() == content


def test_bounds(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path / "log")
    size = log.size
    with pytest.raises(RecordTooLarge, match="5001 bytes; at most 5000"):
        log.append(bytes(5001))
    with pytest.raises(RecordTooLarge, match="batch"):
        log.append_many([bytes(5000)] * 4)
    assert log.size == size == (tmp_path / "log").stat().st_size
    log.append(bytes(5000))
    log.close()
    smaller = FrameLimits(record_bytes_max=100, frame_bytes_max=200)
    with pytest.raises(CorruptFile, match="at most 200"):
        list(scan(tmp_path / "log", b"test", smaller))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_never_raise_anything_unnamed(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "log"
        path.write_bytes(b"btrain-log1\ntest" + content)
        try:
            frames = list(scan(path, b"test", LIMITS))
        except CorruptFile:
            return
        assert all(isinstance(frame, Frame) for frame in frames)


@pytest.mark.parametrize("batch", [[b"x" * 5000], [b"y" * 1000] * 3])
def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, batch: list[bytes]) -> None:
    """The file size limit stands for the full disk: the kernel writes what fits and refuses the rest."""
    path = tmp_path / "log"
    log, _ = open_log(path)
    log.append(b"kept")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StorageFull, match=f"{path}: cannot be written: no space left"):
            log.append_many(batch)
        with pytest.raises(StorageFull):
            log.rewrite([batch])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in tmp_path.iterdir()] == ["log"]
    assert path.stat().st_size == log.size
    log.append(b"space again")
    log.close()
    assert open_log(path)[1] == [[b"kept"], [b"space again"]]


def test_after_a_failed_fsync_the_log_is_not_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    log, _ = open_log(tmp_path / "log")
    log.append(b"kept")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fail)
        with pytest.raises(StorageError, match="cannot be made durable: Input/output error"):
            log.append(b"lost")
    with pytest.raises(LogFailed):
        log.append(b"more")
    log.close()
    assert open_log(tmp_path / "log")[1] == [[b"kept"]]


def test_a_rewrite_that_may_not_last_fails_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    log, _ = open_log(tmp_path / "log")
    log.append(b"old")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)  # only the directory is synced by fsync
        with pytest.raises(StorageError):
            log.rewrite([[b"new"]])
    with pytest.raises(LogFailed):
        log.append(b"into the file that is no longer there")
    assert open_log(tmp_path / "log")[1] == [[b"new"]]


def test_a_closed_log_refuses(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path / "log")
    log.close()
    log.close()
    with pytest.raises(LogFailed, match="closed"):
        log.append(b"x")
