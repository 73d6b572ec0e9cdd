"""Deadlines: the contract's, or what members report, or, before they have, what the founders measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from btrain.protocol.clock import Clock
from btrain.protocol.decisions import BLOCK, CONTRIBUTORS, RESULTS
from btrain.protocol.encoding import ZERO
from btrain.protocol.ledger import Founder, Genesis, LedgerState

Run = Any  # the fixture of conftest.py
SECOND = 1_000_000


def state(run: Run, *, numel: int = 3000, probe_ms: int = 0, **changes: Any) -> LedgerState:
    genesis = Genesis(1, b"", ZERO, numel, ZERO, 0.0, (Founder(ZERO, ZERO),), probe_ms)
    charter = replace(run.charter(1, 10), message_us=SECOND // 2, compute_us=None, transfer_us=None)
    return replace(LedgerState.start(genesis, charter), **{"round": 1, **changes})


def test_round_0_only_draws(run: Run) -> None:
    assert Clock.of(state(run, round=0, probe_ms=5000)) == Clock(SECOND // 2, 0, 0)


@pytest.mark.parametrize(
    ("probe_ms", "numel", "compute_s", "transfer_s"),
    [
        (0, 650, 120, 5),  # nobody measured
        (20, 650, 10, 5),
        (2500, 1_000_000, 25, 16),
        (60_000, 10**9, 120, 120),
    ],
)
def test_the_first_deadlines(run: Run, probe_ms: int, numel: int, compute_s: int, transfer_s: int) -> None:
    clock = Clock.of(state(run, probe_ms=probe_ms, numel=numel))
    assert (clock.compute_us, clock.transfer_us) == (compute_s * SECOND, transfer_s * SECOND)
    assert clock.retry_us == min(10, transfer_s) * SECOND


def test_reports_replace_what_was_measured_at_first(run: Run) -> None:
    clock = Clock.of(state(run, probe_ms=2500, compute_ms=700, transfer_ms=10))
    assert (clock.compute_us, clock.transfer_us, clock.retry_us) == (2_100_000, SECOND // 2, SECOND // 2)


def test_the_contract_goes_before_reports(run: Run) -> None:
    begun = state(run, compute_ms=700, transfer_ms=10)
    charter = replace(begun.charter, compute_us=9 * SECOND, transfer_us=1)
    clock = Clock.of(replace(begun, charter=charter))
    assert (clock.compute_us, clock.transfer_us) == (9 * SECOND, SECOND // 2)  # never below Delta


def test_each_decision_waits_for_what_it_needs(run: Run) -> None:
    clock = Clock(SECOND, 10 * SECOND, 5 * SECOND, 2 * SECOND)
    waits = {decision: clock.timing(decision).first_deadline_us for decision in (CONTRIBUTORS, RESULTS, BLOCK)}
    assert waits == {CONTRIBUTORS: 18 * SECOND, RESULTS: 8 * SECOND, BLOCK: 4 * SECOND}
    assert clock.timing(RESULTS).delta_us == 3 * SECOND and clock.timing(BLOCK).delta_us == SECOND


def test_the_longest_round_has_a_silent_proposer_in_each_further_attempt() -> None:
    clock = Clock(SECOND, 10 * SECOND, 5 * SECOND, 2 * SECOND)
    assert clock.longest_us(1) == (18 + 2 * 7 + 8 + 2 * 7 * 3 + 4 + 2 * 9) * SECOND
