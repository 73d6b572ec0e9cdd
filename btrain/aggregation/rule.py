"""What a rule is: a pure function from contributions to one vector, with no clock and no randomness.

Shapes: N contributors, D elements.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from btrain.aggregation.dense import check_matrix, dense_gram, weighted_rows
from btrain.aggregation.errors import BadRuleOption, BadShape, BadWeights, NonFiniteInput, NotConvex
from btrain.aggregation.ordered import F64, ordered_sum


@dataclass(frozen=True)
class Solution:
    """Coefficients of a convex combination, in the order of the contributors, and how they came about."""

    coefficients: F64
    tau: float | None = None
    """The clipping radius, for rules that have one."""
    clipped_share: float = 0.0
    """Share of the contributors that lay outside the radius."""


class Rule(ABC):
    """Any robust average."""

    @abstractmethod
    def aggregate(self, x_ND: torch.Tensor) -> torch.Tensor:
        """The robust average of the rows of `x_ND`, [D] of the same dtype and device.

        Raises NonFiniteInput. Nothing non-finite is returned.
        """


@dataclass(frozen=True, kw_only=True)
class AffineRule(Rule):
    """A rule whose result is a convex combination that follows from the inner products alone.

    Subclasses implement `solve`. `max_weight` bounds what one contributor may count for (1 = everybody equally at
    most); the tolerated coalition is then the one that holds less than half of the bounded weight.
    """

    max_weight: float = 1.0

    def __post_init__(self) -> None:
        if not is_positive(self.max_weight):
            raise BadRuleOption(f"max_weight must be a positive number, not {self.max_weight!r}")

    @abstractmethod
    def solve(self, gram_NN: F64, weights_N: F64) -> Solution:
        """Coefficients for a finite Gram matrix and bounded weights, in fixed-order float64 arithmetic."""

    def coefficients(self, gram_NN: F64, weights: Sequence[float] | None = None) -> F64:
        """float64 [N], not negative, summing to one; the same bits on every machine. See `solution`."""
        return self.solution(gram_NN, weights).coefficients

    def solution(self, gram_NN: F64, weights: Sequence[float] | None = None) -> Solution:
        """Check the inputs, solve, check the output.

        gram_NN: float64 [N, N], N >= 1. weights: one positive number each, cut at `max_weight`; None: all equal.
        Raises BadShape, NonFiniteInput, BadWeights, NotConvex.
        """
        gram_NN = np.asarray(gram_NN, dtype=np.float64)
        if gram_NN.ndim != 2 or gram_NN.shape[0] != gram_NN.shape[1] or not gram_NN.size:
            raise BadShape(f"a Gram matrix is square and not empty, not {gram_NN.shape}")
        if not np.isfinite(gram_NN).all():
            raise NonFiniteInput("the inner products are not finite: an input holds NaN, Inf or squares beyond float64")
        solution = self.solve(gram_NN, self._bounded(weights, len(gram_NN)))
        _check_convex(solution.coefficients, len(gram_NN))
        return solution

    def aggregate(self, x_ND: torch.Tensor) -> torch.Tensor:
        check_matrix(x_ND)
        return weighted_rows(x_ND, self.coefficients(dense_gram(x_ND)))

    def _bounded(self, weights: Sequence[float] | None, contributors: int) -> F64:
        if weights is None:
            return np.ones(contributors)
        weights_N = np.asarray(weights, dtype=np.float64)
        if weights_N.shape != (contributors,):
            raise BadWeights(f"{contributors} contributors need as many weights, not {weights_N.shape}")
        if not (np.isfinite(weights_N) & (weights_N > 0)).all():
            raise BadWeights("weights must be finite and positive")
        return np.minimum(weights_N, self.max_weight)


def _check_convex(coefficients_N: F64, contributors: int) -> None:
    if coefficients_N.shape != (contributors,):
        raise NotConvex(f"{contributors} contributors need as many coefficients, not {coefficients_N.shape}")
    if not (np.isfinite(coefficients_N) & (coefficients_N >= 0)).all():
        raise NotConvex("coefficients must be finite and not negative")
    if abs(float(ordered_sum(coefficients_N.copy())) - 1.0) > 1e-9:
        raise NotConvex("coefficients must sum to one")


def is_positive(value: object) -> bool:
    """Whether an option is a positive finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value) and value > 0


def normalized(weights_N: F64) -> F64:
    """Weights divided by their fixed-order sum."""
    return weights_N / float(ordered_sum(weights_N.copy()))
