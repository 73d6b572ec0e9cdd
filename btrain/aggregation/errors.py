"""What a reduction refuses, each misdeed or misuse under its own name."""

from __future__ import annotations

from btrain.errors import BtrainError, ConfigError


class AggregationError(BtrainError):
    """Base of everything that the aggregation rules raise on purpose."""


class NonFiniteInput(AggregationError):
    """An input holds NaN, Inf, or numbers so large that a squared distance overflows float64."""


class BadShape(AggregationError):
    """An input is not a matrix of floating-point numbers with one row each, or a Gram matrix is not square."""


class PartMismatch(AggregationError):
    """The parts to reduce do not have the same length, or there is none."""


class NotConvex(AggregationError):
    """A rule returned coefficients that are non-finite, negative, or do not sum to one."""


class NotOnTheWire(AggregationError):
    """A coordinate-wise rule was asked to reduce encoded parts; only affine rules can."""


class BadWeights(AggregationError):
    """Weights are missing, not finite or not positive."""


class UnknownRule(ConfigError):
    """No rule of this name is registered."""


class BadRuleOption(ConfigError):
    """A rule does not take this option, or not this value."""
