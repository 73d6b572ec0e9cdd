"""Whether a Table fits the part it is about: what everybody can check without the parts. See docs/protocol.md.

A limit is either such that no honest aggregator exceeds it whatever contributors send (certain), or such that it
exceeds it once in 1e9 times with honest contributors (sharp). What exceeds a sharp limit is reduced again by others;
what exceeds a certain one does not count: the part is void this round. All arithmetic is of single IEEE operations in a
fixed order or exactly rounded sums, so that members agree also about a Table made to lie on a limit.

Legend: N legal contributors, S 64 buckets, all lengths in units of 2^24 as in rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from btrain.aggregation import CenteredClip, GeometricMedian, Krum, Mean, MultiKrum, Rule, majority
from btrain.aggregation.ordered import F64, ordered_rows, ordered_sum
from btrain.kernels import BLOCK, QuantizedBlocks
from btrain.protocol.messages import ROW_BYTES, Table
from btrain.protocol.tables import UNIT, Row, read_row, sketch_of

SOUND: Final = 0
DOUBTFUL: Final = 1  # void, and nobody's fault: contributors can bring it about
UNSOUND: Final = 2  # void, and the aggregator's fault

ENERGY_LIMIT = 2.46  # chi-square of 64 buckets at 1e-9, over 64
DISTANCE_LIMIT = 3.2  # the same with what sparse vectors add: k equal values in one bucket give k
CERTAIN = 3.0  # a rounding error is at most half a step: three times the mean square
SKETCH_SHORT = 2.0  # a sketch is shorter than half of its vector once in 1e9 times
ITERATION_SLACK = 1e-3  # of a coefficient: clip weights are those of the last but one iterate
FLOAT_SLACK = 2.0**-20  # float32 of the norms and in the weighted sum
CONVEX_SLACK = 1e-9


@dataclass(frozen=True)
class Judgement:
    """verdict: SOUND, DOUBTFUL or UNSOUND. reason: the check that failed. alarm: above 1, reduce again."""

    verdict: int
    reason: str = ""
    alarm: float = 0.0


def judge(
    table: Table,
    contributors: int,
    coefficients: Sequence[float],
    reduced: QuantizedBlocks,
    rule: Rule,
    seed: bytes,
) -> Judgement:
    """Hold a Table against the reduced bytes and the coefficients of its Result.

    contributors: how many rows there must be. A function of its arguments, the same at every member.
    """
    lengths = [len(row) for row in table.rows]
    if len(lengths) != contributors or not set(lengths) <= {0, ROW_BYTES}:
        return Judgement(UNSOUND, "rows: not one of each contributor")
    rows = [read_row(row) for row in table.rows if row]
    if len(rows) != len(coefficients):
        return Judgement(UNSOUND, "rows: not as many as coefficients")
    if math.isnan(table.tau) or table.tau < 0 or not all(row.legal for row in rows):
        return Judgement(UNSOUND, "rows: a number is negative, not finite, or rounded too far")
    if not rows:
        empty = not bool(reduced.scales.any())
        return Judgement(DOUBTFUL, "no legal contributor") if empty else Judgement(UNSOUND, "a sum of nothing")
    weights_N = np.array(coefficients)
    if not _convex(weights_N):
        return Judgement(UNSOUND, "coefficients: no weighted mean")
    measured = _Measured(table.tau / UNIT, rows, weights_N, reduced, seed)
    failed = [*_failures(measured, rule)]
    if len(rows) < contributors:
        failed.append(Judgement(DOUBTFUL, "a contributor is said to have sent an illegal encoding"))
    worst = max(failed, key=lambda judgement: judgement.verdict, default=Judgement(SOUND))
    return Judgement(worst.verdict, worst.reason, measured.alarm)


def _convex(weights_N: F64) -> bool:
    positive = bool((np.isfinite(weights_N) & (weights_N >= 0)).all())
    return positive and abs(math.fsum(weights_N) - 1) <= CONVEX_SLACK


class _Measured:
    """The numbers of one Table, as the checks need them."""

    def __init__(self, tau: float, rows: list[Row], weights_N: F64, reduced: QuantizedBlocks, seed: bytes) -> None:
        self.tau, self.weights_N = tau, weights_N
        self.norms_N = np.array([row.norm for row in rows])
        self.sketches_NS = np.stack([row.buckets for row in rows])
        self.reduced_S = sketch_of(reduced, seed)
        lengths_N = np.sqrt(_squares(self.sketches_NS))
        scale = math.fsum(weights_N * lengths_N) + _length(self.reduced_S)
        self.float_error = FLOAT_SLACK * len(rows) * scale
        scales = reduced.scales.cpu().numpy().astype(np.float64) / UNIT
        self.energy = BLOCK / 12 * math.fsum(scales * scales)  # E^2
        self.rounding_max = math.sqrt(CERTAIN * self.energy) + self.float_error
        self.errors_N = np.array([row.error for row in rows])
        residual = _length(self.reduced_S - ordered_rows(weights_N, self.sketches_NS))
        excess = max(0.0, residual - self.float_error - math.fsum(weights_N * self.errors_N))
        self.residual = excess * excess
        distances_N = np.sqrt(_squares(self.sketches_NS - self.reduced_S))
        slack_N = FLOAT_SLACK * lengths_N + self.float_error + self.errors_N
        self.distances_N = np.square(np.maximum(0.0, distances_N - slack_N))
        self.alarm = max(
            _ratio(self.residual, ENERGY_LIMIT * self.energy),
            *(_ratio(d, DISTANCE_LIMIT * n * n) for d, n in zip(self.distances_N, self.norms_N, strict=True)),
        )


def _squares(x: F64) -> F64:
    """Sum of the squares along the last axis, in an order that is the same everywhere."""
    return ordered_sum(np.ascontiguousarray(np.moveaxis(x * x, -1, 0)))


def _length(x_S: F64) -> float:
    return math.sqrt(math.fsum(x_S * x_S))


def _ratio(value: float, limit: float) -> float:
    return 0.0 if value == 0 else math.inf if limit == 0 else float(value / limit)


def _failures(measured: _Measured, rule: Rule) -> Iterator[Judgement]:
    """Every certain limit that is exceeded."""
    if measured.residual > CERTAIN * ENERGY_LIMIT * measured.energy:
        yield Judgement(UNSOUND, "sum: the part is not the weighted sum of the sketches")
    if bool((measured.distances_N > CERTAIN * DISTANCE_LIMIT * measured.norms_N**2).any()):
        yield Judgement(DOUBTFUL, "distance: a sketch is farther from the part than its norm says")
    if isinstance(rule, Mean):
        yield from _weights_follow(measured, math.inf)
    elif isinstance(rule, CenteredClip):
        yield from _clip_failures(measured, rule)
    contributors = len(measured.norms_N)
    if contributors > 2:
        half = majority(contributors)
        reach = _reach(rule, SKETCH_SHORT * _majority_radius(measured, half), half, contributors)
        if _nearest(measured.norms_N, half) > reach + measured.rounding_max:
            yield Judgement(DOUBTFUL, "majority: the part is farther from it than it is wide")


def _clip_failures(measured: _Measured, rule: CenteredClip) -> Iterator[Judgement]:
    contributors, tau = len(measured.norms_N), measured.tau
    near = _nearest(measured.norms_N, majority(contributors))
    if rule.tau != "auto":
        if tau != float(rule.tau) / UNIT:
            yield Judgement(UNSOUND, "tau: not the contract's")
    elif contributors <= 2:
        if not math.isinf(tau):
            yield Judgement(UNSOUND, "tau: two contributors are averaged")
    elif tau > 2 * rule.c * near * (1 + FLOAT_SLACK) + measured.float_error:
        yield Judgement(UNSOUND, "tau: larger than a majority at these distances allows")
    yield from _weights_follow(measured, tau)


def _weights_follow(measured: _Measured, tau: float) -> Iterator[Judgement]:
    """Whether the coefficients are min(1, tau / norm) over their sum, as far as norms to the rounded part tell."""
    norms_N, weights_N, slack = measured.norms_N, measured.weights_N, measured.rounding_max
    if tau == 0.0:
        chosen = int(weights_N.argmax())
        if weights_N[chosen] < 1 - CONVEX_SLACK or norms_N[chosen] > slack:
            yield Judgement(UNSOUND, "coefficients: with tau 0 the part is one contributor's")
        return
    with np.errstate(divide="ignore"):
        least_N = np.minimum(1.0, tau / (norms_N * (1 + FLOAT_SLACK) + slack))
        most_N = np.minimum(1.0, tau / np.maximum(norms_N * (1 - FLOAT_SLACK) - slack, 0.0))
    low_N = least_N / (least_N + (math.fsum(most_N) - most_N))
    high_N = most_N / (most_N + (math.fsum(least_N) - least_N))
    inside = (weights_N >= low_N * (1 - ITERATION_SLACK)) & (weights_N <= high_N * (1 + ITERATION_SLACK))
    if not bool(inside.all()):
        yield Judgement(UNSOUND, "coefficients: do not follow from norms and tau")


def _majority_radius(measured: _Measured, half: int) -> float:
    """The smallest distance within which a contributor sees a majority, itself included, as sketches and norms tell.

    Fewer than half of the rows cannot make it larger than the right ones do.
    """
    sketches_NS, norms_N, errors_N = measured.sketches_NS, measured.norms_N, measured.errors_N
    distances_NN = np.sqrt(_squares(sketches_NS[:, None] - sketches_NS[None])) + (errors_N[:, None] + errors_N[None])
    distances_NN = np.maximum(distances_NN, np.abs(norms_N[:, None] - norms_N[None]))
    return float(np.sort(distances_NN, axis=1)[:, half - 1].min())


def _nearest(norms_N: F64, half: int) -> float:
    """The h-th smallest norm."""
    return float(np.sort(norms_N)[half - 1])


def _reach(rule: Rule, radius: float, half: int, contributors: int) -> float:
    """How far the h-th nearest contributor can be from the result if h of them lie in a ball of this radius.

    CenteredClip: at a distance D > radius + tau from the centre each of the h pulls back by tau at an angle of sine <=
    radius / D, and the others push by at most tau each: h sqrt(1 - (radius / D)^2) <= N - h. The geometric median is
    its limit for small tau. What (multi-)Krum selects has one of the ball among its h - 2 nearest, within the root of a
    score of at most 4 (h - 2) radius^2. Other rules promise nothing, or nothing as simple.
    """
    others = (contributors - half) / half
    sine = math.sqrt(1 - others * others)
    if isinstance(rule, CenteredClip):
        clip = rule.c * radius if rule.tau == "auto" else float(rule.tau) / UNIT
        return max(radius + clip, radius / sine) + radius
    if isinstance(rule, GeometricMedian):
        return radius / sine + radius
    return (2 * math.sqrt(half) + 2) * radius if isinstance(rule, Krum | MultiKrum) else math.inf
