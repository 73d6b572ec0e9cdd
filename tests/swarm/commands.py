"""`btrain` as a process: its document, its words, its exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def btrain(*arguments: str, cwd: Path, timeout_s: float = 1200.0) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "btrain", *arguments], cwd=cwd, capture_output=True, text=True, check=False,
        timeout=timeout_s,
    )  # fmt: skip


def swarm(folder: Path, config: str, *arguments: str) -> dict[str, Any]:
    """The document of a swarm in `folder`/run; it came to its end, banned nobody honest and agrees."""
    (folder / "run.yaml").write_text(config)
    result = btrain("swarm", *arguments, "--run-dir", "run", "--json", cwd=folder)
    assert result.returncode == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    assert document["false_bans"] == 0 and document["digests_equal"]
    return document
