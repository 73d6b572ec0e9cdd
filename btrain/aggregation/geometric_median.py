"""The geometric median (Weiszfeld; smoothed as in Pillutla, Kakade, Harchaoui, IEEE TSP 2022) on n coefficients.

It is CenteredClip's limit for a radius of zero, so it is computed as CenteredClip with a small one: the smoothing that
keeps Weiszfeld's division from zero is a Huber radius.
"""

from __future__ import annotations

from dataclasses import dataclass

from btrain.aggregation.centered_clip import clip_to_fixed_point, only
from btrain.aggregation.errors import BadRuleOption
from btrain.aggregation.geometry import majority_ball
from btrain.aggregation.ordered import F64
from btrain.aggregation.rule import AffineRule, Solution


@dataclass(frozen=True, kw_only=True)
class GeometricMedian(AffineRule):
    """The point with the smallest sum of distances, smoothed within `smoothing` times the majority's radius."""

    smoothing: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.smoothing <= 1:
            raise BadRuleOption(f"smoothing must lie in (0, 1], not {self.smoothing!r}")

    def solve(self, gram_NN: F64, weights_N: F64) -> Solution:
        ball = majority_ball(gram_NN, weights_N)
        tau = self.smoothing * ball.radius
        if tau == 0.0:
            return Solution(only(ball.center, len(gram_NN)))
        return Solution(clip_to_fixed_point(gram_NN, weights_N, ball.center, tau)[0])
