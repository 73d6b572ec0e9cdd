"""The closing report of a swarm or a simulation in a few lines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from btrain.identity import short_id

if TYPE_CHECKING:
    from btrain.simulation.report import PeerReport, Report


def report_text(report: Report, names: Mapping[str, str] | None = None, errors: Mapping[str, str] | None = None) -> str:
    """Who was banned and who is missing, then the result. `names` and `errors` are by peer id."""
    lines = [
        line
        for row in report.peers
        for line in _peer_lines(row, (names or {}).get(row.peer_id), (errors or {}).get(row.peer_id))
    ]
    final = report.final
    loss = "no loss" if math.isnan(final.loss) else f"loss {final.loss:.4f}"
    accuracy = "" if final.metric == final.loss or math.isnan(final.metric) else f", accuracy {final.metric:.4f}"
    ratio = "" if report.loss_ratio is None else f" ({report.loss_ratio:.3f} of the loss without attackers)"
    wall = "" if report.wall_s is None else f" in {report.wall_s:.1f} s"
    equal = "all digests equal" if report.digests_equal else "DIGESTS DIFFER"
    lines.append(f"{report.rounds} rounds{wall}: {loss}{accuracy}{ratio}; false bans {report.false_bans}; {equal}")
    return "\n".join([*lines, *([f"check all of it: btrain audit {report.run_dir}"] if report.run_dir else [])])


def _peer_lines(row: PeerReport, name: str | None, error: str | None) -> list[str]:
    title = f"{name or short_id(row.peer_id)} ({row.attack or 'honest'})"
    if row.status == "banned":
        checks = [f"    btrain evidence {path}" for path in row.evidence if name is not None]
        return [f"{title}: banned in round {row.banned_round} for {row.reason}", *checks]
    if row.attack is not None or row.status != "active" or error:
        return [": ".join(filter(None, (title, row.status, row.reason, error)))]
    return []
