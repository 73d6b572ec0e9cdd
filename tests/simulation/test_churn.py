"""Half of the peers replaced again and again, attackers among them: the run goes on as if nobody went."""

from __future__ import annotations

from dataclasses import replace

import pytest

from btrain.simulation.churn import Churn, ChurnPlan

SHORT = ChurnPlan(
    peers=8, attacks=("sign_flip",), periods=3, period_us=30_000_000, compute_us=5_000_000, replaced=4, crash_every=None
)
GOODPUT_MIN = 0.9  # rounds that are not void, over those of the same time in which nobody comes or goes


def test_peers_come_and_go_and_rounds_go_on() -> None:
    churned = Churn(SHORT)
    outcome = churned.run()
    assert outcome.joined == 8
    assert outcome.good_rounds >= GOODPUT_MIN * Churn(replace(SHORT, replaced=0)).run().good_rounds
    workers = set(churned.world.blocks(churned._longest())[-1].contributors)
    assert len(workers & set(churned.world.newcomers)) >= 4


@pytest.mark.slow
def test_half_of_the_peers_replaced_every_minute_for_half_an_hour() -> None:
    outcome, calm = Churn(ChurnPlan()).run(), Churn(replace(ChurnPlan(), periods=6, replaced=0)).run()
    assert outcome.joined == 29 * 8
    assert outcome.good_rounds >= GOODPUT_MIN * calm.good_rounds * 30 / 6
