import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from btrain.storage import journal
from btrain.storage.durable import CorruptFile
from btrain.storage.journal import Journal, JournalEntry
from btrain.storage.record_log import RecordTooLarge

ENTRIES = st.builds(JournalEntry, st.sampled_from(["vote", "body"]), st.integers(0, 9), st.binary(max_size=30))


class JournalMachine(RuleBasedStateMachine):
    """A journal that compacts often, against a list."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.bound, journal.COMPACT_BYTES_MIN = journal.COMPACT_BYTES_MIN, 300
        self.journal = Journal.open(self.directory / "journal")
        self.model: list[JournalEntry] = []
        self.round = 0

    @rule(entries=st.lists(ENTRIES, max_size=4))
    def append(self, entries: list[JournalEntry]) -> None:
        self.journal.append_many(entries)
        self.model += entries

    @rule(round_=st.integers(0, 9))
    def begin(self, round_: int) -> None:
        self.journal.begin(round_)
        self.model, self.round = [], round_

    @rule()
    def reopen(self) -> None:
        self.journal.close()
        self.journal = Journal.open(self.directory / "journal")

    @invariant()
    def agrees(self) -> None:
        assert list(self.journal.replay()) == self.model
        assert self.journal.round == self.round

    def teardown(self) -> None:
        journal.COMPACT_BYTES_MIN = self.bound
        self.journal.close()
        shutil.rmtree(self.directory)


TestJournal = JournalMachine.TestCase
TestJournal.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


def test_killed_at_every_step(crash_at_every_step: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry n of round n // 4 is acknowledged as n; a round is begun with its first entry still to come."""
    monkeypatch.setattr(journal, "COMPACT_BYTES_MIN", 300)

    def scenario(directory: Path, ack: Callable[[int], None]) -> None:
        log = Journal.open(directory / "journal")
        for number in range(24):
            if number % 4 == 0:
                log.begin(number // 4)
            log.append("vote", b"%03d" % number * 8, number // 4)
            ack(number)

    def check(directory: Path, acknowledged: int) -> None:
        log = Journal.open(directory / "journal")
        numbers = [int(entry.payload[:3]) for entry in log.replay()]
        log.close()
        # what stands is the acknowledged part of a round, perhaps one entry more, or the next round without an entry
        start = log.round * 4
        assert numbers == list(range(start, start + len(numbers)))
        if log.round == acknowledged // 4:
            assert len(numbers) - (acknowledged - start + 1) in {0, 1}
        else:
            assert (log.round, numbers[1:]) == ((acknowledged + 1) // 4, [])

    assert crash_at_every_step(scenario, check) > 50


def test_every_flipped_byte_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    log = Journal.open(path)
    log.begin(3)
    log.append("vote", b"payload", 3)
    log.close()
    whole = path.read_bytes()
    for index in range(len(whole)):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 1]) + whole[index + 1 :])
        with pytest.raises(CorruptFile, match=f"{path}: byte "):
            Journal.open(path)


def test_one_round_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "ROUND_BYTES_MAX", 1000)
    log = Journal.open(tmp_path / "journal")
    for _ in range(3):
        log.begin(1)
        log.append("body", bytes(800), 1)
    with pytest.raises(RecordTooLarge, match="1000 bytes in one round"):
        log.append("body", bytes(300), 1)
    with pytest.raises(ValueError, match="kind"):
        log.append("", b"", 1)
