"""The end of a run: its last rounds are swept before it is over, so that who cheated late is proven like all others.

A cheat of the last rounds meets no audit in time: the next round audits it, and the votes take two blocks. With
`verification.final_sweep: N` the block that completes the run opens sweeps of the last N rounds, and closing rounds
follow. In these nobody computes: members audit what they are drawn for and commit once that is over. A block that opens
a further sweep prolongs the closing; one that restores earlier parameters ends it, the undone rounds are made up for,
and the run is closed anew. All of it follows from the blocks, so that the run is over for everybody with the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from btrain.protocol.quorum import validators_max
from btrain.protocol.sweep import Sweep

if TYPE_CHECKING:
    from btrain.protocol.ledger import LedgerState

CLOSING_ROUNDS = 4  # one for the audits, one for the votes on what they found, two for what came late
FINAL_SWEEP = 3  # what no audit, votes and block reach in time
FINAL_SWEEP_MAX = 4  # of more rounds x is not at hand any more


def last_rounds(before: LedgerState, after: LedgerState) -> tuple[int, ...]:
    """Which rounds the block between the two states has swept because the run is complete."""
    if before.closing or not after.closing or not _swept_last(before):
        return ()
    standing = [round for round in range(1, after.round) if after.trajectory.steps(round)]
    return tuple(standing[-_swept_last(before) :])


def closes_after(before: LedgerState, after: LedgerState, sweeps: Sequence[Sweep]) -> int:
    """The round in which the run is over, as things stand after a block; 0 while rounds are to be made."""
    if not after.closing:
        return 0
    if before.closing:
        prolonged = any(sweep.opened == before.round for sweep in sweeps)
    else:
        prolonged = _swept_last(before) > 0
    return after.round + CLOSING_ROUNDS if prolonged else max(before.closes, after.round)


def _swept_last(before: LedgerState) -> int:
    """How many rounds the block that completes the run has swept: none where nobody audits."""
    charter = before.charter
    return charter.sweeps_last if validators_max(len(before.roster.seats), charter.audits_per_round) else 0
