"""`btrain simulate`: one seed, one document."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from btrain.cli import app
from btrain.templates import template


def simulated(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a simulation of the digits."""
    file = folder / "run.yaml"
    file.write_text(template("digits"))
    command = ["simulate", "--config", str(file), "--peers", "4", "--rounds", "4", *arguments]
    result = CliRunner().invoke(app, command)
    return result.exit_code, result.stdout, result.stderr


def test_the_document_depends_on_the_seed_only(tmp_path: Path) -> None:
    attack = ("--byzantine", "1", "--attack", "nan", "--json")
    code, first, _ = simulated(tmp_path, *attack, "--seed", "3")
    assert code == 0 and simulated(tmp_path, *attack, "--seed", "3")[1] == first
    document = json.loads(first)
    assert document["rounds"] == 4 and document["false_bans"] == 0 and "wall_s" not in document
    banned = [peer for peer in document["peers"] if peer["byzantine"]]
    assert [(peer["status"], peer["reason"]) for peer in banned] == [("banned", "illegal_encoding")]
    assert json.loads(simulated(tmp_path, *attack, "--seed", "4")[1])["run_id"] != document["run_id"]


def test_too_many_attackers_are_refused_with_the_limit(tmp_path: Path) -> None:
    code, stdout, stderr = simulated(tmp_path, "--byzantine", "2", "--attack", "nan", "--json")
    assert code == 2 and "at most 1" in stderr and json.loads(stdout)["exit_code"] == 2
