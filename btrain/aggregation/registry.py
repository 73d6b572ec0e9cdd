"""Rules by name, as run.yaml names them. Anybody can add one with `register_rule`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable

from btrain.aggregation.centered_clip import CenteredClip
from btrain.aggregation.coordinatewise import Median, TrimmedMean
from btrain.aggregation.errors import BadRuleOption, UnknownRule
from btrain.aggregation.geometric_median import GeometricMedian
from btrain.aggregation.krum import Krum, MultiKrum
from btrain.aggregation.mean import Mean
from btrain.aggregation.mixing import Bucketing, NearestNeighborMixing
from btrain.aggregation.rule import Rule

_FACTORIES: dict[str, Callable[..., Rule]] = {
    "mean": Mean,
    "centered_clip": CenteredClip,
    "geometric_median": GeometricMedian,
    "krum": Krum,
    "multi_krum": MultiKrum,
    "nearest_neighbor_mixing": NearestNeighborMixing,
    "bucketing": Bucketing,
    "median": Median,
    "trimmed_mean": TrimmedMean,
}


def register_rule(name: str, factory: Callable[..., Rule]) -> None:
    """Make `get_rule(name, **options)` call `factory(**options)`. A name can be taken once."""
    if name in _FACTORIES:
        raise UnknownRule(f"the rule name {name!r} is taken")
    _FACTORIES[name] = factory


def rule_names() -> list[str]:
    """Every registered name, sorted."""
    return sorted(_FACTORIES)


def get_rule(name: str, **options: object) -> Rule:
    """The rule of this name. `then`, the rule behind a mixing step, may be given by its name too.

    Raises UnknownRule or BadRuleOption, both of which name the nearest valid word.
    """
    if name not in _FACTORIES:
        raise UnknownRule(f"unknown rule {name!r}{_nearest(name, rule_names())}")
    factory = _FACTORIES[name]
    known = list(inspect.signature(factory).parameters)
    for option in options:
        if option not in known:
            raise BadRuleOption(f"the rule {name!r} has no option {option!r}{_nearest(option, known)}")
    if isinstance(then := options.get("then"), str):
        options["then"] = get_rule(then)
    return factory(**options)


def _nearest(word: str, words: list[str]) -> str:
    close = difflib.get_close_matches(word, words, n=1)
    return f", did you mean {close[0]!r}?" if close else f"; there are: {', '.join(words)}"
