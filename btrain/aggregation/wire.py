"""Reduction of encoded parts: Gram matrix, rule, weighted sum, encoded again; the same bytes on every machine.

Shapes: N contributors, B blocks, K = 1024 codes a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from btrain.aggregation.centered_clip import CenteredClip
from btrain.aggregation.errors import BadWeights, NonFiniteInput, NotOnTheWire, PartMismatch
from btrain.aggregation.ordered import F64
from btrain.aggregation.rule import AffineRule, Rule
from btrain.kernels import QuantizedBlocks, block_gram, quantize_blockwise, weighted_sum

DEFAULT_RULE = CenteredClip()

CHUNK_BLOCKS = 32
"""Blocks of the result summed and encoded at once; blocks are independent, so this changes no bit."""

CODEC_MAX = float(np.uint32(0x7EFFFFFF).view(np.float32))
"""The largest float32 below 2^127, the largest magnitude that the codec encodes."""


@dataclass(frozen=True)
class Reduction:
    """A reduced part, and what others need to check it."""

    blocks: QuantizedBlocks
    members: tuple[bytes, ...]
    """The contributors in the order of their ids, which is the order of `coefficients`."""
    coefficients: tuple[float, ...]
    tau: float | None
    """Clipping radius (inf: nothing was clipped), None for rules without one."""
    clipped_share: float


def reduce_part(
    parts: Mapping[bytes, QuantizedBlocks], rule: Rule = DEFAULT_RULE, weights: Mapping[bytes, float] | None = None
) -> QuantizedBlocks:
    """The robust average of one part over its contributors. See `reduce_with_report`."""
    return reduce_with_report(parts, rule, weights).blocks


def reduce_with_report(
    parts: Mapping[bytes, QuantizedBlocks], rule: Rule = DEFAULT_RULE, weights: Mapping[bytes, float] | None = None
) -> Reduction:
    """Reduce one part and say by which coefficients.

    parts: by member id, all of one length; the order of the mapping does not matter. weights: by member id, fixed by
    the ledger and never by the member, cut at the rule's `max_weight`.
    Raises PartMismatch, NonFiniteInput (a scale that no decoder would have let in), NotOnTheWire, BadWeights.
    """
    if not isinstance(rule, AffineRule):
        raise NotOnTheWire(f"{type(rule).__name__} works on coordinates and cannot reduce encoded parts")
    members = tuple(sorted(parts))
    inputs = [parts[member] for member in members]
    numel = _common_numel(parts, members)
    gram_NN = block_gram([q.codes for q in inputs], [q.scales for q in inputs]).cpu().numpy()
    solution = rule.solution(gram_NN, _ordered_weights(weights, members))
    return Reduction(
        blocks=_combine(inputs, solution.coefficients, numel),
        members=members,
        coefficients=tuple(solution.coefficients.tolist()),
        tau=solution.tau,
        clipped_share=solution.clipped_share,
    )


def _common_numel(parts: Mapping[bytes, QuantizedBlocks], members: tuple[bytes, ...]) -> int:
    if not members:
        raise PartMismatch("there is no part to reduce")
    numel = parts[members[0]].numel
    for member in members:
        part = parts[member]
        if part.numel != numel:
            raise PartMismatch(f"the part of {member.hex()} has {part.numel} elements, not {numel}")
    finite_N = torch.isfinite(torch.stack([parts[member].scales for member in members])).all(dim=1)
    if not bool(finite_N.all()):
        first = members[int(finite_N.to(torch.int8).argmin())]
        raise NonFiniteInput(f"the part of {first.hex()} has a scale that is not finite")
    return numel


def _ordered_weights(weights: Mapping[bytes, float] | None, members: tuple[bytes, ...]) -> list[float] | None:
    if weights is None:
        return None
    missing = [member.hex() for member in members if member not in weights]
    if missing:
        raise BadWeights(f"no weight for {missing[0]}")
    return [weights[member] for member in members]


def _combine(inputs: list[QuantizedBlocks], coefficients_N: F64, numel: int) -> QuantizedBlocks:
    """Weighted sum, encoded again, chunk by chunk, so that no float32 copy of the part ever exists.

    A convex combination of decoded values is at most their largest magnitude, but for rounding: scales of 2^127 / 127
    and N roundings can end a few ulp above what the codec encodes. Those few ulp are cut; float32 itself ends a factor
    of two higher, so the sum cannot overflow before.
    """
    codes_BK = torch.empty_like(inputs[0].codes)
    scales_B = torch.empty_like(inputs[0].scales)
    coefficients = torch.from_numpy(coefficients_N)
    for begin in range(0, len(scales_B), CHUNK_BLOCKS):
        rows = slice(begin, begin + CHUNK_BLOCKS)
        average = weighted_sum([q.codes[rows] for q in inputs], [q.scales[rows] for q in inputs], coefficients)
        encoded = quantize_blockwise(average.clamp_(-CODEC_MAX, CODEC_MAX))
        codes_BK[rows], scales_B[rows] = encoded.codes, encoded.scales
    return QuantizedBlocks(codes_BK, scales_B, numel)
