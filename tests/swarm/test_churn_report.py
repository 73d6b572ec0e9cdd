"""What the churn harness takes for a failure, and what it finds left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from btrain.identity import ProcessLock
from btrain.swarm.churn import Churn
from btrain.swarm.churn_plan import ChurnPlan, Participant
from btrain.swarm.churn_report import _ending
from btrain.swarm.footprint import left_behind


@pytest.mark.parametrize(
    "name", [".config.yaml.new", "checkpoints/.round-00000016.new/", "checkpoints/.round-00000016.old/"]
)
def test_what_was_never_finished_is_found(name: str, tmp_path: Path) -> None:
    assert left_behind(tmp_path) == []
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if name.endswith("/") else path.touch()
    assert left_behind(tmp_path) == [f"{path} was never finished"]


def test_a_lock_that_is_held_is_found(tmp_path: Path) -> None:
    held = ProcessLock.acquire(tmp_path / "lock")
    assert left_behind(tmp_path) == [f"{tmp_path / 'lock'} is still locked"]
    held.close()
    assert left_behind(tmp_path) == []


def test_one_that_was_killed_and_started_again_must_end_in_order(tmp_path: Path) -> None:
    gone = 2**22 + 1  # no process has so high a number
    killed = Participant("peer-0", tmp_path, "id", pids=[gone], kills=1, exit_code=-9)
    assert _ending(killed, banned=False) == []
    again = Participant("peer-0", tmp_path, "id", pids=[gone, gone], kills=1, exit_code=3, error="a file is damaged")
    assert _ending(again, banned=False) == ["peer-0 ended with exit code 3: a file is damaged"]


def test_a_killed_peer_counts_as_failed_until_its_seat_is_freed(tmp_path: Path) -> None:
    churn = Churn(ChurnPlan(peers=5, attackers=0, periods=1), tmp_path / "run", print)
    killed, other = churn._spare[:2]
    churn.everybody = {killed.name: killed, other.name: other}
    assert churn._may_fail()
    killed.kills, killed.pids = 1, [1]
    assert not churn._may_fail()
    churn._take(other, {"event": "block", "round": 70, "void": 0, "hash": "", "left": [killed.peer_id]})
    assert churn._may_fail()
