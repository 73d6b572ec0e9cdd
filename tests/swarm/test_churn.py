"""Real peers come, leave and are killed: no certified round is lost, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from btrain.swarm.churn import Churn
from btrain.swarm.churn_plan import ChurnPlan

SHORT = ChurnPlan(
    peers=5, attackers=0, quiet_s=8.0, periods=3, period_s=15.0, replaced=2, kill_every=3, gradient_s=1.0, message_s=0.5
)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_peers_come_leave_and_are_killed_and_nothing_is_lost_or_left(tmp_path: Path) -> None:
    report = Churn(SHORT, tmp_path / "run", print).run()
    assert report.faults == []
    assert report.joined == 6 and report.left >= 6
    assert report.killed >= 2 and report.restarted >= 1 and report.churn_rate > 0
    assert report.longest_lived
