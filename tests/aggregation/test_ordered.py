"""Fixed-order sums against the same tree in plain Python floats."""

from __future__ import annotations

import math

import numpy as np
import pytest

from btrain.aggregation.ordered import ordered_dot, ordered_product, ordered_rows, ordered_sum


def tree_sum(values: list[float]) -> float:
    """The documented order, one float at a time."""
    while len(values) > 1:
        kept = (len(values) + 1) // 2
        added = [low + high for low, high in zip(values, values[kept:], strict=False)]
        values = added + values[len(added) : kept]
    return values[0]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 15, 16, 17, 63, 64, 127, 128])
def test_sum_has_the_bits_of_the_plain_tree(count: int) -> None:
    generator = np.random.default_rng(count)
    values_N = generator.standard_normal(count) * 10.0 ** generator.integers(-30, 30, count)
    assert float(ordered_sum(values_N.copy())) == tree_sum(values_N.tolist())


@pytest.mark.parametrize("count", [1, 7, 16, 33])
def test_products_have_the_bits_of_the_plain_tree(count: int) -> None:
    generator = np.random.default_rng(count)
    left, right = generator.standard_normal((3, count)), generator.standard_normal((count, 5))
    product = ordered_product(left, right)
    for k in range(3):
        for m in range(5):
            expected = tree_sum([a * b for a, b in zip(left[k].tolist(), right[:, m].tolist(), strict=True)])
            assert product[k, m] == expected
            assert ordered_rows(left[k], right)[m] == expected
            assert ordered_dot(left[k], right[:, m]) == expected


def test_sum_is_accurate() -> None:
    values_N = np.random.default_rng(0).standard_normal(128)
    assert float(ordered_sum(values_N.copy())) == pytest.approx(math.fsum(values_N), rel=1e-13)
