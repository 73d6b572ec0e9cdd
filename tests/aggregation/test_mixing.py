"""Nearest-neighbour mixing and bucketing against the same done on vectors."""

from __future__ import annotations

import numpy as np
import pytest

from btrain.aggregation import BadRuleOption, Bucketing, CenteredClip, Krum, Mean, NearestNeighborMixing


def test_mixing_on_coefficients_is_mixing_on_vectors() -> None:
    x_ND = np.random.default_rng(0).standard_normal((9, 30))
    mixed_ND = np.stack([x_ND[np.argsort(np.linalg.norm(x_ND - x_D, axis=1))[:5]].mean(0) for x_D in x_ND])
    for then in (CenteredClip(), Krum(), Mean()):
        expected_D = then.coefficients(mixed_ND @ mixed_ND.T) @ mixed_ND
        got_D = NearestNeighborMixing(then=then).coefficients(x_ND @ x_ND.T) @ x_ND
        np.testing.assert_allclose(got_D, expected_D, atol=1e-9)


def test_mixing_leaves_far_attackers_out() -> None:
    x_ND = np.random.default_rng(1).standard_normal((16, 30))
    x_ND[9:] += 1e9
    coefficients_N = NearestNeighborMixing().coefficients(x_ND @ x_ND.T)
    assert coefficients_N[:9].sum() == pytest.approx(1.0)
    np.testing.assert_allclose(coefficients_N @ x_ND, x_ND[:9].mean(0), atol=1e-6)


def test_buckets_are_means_of_each_contributor_once() -> None:
    x_ND = np.random.default_rng(2).standard_normal((7, 30))
    rule = Bucketing(bucket_size=3, seed=b"x")
    mixing_KN, weights_K = rule.mixture(x_ND @ x_ND.T, np.ones(7))
    assert mixing_KN.shape == (3, 7)
    np.testing.assert_array_equal((mixing_KN > 0).sum(0), np.ones(7))
    np.testing.assert_allclose(mixing_KN.sum(1), 1.0)
    np.testing.assert_array_equal(weights_K, [3, 3, 1])
    mean_N = Bucketing(then=Mean(), bucket_size=3).coefficients(x_ND @ x_ND.T)
    np.testing.assert_allclose(mean_N, np.full(7, 1 / 7))


def test_the_seed_draws_the_buckets() -> None:
    gram_NN = np.eye(16)
    mixtures = {Bucketing(seed=bytes([s])).mixture(gram_NN, np.ones(16))[0].tobytes() for s in range(20)}
    assert len(mixtures) > 15
    again = Bucketing(seed=b"\x00").mixture(gram_NN, np.ones(16))[0].tobytes()
    assert again in mixtures


def test_a_bucket_holds_someone() -> None:
    with pytest.raises(BadRuleOption):
        Bucketing(bucket_size=0)
