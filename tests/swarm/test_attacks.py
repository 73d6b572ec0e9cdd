"""Every attack over the real protocol: who attacks is banned or loses its seat, nobody else is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from btrain.templates import template
from btrain.verify import audit_run
from tests.swarm.commands import btrain, swarm

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


def attacked(folder: Path, attack: str, rounds: int) -> list[dict[str, Any]]:
    """The three of eight peers that do this, as the closing document tells of them."""
    document = swarm(
        folder, template("digits"), "--peers", "8", "--byzantine", "3", "--attack", attack, "--set", f"rounds={rounds}"
    )
    return [peer for peer in document["peers"] if peer["byzantine"]]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("attack", BANNED)
def test_attackers_are_banned_on_evidence_that_verifies(attack: str, tmp_path: Path) -> None:
    attackers = attacked(tmp_path, attack, rounds=80)
    assert [peer["status"] for peer in attackers] == ["banned"] * 3
    for file in (path for peer in attackers for path in peer["evidence"]):
        assert btrain("evidence", file, cwd=tmp_path).returncode == 0
    audit = btrain("audit", "run", cwd=tmp_path)
    assert audit.returncode == 0, audit.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("attack", SILENT)
def test_silence_and_lateness_cost_a_seat_and_ban_nobody_honest(attack: str, tmp_path: Path) -> None:
    attackers = attacked(tmp_path, attack, rounds=8)
    events = "".join(file.read_text() for file in tmp_path.glob("run/peer-*/events.jsonl"))
    for peer in attackers:
        absences = [line for line in events.splitlines() if '"absent":[' in line and peer["peer_id"] in line]
        assert peer["status"] in {"absent", "banned"} or absences, attack


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_changed_byte_of_a_real_run_is_found_and_named(tmp_path: Path) -> None:
    """In the ledger (blocks and certificates) and in every evidence file, at bytes spread over each of them."""
    attackers = attacked(tmp_path, "nan", rounds=10)
    assert [peer["status"] for peer in attackers] == ["banned"] * 3
    folder = tmp_path / "run" / "peer-0"
    assert audit_run(tmp_path / "run")["ok"]
    evidence = sorted((folder / "evidence").iterdir())
    assert len({file.name.split("-")[1] for file in evidence}) == 3  # of every attacker, maybe of two rounds
    for file in (folder / "ledger", *evidence):
        intact = file.read_bytes()
        for position in range(7, len(intact), len(intact) // 24):
            file.write_bytes(intact[:position] + bytes([intact[position] ^ 1]) + intact[position + 1 :])
            document = audit_run(folder)
            assert not document["ok"] and any(str(file) in fault for fault in document["faults"]), position
        file.write_bytes(intact)
    assert audit_run(folder)["ok"]
