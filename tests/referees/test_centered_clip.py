"""CenteredClip on coefficients against iterations on vectors by byzfl and byzpy.

Theirs starts from zero and divides by n. The same iteration is made here out of the product's own clip weights; then
the product's fixed point is compared with where theirs ends.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np
import pytest
import torch

from btrain.aggregation import CenteredClip
from btrain.aggregation.centered_clip import clip_weights
from btrain.aggregation.dense import dense_gram

CASES = [
    (n, d, tau, steps)
    for n, d in [(1, 100), (2, 1), (5, 4096), (16, 100), (64, 4096)]
    for tau in (0.1, 1.0, 10.0, 1e9)
    for steps in (1, 5, 50)
]


def vectors(contributors: int, elements: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(contributors * elements)
    x_ND = torch.randn(contributors, elements, generator=generator, dtype=torch.float64) + 0.3
    x_ND[: contributors // 3] *= 20
    return x_ND


def plain_iterations(x_ND: torch.Tensor, tau: float, steps: int) -> torch.Tensor:
    """v <- v + mean_i min(1, tau / |x_i - v|) (x_i - v) from v = 0, on coefficients."""
    gram_NN = dense_gram(x_ND)
    coefficients_N = np.zeros(len(gram_NN))
    for _ in range(steps):
        clips_N = clip_weights(gram_NN, coefficients_N, tau)
        coefficients_N = coefficients_N * (1 - clips_N.mean()) + clips_N / len(clips_N)
    return torch.from_numpy(coefficients_N) @ x_ND.double()


@pytest.mark.parametrize(("contributors", "elements", "tau", "steps"), CASES)
def test_byzfl_in_float32(byzfl: ModuleType, contributors: int, elements: int, tau: float, steps: int) -> None:
    x_ND = vectors(contributors, elements).float()
    theirs_D = byzfl.CenteredClipping(L=steps, tau=tau)(x_ND).double()
    ours_D = plain_iterations(x_ND, tau, steps)
    assert float((ours_D - theirs_D).norm()) <= 1e-6 * float(x_ND.double().norm(dim=1).max())


@pytest.mark.parametrize(("contributors", "elements", "tau", "steps"), CASES)
def test_byzpy_in_float64(byzpy: ModuleType, contributors: int, elements: int, tau: float, steps: int) -> None:
    clipping = importlib.import_module("byzpy.aggregators.norm_wise.center_clipping")
    x_ND = vectors(contributors, elements)
    theirs_D = clipping.CenteredClipping(c_tau=tau, M=steps, init="zero").aggregate(list(x_ND))
    ours_D = plain_iterations(x_ND, tau, steps)
    assert float((ours_D - theirs_D).norm()) <= 1e-12 * float(x_ND.norm(dim=1).max())


@pytest.mark.parametrize("contributors", [5, 16])
def test_our_fixed_point_is_where_theirs_ends(byzpy: ModuleType, contributors: int) -> None:
    clipping = importlib.import_module("byzpy.aggregators.norm_wise.center_clipping")
    x_ND = vectors(contributors, 100)
    solution = CenteredClip().solution(dense_gram(x_ND))
    assert solution.tau is not None
    theirs_D = clipping.CenteredClipping(c_tau=solution.tau, M=5000, init="median").aggregate(list(x_ND))
    ours_D = torch.from_numpy(solution.coefficients) @ x_ND
    assert float((ours_D - theirs_D).norm()) <= 1e-9 * solution.tau
