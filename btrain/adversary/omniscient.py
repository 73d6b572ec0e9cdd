"""Attackers that know the honest gradients of the round, exactly: minibatch seeds are public, so they compute them too.

Legend: H honest workers, d parameters, mu and sigma the mean and the standard deviation of the honest gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from btrain.adversary.adversary import Adversary
from btrain.kernels import QuantizedBlocks
from btrain.protocol.audit import excess
from btrain.protocol.behaviour import Replay
from btrain.protocol.reduction import encode_gradient

if TYPE_CHECKING:
    from btrain.protocol.round import Round

BISECTIONS = 24


def deviation(gradients_HD: Tensor) -> Tensor:
    """sigma, float32 [d]; zero for a single honest worker."""
    return gradients_HD.std(0, unbiased=False)


@dataclass
class InnerProduct(Adversary):
    """IPM (Xie et al. 2020): -epsilon * mu, so that the aggregate points away from the true gradient."""

    name = "ipm"
    outcome = "banned"
    epsilon: float = 0.6

    def forged(self, own: Tensor, round: Round, replay: Replay) -> Tensor:
        """float32 [d]."""
        return self.honest_gradients(round, replay).mean(0) * -self.epsilon


@dataclass
class LittleIsEnough(Adversary):
    """ALIE (Baruch et al. 2019): mu - z * sigma, inside what honest noise could be. z = 0: the paper's z_max."""

    name = "alie"
    outcome = "banned"
    z: float = 0.0

    def forged(self, own: Tensor, round: Round, replay: Replay) -> Tensor:
        """float32 [d]."""
        gradients_HD = self.honest_gradients(round, replay)
        attackers = len(round.roles.workers) - len(gradients_HD)
        return gradients_HD.mean(0) - (self.z or z_max(len(round.roles.workers), attackers)) * deviation(gradients_HD)


def z_max(workers: int, attackers: int) -> float:
    """The largest z at which the supporters that the attackers need lie further out than they (ALIE, section 3)."""
    supporters = workers // 2 + 1 - attackers
    honest = workers - attackers
    share = (honest - supporters) / honest if honest else 0.5
    return NormalDist().inv_cdf(min(max(share, 0.05), 0.95))


@dataclass
class MinMax(Adversary):
    """Min-Max (Shejwalkar and Houmansadr 2021): mu - gamma * sigma, as far out as the furthest honest pair allows."""

    name = "min_max"
    outcome = "banned"

    def forged(self, own: Tensor, round: Round, replay: Replay) -> Tensor:
        """float32 [d]."""
        gradients_HD = self.honest_gradients(round, replay)
        mean, sigma = gradients_HD.mean(0), deviation(gradients_HD)
        limit = float(torch.cdist(gradients_HD, gradients_HD).max())
        low, high = 0.0, 100.0
        for _ in range(BISECTIONS):
            gamma = (low + high) / 2
            near = float((gradients_HD - (mean - gamma * sigma)).norm(dim=1).max()) <= limit
            low, high = (gamma, high) if near else (low, gamma)
        return mean - low * sigma


@dataclass
class RelocatedOrthogonal(Adversary):
    """ROP (Ozfatura et al. 2023): from the running mean, orthogonally to it; clipping does not see the angle.

    With the paper's lambda 0.9 and angle 270 degrees; its reference is the attackers' own running mean of mu.
    """

    name = "rop"
    outcome = "banned"
    z: float = 1.0
    _reference: Tensor | None = field(default=None, init=False, repr=False)

    def forged(self, own: Tensor, round: Round, replay: Replay) -> Tensor:
        """float32 [d]."""
        gradients_HD = self.honest_gradients(round, replay)
        mean, sigma = gradients_HD.mean(0), deviation(gradients_HD)
        reference = mean if self._reference is None else 0.9 * self._reference + 0.1 * mean
        self._reference = reference
        axis = 0.9 * reference + 0.1 * mean
        across = sigma - axis * (sigma @ axis / (axis @ axis).clamp(min=1e-30))
        push: Tensor = across * (self.z * sigma.norm() / across.norm().clamp(min=1e-30))
        return reference - push


@dataclass
class Mimic(Adversary):
    """Mimic (Karimireddy et al. 2022): all copy the first honest worker, so that its noise outweighs the rest."""

    name = "mimic"
    outcome = "banned"

    def forged(self, own: Tensor, round: Round, replay: Replay) -> Tensor:
        """float32 [d]."""
        return self.honest_gradients(round, replay)[0]


@dataclass
class JustInsideTolerance(Adversary):
    """Knows the audit: pushes the own gradient against mu by `share` of what an audit lets pass."""

    name = "just_inside_tolerance"
    share: float = 0.9

    def forged(self, own: Tensor, round: Round, replay: Replay) -> Tensor:
        """float32 [d]."""
        mean = self.honest_gradients(round, replay).mean(0)
        push: Tensor = mean * -(own.norm() / mean.norm().clamp(min=1e-30))
        budget, low, high = self.share * round.state.charter.tolerance, 0.0, 1.0
        for _ in range(BISECTIONS):
            size = (low + high) / 2
            low, high = (size, high) if self._excess(own + size * push, own, round) <= budget else (low, size)
        return own + low * push

    def _excess(self, forged: Tensor, own: Tensor, round: Round) -> float:
        layout = round.roles.layout
        parts = encode_gradient(forged, layout)
        if parts is None:
            return math.inf
        opened = [QuantizedBlocks.from_bytes(part, layout.part_numel(i)) for i, part in enumerate(parts)]
        return excess(opened, own, layout)
