"""How much a peer may have from us: answers cost more than questions, so each asker has a budget a period."""

from __future__ import annotations

from dataclasses import dataclass, field

from btrain.protocol.encoding import PeerId

ASKERS_MAX = 1024  # peers remembered; beyond, all begin anew


@dataclass
class Allowance:
    """`amount_max` for each peer in any period."""

    amount_max: int
    period_us: int
    _spent: dict[PeerId, tuple[int, int]] = field(default_factory=dict)  # peer -> (begin of its period, spent in it)

    def spend(self, peer: PeerId, amount: int, now: int) -> bool:
        """Whether the peer may have `amount` more; counted if it may."""
        began, spent = self._spent.get(peer, (now, 0))
        if now - began >= self.period_us:
            began, spent = now, 0
        if spent + amount > self.amount_max:
            return False
        if len(self._spent) >= ASKERS_MAX and peer not in self._spent:
            self._spent.clear()
        self._spent[peer] = (began, spent + amount)
        return True
