"""When nothing can be certified: fewer members can be reached than a block needs signatures. The run halts and says so.

It is no end: the members ask each other on, and go on when enough of them are back.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from btrain.protocol.desk import Desk
from btrain.protocol.encoding import PeerId
from btrain.protocol.ledger import LedgerState

STILL_DELTAS = 4  # a round that loses members decides, if it can, what others have signed already


@dataclass
class Standstill:
    """Watches one member's connections; `halted` is how many members could be reached when it last said so."""

    desk: Desk
    halted: int | None = None

    def look(self, state: LedgerState, connected: Collection[PeerId], decided_us: int, now: int) -> None:
        """Say that the run has halted, or how many are back; `decided_us` is when a block was decided last."""
        roster = state.roster
        me = self.desk.me
        reached = sum(peer == me or peer in connected for peer in roster.members)
        if reached >= roster.quorum or now - decided_us < STILL_DELTAS * state.charter.message_us:
            self.halted = None
        elif reached != self.halted:
            self.halted = reached
            self.desk.event("halted", round=state.round, reached=reached, members=len(roster.members),
                            needed=roster.quorum)  # fmt: skip
