"""Rules by name."""

from __future__ import annotations

import pytest
import torch

from btrain.aggregation import (
    BadRuleOption,
    CenteredClip,
    Mean,
    NearestNeighborMixing,
    Rule,
    UnknownRule,
    get_rule,
    register_rule,
    registry,
    rule_names,
)


@pytest.fixture
def _own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))


def test_names_and_options_reach_the_rule() -> None:
    assert get_rule("centered_clip", c=2.0) == CenteredClip(c=2.0)
    assert get_rule("mean") == Mean()
    assert get_rule("nearest_neighbor_mixing", then="mean") == NearestNeighborMixing(then=Mean())
    with pytest.raises(BadRuleOption, match="coefficients"):
        get_rule("bucketing", then="median")
    assert {"mean", "centered_clip", "krum", "multi_krum", "geometric_median", "median", "trimmed_mean"} < set(
        rule_names()
    )


def test_unknown_words_name_the_nearest() -> None:
    with pytest.raises(UnknownRule, match="did you mean 'centered_clip'"):
        get_rule("centred_clip")
    with pytest.raises(UnknownRule, match="there are: bucketing"):
        get_rule("zzz")
    with pytest.raises(BadRuleOption, match="did you mean 'tau'"):
        get_rule("centered_clip", taw=1.0)


@pytest.mark.usefixtures("_own_table")
def test_a_user_adds_a_rule() -> None:
    class First(Rule):
        def aggregate(self, x_ND: torch.Tensor) -> torch.Tensor:
            return x_ND[0]

    register_rule("first", First)
    assert torch.equal(get_rule("first").aggregate(torch.eye(2)), torch.tensor([1.0, 0.0]))
    with pytest.raises(UnknownRule, match="taken"):
        register_rule("mean", First)
