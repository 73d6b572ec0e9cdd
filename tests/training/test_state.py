"""States as bytes and digests; every damaged or foreign state is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from btrain.training import State, StateError, states_close

TENSORS = {
    "parameter/w": torch.arange(6, dtype=torch.float32).view(2, 3),
    "buffer/n": torch.tensor(5),
    "optimizer/w/mask": torch.tensor([True, False]),
    "optimizer/w/short": torch.tensor([1.5, 2.5], dtype=torch.bfloat16),
}
SCALARS = {"optimizer/w/step": 7, "optimizer/w/rate": 0.1, "optimizer/w/none": None, "optimizer/w/flag": True}
STATE = State(3, TENSORS, SCALARS)
GOLDEN_DIGEST = "aa6ca9496685d2ad019ea0ba71625d0be0cb07edbc3f95751de2a7c945b4e4e7"


def test_round_trip() -> None:
    loaded = State.from_bytes(STATE.to_bytes())
    assert loaded.step == 3
    assert loaded.scalars == SCALARS
    assert type(loaded.scalars["optimizer/w/flag"]) is bool
    assert loaded.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor)
    assert loaded.digest() == STATE.digest()
    assert loaded.to_bytes() == STATE.to_bytes()


def test_golden_digest() -> None:
    assert STATE.digest().hex() == GOLDEN_DIGEST


def test_order_and_layout_do_not_matter() -> None:
    shuffled = dict(reversed(TENSORS.items()))
    shuffled["parameter/w"] = torch.arange(6, dtype=torch.float32).view(2, 3).t().contiguous().t()
    other = State(3, shuffled, dict(reversed(SCALARS.items())))
    assert other.digest() == STATE.digest()
    assert other.to_bytes() == STATE.to_bytes()


@pytest.mark.parametrize(
    "other",
    [
        State(4, TENSORS, SCALARS),
        State(3, TENSORS | {"parameter/w": TENSORS["parameter/w"].view(3, 2)}, SCALARS),
        State(3, TENSORS | {"parameter/w": TENSORS["parameter/w"] + 1e-6}, SCALARS),
        State(3, TENSORS | {"parameter/w": TENSORS["parameter/w"].double()}, SCALARS),
        State(3, TENSORS | {"buffer/m": torch.tensor(5)}, SCALARS),
        State(3, TENSORS, SCALARS | {"optimizer/w/step": 7.0}),
        State(3, TENSORS, SCALARS | {"optimizer/w/flag": 1}),
        State(3, TENSORS, SCALARS | {"optimizer/w/rate": 0.1000000000000001}),
    ],
)
def test_every_difference_changes_the_digest(other: State) -> None:
    assert other.digest() != STATE.digest()


def with_metadata(**changes: Any) -> bytes:
    about = {"version": 1, "step": 3, "scalars": {}} | changes
    return safetensors.torch.save({"parameter/w": torch.ones(1)}, metadata={"btrain": json.dumps(about)})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no safetensors content"),
        (STATE.to_bytes()[:-1], "no safetensors content"),
        (STATE.to_bytes() + b"x", "no safetensors content"),
        (b"\xff" * 64, "no safetensors content"),
        (safetensors.torch.save({"parameter/w": torch.ones(1)}), "no readable metadata"),
        (safetensors.torch.save({"w": torch.ones(1)}, metadata={"btrain": "{"}), "no readable metadata"),
        (safetensors.torch.save({"w": torch.ones(1)}, metadata={"btrain": "[]"}), "unexpected metadata"),
        (with_metadata(version=2), "version 2, expected 1"),
        (with_metadata(step=-1), "unexpected metadata"),
        (with_metadata(step=True), "unexpected metadata"),
        (with_metadata(step=1 << 63), "unexpected metadata"),
        (with_metadata(more=1), "unexpected metadata"),
        (with_metadata(scalars=[]), "unexpected metadata"),
        (with_metadata(scalars={"a": 5}), "a is no valid number"),
        (with_metadata(scalars={"a": ["int", True]}), "a is no valid number"),
        (with_metadata(scalars={"a": ["int", 1 << 64]}), "a is no valid number"),
        (with_metadata(scalars={"a": ["float", "nan"]}), "a is no valid number"),
        (with_metadata(scalars={"a": ["float", "0.5"]}), "a is no valid number"),
        (with_metadata(scalars={"a": ["float", "0x1p99999"]}), "a is no valid number"),
        (with_metadata(scalars={"a": ["str", "x"]}), "a is no valid number"),
        (State(3, {"parameter/w": torch.tensor([1.0, float("nan")])}, {}).to_bytes(), "w holds a number that is not"),
        (State(3, {"parameter/w": torch.tensor(float("inf"))}, {}).to_bytes(), "w holds a number that is not finite"),
    ],
)
def test_refused_states(data: bytes, message: str) -> None:
    with pytest.raises(StateError, match=message):
        State.from_bytes(data)


@given(position=st.integers(0, len(STATE.to_bytes()) - 1), value=st.integers(0, 255))
def test_one_changed_byte_is_refused_or_changes_the_digest(position: int, value: int) -> None:
    data = bytearray(STATE.to_bytes())
    if data[position] == value:
        return
    data[position] = value
    try:
        state = State.from_bytes(bytes(data))
    except StateError:
        return
    # A byte that only separates words of the header may change without changing what is said.
    assert state.digest() != STATE.digest() or state == STATE or state.to_bytes() == STATE.to_bytes()


@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(StateError):
        State.from_bytes(data)


BOUND = 2**-20
SMOOTH = State(
    3, {"parameter/w": torch.linspace(-1, 1, 1001), "buffer/n": torch.tensor(5), "buffer/r": torch.tensor(0.5)}, SCALARS
)


def with_w(change: torch.Tensor) -> bytes:
    return State(3, SMOOTH.tensors | {"parameter/w": SMOOTH.tensors["parameter/w"] + change}, SCALARS).to_bytes()


def test_rounding_is_close_and_more_is_not() -> None:
    own = SMOOTH.to_bytes()
    rms = float(SMOOTH.tensors["parameter/w"].double().square().mean().sqrt())
    ones = torch.ones(1001)
    assert states_close(own, own, 0.0)
    assert states_close(own, with_w(0.9 * BOUND * rms * ones), BOUND)
    assert not states_close(own, with_w(1.2 * BOUND * rms * ones), BOUND)
    up = torch.nextafter(SMOOTH.tensors["parameter/w"], torch.tensor(torch.inf)) - SMOOTH.tensors["parameter/w"]
    assert states_close(own, with_w(up), BOUND)


@pytest.mark.parametrize(
    "other",
    [
        State(4, SMOOTH.tensors, SCALARS),
        State(3, SMOOTH.tensors, SCALARS | {"optimizer/w/step": 8}),
        State(3, SMOOTH.tensors | {"buffer/n": torch.tensor(6)}, SCALARS),
        State(3, SMOOTH.tensors | {"buffer/r": torch.tensor(0.5000001)}, SCALARS),
        State(3, SMOOTH.tensors | {"parameter/w": SMOOTH.tensors["parameter/w"].view(7, 143)}, SCALARS),
        State(3, SMOOTH.tensors | {"parameter/w": SMOOTH.tensors["parameter/w"].double()}, SCALARS),
        State(3, SMOOTH.tensors | {"parameter/w": torch.full((1001,), torch.nan)}, SCALARS),
        State(3, SMOOTH.tensors | {"parameter/v": torch.zeros(1)}, SCALARS),
    ],
)
def test_what_is_no_rounding_is_not_close(other: State) -> None:
    assert not states_close(SMOOTH.to_bytes(), other.to_bytes(), 0.5)


def test_what_is_no_state_is_not_close() -> None:
    assert not states_close(SMOOTH.to_bytes(), b"poison", 0.5)
    assert not states_close(SMOOTH.to_bytes(), SMOOTH.to_bytes()[:-1], 0.5)
