"""From committed bytes to the reduced bytes: a pure function, so that anybody can do it again, bit for bit."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from btrain.aggregation import Rule, reduce_with_report
from btrain.kernels import IllegalEncoding, NotEncodable, QuantizedBlocks, quantize_blockwise
from btrain.protocol.encoding import PeerId
from btrain.protocol.roles import PartLayout

SMALL_PART_BYTES = 16 * 1024  # of these a round opens each several times, and that costs more than finding it again
SMALL_PARTS_KEPT = 2048

CommittedParts = Mapping[PeerId, bytes] | Iterable[tuple[PeerId, bytes]]  # the bytes of each contributor


@dataclass(frozen=True)
class ReducedPart:
    """A reduced part as it travels, and what the live table shows of it."""

    data: bytes
    coefficients: tuple[float, ...]  # of the legal contributors, in member order
    clipped_share: float
    tau: float = math.inf  # the clipping radius, if the rule has one


def open_part(data: bytes, numel: int) -> QuantizedBlocks | None:
    """Decode a part, None if its encoding is illegal. Not to be changed in place: small ones are remembered."""
    return _open_small(data, numel) if len(data) <= SMALL_PART_BYTES else _open(data, numel)


@functools.lru_cache(SMALL_PARTS_KEPT)
def _open_small(data: bytes, numel: int) -> QuantizedBlocks | None:
    return _open(data, numel)


def _open(data: bytes, numel: int) -> QuantizedBlocks | None:
    try:
        return QuantizedBlocks.from_bytes(data, numel)
    except IllegalEncoding:
        return None


def reduce_committed(parts: CommittedParts, numel: int, rule: Rule) -> ReducedPart:
    """Reduce one part over its contributors.

    Whether committed bytes are a legal encoding is a function of the bytes alone, so everybody leaves out the same
    contributors; that they are illegal is evidence, and the ban follows in the next block. Nobody left: zeros.
    """
    opened = {peer: open_part(data, numel) for peer, data in dict(parts).items()}
    legal = {peer: part for peer, part in opened.items() if part is not None}
    if not legal:
        return ReducedPart(quantize_blockwise(torch.zeros(numel)).to_bytes(), (), 0.0)
    reduction = reduce_with_report(legal, rule)
    tau = math.inf if reduction.tau is None else reduction.tau
    return ReducedPart(reduction.blocks.to_bytes(), reduction.coefficients, reduction.clipped_share, tau)


def encode_gradient(gradient: Tensor, layout: PartLayout) -> list[bytes] | None:
    """Encode a flat float32 gradient part by part; None if a value is not finite or beyond the codec's range."""
    parts = []
    try:
        for part in range(layout.parts):
            start, end = layout.bounds(part)
            parts.append(quantize_blockwise(gradient[start:end]).to_bytes())
    except NotEncodable:
        return None
    return parts
