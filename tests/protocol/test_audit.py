"""The tie-aware excess against the numbers it was designed by: replay noise passes, shifts that matter do not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from btrain.kernels import QuantizedBlocks, dequantize_blockwise
from btrain.protocol.audit import GradientCheck, excess
from btrain.protocol.encoding import digest
from btrain.protocol.reduction import encode_gradient
from btrain.protocol.roles import PartLayout
from btrain.protocol.verdicts import GUILTY, INNOCENT, UNSURE

T = 1e-4
NUMEL = 20_000
LAYOUT = PartLayout(NUMEL, 4)


def gradient(seed: int = 0, numel: int = NUMEL) -> torch.Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


def committed(values: torch.Tensor, layout: PartLayout = LAYOUT) -> list[QuantizedBlocks]:
    parts = encode_gradient(values, layout)
    assert parts is not None
    return [QuantizedBlocks.from_bytes(data, layout.part_numel(i)) for i, data in enumerate(parts)]


def noise(values: torch.Tensor, relative: float, seed: int = 1) -> torch.Tensor:
    other = torch.randn(values.shape, generator=torch.Generator().manual_seed(seed))
    return values + relative * values.norm() / other.norm() * other


def test_the_same_gradient_has_no_excess() -> None:
    assert excess(committed(gradient()), gradient(), LAYOUT) < 1e-8  # decoding rounds once, in float32


@pytest.mark.parametrize("relative", [1e-6, 1e-5, 1e-4, 7e-4])
def test_the_noise_of_other_hardware_passes(relative: float) -> None:
    for seed in range(4):
        honest = gradient(seed)
        assert excess(committed(noise(honest, relative, seed + 50)), honest, LAYOUT) <= T


def test_an_excess_is_never_more_than_the_noise_itself() -> None:
    honest = gradient()
    noisy = noise(honest, 1e-2)
    step = torch.cat([dequantize_blockwise(part) for part in committed(noisy)])[:NUMEL]
    assert excess(committed(noisy), honest, LAYOUT) <= 2e-2
    assert step.shape == honest.shape


@pytest.mark.parametrize(("shift", "low", "high"), [(1e-3, 5e-5, 3e-4), (4e-3, 5e-4, 2e-3), (1e-2, 2e-3, 6e-3)])
def test_a_coherent_shift_is_seen_as_it_was_measured(shift: float, low: float, high: float) -> None:
    honest = gradient()
    direction = gradient(9).sign()
    shifted = honest + shift * honest.norm() / direction.norm() * direction
    assert low <= excess(committed(shifted), honest, LAYOUT) <= high


def test_directed_rounding_and_a_code_more_everywhere_are_seen() -> None:
    honest = gradient()
    for change, low in (
        (lambda c: c + (c < 126).to(torch.int8), 1e-2),
        (lambda c: c - (c > -126).to(torch.int8), 1e-2),
    ):
        parts = [QuantizedBlocks(change(p.codes), p.scales, p.numel) for p in committed(honest)]
        assert excess(parts, honest, LAYOUT) > low > 4 * T


@pytest.mark.parametrize("attack", [
    lambda g: -g, lambda g: -1000 * g, lambda g: 0.99 * g, lambda g: g.flip(0), torch.zeros_like,
    lambda g: torch.cat([g[: NUMEL // 2], -g[NUMEL // 2 :]]), lambda g: g.roll(1),
])  # fmt: skip
def test_every_other_gradient_is_guilty(attack: Any) -> None:
    assert excess(committed(attack(gradient())), gradient(), LAYOUT) > 4 * T


def test_an_attack_on_one_small_part_is_not_hidden_by_the_rest() -> None:
    honest = gradient()
    honest[:5000] *= 1e-3
    forged = honest.clone()
    forged[:5000] *= -1
    assert excess(committed(forged), honest, LAYOUT) > 4 * T


def test_a_dead_unit_convicts_nobody() -> None:
    honest = gradient()
    start, end = LAYOUT.bounds(1)
    honest[start:end] = 0
    other_hardware = honest.clone()
    other_hardware[start:end] = 1e-9 * gradient(3)[start:end]
    assert excess(committed(other_hardware), honest, LAYOUT) <= T


def test_a_scale_that_is_scanned_for_is_seen() -> None:
    honest = gradient()
    parts = committed(honest)
    parts[0] = QuantizedBlocks(parts[0].codes, parts[0].scales * 1.003, parts[0].numel)
    assert excess(parts, honest, LAYOUT) > T


def test_nothing_to_compare_with_is_no_acquittal() -> None:
    honest = gradient()
    assert excess(committed(honest), torch.full((NUMEL,), math.nan), LAYOUT) == math.inf
    assert excess(committed(honest), torch.zeros(NUMEL), LAYOUT) == math.inf
    assert excess(committed(torch.zeros(NUMEL)), torch.zeros(NUMEL), LAYOUT) == 0.0


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), numel=st.integers(1, 5000), scale=st.floats(-12, 12), parts=st.integers(1, 5))
def test_honest_peers_of_any_size_pass(seed: int, numel: int, scale: float, parts: int) -> None:
    layout = PartLayout(numel, min(parts, -(-numel // 1024)))
    honest = gradient(seed, numel) * 10.0**scale
    assert excess(committed(noise(honest, 1e-6, seed), layout), honest, layout) <= T


@pytest.mark.parametrize(("outcome", "measured", "vote"), [
    ("equal", 0.0, INNOCENT), ("measured", T, INNOCENT), ("measured", 1.5 * T, UNSURE), ("measured", 2 * T, UNSURE),
    ("measured", 2.01 * T, GUILTY), ("unavailable", 1.0, UNSURE),
])  # fmt: skip
def test_the_verdict_has_three_values(outcome: str, measured: float, vote: int) -> None:
    check = GradientCheck("t", None, None, b"", T)  # type: ignore[arg-type]
    check.outcome, check.excess = outcome, measured
    assert check.vote(T) == vote


def test_an_encoding_has_the_hash_of_its_bytes() -> None:
    parts = encode_gradient(gradient(), LAYOUT)
    assert parts is not None and len({digest(part) for part in parts}) == 4
    assert encode_gradient(torch.full((NUMEL,), math.inf), LAYOUT) is None
