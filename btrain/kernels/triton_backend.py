"""Launches the CUDA kernels. Imported only where triton is; nothing is tuned at run time: no bit depends on timing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from btrain.kernels import triton_kernels as kernels
from btrain.kernels.backend import SketchSeed
from btrain.kernels.blocks import BLOCK
from btrain.kernels.errors import BackendUnavailable
from btrain.kernels.torch_backend import BUCKETS, SUM_GROUP

QUANTIZE_ROWS, QUANTIZE_WARPS = 4, 8
"""16 elements a thread: 64 bytes in flight each, enough to fill the memory pipe (4 loads of 128 bits)."""
GRAM_TILE, GRAM_CHUNK, GRAM_WARPS = 16, 64, 8
SUM_WIDTH = 64
LINE = kernels.LINE.value
EXACT = {"enable_fp_fusion": False}


class TritonBackend:
    """CUDA tensors; CPU tensors only under TRITON_INTERPRET=1, for tests."""

    name = "triton"

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise BackendUnavailable(f"the triton backend works on CUDA tensors, not on {device}")

    def quantize(self, x: Tensor, codes: Tensor, scales: Tensor, seed: int | None) -> int:
        """See Backend.quantize."""
        constants = {"STOCHASTIC": seed is not None, "num_warps": QUANTIZE_WARPS, **EXACT}
        for launch, first, even in _whole_and_rest(kernels.quantize, x.numel()):
            launch(x, codes, scales, x.numel(), first, _signed(seed or 0), R=QUANTIZE_ROWS, EVEN=even, **constants)
        refused = scales.isnan()
        return int(refused.nonzero()[0, 0]) if bool(refused.any()) else -1

    def dequantize(self, codes: Tensor, scales: Tensor, out: Tensor) -> None:
        """See Backend.dequantize."""
        constants = {"num_warps": QUANTIZE_WARPS, **EXACT}
        for launch, first, even in _whole_and_rest(kernels.dequantize, out.numel()):
            launch(codes, scales, out, out.numel(), first, R=QUANTIZE_ROWS, EVEN=even, **constants)

    def block_gram(self, codes: Sequence[Tensor], scales: Sequence[Tensor]) -> Tensor:
        """See Backend.block_gram."""
        n, blocks, device = len(codes), codes[0].shape[0], codes[0].device
        groups, tiles = -(-blocks // SUM_GROUP), -(-n // GRAM_TILE)
        (q, stride), (s, scale_stride) = _spaced(codes, LINE), _spaced(scales, 1)
        terms = torch.empty((groups, n, n), dtype=torch.float64, device=device)
        kernels.gram_groups[groups, tiles, tiles](
            q,
            s,
            terms,
            n,
            blocks,
            stride // LINE,
            scale_stride,
            T=GRAM_TILE,
            CHUNK=GRAM_CHUNK,
            num_warps=GRAM_WARPS,
            **EXACT,
        )
        return _sum_groups(terms)

    def weighted_sum(self, codes: Sequence[Tensor], weights_NB: Tensor, out_BK: Tensor) -> None:
        """See Backend.weighted_sum."""
        (q, stride), (n, blocks) = _spaced(codes, LINE), weights_NB.shape
        kernels.weighted_sum[blocks,](q, weights_NB, out_BK, n, blocks, stride // LINE, num_warps=2, **EXACT)

    def sketch(self, codes: Sequence[Tensor], scales: Sequence[Tensor], seed: SketchSeed, first_block: int) -> Tensor:
        """See Backend.sketch."""
        n, blocks, device = len(codes), codes[0].shape[0], codes[0].device
        groups = -(-blocks // SUM_GROUP)
        (q, stride), (s, scale_stride) = _spaced(codes, LINE), _spaced(scales, 1)
        terms = torch.empty((groups, n, BUCKETS), dtype=torch.float64, device=device)
        words = (_signed(seed.key), _signed(seed.high), first_block)
        kernels.sketch_groups[groups, n](
            q, s, terms, blocks, stride // LINE, scale_stride, *words, num_warps=4, **EXACT
        )
        return _sum_groups(terms)


def _sum_groups(terms: Tensor) -> Tensor:
    """Sum over the first dimension, one group after another."""
    out = torch.empty(terms.shape[1:], dtype=torch.float64, device=terms.device)
    grid = (-(-out.numel() // SUM_WIDTH),)
    kernels.sum_groups[grid](terms, out, terms.shape[0], out.numel(), W=SUM_WIDTH, num_warps=2, **EXACT)
    return out


def _whole_and_rest(kernel: Any, numel: int) -> Iterator[tuple[Any, int, bool]]:
    """(launcher, first block, whether unmasked) of the programs whose blocks are all whole, then of the last one."""
    whole = numel // (QUANTIZE_ROWS * BLOCK)
    if whole:
        yield kernel[whole,], 0, True
    if numel % (QUANTIZE_ROWS * BLOCK):
        yield kernel[1,], whole * QUANTIZE_ROWS, False


def _spaced(tensors: Sequence[Tensor], unit: int) -> tuple[Tensor, int]:
    """The first tensor and the distance to the next in elements, a multiple of `unit`; copied if not evenly spaced."""
    first, size = tensors[0], tensors[0].element_size()
    distance = tensors[1].data_ptr() - first.data_ptr() if len(tensors) > 1 else 0
    even = all(t.data_ptr() == first.data_ptr() + i * distance for i, t in enumerate(tensors))
    if even and distance % (size * unit) == 0:
        return first, distance // size
    stacked = torch.stack(tuple(tensors))
    return stacked, stacked.stride(0)


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit value."""
    return value - (1 << 64) if value >= 1 << 63 else value
