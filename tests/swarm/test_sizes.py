"""The smallest and a large model over eight real peers: one of 650 parameters is less than one block of the codec."""

from __future__ import annotations

from pathlib import Path

import pytest

from btrain.protocol.closing import CLOSING_ROUNDS
from btrain.templates import template
from tests.swarm.commands import swarm


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("model", "rounds"),
    [("{builtin: logreg}", 60), ("{builtin: mlp, hidden: [3100, 3100]}", 5)],
    ids=["650", "1e7"],
)
def test_eight_peers_train_a_model_of_any_size(model: str, rounds: int, tmp_path: Path) -> None:
    config = template("digits").replace("{builtin: mlp, hidden: [32]}", model)
    settings = (f"rounds={rounds}", "deadlines.message=5s", "optimizer.lr=0.1")
    document = swarm(tmp_path, config, "--peers", "8", *(word for setting in settings for word in ("--set", setting)))
    assert document["rounds"] == rounds + CLOSING_ROUNDS
    assert [peer["status"] for peer in document["peers"]] == ["active"] * 8
    assert model != "{builtin: logreg}" or document["final"]["metric"] > 0.8  # of ten classes
