import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from btrain.storage import signed_log
from btrain.storage.durable import CorruptFile
from btrain.storage.signed_log import SignedEnvelope, SignedLog, SlotAlreadySigned, SlotForgotten

SLOTS = st.integers(0, 12)


def slot(number: int) -> bytes:
    return b"slot-%d" % number


class SignedLogMachine(RuleBasedStateMachine):
    """A sign-once log against a dictionary; slot n belongs to round n // 2."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.path = self.directory / "signed.log"
        self.model: dict[int, bytes] = {}
        self.floor = 0
        self.log = SignedLog.open(self.path)

    @rule(numbers=st.lists(SLOTS, max_size=4, unique=True), body=st.binary(min_size=1, max_size=4))
    def put(self, numbers: list[int], body: bytes) -> None:
        conflict = any(self.model.get(number, body) != body for number in numbers)
        forgotten = any(number not in self.model and number // 2 < self.floor for number in numbers)
        envelopes = [SignedEnvelope(slot(number), body, number // 2) for number in numbers]
        if conflict or forgotten:
            with pytest.raises((SlotAlreadySigned, SlotForgotten)):
                self.log.put_many(envelopes)
        else:
            self.log.put_many(envelopes)
            self.model.update(dict.fromkeys(numbers, body))

    @rule(round_=st.integers(0, 6))
    def prune(self, round_: int) -> None:
        self.log.prune(round_)
        self.floor = max(self.floor, round_)
        self.model = {number: body for number, body in self.model.items() if number // 2 >= self.floor}

    @rule()
    def reopen(self) -> None:
        """What was pruned may come back from the file; it still may not be signed anew with another body."""
        self.log.close()
        self.log = SignedLog.open(self.path)
        self.log.prune(self.floor)

    @invariant()
    def agrees(self) -> None:
        assert {number: self.log.get(slot(number)) for number in self.model} == self.model
        assert len(self.log) == len(self.model)

    def teardown(self) -> None:
        self.log.close()
        shutil.rmtree(self.directory)


class CompactingSignedLogMachine(SignedLogMachine):
    """The same, with a log that compacts whenever something was pruned."""

    def __init__(self) -> None:
        self.bound, signed_log.COMPACT_BYTES_MIN = signed_log.COMPACT_BYTES_MIN, 0
        super().__init__()

    def teardown(self) -> None:
        super().teardown()
        signed_log.COMPACT_BYTES_MIN = self.bound


TestSignedLog = SignedLogMachine.TestCase
TestCompactingSignedLog = CompactingSignedLogMachine.TestCase
TestSignedLog.settings = TestCompactingSignedLog.settings = settings(
    max_examples=40, stateful_step_count=20, deadline=None
)


def test_a_slot_is_signed_once(tmp_path: Path) -> None:
    log = SignedLog.open(tmp_path / "signed.log")
    assert log.get(b"slot") is None
    log.put(b"slot", b"envelope", 3)
    log.put(b"slot", b"envelope", 3)
    with pytest.raises(SlotAlreadySigned, match=r"signed\.log: a slot of round 3"):
        log.put(b"slot", b"another", 3)
    with pytest.raises(SlotAlreadySigned):
        log.put_many([SignedEnvelope(b"new", b"one", 3), SignedEnvelope(b"new", b"two", 3)])
    assert (log.get(b"slot"), log.get(b"new")) == (b"envelope", None)
    log.close()
    reopened = SignedLog.open(tmp_path / "signed.log")
    assert reopened.get(b"slot") == b"envelope"
    with pytest.raises(SlotAlreadySigned):
        reopened.put(b"slot", b"another", 3)


def test_a_forgotten_round_is_not_signed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signed_log, "COMPACT_BYTES_MIN", 0)
    log = SignedLog.open(tmp_path / "signed.log")
    for round_ in range(20):
        log.put(b"%d" % round_, bytes(100), round_)
    before = (tmp_path / "signed.log").stat().st_size
    log.prune(18)
    assert (tmp_path / "signed.log").stat().st_size < before / 5
    log.close()
    reopened = SignedLog.open(tmp_path / "signed.log")
    assert len(reopened) == 2
    for log_ in (log, reopened):
        with pytest.raises(SlotForgotten, match="rounds from 18 on are known"):
            log_.put(b"3", b"another", 3)
    reopened.put(b"another slot", b"e", 18)


def test_two_envelopes_of_one_slot_in_the_file_are_damage(tmp_path: Path) -> None:
    log = SignedLog.open(tmp_path / "signed.log")
    log.put(b"slot", b"one", 1)
    forged = SignedLog()
    forged._log = log._log
    forged.put(b"slot", b"two", 1)
    log.close()
    with pytest.raises(CorruptFile, match="two envelopes for one slot of round 1"):
        SignedLog.open(tmp_path / "signed.log")


def test_every_flipped_byte_is_named(tmp_path: Path) -> None:
    path = tmp_path / "signed.log"
    log = SignedLog.open(path)
    log.put(b"slot", b"envelope", 1)
    log.put(b"last", b"envelope", 2)
    log.close()
    whole = path.read_bytes()
    for index in range(len(whole)):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 1]) + whole[index + 1 :])
        with pytest.raises(CorruptFile, match=r"signed\.log: byte "):
            SignedLog.open(path)


def test_killed_at_every_step(crash_at_every_step: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    """With pruning and compaction between; whatever was put stands, and nothing else can be put in its place."""
    monkeypatch.setattr(signed_log, "COMPACT_BYTES_MIN", 400)

    def scenario(directory: Path, ack: Callable[[int], None]) -> None:
        log = SignedLog.open(directory / "signed.log")
        for round_ in range(8):
            log.put_many([SignedEnvelope(b"%d/%d" % (round_, i), b"body%d" % round_ * 9, round_) for i in range(3)])
            ack(round_)
            log.prune(round_ - 1)

    def check(directory: Path, acknowledged: int) -> None:
        log = SignedLog.open(directory / "signed.log")
        for round_ in range(max(0, acknowledged - 1), acknowledged + 1):
            for i in range(3):
                assert log.get(b"%d/%d" % (round_, i)) == b"body%d" % round_ * 9
        for round_ in range(acknowledged + 1):
            with pytest.raises((SlotAlreadySigned, SlotForgotten)):
                log.put(b"%d/0" % round_, b"another", round_)
        following = {log.get(b"%d/%d" % (acknowledged + 1, i)) for i in range(3)}
        assert len(following) == 1
        log.put(b"new", b"body", 8)
        log.close()

    assert crash_at_every_step(scenario, check) > 20


def put_for_ever(path: Path, acks: int) -> None:
    """The child of the test below: signs slot after slot, and says so after each."""
    log = SignedLog.open(path)
    signed_log.COMPACT_BYTES_MIN = 4000
    number = int(path.with_name("next").read_text())
    while True:
        log.put(slot(number), random.randbytes(60), number)
        os.write(acks, number.to_bytes(4, "little") + log.get(slot(number))[:4])  # type: ignore[index]
        if number % 10 == 9:
            log.prune(number - 20)
        number += 1


def test_killed_at_random_moments(tmp_path: Path) -> None:
    path = tmp_path / "signed.log"
    generator = random.Random(1)
    known: dict[int, bytes] = {}
    for _ in range(60):
        (tmp_path / "next").write_text(str(max(known, default=-1) + 2))
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            random.seed()
            try:
                put_for_ever(path, writing)
            finally:
                os._exit(1)
        os.close(writing)
        with os.fdopen(reading, "rb") as acks:
            first = acks.read(8)
            time.sleep(generator.uniform(0, 0.005))
            os.kill(child, signal.SIGKILL)
            signed = first + acks.read()
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
        for start in range(0, len(signed) - 7, 8):
            known[int.from_bytes(signed[start : start + 4], "little")] = signed[start + 4 : start + 8]
        log = SignedLog.open(path)
        for number in [number for number in known if number > max(known) - 20]:
            envelope = log.get(slot(number))
            assert envelope is not None
            assert envelope[:4] == known[number]
        log.close()
    assert len(known) >= 60
