"""Attacks of an aggregator on the part that it reduces."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from btrain.adversary.adversary import Adversary
from btrain.aggregation import CenteredClip
from btrain.kernels import BLOCK, QuantizedBlocks, dequantize_blockwise, quantize_blockwise, weighted_sum
from btrain.protocol.encoding import PeerId
from btrain.protocol.exchange import with_leaves
from btrain.protocol.messages import Commit, Message, Missing
from btrain.protocol.reduction import ReducedPart, open_part, reduce_committed

if TYPE_CHECKING:
    from btrain.protocol.desk import Desk
    from btrain.protocol.round import Round


def inputs(round: Round, part: int) -> dict[PeerId, bytes]:
    """What the contributors committed to, by contributor."""
    contribution, commits = round.contribution, round.statements.commits
    workers = with_leaves(commits) if contribution is None else contribution.workers
    return round.exchange.committed(part, commits, workers)


def opened(reduced: ReducedPart, part: int, round: Round) -> QuantizedBlocks:
    """A reduced part, decoded."""
    return QuantizedBlocks.from_bytes(reduced.data, round.roles.layout.part_numel(part))


def shifted(right: QuantizedBlocks, length: float, seed: int) -> QuantizedBlocks:
    """A vector moved by `length` in the direction of a seed."""
    direction = torch.randn(right.numel, generator=torch.Generator().manual_seed(seed))
    return quantize_blockwise(dequantize_blockwise(right) + direction * (length / direction.norm()))


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
        right = opened(reduced, part, round)
        length = float(dequantize_blockwise(right).norm()) or 1.0
        return replace(reduced, data=shifted(right, self.shift * length, self.seed + part).to_bytes())


@dataclass
class JustInsideSketch(Adversary):
    """Knows the tables: shifts the reduced part by `errors` times its rounding error, which sketches cannot tell."""

    name = "just_inside_sketch"
    errors: float = 1.0

    def reduced(self, reduced: ReducedPart, part: int, round: Round) -> ReducedPart:
        """The reduction to publish."""
        if not self.attacks(round.round):
            return reduced
        right = opened(reduced, part, round)
        length = self.errors * math.sqrt(BLOCK / 12 * float(right.scales.double().square().sum()))
        return replace(reduced, data=shifted(right, length, self.seed + part).to_bytes())


@dataclass
class DirectedRounding(Adversary):
    """Rounds every value of the part up instead of to the nearest code: half a step too much on average."""

    name = "directed_rounding"
    outcome = "banned"

    def reduced(self, reduced: ReducedPart, part: int, round: Round) -> ReducedPart:
        """The reduction to publish."""
        if not self.attacks(round.round):
            return reduced
        numel = round.roles.layout.part_numel(part)
        legal = [q for data in inputs(round, part).values() if (q := open_part(data, numel)) is not None]
        if len(legal) != len(reduced.coefficients):
            return reduced
        coefficients = torch.tensor(reduced.coefficients, dtype=torch.float64)
        exact = weighted_sum([q.codes for q in legal], [q.scales for q in legal], coefficients)
        return replace(reduced, data=rounded_up(exact, numel).to_bytes())


def rounded_up(x: Tensor, numel: int) -> QuantizedBlocks:
    """x, float32 [B * 1024] with zeros behind `numel`, encoded with every code rounded up."""
    nearest = quantize_blockwise(x)
    steps = nearest.scales.clamp(min=2.0**-120)[:, None]
    codes = (x.view(-1, BLOCK) / steps).ceil().clamp(-127, 127).to(torch.int8)
    extreme = nearest.codes.abs() == 127  # a block without such a code would be illegal
    return QuantizedBlocks(torch.where(extreme, nearest.codes, codes), nearest.scales, numel)


@dataclass
class WrongTau(Adversary):
    """Clips at `factor` times the radius that the contract gives; everything else follows from that honestly."""

    name = "wrong_tau"
    outcome = "banned"
    factor: float = 4.0

    def reduced(self, reduced: ReducedPart, part: int, round: Round) -> ReducedPart:
        """The reduction to publish."""
        if not self.attacks(round.round) or not 0 < reduced.tau < math.inf:
            return reduced
        numel = round.roles.layout.part_numel(part)
        return reduce_committed(inputs(round, part), numel, CenteredClip(tau=self.factor * reduced.tau))


@dataclass
class DropContributor(Adversary):
    """Leaves an honest worker out of the sum and says that the rule gave it a coefficient of zero."""

    name = "drop_contributor"
    outcome = "banned"

    def reduced(self, reduced: ReducedPart, part: int, round: Round) -> ReducedPart:
        """The reduction to publish."""
        sent = inputs(round, part)
        honest = [worker for worker in sorted(sent) if worker not in self.coalition]
        if not self.attacks(round.round) or not honest:
            return reduced
        rest = {worker: data for worker, data in sent.items() if worker != honest[round.round % len(honest)]}
        wrong = reduce_committed(rest, round.roles.layout.part_numel(part), round.exchange.rule)
        share = dict(zip(sorted(rest), wrong.coefficients, strict=False))
        return replace(wrong, coefficients=tuple(share.get(worker, 0.0) for worker in sorted(sent)))


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
