"""Distances between contributors, read off their Gram matrix.

N = contributors. `gram_NN[i, j]` = <x_i, x_j>, float64. Nothing here sees a gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from btrain.aggregation.ordered import F64, ordered_dot, ordered_rows


def majority(contributors: int) -> int:
    """h = n - floor((n-1)/2), the smallest count that the largest tolerated coalition cannot reach alone."""
    return contributors - (contributors - 1) // 2


def squared_distances(gram_NN: F64) -> F64:
    """|x_i - x_j|^2, never negative, zero on the diagonal: float64 [N, N].

    (g_ii - g_ij) + (g_jj - g_ij) cancels exactly for equal vectors, which g_ii + g_jj - 2 g_ij does not.
    """
    gaps_NN = np.diagonal(gram_NN)[:, None] - gram_NN
    squared_NN: F64 = np.maximum(gaps_NN + gaps_NN.T, 0.0)
    np.fill_diagonal(squared_NN, 0.0)
    return squared_NN


class Ball(NamedTuple):
    """The smallest ball around a contributor that holds more than half of the weight."""

    center: int
    radius: float


def majority_ball(gram_NN: F64, weights_N: F64) -> Ball:
    """rho = min over i of the h-th smallest distance from i (its own zero counted), and the i that attains it.

    With equal weights h = majority(n). A ball of honest contributors always exists, so rho is at most their diameter
    whatever fewer than half (by weight) send. Ties go to the lowest index.
    """
    distances_NN = np.sqrt(squared_distances(gram_NN))
    half = float(np.cumsum(weights_N)[-1]) / 2
    radii_N = np.empty(len(weights_N))
    for i, row_N in enumerate(distances_NN):
        nearest_N = np.argsort(row_N, kind="stable")
        inside = int(np.searchsorted(np.cumsum(weights_N[nearest_N]), half, side="right"))
        radii_N[i] = row_N[nearest_N[min(inside, len(row_N) - 1)]]
    center = int(np.argmin(radii_N))
    return Ball(center, float(radii_N[center]))


def centered_gram(gram_NN: F64, center: int) -> F64:
    """Gram matrix of x_i - x_center.

    Subtracting near numbers first keeps what two close contributors differ by, also beside one at 1e38.
    """
    rows_NN = gram_NN - gram_NN[center]
    centered_NN: F64 = rows_NN - rows_NN[:, center : center + 1]
    return centered_NN


def distances_to(gram_NN: F64, coefficients_N: F64) -> F64:
    """|x_i - sum_j a_j x_j| for every i: float64 [N]."""
    products_N = ordered_rows(coefficients_N, gram_NN)
    squared_N = (np.diagonal(gram_NN) - 2.0 * products_N) + ordered_dot(coefficients_N, products_N)
    distances_N: F64 = np.sqrt(np.maximum(squared_N, 0.0))
    return distances_N
