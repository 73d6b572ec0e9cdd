"""Steps before a rule: each contributor is replaced by an average of some, then the rule runs on those.

Both stay in coefficient space: a mixing matrix M [K, N] turns the Gram matrix into M G M^T and the rule's K
coefficients back into N by M^T.
Shapes: N contributors, K mixed vectors.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from dataclasses import dataclass, field

import numpy as np

from btrain.aggregation.centered_clip import CenteredClip
from btrain.aggregation.errors import BadRuleOption
from btrain.aggregation.geometry import squared_distances
from btrain.aggregation.krum import byzantine_limit
from btrain.aggregation.ordered import F64, ordered_product, ordered_rows
from btrain.aggregation.rule import AffineRule, Solution, normalized


@dataclass(frozen=True, kw_only=True)
class Mixing(AffineRule):
    """A mixing step followed by the rule `then`."""

    then: AffineRule = field(default_factory=CenteredClip)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.then, AffineRule):
            raise BadRuleOption(f"then must be a rule on coefficients, not {self.then!r}")

    @abstractmethod
    def mixture(self, gram_NN: F64, weights_N: F64) -> tuple[F64, F64]:
        """(M [K, N], rows not negative and summing to one; weights of the mixed vectors [K])."""

    def solve(self, gram_NN: F64, weights_N: F64) -> Solution:
        mixing_KN, mixed_weights_K = self.mixture(gram_NN, weights_N)
        mixed_KK = ordered_product(ordered_product(mixing_KN, gram_NN), np.ascontiguousarray(mixing_KN.T))
        inner = self.then.solve(mixed_KK, mixed_weights_K)
        return Solution(ordered_rows(inner.coefficients, mixing_KN), inner.tau, inner.clipped_share)


@dataclass(frozen=True, kw_only=True)
class NearestNeighborMixing(Mixing):
    """Everyone becomes the mean of his n - b nearest, himself included (Allouah et al., AISTATS 2023).

    Perfect against far attackers, worst against near ones, and dear at small batches.
    """

    byzantine_max: int | None = None

    def mixture(self, gram_NN: F64, weights_N: F64) -> tuple[F64, F64]:
        contributors = len(gram_NN)
        kept = contributors - byzantine_limit(self.byzantine_max, contributors)
        nearest_NN = np.argsort(squared_distances(gram_NN), axis=1, kind="stable")[:, :kept]
        mixing_NN = np.zeros_like(gram_NN)
        for row_N, nearest_K in zip(mixing_NN, nearest_NN, strict=True):
            row_N[nearest_K] = normalized(weights_N[nearest_K])
        return mixing_NN, weights_N


@dataclass(frozen=True, kw_only=True)
class Bucketing(Mixing):
    """Means of random buckets (Karimireddy, He, Jaggi, ICLR 2022).

    The order is drawn from SHA-256(seed, index): rules have no randomness of their own, the caller brings one that
    nobody could foresee. b attackers spoil up to b of the n / bucket_size buckets, so this withstands fewer.
    """

    bucket_size: int = 2
    seed: bytes = b""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bucket_size < 1:
            raise BadRuleOption(f"bucket_size must be at least 1, not {self.bucket_size}")

    def mixture(self, gram_NN: F64, weights_N: F64) -> tuple[F64, F64]:
        contributors = len(gram_NN)
        order_N = sorted(range(contributors), key=lambda i: hashlib.sha256(self.seed + i.to_bytes(8, "big")).digest())
        rows, bucket_weights = [], []
        for begin in range(0, contributors, self.bucket_size):
            bucket = sorted(order_N[begin : begin + self.bucket_size])
            row_N = np.zeros(contributors)
            row_N[bucket] = normalized(weights_N[bucket])
            rows.append(row_N)
            bucket_weights.append(float(np.cumsum(weights_N[bucket])[-1]))
        return np.stack(rows), np.asarray(bucket_weights)
