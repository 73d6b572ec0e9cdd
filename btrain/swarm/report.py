"""The closing report of a swarm: who was banned when, for what, on which evidence, and how the honest peers ended.

Bans and seats are read from the ledger of the honest peer that came furthest; losses and times from the events.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from btrain.identity import peer_id_bytes
from btrain.simulation.report import (
    EvidenceKey,
    Final,
    Part,
    Report,
    false_bans,
    loss_ratio,
    peer_reports,
    rounds_to_bans,
)  # fmt: skip
from btrain.storage.durable import replace_file
from btrain.swarm.outcome import Outcome
from btrain.swarm.plan import SwarmPlan
from btrain.verify.reading import LEDGER, Record

REPORT = "report.json"


def report_of(plan: SwarmPlan, outcomes: Sequence[Outcome], wall_s: float) -> Report:
    """The document of a swarm. `final` is the median over honest peers that came to the end without a ban."""
    honest = [outcome for outcome in outcomes if not outcome.peer.byzantine]
    furthest = max(honest, key=lambda outcome: (outcome.founded, -1 if outcome.round is None else outcome.round))
    blocks, state = Record.open(furthest.peer.run_dir).replay()
    cast = [Part(peer_id_bytes(o.peer.peer_id), o.peer.byzantine, o.peer.attack, o.peer.attack_from) for o in outcomes]
    rows = peer_reports(cast, blocks, state, _evidence(honest))
    banned = {row.peer_id for row in rows if row.status == "banned"}
    finals = [o.finished for o in honest if o.finished is not None and o.peer.peer_id not in banned]
    complete = [final for final in finals if final["round"] == max(f["round"] for f in finals)]
    first, last = rounds_to_bans(cast, blocks)
    loss = _median(final.get("loss") for final in complete)
    metric = _median(final.get("metric") for final in complete)
    return Report(
        run_id=state.run.hex(),
        rounds=len(blocks),
        final=Final(loss, loss if math.isnan(metric) else metric),
        peers=rows,
        false_bans=false_bans(rows),
        digests_equal=len({final["digest"] for final in complete}) <= 1 and _ledgers_agree(honest),
        rounds_to_first_ban=first,
        rounds_to_all_banned=last,
        loss_ratio=None,
        bytes_sent_per_parameter=_bytes_per_parameter(complete),
        run_dir=str(plan.run_dir),
        wall_s=round(wall_s, 3),
        seconds_by_phase=_seconds(honest),
    )


def compared(report: Report, baseline: Report) -> Report:
    """The report with its loss over that of the run without attackers."""
    return replace(report, loss_ratio=loss_ratio(report.final.loss, baseline.final.loss))


def _evidence(honest: Iterable[Outcome]) -> dict[EvidenceKey, list[str]]:
    """Where the proof of a deed lies: the file of the first honest peer that wrote one."""
    found: dict[EvidenceKey, list[str]] = {}
    for outcome in honest:
        for (peer, round, deed), path in outcome.evidence.items():
            found.setdefault((peer_id_bytes(peer), round, deed), [path])
    return found


def _ledgers_agree(honest: Iterable[Outcome]) -> bool:
    """Whether no two honest peers hold different blocks of one round."""
    known: dict[int, bytes] = {}
    for outcome in honest:
        if (outcome.peer.run_dir / LEDGER).exists() and outcome.founded:
            for stored in Record.open(outcome.peer.run_dir).rounds():
                if known.setdefault(stored.height, stored.data) != stored.data:
                    return False
    return True


def _median(values: Iterable[float | None]) -> float:
    """NaN where there is no number."""
    numbers = [value for value in values if value is not None]
    return statistics.median(numbers) if numbers else math.nan


def _bytes_per_parameter(finals: Sequence[Any]) -> float:
    """Bytes that a peer sent for every parameter and round, median over the peers."""
    return _median(f["bytes_sent"] / f["numel"] / max(1, f["round"]) for f in finals)


def _seconds(honest: Iterable[Outcome]) -> dict[str, float]:
    """Seconds that each phase of a round takes: the median over rounds and peers."""
    phases: dict[str, list[float]] = {}
    for outcome in honest:
        for phase, seconds in outcome.seconds.items():
            phases.setdefault(phase, []).extend(seconds)
    return {phase: round(statistics.median(seconds), 6) for phase, seconds in phases.items() if seconds}


def write_report(run_dir: Path, report: Report) -> None:
    """Keep the report beside the peers' folders."""
    replace_file(run_dir / REPORT, json.dumps(report.document(), indent=2).encode() + b"\n", durable=False)
