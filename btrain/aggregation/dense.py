"""Rules on a dense matrix of vectors: for users of the library, for simulations and for comparisons.

The wire's promise of equal bits does not hold here: dense products go through the BLAS at hand.
Shapes: N contributors, D elements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from btrain.aggregation.errors import BadShape, NonFiniteInput
from btrain.aggregation.geometry import majority_ball
from btrain.aggregation.ordered import F64

CHUNK_COLUMNS = 1 << 14
"""Elements of each row handled at once: what is copied or converted stays in the cache."""

_FAST_SPREAD = 1e-2
"""Least rho^2 / |x|^2 at which distances from a float32 product keep five digits; nearer contributors need float64."""

_FAST_COEFFICIENT = 1e-30
"""Coefficients below this go through float64: as float32 they would lose digits or be flushed to zero."""


def check_matrix(x_ND: torch.Tensor) -> None:
    """Raises BadShape unless `x_ND` is a floating-point matrix with at least one row."""
    if x_ND.ndim != 2 or not len(x_ND) or not x_ND.is_floating_point():
        raise BadShape(f"expected floating-point [contributors, elements], not {x_ND.dtype} {tuple(x_ND.shape)}")


def column_chunks(x_ND: torch.Tensor, out_D: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Views of at most CHUNK_COLUMNS columns of `x_ND` and of `out_D`, in step."""
    return zip(torch.split(x_ND.detach(), CHUNK_COLUMNS, dim=1), torch.split(out_D, CHUNK_COLUMNS), strict=True)


def dense_gram(x_ND: torch.Tensor) -> F64:
    """All inner products, float64 [N, N].

    A float32 product is tried first; where it overflows, or where contributors are so close that their distances
    cancel in float32, it is done again in float64. Raises NonFiniteInput.
    """
    if x_ND.dtype is not torch.float64:
        gram_NN = _gram(x_ND, torch.float32)
        if np.isfinite(gram_NN).all():
            ball = majority_ball(gram_NN, np.ones(len(gram_NN)))
            if ball.radius**2 >= _FAST_SPREAD * gram_NN[ball.center, ball.center]:
                return gram_NN
    gram_NN = _gram(x_ND, torch.float64)
    if not np.isfinite(gram_NN).all():
        raise NonFiniteInput("an input holds NaN, Inf or squares beyond float64")
    return gram_NN


def _gram(x_ND: torch.Tensor, dtype: torch.dtype) -> F64:
    total_NN = torch.zeros(len(x_ND), len(x_ND), dtype=torch.float64, device=x_ND.device)
    for chunk_NC in torch.split(x_ND.detach(), CHUNK_COLUMNS, dim=1):
        chunk_NC = chunk_NC.to(dtype)
        total_NN += chunk_NC @ chunk_NC.T
    gram_NN: F64 = total_NN.cpu().numpy()
    return np.tril(gram_NN) + np.tril(gram_NN, -1).T


def weighted_rows(x_ND: torch.Tensor, coefficients_N: F64) -> torch.Tensor:
    """`coefficients @ x`: finite, as what rounding carries past the dtype's largest number is cut to it."""
    x_ND = x_ND.detach()
    coefficients = torch.from_numpy(coefficients_N).to(x_ND.device)
    used_N = coefficients_N[coefficients_N > 0]
    if x_ND.dtype is torch.float32 and used_N.min() >= _FAST_COEFFICIENT:
        average_D = coefficients.float() @ x_ND
        if math.isfinite(float(average_D.sum())):  # torch.isfinite would take two copies of it
            return average_D
    limit = torch.finfo(x_ND.dtype).max
    average_D = torch.empty(x_ND.shape[1], dtype=x_ND.dtype, device=x_ND.device)
    for chunk_NC, out_C in column_chunks(x_ND, average_D):
        out_C.copy_((coefficients @ chunk_NC.double()).clamp_(-limit, limit))
    return average_D
