"""What the machine has no room for: a peer says so and ends, and goes on from its run directory once there is room."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from btrain.templates import template

LIMITED = """\
import resource, runpy
resource.setrlimit(resource.{kind}, ({most}, {most}))
runpy.run_module("btrain", run_name="__main__")
"""


def peer(folder: Path, limit: tuple[str, int] | None = None) -> subprocess.CompletedProcess[str]:
    """`btrain peer` alone, to its end, within a limit of its process."""
    start = ["-m", "btrain"] if limit is None else ["-c", LIMITED.format(kind=limit[0], most=limit[1])]
    settings = ("group.start_when=1", "rounds=30", "local.listen=/ip4/127.0.0.1/tcp/0")
    words = ["peer", "--config", "run.yaml", "--run-dir", "run"]
    words += [word for setting in settings for word in ("--set", setting)]
    return subprocess.run(
        [sys.executable, *start, *words], cwd=folder, capture_output=True, text=True, check=False, timeout=200
    )


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("limit", "words"),
    [(("RLIMIT_FSIZE", 100_000), ["no space left", "start again"]), (("RLIMIT_NOFILE", 40), ["Too many open files"])],
    ids=["disk full", "few descriptors"],
)
def test_a_peer_without_room_says_so_and_goes_on_once_there_is(
    tmp_path: Path, limit: tuple[str, int], words: list[str]
) -> None:
    (tmp_path / "run.yaml").write_text(template("digits"))
    ended = peer(tmp_path, limit)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr, ended.stderr
    (message,) = [line for line in ended.stderr.splitlines() if line.startswith("btrain: ")]
    assert "run/" in message and all(word in message for word in words)
    again = peer(tmp_path)
    assert again.returncode == 0, again.stderr
    rounds = [json.loads(line)["round"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rounds[-1] == 29 and sorted(set(rounds)) == list(range(30))
