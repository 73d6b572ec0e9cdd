"""Robust averages as pure functions: no I/O, no clock, no randomness of their own.

`reduce_part` and `reduce_with_report` reduce encoded parts to the same bytes on every machine; `aggregate` works on
dense matrices; `get_rule` knows the rules by name.
"""

from __future__ import annotations

import torch

from btrain.aggregation.centered_clip import CenteredClip
from btrain.aggregation.coordinatewise import CoordinateRule, Median, TrimmedMean
from btrain.aggregation.errors import (
    AggregationError,
    BadRuleOption,
    BadShape,
    BadWeights,
    NonFiniteInput,
    NotConvex,
    NotOnTheWire,
    PartMismatch,
    UnknownRule,
)
from btrain.aggregation.geometric_median import GeometricMedian
from btrain.aggregation.geometry import majority
from btrain.aggregation.krum import Krum, MultiKrum
from btrain.aggregation.mean import Mean
from btrain.aggregation.mixing import Bucketing, Mixing, NearestNeighborMixing
from btrain.aggregation.registry import get_rule, register_rule, rule_names
from btrain.aggregation.rule import AffineRule, Rule, Solution
from btrain.aggregation.wire import DEFAULT_RULE, Reduction, reduce_part, reduce_with_report


def aggregate(x_ND: torch.Tensor, rule: Rule = DEFAULT_RULE) -> torch.Tensor:
    """The robust average of the rows of a floating-point matrix: [D], same dtype and device. Raises NonFiniteInput."""
    return rule.aggregate(x_ND)


__all__ = [
    "DEFAULT_RULE",
    "AffineRule",
    "AggregationError",
    "BadRuleOption",
    "BadShape",
    "BadWeights",
    "Bucketing",
    "CenteredClip",
    "CoordinateRule",
    "GeometricMedian",
    "Krum",
    "Mean",
    "Median",
    "Mixing",
    "MultiKrum",
    "NearestNeighborMixing",
    "NonFiniteInput",
    "NotConvex",
    "NotOnTheWire",
    "PartMismatch",
    "Reduction",
    "Rule",
    "Solution",
    "TrimmedMean",
    "UnknownRule",
    "aggregate",
    "get_rule",
    "majority",
    "reduce_part",
    "reduce_with_report",
    "register_rule",
    "rule_names",
]
