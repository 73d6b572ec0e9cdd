"""Half of the peers replaced again and again, attackers among them: the run goes on as if nobody went."""

from __future__ import annotations

from dataclasses import replace

import pytest

from btrain.simulation.churn import Churn, ChurnPlan

SHORT = ChurnPlan(peers=8, attacks=("sign_flip",), periods=3, period_us=30_000_000, replaced=4, crashes=0)
GOODPUT_MIN = 0.9


def goodput(plan: ChurnPlan) -> float:
    """Rounds that are not void in the time of the run, over those of the same run in which nobody comes or goes."""
    return Churn(plan).run().good_rounds / Churn(replace(plan, replaced=0)).run().good_rounds


def test_peers_come_and_go_and_rounds_go_on() -> None:
    churned = Churn(SHORT)
    outcome = churned.run()
    assert outcome.joined == 8
    assert outcome.good_rounds >= GOODPUT_MIN * Churn(replace(SHORT, replaced=0)).run().good_rounds
    workers = set(churned.world.blocks(churned._longest())[-1].contributors)
    assert len(workers & set(churned.world.newcomers)) >= 4


@pytest.mark.slow
def test_half_of_the_peers_replaced_every_minute_for_half_an_hour() -> None:
    assert goodput(ChurnPlan()) >= GOODPUT_MIN
