"""status.json: what a peer's events say of it, while it runs and after it was killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from btrain.progress import Progress, StatusFile
from btrain.status import read_status_of, status_text
from btrain.storage.run_directory import RunDirectory
from btrain.storage.streams import read_status

Event = dict[str, Any]
BEGIN: list[Event] = [
    {"event": "started"},
    {"event": "founded"},
    {"event": "round", "round": 16, "role": "worker", "members": 5, "present": 5},
    {"event": "block", "round": 16, "clipped_share": 0.1, "losses_left": 2},
]
FAULTS: list[Event] = [
    {"event": "drift", "round": 16},
    {"event": "state_loaded", "round": 16, "healed": True},
    {"event": "state_loaded", "round": 32, "healed": False},
    {"event": "contested", "round": 48},
    {"event": "fork", "round": 50, "guilty": []},
    {"event": "rolled_back", "round": 50},
]


def test_drift_heals_and_forks_are_counted() -> None:
    fields = Progress.of([*BEGIN, *FAULTS]).fields
    assert {key: fields[key] for key in ("drifts", "heals", "contested", "forks", "rolled_back")} == {
        "drifts": 1, "heals": 1, "contested": 1, "forks": 1, "rolled_back": 1,
    }  # fmt: skip
    assert (fields["state"], fields["members"], fields["losses_left"]) == ("training", 5, 2)


def test_what_stalls_is_said_until_the_next_block() -> None:
    stalled: Event = {"event": "stalled", "reason": "no connected peer keeps the results of this round"}
    progress = Progress.of([*BEGIN, stalled])
    assert progress.fields["stalled"] == stalled["reason"]
    progress.take(BEGIN[-1])
    assert progress.fields["stalled"] is None


HALTED: Event = {"event": "halted", "round": 16, "reached": 1, "members": 5, "needed": 3}


def test_a_peer_that_is_started_again_is_halted_no_more() -> None:
    progress = Progress.of([*BEGIN, HALTED, {"event": "stalled", "reason": "pieces are missing"}, *BEGIN[:2]])
    assert (progress.fields["state"], progress.fields["halted"], progress.fields["stalled"]) == ("training", None, None)
    assert Progress.of([*BEGIN, HALTED]).fields["state"] == "halted"


def test_bans_of_blocks_that_do_not_stand_any_more_are_forgotten() -> None:
    bans = [{"event": "banned", "peer": peer, "round": at, "deed": "nan"} for peer, at in (("a", 49), ("b", 50))]
    found = Progress.of([*BEGIN, *bans, FAULTS[-1]]).fields["bans"]
    assert [ban["peer_id"] for ban in found] == ["a"]


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory.open(tmp_path / "peer-0", contract=bytes(32), identity=bytes(range(32)))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock that status files see: seconds, set by the test."""
    now = [100.0]
    monkeypatch.setattr("btrain.progress.time.monotonic", lambda: now[0])
    return now


def shown_round(directory: RunDirectory) -> int | None:
    written = read_status(directory.path / "status.json")
    assert written is not None
    found: int | None = written["round"]
    return found


def test_the_file_is_written_at_once_for_what_is_rare_and_once_a_second_for_the_rest(
    directory: RunDirectory, clock: list[float]
) -> None:
    status = StatusFile(directory)
    for event in BEGIN[:2]:
        status.take(event)
    assert read_status(directory.path / "status.json")["state"] == "training"  # type: ignore[index]
    for number in range(100):
        status.take({**BEGIN[2], "round": number})
    assert shown_round(directory) is None
    status.take(FAULTS[0])
    assert shown_round(directory) == 99
    clock[0] += 0.999
    status.take({**BEGIN[2], "round": 100})
    assert shown_round(directory) == 99
    clock[0] += 0.001
    status.take({**BEGIN[2], "round": 101})
    assert shown_round(directory) == 101
    status.take({**BEGIN[2], "round": 102})
    assert shown_round(directory) == 101


def test_a_status_goes_on_after_a_restart_and_is_what_the_command_shows(directory: RunDirectory) -> None:
    for event in (*BEGIN, *FAULTS):
        directory.events.write(event)
    status = StatusFile(directory, [*BEGIN, *FAULTS])
    status.take({"event": "started"})
    status.take({"event": "founded"})
    status.take({"event": "drift", "round": 64})
    status.take({"event": "restored", "round": 70, "to_round": 66, "from_step": 69, "step": 65, "rounds_undone": 5})
    document = read_status_of(directory.path)
    (peer,) = document["peers"]
    assert (peer["drifts"], peer["heals"], peer["round"]) == (2, 1, 16)
    assert peer["seconds_since_last_event"] < 60
    text = status_text(document)
    assert "drifted 2 times and healed 1" in text
    assert "1 forks seen" in text
    assert "rolled back to round 66: step 69 -> 65" in text
    assert "the run can take 2 more losses" in text


DAMAGED = (
    b"\0" * 40 + b'{"event":"round"}',
    b'{"v":1}',
    b'{"v":1,"event":"block","round":3}',
    b'{"event":"halted","round":1}',
)


@pytest.mark.parametrize("line", DAMAGED, ids=["zeros", "nothing", "block", "halted"])
def test_a_damaged_line_of_the_log_is_passed_over(directory: RunDirectory, line: bytes) -> None:
    directory.events.write(BEGIN[0])
    with directory.events.path.open("ab") as file:
        file.write(line + b"\n")
    directory.close()
    with RunDirectory.open(directory.path, contract=bytes(32), identity=bytes(range(32))) as again:
        for event in BEGIN[1:]:
            again.events.write(event)
    (peer,) = read_status_of(directory.path)["peers"]
    assert (peer["state"], peer["round"], peer["halted"]) == ("training", 16, None)
    assert "training, round 16" in status_text(read_status_of(directory.path))


@pytest.mark.parametrize("snapshot", [b"", b"\0" * 300, b"{}", b'{"v":1,"time":1.0,"state":"finished"}'], ids=len)
def test_a_damaged_status_is_not_believed(directory: RunDirectory, snapshot: bytes) -> None:
    for event in BEGIN:
        directory.events.write(event)
    (directory.path / "status.json").write_bytes(snapshot)
    (peer,) = read_status_of(directory.path)["peers"]
    assert (peer["state"], peer["round"]) == ("training", 16)
