"""Attacks of an aggregator on the part that it reduces."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from btrain.adversary.adversary import Adversary
from btrain.kernels import QuantizedBlocks, dequantize_blockwise, quantize_blockwise
from btrain.protocol.exchange import leaf_of, with_leaves
from btrain.protocol.messages import Commit, Message, Missing
from btrain.protocol.reduction import ReducedPart, reduce_committed

if TYPE_CHECKING:
    from btrain.protocol.desk import Desk
    from btrain.protocol.round import Round


@dataclass
class WrongReduce(Adversary):
    """Shifts the reduced part in a direction of the coalition by `shift` times its length; the coefficients stay."""

    name = "wrong_reduce"
    outcome = "banned"
    shift: float = 1.0

    def reduced(self, reduced: ReducedPart, part: int, round: Round) -> ReducedPart:
        """The reduction to publish."""
        if not self.attacks(round.round):
            return reduced
        right = dequantize_blockwise(QuantizedBlocks.from_bytes(reduced.data, round.roles.layout.part_numel(part)))
        direction = torch.randn(right.numel(), generator=torch.Generator().manual_seed(self.seed + part))
        length = right.norm() if bool(right.any()) else torch.tensor(1.0)
        wrong = right + direction * (self.shift * length / direction.norm())
        return replace(reduced, data=quantize_blockwise(wrong).to_bytes())


@dataclass
class DropContributor(Adversary):
    """Leaves an honest worker out of the sum and says that the rule gave it a coefficient of zero."""

    name = "drop_contributor"
    outcome = "banned"

    def reduced(self, reduced: ReducedPart, part: int, round: Round) -> ReducedPart:
        """The reduction to publish."""
        commits, exchange = round.statements.commits, round.exchange
        held = {worker: exchange.blobs.get(leaf_of(commits[worker], part)) for worker in with_leaves(commits)}
        inputs = {worker: data for worker, data in held.items() if data is not None}
        honest = [worker for worker in sorted(inputs) if worker not in self.coalition]
        if not self.attacks(round.round) or not honest:
            return reduced
        rest = {worker: data for worker, data in inputs.items() if worker != honest[round.round % len(honest)]}
        wrong = reduce_committed(rest, round.roles.layout.part_numel(part), exchange.rule)
        share = dict(zip(sorted(rest), wrong.coefficients, strict=False))
        return replace(wrong, coefficients=tuple(share.get(worker, 0.0) for worker in sorted(inputs)))


@dataclass
class ComplaintFlood(Adversary):
    """Says that it lacks the parts of as many honest workers as it may name, twice: each sends more, through relays."""

    name = "complaint_flood"

    def broadcast(self, desk: Desk, message: Message, round: Round) -> None:
        """Send a statement; with the Commit the complaints."""
        desk.broadcast(message)
        part = round.roles.owned(round.me)
        if not self.attacks(round.round) or not isinstance(message.body, Commit) or part is None:
            return
        named = tuple(self.honest_workers(round)[: round.statements.lacking_max])
        for index in (0, 1):
            body = Missing(part, named)
            desk.broadcast(desk.sign(desk.statement(body, prev=round.state.head, round=round.round, index=index)))
