"""The plain (weighted) mean: what everybody else uses, and what one peer with 1e30 destroys."""

from __future__ import annotations

from dataclasses import dataclass

from btrain.aggregation.ordered import F64
from btrain.aggregation.rule import AffineRule, Solution, normalized


@dataclass(frozen=True, kw_only=True)
class Mean(AffineRule):
    """Everybody counts by his weight. Tolerates nobody."""

    def solve(self, gram_NN: F64, weights_N: F64) -> Solution:
        return Solution(normalized(weights_N))
