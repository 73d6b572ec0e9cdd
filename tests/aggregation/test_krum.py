"""Krum and multi-Krum against their definition on vectors."""

from __future__ import annotations

import numpy as np
import pytest

from btrain.aggregation import BadRuleOption, Krum, MultiKrum
from btrain.aggregation.krum import byzantine_limit, krum_scores


def test_scores_are_the_sums_of_the_nearest() -> None:
    x_ND = np.random.default_rng(0).standard_normal((11, 20))
    scores_N = krum_scores(x_ND @ x_ND.T, 4)
    for i in range(11):
        others = sorted(float(np.sum((x_ND[i] - x_ND[j]) ** 2)) for j in range(11) if j != i)
        assert scores_N[i] == pytest.approx(sum(others[: 11 - 4 - 2]))


def test_krum_takes_one_and_multi_krum_the_lowest() -> None:
    x_ND = np.random.default_rng(1).standard_normal((9, 20))
    x_ND[5:] += 50 * np.arange(1, 5)[:, None]
    gram_NN = x_ND @ x_ND.T
    order_N = np.argsort(krum_scores(gram_NN, 4))
    assert Krum().coefficients(gram_NN).argmax() == order_N[0]
    np.testing.assert_array_equal(np.flatnonzero(MultiKrum().coefficients(gram_NN)), np.arange(5))
    np.testing.assert_array_equal(np.flatnonzero(MultiKrum(selected=2).coefficients(gram_NN)), np.sort(order_N[:2]))


def test_ties_go_to_the_lowest_index_and_one_is_enough() -> None:
    np.testing.assert_array_equal(Krum().coefficients(np.zeros((5, 5))), [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(Krum().coefficients(np.ones((1, 1))), [1])


def test_weights_count_in_the_average_only() -> None:
    x_ND = np.random.default_rng(2).standard_normal((5, 8))
    x_ND[4] += 100
    gram_NN = x_ND @ x_ND.T
    coefficients_N = MultiKrum(selected=2, max_weight=3.0).coefficients(gram_NN, [3, 1, 1, 1, 1])
    chosen = np.flatnonzero(MultiKrum(selected=2).coefficients(gram_NN))
    np.testing.assert_array_equal(np.flatnonzero(coefficients_N), chosen)


def test_a_coalition_must_be_a_minority() -> None:
    assert byzantine_limit(None, 16) == 7
    assert byzantine_limit(3, 16) == 3
    for wrong in (-1, 8):
        with pytest.raises(BadRuleOption):
            byzantine_limit(wrong, 16)
    with pytest.raises(BadRuleOption):
        MultiKrum(selected=0)
