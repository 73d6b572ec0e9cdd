"""Real processes: a swarm trains and verifies, and however it ends, nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from btrain.protocol.closing import CLOSING_ROUNDS
from btrain.templates import template

Btrain = Callable[..., subprocess.Popen[str]]

FOUR = ("swarm", "--peers", "4", "--set", "deadlines.message=2s")


def members_of(session: int) -> list[int]:
    """Processes of a session that still run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def eventually(holds: Callable[[], bool], within_s: float) -> bool:
    """Whether it becomes true in time."""
    until = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def reached_round(folder: Path, round: int) -> bool:
    """Whether some peer tells of this round."""
    return any(f'"event":"block","round":{round},' in f.read_text() for f in folder.glob("peer-*/events.jsonl"))


@pytest.fixture
def btrain() -> Iterator[Btrain]:
    """Starts the command in a session of its own, so that every process it makes is found and ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "btrain", *arguments],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        for member in members_of(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the run.yaml of the digits."""
    (tmp_path / "run.yaml").write_text(template("digits"))
    return tmp_path


@pytest.mark.timeout(300)
def test_a_swarm_trains_ends_and_verifies(btrain: Btrain, folder: Path) -> None:
    process = btrain(*FOUR, "--run-dir", "run", "--set", "rounds=5", "--json", cwd=folder)
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    document = json.loads(stdout)
    assert document["rounds"] == 5 + CLOSING_ROUNDS and document["digests_equal"] and document["false_bans"] == 0
    assert [peer["status"] for peer in document["peers"]] == ["active"] * 4
    assert document["seconds_by_phase"] and document["bytes_sent_per_parameter"] > 0
    assert json.loads((folder / "run" / "report.json").read_text()) == document
    assert eventually(lambda: not members_of(process.pid), 5)
    audit = btrain("audit", "run", "--json", cwd=folder)
    stdout, stderr = audit.communicate(timeout=100)
    assert audit.returncode == 0, stdout
    assert [ledger["blocks"] for ledger in json.loads(stdout)["ledgers"]] == [5 + CLOSING_ROUNDS] * 4


@pytest.mark.timeout(300)
def test_ctrl_c_leaves_in_order_and_leaves_nothing(btrain: Btrain, folder: Path) -> None:
    process = btrain(*FOUR, "--run-dir", "run", "--set", "rounds=5000", cwd=folder)
    assert eventually(lambda: reached_round(folder / "run", 2), 150)
    os.killpg(process.pid, signal.SIGTERM)  # the server that peers are forked from is in this group, too
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stdout + stderr
    assert eventually(lambda: not members_of(process.pid), 5)
    for events in (folder / "run").glob("peer-*/events.jsonl"):
        assert '"event":"finished","reason":"left"' in events.read_text()


@pytest.mark.timeout(100)
def test_ctrl_c_before_the_run_begins(btrain: Btrain, folder: Path) -> None:
    process = btrain(*FOUR, "--run-dir", "run", cwd=folder)
    assert eventually((folder / "run" / "swarm.json").exists, 60)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped before the run began" in stderr, stderr
    assert eventually(lambda: not members_of(process.pid), 5)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_peers_end_when_their_parent_is_killed(btrain: Btrain, folder: Path) -> None:
    process = btrain(*FOUR, "--run-dir", "run", "--set", "rounds=5000", cwd=folder)
    assert eventually(lambda: reached_round(folder / "run", 2), 150)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert eventually(lambda: not members_of(process.pid), 30)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_peer_that_is_killed_is_reported_and_the_others_go_on(btrain: Btrain, folder: Path) -> None:
    process = btrain(*FOUR, "--run-dir", "run", "--set", "rounds=40", "--json", cwd=folder)
    assert eventually(lambda: reached_round(folder / "run", 2), 150)
    victim = int((folder / "run" / "peer-2" / "lock").read_text())
    os.kill(victim, signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    document = json.loads(stdout)
    assert "peer-2: was ended by signal 9" in stderr
    assert [peer["status"] for peer in document["peers"]] == ["active", "active", "absent", "active"]
    assert document["digests_equal"] and document["false_bans"] == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_without_a_quorum_the_swarm_says_so_and_ends(btrain: Btrain, folder: Path) -> None:
    process = btrain(*FOUR, "--run-dir", "run", "--set", "rounds=5000", "--json", cwd=folder)
    assert eventually(lambda: reached_round(folder / "run", 2), 150)
    for name in ("peer-1", "peer-2"):
        os.kill(int((folder / "run" / name / "lock").read_text()), signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=100)
    assert process.returncode == 1 and "2 of 4 members are gone" in stderr
    assert json.loads(stdout)["digests_equal"] and not members_of(process.pid)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_peer_restarted_in_the_middle_of_a_round_returns_without_a_ban(btrain: Btrain, folder: Path) -> None:
    process = btrain(
        *FOUR, "--byzantine", "1", "--attack", "restart_mid_round", "--run-dir", "run", "--set", "rounds=60", "--json",
        cwd=folder,
    )  # fmt: skip
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    document = json.loads(stdout)
    assert "it starts again" in stderr
    assert document["false_bans"] == 0 and document["digests_equal"]
    assert [peer["status"] for peer in document["peers"]] == ["active"] * 4


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--byzantine", "2", "--attack", "nan"), 2, ["--byzantine 2", "at most 1 of 4"]),
        (("--byzantine", "1", "--attack", "sign_flop"), 2, ["sign_flop", "did you mean sign_flip"]),
        (("--byzantine", "1", "--attack", "sign_flip:size=3"), 2, ["size", "sign_flip"]),
        (("--set", "data.builtin=digit"), 2, ["data.builtin", "digits"]),
    ],
)
def test_wrong_uses_end_soon_with_a_clear_message(
    arguments: tuple[str, ...], code: int, words: list[str], btrain: Btrain, folder: Path
) -> None:
    process = btrain(*FOUR, "--run-dir", "run", *arguments, cwd=folder)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert all(word in stderr for word in words), stderr
    assert "Traceback" not in stderr and len(stderr.strip().splitlines()) <= 4
    assert eventually(lambda: not members_of(process.pid), 20)
    assert not list(folder.glob("run/peer-*"))
