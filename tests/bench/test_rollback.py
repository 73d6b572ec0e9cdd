"""The experiment on rollback: every mode of the contract has its columns, and runs of its own."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest

from btrain.bench.attacks import Job
from btrain.bench.contest import ROLLBACKS
from btrain.config.schema import Verification

FILE = Path(__file__).parents[2] / "experiments" / "rollback.py"


@pytest.fixture
def experiment() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rollback", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_mode_is_measured_and_stands_in_the_table(
    experiment: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {"sweep": "3", "rollback": "2", "rollback_window": "1.5"}

    def computed(jobs: Sequence[Job], processes: int, log: Path | None) -> dict[str, dict[str, Any]]:
        honest = [job for job in jobs if job.arguments["attack"] is None]
        return {job.key: {"train": losses[job.arguments["verification"]]} for job in jobs} | {
            job.key: {"train": "1"} for job in honest
        }

    monkeypatch.setattr(experiment, "run_jobs", computed)
    experiment.main(["--seeds", "2", "--attacks", "alie"])
    out = capsys.readouterr().out
    assert out.count("| attack | none, mean | worst | proven_round, mean | worst | window, mean | worst |") == 2
    assert out.count("| alie | 3.000 | 3.000 | 2.000 | 2.000 | 1.500 | 1.500 |") == 2
    assert tuple(experiment.MODES) == get_args(Verification.model_fields["rollback"].annotation)
    assert set(experiment.MODES.values()) == {"sweep", *ROLLBACKS}
