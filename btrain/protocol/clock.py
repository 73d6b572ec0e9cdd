"""The deadlines of a round: named by the contract, or three times what the members report."""

from __future__ import annotations

from dataclasses import dataclass

from btrain.protocol.agreement_interface import Timing
from btrain.protocol.decisions import RESULTS
from btrain.protocol.ledger import LedgerState

NO_HISTORY_US = 120_000_000  # deadlines that follow the members' reports, before there are any
NO_HISTORY_RETRY_US = 10_000_000  # what a further attempt of `results` then waits for bytes


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

        def automatic(fixed_us: int | None, reported_ms: int) -> int:
            if fixed_us is not None:
                return max(delta, fixed_us)
            return max(delta, 3000 * reported_ms) if reported_ms else NO_HISTORY_US

        compute_us = automatic(charter.compute_us, state.compute_ms)
        transfer_us = automatic(charter.transfer_us, state.transfer_ms)
        known = charter.transfer_us is not None or state.transfer_ms > 0
        return cls(delta, compute_us, transfer_us, transfer_us if known else NO_HISTORY_RETRY_US)

    def timing(self, decision: int) -> Timing:
        """Deadlines of a decision; those of `contributors` and `results` leave time for computing and for bytes."""
        slack = (self.compute_us + self.transfer_us, self.transfer_us, 0)[decision]
        delta = self.delta_us + (self.retry_us if decision == RESULTS else 0)
        return Timing(delta, 3 * self.delta_us + slack, 7 * delta)
