"""run.yaml's contract as the protocol reads it."""

from __future__ import annotations

from btrain.aggregation import get_rule
from btrain.config import RunConfig
from btrain.protocol.ledger import Charter


def charter_of(config: RunConfig) -> Charter:
    """The protocol's view of a contract: seconds become microseconds, names become rules.

    Raises:
        ConfigError: a rule or an option of it is unknown.
    """
    deadlines, verification = config.deadlines, config.verification

    def microseconds(seconds: float | None) -> int | None:
        return None if seconds is None else round(seconds * 1e6)

    return Charter(
        rounds=config.rounds,
        byzantine_max=config.group.byzantine_max or 0,
        audits_per_round=verification.audits_per_round,
        tolerance=verification.tolerance.bf16 if config.precision == "bf16" else verification.tolerance.fp32,
        rule=get_rule(config.aggregation.rule, **config.aggregation.options()),
        message_us=round(deadlines.message_s * 1e6),
        compute_us=microseconds(deadlines.compute_s),
        transfer_us=microseconds(deadlines.transfer_s),
        admission=config.group.admission,
        probation_rounds=config.group.probation_rounds,
        invitations=config.group.invitations,
        allowed=frozenset(config.members),
        state_sync_every=config.state_sync_every,
        custody_rounds=verification.custody_rounds,
        sweep=verification.sweep,
        state_tolerance=verification.state_tolerance,
        banned=frozenset(config.banned),
        rollback=verification.rollback != "none",
        rollback_whole=verification.rollback == "window",
        final_sweep=verification.final_sweep,
    )
