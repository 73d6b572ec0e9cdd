"""Attacks of an aggregator on the part that it reduces."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from btrain.adversary.adversary import Adversary
from btrain.kernels import QuantizedBlocks, dequantize_blockwise, quantize_blockwise
from btrain.protocol.reduction import ReducedPart

if TYPE_CHECKING:
    from btrain.protocol.round import Round


@dataclass
class WrongReduce(Adversary):
    """Shifts the reduced part in a direction of the coalition by `shift` times its length; the coefficients stay."""

    name = "wrong_reduce"
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
