"""CenteredClip on coefficients against its definition on vectors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from btrain.aggregation.centered_clip import CenteredClip
from btrain.aggregation.errors import BadRuleOption
from btrain.aggregation.geometry import majority_ball, squared_distances
from btrain.aggregation.ordered import F64

ATTACKS = ("none", "far", "far_spread", "near", "opposed", "copies")


def contributions(attack: str, honest: int, byzantine: int, seed: int, elements: int = 50) -> F64:
    """[N, D]: honest ones around a common mean, then the attackers."""
    generator = np.random.default_rng(seed)
    mean_D = generator.standard_normal(elements)
    honest_ND = mean_D + generator.standard_normal((honest, elements))
    direction_D = generator.standard_normal(elements)
    hostile_ND = {
        "none": mean_D + generator.standard_normal((byzantine, elements)),
        "far": np.tile(1e6 * direction_D, (byzantine, 1)),
        "far_spread": 1e30 * generator.standard_normal((byzantine, elements)),
        "near": np.tile(honest_ND.mean(0) - honest_ND.std(0), (byzantine, 1)),
        "opposed": np.tile(-3 * mean_D, (byzantine, 1)),
        "copies": np.tile(honest_ND[0], (byzantine, 1)),
    }[attack]
    return np.concatenate([honest_ND, hostile_ND])


def residual(x_ND: F64, v_D: F64, tau: float) -> float:
    """|sum_i w_i (x_i - v)| / (tau * sum w): zero at the fixed point."""
    offsets_ND = x_ND - v_D
    w_N = np.minimum(1.0, tau / np.maximum(np.linalg.norm(offsets_ND, axis=1), 1e-300))
    return float(np.linalg.norm(w_N @ offsets_ND) / (tau * w_N.sum()))


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(("honest", "byzantine"), [(2, 1), (9, 7), (8, 7), (33, 31)])
def test_the_result_is_the_fixed_point(attack: str, honest: int, byzantine: int) -> None:
    x_ND = contributions(attack, honest, byzantine, seed=honest)
    solution = CenteredClip().solution(x_ND @ x_ND.T)
    assert solution.tau is not None
    if solution.tau == 0:
        np.testing.assert_array_equal(solution.coefficients @ x_ND, x_ND[0])
    else:
        assert residual(x_ND, solution.coefficients @ x_ND, solution.tau) < 2e-5


def test_the_fixed_point_is_where_the_plain_iteration_ends() -> None:
    x_ND = contributions("opposed", 9, 7, seed=3)
    solution = CenteredClip(c=1.0).solution(x_ND @ x_ND.T)
    assert solution.tau is not None
    v_D = np.median(x_ND, axis=0)
    for _ in range(5000):
        offsets_ND = x_ND - v_D
        v_D = v_D + (offsets_ND * np.minimum(1, solution.tau / np.linalg.norm(offsets_ND, axis=1))[:, None]).mean(0)
    np.testing.assert_allclose(solution.coefficients @ x_ND, v_D, atol=1e-5 * solution.tau)


def test_tau_auto_is_c_times_the_majority_radius() -> None:
    x_ND = contributions("none", 8, 7, seed=1)
    rho = np.sort(np.sqrt(squared_distances(x_ND @ x_ND.T)), axis=1)[:, 7].min()
    for c in (0.5, 1.0, 2.0):
        assert CenteredClip(c=c).solution(x_ND @ x_ND.T).tau == c * rho


def test_a_majority_of_equal_vectors_is_taken_as_it_is() -> None:
    x_ND = contributions("far", 3, 2, seed=0)
    x_ND[1:3] = x_ND[0]
    solution = CenteredClip().solution(x_ND @ x_ND.T)
    np.testing.assert_array_equal(solution.coefficients, [1, 0, 0, 0, 0])
    assert solution.tau == 0
    assert solution.clipped_share == 2 / 5


@pytest.mark.parametrize("count", [1, 2])
def test_one_and_two_are_averaged(count: int) -> None:
    x_ND = np.random.default_rng(0).standard_normal((count, 5)) * 1e9
    solution = CenteredClip().solution(x_ND @ x_ND.T)
    np.testing.assert_array_equal(solution.coefficients, np.full(count, 1 / count))
    assert (solution.tau, solution.clipped_share) == (math.inf, 0.0)


def test_a_large_radius_is_the_mean_and_a_number_is_kept() -> None:
    x_ND = contributions("none", 9, 7, seed=5)
    for tau in (1e6, math.inf):
        solution = CenteredClip(tau=tau).solution(x_ND @ x_ND.T)
        np.testing.assert_allclose(solution.coefficients, np.full(16, 1 / 16), rtol=1e-12)
        assert (solution.tau, solution.clipped_share) == (tau, 0.0)
    assert CenteredClip(tau=1).solution(x_ND @ x_ND.T).clipped_share == 1.0


def test_zeros_give_zero() -> None:
    solution = CenteredClip().solution(np.zeros((5, 5)))
    np.testing.assert_array_equal(solution.coefficients, [1, 0, 0, 0, 0])
    assert np.isfinite(CenteredClip(tau=1.0).coefficients(np.zeros((5, 5)))).all()


def test_weights_count_as_copies() -> None:
    x_ND = contributions("opposed", 5, 2, seed=7)
    doubled_ND = np.concatenate([x_ND, x_ND[:2]])
    weighted = CenteredClip(tau=2.0, max_weight=2.0).coefficients(x_ND @ x_ND.T, [2, 2, 1, 1, 1, 1, 1])
    copied = CenteredClip(tau=2.0).coefficients(doubled_ND @ doubled_ND.T)
    np.testing.assert_allclose(weighted @ x_ND, copied @ doubled_ND, atol=1e-9)


WRONG: list[dict[str, object]] = [
    {"tau": 0},
    {"tau": -1.0},
    {"tau": "big"},
    {"tau": math.nan},
    {"c": 0},
    {"c": math.inf},
]


@pytest.mark.parametrize("options", WRONG)
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(BadRuleOption):
        CenteredClip(**options)  # type: ignore[arg-type]


@given(
    attack=st.sampled_from(ATTACKS),
    byzantine=st.integers(0, 15),
    extra=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
    exponent=st.integers(-100, 100),
)
def test_fewer_than_half_move_the_result_by_a_bounded_amount(
    attack: str, byzantine: int, extra: int, seed: int, exponent: int
) -> None:
    """With R the largest honest distance from the honest mean m, g honest, b hostile, L = |v - m| > R: the honest clips
    pull v towards m by at least g min(1, tau / (L+R)) (L-R), the others push by b tau at most. So L is at most
    max(R n / (g - b), tau - R), and tau at most c * 2R.
    """
    honest = byzantine + extra
    x_ND = contributions(attack, honest, byzantine, seed) * 2.0**exponent
    mean_D = x_ND[:honest].mean(0)
    radius = float(np.linalg.norm(x_ND[:honest] - mean_D, axis=1).max())
    solution = CenteredClip().solution(x_ND @ x_ND.T)
    if solution.tau is not None and math.isinf(solution.tau):
        return
    assert solution.tau is not None
    assert solution.tau <= 2 * radius * (1 + 1e-9)
    bound = max(radius * (honest + byzantine) / (honest - byzantine), solution.tau - radius)
    assert np.linalg.norm(solution.coefficients @ x_ND - mean_D) <= bound * (1 + 1e-6)


@given(order=st.permutations(range(11)), attack=st.sampled_from(ATTACKS))
def test_the_order_of_contributors_does_not_matter(order: list[int], attack: str) -> None:
    x_ND = contributions(attack, 6, 5, seed=9)
    moved_ND = x_ND[order]
    here = CenteredClip().coefficients(x_ND @ x_ND.T) @ x_ND
    there = CenteredClip().coefficients(moved_ND @ moved_ND.T) @ moved_ND
    np.testing.assert_allclose(here, there, atol=2e-4)


def test_the_start_is_inside_the_majority() -> None:
    x_ND = contributions("far", 9, 7, seed=11)
    assert majority_ball(x_ND @ x_ND.T, np.ones(16)).center < 9
