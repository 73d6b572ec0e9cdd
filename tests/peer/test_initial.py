"""x[0] in the run directory: where a chain that is given up returns to, and what newcomers are given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from btrain.peer.initial import InitialState
from btrain.training import State

STATE = State(0, {"parameter/w": torch.arange(4.0)}, {}).to_bytes()
OTHER = State(0, {"parameter/w": torch.zeros(4)}, {}).to_bytes()


@pytest.mark.parametrize(
    "damaged", [b"", STATE[:-1], STATE[:-1] + b"\x41", OTHER], ids=["empty", "cut", "bit", "other"]
)
def test_nobody_returns_to_a_damaged_state_and_the_next_start_mends_it(tmp_path: Path, damaged: bytes) -> None:
    initial = InitialState(tmp_path)
    initial.keep(STATE)
    assert initial.intact() == STATE
    initial.path.write_bytes(damaged)
    assert initial.intact() is None and initial.intact(State.from_bytes(STATE).digest().hex()) is None
    InitialState(tmp_path).keep(STATE)
    assert initial.intact() == STATE
    initial.path.unlink()
    assert initial.intact() is None
