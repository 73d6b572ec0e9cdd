"""Attacks on the courts: false accusations and charges, lying votes, validators that see nothing, lost bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from btrain.adversary.adversary import GUILTY, INNOCENT, Adversary
from btrain.adversary.numeric import HUGE
from btrain.kernels import IllegalEncoding, QuantizedBlocks, dequantize_blockwise, quantize_blockwise
from btrain.protocol.audit import GradientCheck
from btrain.protocol.effects import PutBlob
from btrain.protocol.encoding import PeerId, digest
from btrain.protocol.messages import Accusation, Charge, Commit, Message
from btrain.protocol.reduction import ReducedPart

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

    def vote(self, check: GradientCheck, tolerance: float) -> Literal[0, 1, 2, 3]:
        """Innocent."""
        return INNOCENT if self.attacks(check.roles.round) else super().vote(check, tolerance)


@dataclass
class Lie(Adversary):
    """Votes guilty on every honest member and innocent on every friend."""

    name = "lie"

    def vote(self, check: GradientCheck, tolerance: float) -> Literal[0, 1, 2, 3]:
        """The opposite of what helps."""
        if not self.attacks(check.roles.round):
            return super().vote(check, tolerance)
        return INNOCENT if check.commit.sender in self.coalition else GUILTY


@dataclass
class AccuseFlood(Adversary):
    """Accuses everybody honest of everything in every round, in every slot that there is, validator or not."""

    name = "accuse_flood"
    outcome = "banned"
    _commits: dict[int, Mapping[PeerId, Message]] = field(default_factory=dict, init=False, repr=False)

    def broadcast(self, desk: Desk, message: Message, round: Round) -> None:
        """The accusations go out with the Commit."""
        super().broadcast(desk, message, round)
        if not isinstance(message.body, Commit) or not self.attacks(round.round):
            return
        slots = {round.round - 1: desk.run} | {sweep.round: sweep.slot for sweep in round.state.sweeps}
        for of, prev in slots.items():
            for index, (victim, commit) in enumerate(sorted(self._commits.get(of, {}).items())):
                if victim not in self.coalition:
                    body = Accusation(victim, of, commit.hash)
                    desk.broadcast(desk.sign(desk.statement(body, prev=prev, round=round.round, index=index)))
        self._commits[round.round] = round.statements.commits
        self._commits.pop(round.round - 64, None)

    def accuses(self, check: GradientCheck, tolerance: float) -> bool:
        """Everybody who is no friend."""
        return self.attacks(check.roles.round) and check.commit.sender not in self.coalition


@dataclass
class CustodyLoss(Adversary):
    """Forges the parts of its gradient that a friend reduces, then neither of the two has the bytes any more."""

    name = "custody_loss"
    scale: float = 1000.0
    everything: bool = False
    _lost: set[bytes] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.everything:
            self.outcome = "banned"  # type: ignore[misc]

    def parts(self, parts: list[bytes], round: Round) -> list[bytes]:
        """Reversed where a friend reduces, or everywhere."""
        if not parts or not self.attacks(round.round):
            return parts
        forged = list(parts)
        for part, data in enumerate(parts):
            if self.everything or round.roles.aggregator(part, 0) in self.coalition:
                forged[part] = self._reversed(data, round.roles.layout.part_numel(part))
                self._lost.add(digest(forged[part]))
        return forged

    def _reversed(self, data: bytes, numel: int) -> bytes:
        try:
            blocks = QuantizedBlocks.from_bytes(data, numel)
        except IllegalEncoding:
            return data  # another attack has been there
        return quantize_blockwise((-self.scale * dequantize_blockwise(blocks)).clamp(-HUGE, HUGE)).to_bytes()

    def reduced(self, reduced: ReducedPart, part: int, round: Round) -> ReducedPart:
        """As aggregator, loses what friends have sent it."""
        for peer, commit in round.statements.commits.items():
            if peer in self.coalition and isinstance(commit.body, Commit) and commit.body.leaves:
                self._lost.add(commit.body.leaves[part])
        return reduced

    def gives(self, peer: PeerId, hash: bytes, data: bytes | None) -> bytes | None:
        """Not what would prove anything."""
        return None if hash in self._lost else data
