"""Every attack over the real protocol: who attacks is banned or loses its seat, nobody else is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from btrain.templates import template

BANNED = (
    "sign_flip",
    "random_direction",
    "ipm",
    "alie",
    "label_flip",
    "free_rider",
    "nan",
    "huge",
    "forged_scale",
    "wrong_reduce",
    "equivocate",
    "false_accuse",
)
SILENT = ("edge_late:late=12", "freeze")  # by default some get in with every Commit


def swarm(folder: Path, attack: str, rounds: int) -> dict[str, object]:
    """The document of eight peers, three of which do this."""
    (folder / "run.yaml").write_text(template("digits"))
    command = [
        sys.executable, "-m", "btrain", "swarm", "--peers", "8", "--byzantine", "3", "--attack", attack,
        "--set", f"rounds={rounds}", "--run-dir", "run", "--json",
    ]  # fmt: skip
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=1200)
    assert result.returncode == 0, result.stderr
    document: dict[str, object] = json.loads(result.stdout)
    assert document["false_bans"] == 0 and document["digests_equal"]
    return document


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("attack", BANNED)
def test_attackers_are_banned_on_evidence_that_verifies(attack: str, tmp_path: Path) -> None:
    peers = swarm(tmp_path, attack, rounds=80)["peers"]
    attackers = [peer for peer in peers if peer["byzantine"]]  # type: ignore[attr-defined]
    assert [peer["status"] for peer in attackers] == ["banned"] * 3
    for file in (path for peer in attackers for path in peer["evidence"]):
        subprocess.run(
            [sys.executable, "-m", "btrain", "evidence", file],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            timeout=100,
        )
    audit = subprocess.run(
        [sys.executable, "-m", "btrain", "audit", "run"], cwd=tmp_path, capture_output=True, check=False, timeout=300
    )
    assert audit.returncode == 0, audit.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("attack", SILENT)
def test_silence_and_lateness_cost_a_seat_and_ban_nobody_honest(attack: str, tmp_path: Path) -> None:
    peers = swarm(tmp_path, attack, rounds=8)["peers"]
    events = "".join(file.read_text() for file in tmp_path.glob("run/peer-*/events.jsonl"))
    for peer in (peer for peer in peers if peer["byzantine"]):  # type: ignore[attr-defined]
        absences = [line for line in events.splitlines() if '"absent":[' in line and peer["peer_id"] in line]
        assert peer["status"] in {"absent", "banned"} or absences, attack
