"""Coordinate-wise median and trimmed mean: for dense arrays only.

They cost an order of magnitude more than rules on coefficients, and no sketch of theirs can be checked, so the wire
has none.
Shapes: N contributors, D elements, C elements of a chunk.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch

from btrain.aggregation.dense import check_matrix, column_chunks
from btrain.aggregation.errors import NonFiniteInput
from btrain.aggregation.krum import byzantine_limit
from btrain.aggregation.rule import Rule


class CoordinateRule(Rule):
    """A rule that looks at each coordinate alone."""

    @abstractmethod
    def middle(self, sorted_NC: torch.Tensor) -> torch.Tensor:
        """[C], float64, from the ascending float64 values of every column."""

    def aggregate(self, x_ND: torch.Tensor) -> torch.Tensor:
        check_matrix(x_ND)
        average_D = torch.empty(x_ND.shape[1], dtype=x_ND.dtype, device=x_ND.device)
        limit = torch.finfo(x_ND.dtype).max
        for chunk_NC, out_C in column_chunks(x_ND, average_D):
            sorted_NC = chunk_NC.sort(dim=0).values
            if not bool((torch.isfinite(sorted_NC[0]) & torch.isfinite(sorted_NC[-1])).all()):
                raise NonFiniteInput("an input holds NaN or Inf")
            out_C.copy_(self.middle(sorted_NC.double()).clamp_(-limit, limit))
        return average_D


@dataclass(frozen=True)
class Median(CoordinateRule):
    """The median of every coordinate; of an even number of contributors the mean of the middle two."""

    def middle(self, sorted_NC: torch.Tensor) -> torch.Tensor:
        contributors = len(sorted_NC)
        return sorted_NC[(contributors - 1) // 2] / 2 + sorted_NC[contributors // 2] / 2


@dataclass(frozen=True, kw_only=True)
class TrimmedMean(CoordinateRule):
    """The mean of every coordinate without its b largest and b smallest values (Yin et al., ICML 2018)."""

    byzantine_max: int | None = None

    def middle(self, sorted_NC: torch.Tensor) -> torch.Tensor:
        contributors = len(sorted_NC)
        cut = byzantine_limit(self.byzantine_max, contributors)
        kept = contributors - 2 * cut
        return (sorted_NC[cut : contributors - cut] / kept).sum(dim=0)
