"""Rules on dense matrices: precision, range and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from btrain.aggregation import BadShape, CenteredClip, Mean, NonFiniteInput, aggregate, get_rule, rule_names
from btrain.aggregation.dense import CHUNK_COLUMNS, dense_gram


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("elements", [1, 100, CHUNK_COLUMNS + 3])
def test_the_gram_matrix_is_that_of_the_rows(dtype: torch.dtype, elements: int) -> None:
    x_ND = torch.randn(5, elements, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact_NN = (x_ND.double() @ x_ND.double().T).numpy()
    np.testing.assert_allclose(dense_gram(x_ND), exact_NN, rtol=1e-5, atol=1e-4 * math.sqrt(elements))


def test_near_contributors_do_not_cancel_in_float32() -> None:
    generator = torch.Generator().manual_seed(1)
    x_ND = torch.randn(1, 50_000, generator=generator) + 1e-4 * torch.randn(9, 50_000, generator=generator)
    wide_ND = x_ND.double()
    expected_D = aggregate(wide_ND)
    spread = float((wide_ND - wide_ND.mean(0)).norm(dim=1).mean())
    assert float((aggregate(x_ND).double() - expected_D).norm()) < 1e-2 * spread


@pytest.mark.parametrize("name", rule_names())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_nothing_overflows_at_the_end_of_the_range(name: str, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max if dtype is not torch.float64 else 1e150
    x_ND = torch.full((7, 9), largest, dtype=dtype)
    x_ND[::2, ::2] *= -1
    average_D = get_rule(name).aggregate(x_ND)
    assert average_D.dtype is dtype
    assert bool(torch.isfinite(average_D).all())


@pytest.mark.parametrize("name", rule_names())
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_input_is_refused(name: str, value: float) -> None:
    for dtype in (torch.float32, torch.float64):
        x_ND = torch.zeros(5, CHUNK_COLUMNS + 5, dtype=dtype)
        x_ND[3, CHUNK_COLUMNS + 2] = value
        with pytest.raises(NonFiniteInput):
            get_rule(name).aggregate(x_ND)


@pytest.mark.parametrize("x_ND", [torch.zeros(3), torch.zeros(0, 4), torch.zeros(2, 2, dtype=torch.int64)])
def test_other_shapes_are_refused(x_ND: torch.Tensor) -> None:
    for name in ("mean", "median"):
        with pytest.raises(BadShape):
            get_rule(name).aggregate(x_ND)


def test_a_tiny_coefficient_of_a_huge_vector_keeps_its_digits() -> None:
    generator = torch.Generator().manual_seed(2)
    x_ND = torch.randn(5, 40, generator=generator) * 1e-6
    x_ND[3:] = 1e38 * torch.nn.functional.normalize(torch.randn(2, 40, generator=generator))
    expected_D = aggregate(x_ND.double())
    assert float((aggregate(x_ND).double() - expected_D).norm() / expected_D.norm()) < 1e-5


def test_gradients_are_not_tracked() -> None:
    x_ND = torch.randn(3, 4, requires_grad=True)
    for rule in (Mean(), CenteredClip(), get_rule("median")):
        assert not rule.aggregate(x_ND).requires_grad
