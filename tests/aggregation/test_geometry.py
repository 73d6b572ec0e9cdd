"""Distances and the majority's ball from a Gram matrix, against the vectors themselves."""

from __future__ import annotations

import numpy as np
import pytest

from btrain.aggregation.geometry import centered_gram, distances_to, majority, majority_ball, squared_distances


def test_majority_is_what_the_largest_minority_cannot_reach() -> None:
    assert [majority(n) for n in (1, 2, 3, 4, 5, 7, 8, 15, 16)] == [1, 2, 2, 3, 3, 4, 5, 8, 9]
    for n in range(1, 130):
        byzantine = (n - 1) // 2
        assert byzantine < majority(n) <= n - byzantine


def test_distances_match_the_vectors() -> None:
    x_ND = np.random.default_rng(0).standard_normal((9, 40))
    gram_NN = x_ND @ x_ND.T
    expected_NN = np.linalg.norm(x_ND[:, None] - x_ND[None], axis=2)
    np.testing.assert_allclose(np.sqrt(squared_distances(gram_NN)), expected_NN, atol=1e-12)
    a_N = np.full(9, 1 / 9)
    np.testing.assert_allclose(distances_to(gram_NN, a_N), np.linalg.norm(x_ND - x_ND.mean(0), axis=1), atol=1e-12)


def test_distances_survive_a_huge_contributor() -> None:
    x_ND = np.random.default_rng(1).standard_normal((8, 64)) * 1e-2 + 1.0
    x_ND[7] *= 1e30
    gram_NN = centered_gram(x_ND @ x_ND.T, 2)
    expected_N = np.linalg.norm(x_ND - x_ND[2], axis=1)
    np.testing.assert_allclose(distances_to(gram_NN, np.eye(8)[2]), expected_N, rtol=1e-10)


def test_the_ball_counts_its_own_centre_and_prefers_the_lowest_index() -> None:
    x_ND = np.array([[0.0], [1.0], [2.0], [100.0], [-50.0]])
    ball = majority_ball(x_ND @ x_ND.T, np.ones(5))
    assert ball == (1, 1.0)
    tied_ND = np.array([[0.0], [1.0], [1.0], [0.0]])
    assert majority_ball(tied_ND @ tied_ND.T, np.ones(4)) == (0, 1.0)


def test_a_minority_cannot_inflate_the_ball() -> None:
    generator = np.random.default_rng(2)
    honest_ND = generator.standard_normal((9, 30))
    diameter = float(np.sqrt(squared_distances(honest_ND @ honest_ND.T)).max())
    for far in (1.0, 1e3, 1e15):
        x_ND = np.concatenate([honest_ND, generator.standard_normal((7, 30)) * far])
        assert majority_ball(x_ND @ x_ND.T, np.ones(16)).radius <= diameter


def test_the_ball_goes_by_weight() -> None:
    x_ND = np.array([[0.0], [0.1], [5.0], [5.1], [5.2]])
    assert majority_ball(x_ND @ x_ND.T, np.ones(5)).center == 3
    heavy = majority_ball(x_ND @ x_ND.T, np.array([2.0, 2.0, 1.0, 1.0, 1.0]))
    assert heavy.center in {0, 1}
    assert heavy.radius == pytest.approx(0.1)
