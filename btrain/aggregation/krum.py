"""Krum and multi-Krum (Blanchard, El Mhamdi, Guerraoui, Stainer, NeurIPS 2017).

Shapes: N contributors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from btrain.aggregation.errors import BadRuleOption
from btrain.aggregation.geometry import squared_distances
from btrain.aggregation.ordered import F64, ordered_sum
from btrain.aggregation.rule import AffineRule, Solution, normalized


def byzantine_limit(byzantine_max: int | None, contributors: int) -> int:
    """The coalition to withstand: as given, else the largest minority. Raises BadRuleOption if it is no minority."""
    largest = (contributors - 1) // 2
    if byzantine_max is None:
        return largest
    if not 0 <= byzantine_max <= largest:
        raise BadRuleOption(f"byzantine_max: 0 to {largest} for {contributors} contributors, not {byzantine_max}")
    return byzantine_max


def krum_scores(gram_NN: F64, byzantine: int) -> F64:
    """Sum of the n - b - 2 (at least one) smallest squared distances to others: float64 [N]."""
    squared_NN = squared_distances(gram_NN)
    np.fill_diagonal(squared_NN, -1.0)
    nearest = max(1, len(gram_NN) - byzantine - 2)
    return ordered_sum(np.sort(squared_NN, axis=1)[:, 1 : 1 + nearest].T.copy())


@dataclass(frozen=True, kw_only=True)
class Krum(AffineRule):
    """The contributor with the lowest score, ties to the lowest index. Weights have no say in the choice."""

    byzantine_max: int | None = None

    def solve(self, gram_NN: F64, weights_N: F64) -> Solution:
        chosen_N = self._lowest(gram_NN, 1)
        return Solution(normalized(np.where(chosen_N, weights_N, 0.0)))

    def _lowest(self, gram_NN: F64, count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        contributors = len(gram_NN)
        if contributors == 1:
            return np.ones(1, dtype=np.bool_)
        scores_N = krum_scores(gram_NN, byzantine_limit(self.byzantine_max, contributors))
        chosen_N = np.zeros(contributors, dtype=np.bool_)
        chosen_N[np.argsort(scores_N, kind="stable")[:count]] = True
        return chosen_N


@dataclass(frozen=True, kw_only=True)
class MultiKrum(Krum):
    """The (weighted) mean of the n - b contributors with the lowest scores, or of `selected` many."""

    selected: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.selected is not None and self.selected < 1:
            raise BadRuleOption(f"selected must be at least 1, not {self.selected}")

    def solve(self, gram_NN: F64, weights_N: F64) -> Solution:
        contributors = len(gram_NN)
        count = self.selected or contributors - byzantine_limit(self.byzantine_max, contributors)
        return Solution(normalized(np.where(self._lowest(gram_NN, count), weights_N, 0.0)))
