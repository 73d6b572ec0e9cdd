"""What every affine rule promises, whatever it does inside."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btrain.aggregation import (
    AffineRule,
    BadRuleOption,
    BadShape,
    BadWeights,
    Bucketing,
    CenteredClip,
    GeometricMedian,
    Krum,
    Mean,
    MultiKrum,
    NearestNeighborMixing,
    NonFiniteInput,
    NotConvex,
    Solution,
)
from btrain.aggregation.ordered import F64

RULES: list[AffineRule] = [
    Mean(),
    CenteredClip(),
    CenteredClip(c=2.0),
    CenteredClip(tau=1.5),
    GeometricMedian(),
    Krum(),
    MultiKrum(),
    MultiKrum(selected=2),
    NearestNeighborMixing(),
    NearestNeighborMixing(then=GeometricMedian()),
    Bucketing(),
    Bucketing(bucket_size=3, seed=b"r"),
]


@pytest.mark.parametrize("rule", RULES, ids=repr)
@settings(max_examples=30)
@given(
    contributors=st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
    exponents=st.lists(st.integers(-110, 127), min_size=20, max_size=20),
)
def test_coefficients_are_convex_for_any_magnitudes(
    rule: AffineRule, contributors: int, seed: int, exponents: list[int]
) -> None:
    x_ND = np.random.default_rng(seed).standard_normal((contributors, 6))
    x_ND *= 2.0 ** np.array(exponents[:contributors])[:, None]
    coefficients_N = rule.coefficients(x_ND @ x_ND.T)
    assert coefficients_N.dtype == np.float64
    assert (coefficients_N >= 0).all()
    assert math.fsum(coefficients_N) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_equal_vectors_stay(rule: AffineRule) -> None:
    x_ND = np.tile(np.random.default_rng(0).standard_normal(9), (7, 1))
    np.testing.assert_allclose(rule.coefficients(x_ND @ x_ND.T) @ x_ND, x_ND[0], rtol=1e-12)


@pytest.mark.parametrize("rule", [rule for rule in RULES if not isinstance(rule, (Mean, Bucketing))], ids=repr)
def test_a_far_minority_has_no_say(rule: AffineRule) -> None:
    generator = np.random.default_rng(3)
    x_ND = generator.standard_normal((16, 40))
    x_ND[9:] = 1e12 * generator.standard_normal((7, 40))
    assert np.linalg.norm(rule.coefficients(x_ND @ x_ND.T) @ x_ND) < 4 * math.sqrt(40)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_products_are_refused(value: float) -> None:
    gram_NN = np.eye(4)
    gram_NN[2, 1] = value
    for rule in RULES:
        with pytest.raises(NonFiniteInput):
            rule.coefficients(gram_NN)


@pytest.mark.parametrize("shape", [(0, 0), (3, 4), (4,), (2, 2, 2)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadShape):
        Mean().coefficients(np.zeros(shape))


def test_weights_are_bounded() -> None:
    gram_NN = np.eye(3)
    np.testing.assert_array_equal(Mean().coefficients(gram_NN, [1e9, 1.0, 1.0]), np.full(3, 1 / 3))
    np.testing.assert_array_equal(Mean(max_weight=2.0).coefficients(gram_NN, [1e9, 1.0, 1.0]), [0.5, 0.25, 0.25])


@pytest.mark.parametrize(
    "weights", [[1.0, 1.0], [1.0, 0.0, 1.0], [1.0, -1.0, 1.0], [1.0, math.nan, 1.0], [math.inf] * 3]
)
def test_wrong_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(BadWeights):
        Mean().coefficients(np.eye(3), weights)


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan, math.inf])
def test_a_wrong_bound_is_refused(limit: float) -> None:
    with pytest.raises(BadRuleOption):
        Mean(max_weight=limit)


@dataclass(frozen=True, kw_only=True)
class Fixed(AffineRule):
    answer: tuple[float, ...] = ()

    def solve(self, gram_NN: F64, weights_N: F64) -> Solution:
        return Solution(np.array(self.answer))


@pytest.mark.parametrize("answer", [(0.5, 0.6), (1.5, -0.5), (math.nan, 1.0), (1.0,)])
def test_a_rule_that_is_not_convex_is_caught(answer: tuple[float, ...]) -> None:
    with pytest.raises(NotConvex):
        Fixed(answer=answer).coefficients(np.eye(2))
