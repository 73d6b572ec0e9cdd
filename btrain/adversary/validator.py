"""Attacks on the courts: false accusations, false charges, lying votes, and validators that see nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from btrain.adversary.adversary import GUILTY, INNOCENT, Adversary
from btrain.protocol.audit import GradientCheck
from btrain.protocol.effects import PutBlob
from btrain.protocol.encoding import digest
from btrain.protocol.messages import Charge, Commit, Message

if TYPE_CHECKING:
    from btrain.protocol.desk import Desk
    from btrain.protocol.round import Round


@dataclass
class FalseAccuse(Adversary):
    """As validator accuses whomever it audits. With `charge` it also charges honest workers on nothing."""

    name = "false_accuse"
    outcome = "banned"
    charge: bool = False

    def accuses(self, check: GradientCheck, tolerance: float) -> bool:
        """Everybody who is no friend."""
        return self.attacks(check.roles.round) and check.commit.sender not in self.coalition

    def broadcast(self, desk: Desk, message: Message, round: Round) -> None:
        """The charge goes out with the Commit."""
        super().broadcast(desk, message, round)
        victims = self.honest_workers(round)
        if self.charge and victims and isinstance(message.body, Commit) and self.attacks(round.round):
            evidence = b"nothing at all " + round.round.to_bytes(8, "little")
            body = Charge(victims[round.round % len(victims)], round.round, "illegal_encoding", digest(evidence))
            desk.emit(PutBlob(digest(evidence), evidence, round.round))
            desk.broadcast(desk.sign(desk.statement(body, prev=desk.run, round=round.round)))


@dataclass
class RubberStamp(Adversary):
    """Computes honestly, and as validator or voter finds everybody innocent."""

    name = "rubber_stamp"

    def accuses(self, check: GradientCheck, tolerance: float) -> bool:
        """Nobody."""
        return not self.attacks(check.roles.round) and super().accuses(check, tolerance)

    def vote(self, check: GradientCheck, tolerance: float) -> Literal[0, 1, 2]:
        """Innocent."""
        return INNOCENT if self.attacks(check.roles.round) else super().vote(check, tolerance)


@dataclass
class Lie(Adversary):
    """Votes guilty on every honest member and innocent on every friend."""

    name = "lie"

    def vote(self, check: GradientCheck, tolerance: float) -> Literal[0, 1, 2]:
        """The opposite of what helps."""
        if not self.attacks(check.roles.round):
            return super().vote(check, tolerance)
        return INNOCENT if check.commit.sender in self.coalition else GUILTY
