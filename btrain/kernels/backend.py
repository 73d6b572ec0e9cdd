"""The schema that every backend fulfils with the same bits.

Legend: N vectors, B blocks, K = 1024 codes a block. A stack of N encoded vectors is given as N tensors [B, K], so that
vectors that arrived one by one need not be copied together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor


class SketchSeed(NamedTuple):
    """128 bits of seed: the Philox key and the upper half of its counter."""

    key: int
    high: int


class Backend(Protocol):
    """All tensors are contiguous and on the backend's device; shapes have been checked."""

    name: str

    def quantize(self, x: Tensor, codes: Tensor, scales: Tensor, seed: int | None) -> int:
        """Encode x [numel] (fp32, bf16, fp16) into int8 [B, K] and fp32 [B]; first refused block or -1."""

    def dequantize(self, codes: Tensor, scales: Tensor, out: Tensor) -> None:
        """out fp32 [numel] = codes * scales."""

    def block_gram(self, codes: Sequence[Tensor], scales: Sequence[Tensor]) -> Tensor:
        """float64 [N, N]."""

    def weighted_sum(self, codes: Sequence[Tensor], weights_NB: Tensor, out_BK: Tensor) -> None:
        """out fp32 [B, K] = sum over N of weights * codes."""

    def sketch(self, codes: Sequence[Tensor], scales: Sequence[Tensor], seed: SketchSeed, first_block: int) -> Tensor:
        """float64 [N, 64]."""
