"""The geometric median against the gradient of its own objective."""

from __future__ import annotations

import numpy as np
import pytest

from btrain.aggregation import BadRuleOption, CenteredClip, GeometricMedian


@pytest.mark.parametrize("contributors", [3, 9, 16, 40])
def test_unit_vectors_to_the_contributors_cancel(contributors: int) -> None:
    x_ND = np.random.default_rng(contributors).standard_normal((contributors, 60))
    v_D = GeometricMedian().coefficients(x_ND @ x_ND.T) @ x_ND
    offsets_ND = x_ND - v_D
    assert np.linalg.norm((offsets_ND / np.linalg.norm(offsets_ND, axis=1)[:, None]).mean(0)) < 1e-4


def test_it_is_the_limit_of_small_radii() -> None:
    x_ND = np.random.default_rng(0).standard_normal((9, 60))
    gram_NN = x_ND @ x_ND.T
    np.testing.assert_allclose(
        GeometricMedian().coefficients(gram_NN), CenteredClip(tau=1e-3).coefficients(gram_NN), atol=1e-4
    )


def test_a_majority_on_one_point_wins() -> None:
    x_ND = np.random.default_rng(1).standard_normal((7, 5))
    x_ND[:4] = x_ND[0]
    np.testing.assert_array_equal(GeometricMedian().coefficients(x_ND @ x_ND.T) @ x_ND, x_ND[0])


@pytest.mark.parametrize("smoothing", [0.0, -1.0, 2.0])
def test_wrong_smoothing_is_refused(smoothing: float) -> None:
    with pytest.raises(BadRuleOption):
        GeometricMedian(smoothing=smoothing)
