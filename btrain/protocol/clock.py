"""The deadlines of a round: named by the contract, or three times what the members report."""

from __future__ import annotations

from dataclasses import dataclass

from btrain.protocol.agreement_interface import Timing
from btrain.protocol.decisions import BLOCK, CONTRIBUTORS, RESULTS
from btrain.protocol.ledger import LedgerState

# Deadlines that follow the members' reports, before there are any.
FIRST_MAX_US = 120_000_000
FIRST_COMPUTE_MIN_US = 10_000_000
FIRST_COMPUTE_FACTOR = 10  # of the slowest founder's probe gradient: others may compute on the same machine meanwhile
FIRST_TRANSFER_MIN_US = 5_000_000
FIRST_TRANSFER_US_PER_PARAMETER = 16  # a byte of a part and one of a result, at 1 Mbit/s
FIRST_RETRY_MAX_US = 10_000_000  # what a further attempt of `results` then waits for bytes

RESTORING_FACTOR = 2  # after a rollback x is rebuilt first: some thirty updates, each far less work than a gradient


@dataclass(frozen=True)
class Clock:
    """The deadlines of a round, microseconds from the moment the last block was final here."""

    delta_us: int
    compute_us: int
    transfer_us: int
    retry_us: int = 0  # for the bytes of one more attempt of `results`

    @classmethod
    def of(cls, state: LedgerState) -> Clock:
        """From the contract and the last block; never below Delta. Round 0 computes nothing."""
        charter, delta = state.charter, state.charter.message_us
        if state.round == 0:
            return cls(delta, 0, 0)

        def automatic(fixed_us: int | None, reported_ms: int, first_us: int) -> int:
            if fixed_us is not None:
                return max(delta, fixed_us)
            return max(delta, 3000 * reported_ms if reported_ms else first_us)

        genesis = state.genesis
        compute_us = automatic(charter.compute_us, state.compute_ms, _first_compute_us(genesis.compute_ms))
        if state.trajectory.undone_by(state.round - 1) is not None:
            compute_us *= RESTORING_FACTOR
        if state.closing:
            compute_us *= _audits(state)
        transfer_us = automatic(charter.transfer_us, state.transfer_ms, _first_transfer_us(genesis.numel))
        known = charter.transfer_us is not None or state.transfer_ms > 0
        return cls(delta, compute_us, transfer_us, transfer_us if known else min(transfer_us, FIRST_RETRY_MAX_US))

    def timing(self, decision: int) -> Timing:
        """Deadlines of a decision; those of `contributors` and `results` leave time for computing and for bytes."""
        slack = (self.compute_us + self.transfer_us, self.transfer_us, 0)[decision]
        delta = self.delta_us + (self.retry_us if decision == RESULTS else 0)
        first, later = (4, 9) if decision == BLOCK else (3, 7)  # a Table follows the links, and matures for 2 Delta
        return Timing(delta, first * self.delta_us + slack, later * delta)

    def longest_us(self, faulty: int) -> int:
        """How long the round may take while so many members are silent, each of whom proposes before others do."""
        timings = [self.timing(decision) for decision in (CONTRIBUTORS, RESULTS, BLOCK)]
        return sum(timing.first_deadline_us + (faulty + 1) * timing.later_deadline_us for timing in timings)


def _audits(state: LedgerState) -> int:
    """Gradients that a member may have to recompute in a closing round: twice what it is drawn for on average."""
    fresh = sum(sweep.opened + 1 == state.round for sweep in state.sweeps)
    return 1 + 2 * fresh * (state.roster.faulty_max + 1)


def _first_compute_us(probe_ms: int) -> int:
    """Before anybody has reported: by the founders' probe gradients, if they measured any."""
    if not probe_ms:
        return FIRST_MAX_US
    return min(max(FIRST_COMPUTE_MIN_US, 1000 * FIRST_COMPUTE_FACTOR * probe_ms), FIRST_MAX_US)


def _first_transfer_us(numel: int) -> int:
    """Before anybody has reported: by the size of the model."""
    return min(max(FIRST_TRANSFER_MIN_US, FIRST_TRANSFER_US_PER_PARAMETER * numel), FIRST_MAX_US)
