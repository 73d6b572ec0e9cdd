"""Learning rates as functions of the step count."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btrain.errors import ConfigError
from btrain.training import Schedule
from btrain.training.schedule import ScheduleName


def test_constant_with_and_without_warmup() -> None:
    assert [Schedule().factor(step) for step in (0, 5, 10**9)] == [1.0, 1.0, 1.0]
    assert [Schedule(warmup=4).factor(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine() -> None:
    schedule = Schedule("cosine", warmup=10, steps=110, final=0.1)
    assert schedule.factor(9) == 1.0
    assert schedule.factor(10) == 1.0
    assert schedule.factor(60) == pytest.approx(0.55, abs=1e-11)
    assert schedule.factor(35) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)), abs=1e-11)
    assert schedule.factor(110) == schedule.factor(5000) == pytest.approx(0.1, abs=1e-11)


def test_linear() -> None:
    schedule = Schedule("linear", steps=100)
    assert [schedule.factor(step) for step in (0, 50, 75, 100, 101)] == [1.0, 0.5, 0.25, 0.0, 0.0]


@given(
    name=st.sampled_from(["constant", "cosine", "linear"]),
    warmup=st.integers(0, 100),
    steps=st.integers(1, 1000),
    final=st.floats(0, 1),
    step=st.integers(0, 2000),
)
def test_factors_stay_between_zero_and_one_and_on_the_grid(
    name: ScheduleName, warmup: int, steps: int, final: float, step: int
) -> None:
    factor = Schedule(name, warmup, steps, final).factor(step)
    assert 0.0 <= factor <= 1.0
    assert (factor * 2**40).is_integer()


def test_wrong_schedules() -> None:
    with pytest.raises(ConfigError, match="expected constant, cosine or linear"):
        Schedule("step")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="must not be negative"):
        Schedule(warmup=-1)
