"""Sums of float64 in one order, so that every machine gets the same bits.

`numpy.sum`, `dot` and `@` choose their order of addition by the SIMD width and the BLAS at hand. Element-wise
multiplication, addition, division and square root are single IEEE operations and equal everywhere; so everything here
is made of those alone, added as a fixed binary tree over axis 0.

Shapes: N contributors.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


def ordered_sum(terms: F64) -> F64:
    """Sum over axis 0: the upper half is added onto the lower half until one row is left. `terms` is overwritten."""
    count = terms.shape[0]
    while count > 1:
        kept = (count + 1) // 2
        lower = terms[: count - kept]
        lower += terms[kept:count]
        count = kept
    row: F64 = terms[0]
    return row


def ordered_dot(x_N: F64, y_N: F64) -> float:
    """Inner product of two vectors in the fixed order."""
    return float(ordered_sum(x_N * y_N))


def ordered_rows(coefficients_N: F64, rows_NM: F64) -> F64:
    """`sum_i coefficients[i] * rows[i]` in the fixed order: float64 [M]."""
    return ordered_sum(rows_NM * coefficients_N[:, None])


def ordered_product(left_KN: F64, right_NM: F64) -> F64:
    """Matrix product in the fixed order: float64 [K, M]."""
    return np.stack([ordered_rows(row_N, right_NM) for row_N in left_KN])
