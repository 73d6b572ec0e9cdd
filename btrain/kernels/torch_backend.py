"""The reference backend in plain torch operations: always there, chunked, and the twin that every other one must equal.

Legend: N vectors, B blocks, K = 1024 codes a block. Every result is defined by IEEE single operations in a fixed
order, never by a library reduction whose order depends on vector width or thread count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from btrain.kernels.backend import SketchSeed
from btrain.kernels.blocks import ABSMAX_LIMIT, ABSMAX_MIN, BLOCK
from btrain.kernels.philox import philox_words

QUANTIZE_CHUNK_BLOCKS = 512
"""Blocks per torch call: 2 MiB of fp32, large against the cost of a call and small against the cache."""
STOCHASTIC_CHUNK_BLOCKS = 32
DEQUANTIZE_CHUNK_BLOCKS = 64
SKETCH_CHUNK_BLOCKS = 64
SUM_GROUP = 16
SCRATCH_BYTES = 1 << 19
BUCKETS = 64
ROWS = BLOCK // BUCKETS
NORMAL_MIN = 2.0**-126


class TorchBackend:
    """Works on any device torch has; the bits are those of the CPU."""

    name = "torch"

    def quantize(self, x: Tensor, codes: Tensor, scales: Tensor, seed: int | None) -> int:
        """See Backend.quantize."""
        whole, used = x.numel() // BLOCK, x.numel() % BLOCK
        step = QUANTIZE_CHUNK_BLOCKS if seed is None else STOCHASTIC_CHUNK_BLOCKS
        x_BK, absmax = x[: whole * BLOCK].view(whole, BLOCK), scales
        scratch = torch.empty((min(whole, step), BLOCK), dtype=torch.float32, device=x.device)
        for start in range(0, whole, step):
            rows = slice(start, min(start + step, whole))
            _round_rows(x_BK[rows], codes[rows], absmax[rows], scratch[: rows.stop - start], start, seed)
        if used:
            tail = torch.zeros((1, BLOCK), dtype=torch.float32, device=x.device)
            tail[0, :used] = x[whole * BLOCK :]
            _round_rows(tail, codes[whole:], absmax[whole:], torch.empty_like(tail), whole, seed)
        return _finish(codes, absmax)

    def dequantize(self, codes: Tensor, scales: Tensor, out: Tensor) -> None:
        """See Backend.dequantize."""
        whole, step = out.numel() // BLOCK, DEQUANTIZE_CHUNK_BLOCKS
        out_BK = out[: whole * BLOCK].view(whole, BLOCK)
        for start in range(0, whole, step):
            rows = slice(start, min(start + step, whole))
            out_BK[rows].copy_(codes[rows]).mul_(scales[rows, None])
        if out.numel() % BLOCK:
            tail = out[whole * BLOCK :]
            tail.copy_(codes[whole, : tail.numel()]).mul_(scales[whole])

    def block_gram(self, codes: Sequence[Tensor], scales: Sequence[Tensor]) -> Tensor:
        """See Backend.block_gram. Integers below 2^24 are exact in fp32, in any order, and in TF32 and bf16 modes."""
        n, blocks, device = len(codes), codes[0].shape[0], codes[0].device
        s_BN = torch.stack(tuple(scales), 1).to(torch.float64)
        gram = torch.zeros((n, n), dtype=torch.float64, device=device)
        step = min(SUM_GROUP, max(1, SCRATCH_BYTES // (n * BLOCK * 4)))
        for start in range(0, blocks, SUM_GROUP):
            stop = min(start + SUM_GROUP, blocks)
            terms = torch.zeros((SUM_GROUP, n, n), dtype=torch.float64, device=device)
            for low in range(start, stop, step):
                high = min(low + step, stop)
                x_bNK = torch.stack([q[low:high] for q in codes], 1).to(torch.float32)
                terms[low - start : high - start] = torch.bmm(x_bNK, x_bNK.transpose(1, 2))
            s_bN = s_BN[start:stop]
            terms[: stop - start].mul_(s_bN[:, :, None] * s_bN[:, None, :])
            gram += _halving_sum(terms)
        return gram

    def weighted_sum(self, codes: Sequence[Tensor], weights_NB: Tensor, out_BK: Tensor) -> None:
        """See Backend.weighted_sum."""
        step = DEQUANTIZE_CHUNK_BLOCKS
        term = torch.empty((min(out_BK.shape[0], step), BLOCK), dtype=torch.float32, device=out_BK.device)
        for start in range(0, out_BK.shape[0], step):
            rows = slice(start, min(start + step, out_BK.shape[0]))
            out, part = out_BK[rows].zero_(), term[: rows.stop - start]
            for q, weights in zip(codes, weights_NB, strict=True):
                out.add_(part.copy_(q[rows]).mul_(weights[rows, None]))

    def sketch(self, codes: Sequence[Tensor], scales: Sequence[Tensor], seed: SketchSeed, first_block: int) -> Tensor:
        """See Backend.sketch."""
        n, blocks, device = len(codes), codes[0].shape[0], codes[0].device
        out = torch.zeros((n, BUCKETS), dtype=torch.float64, device=device)
        for start in range(0, blocks, SKETCH_CHUNK_BLOCKS):
            stop = min(start + SKETCH_CHUNK_BLOCKS, blocks)
            groups = -(-(stop - start) // SUM_GROUP)
            terms = torch.zeros((n, groups * SUM_GROUP, BUCKETS), dtype=torch.float64, device=device)
            signs, source = _sketch_rows((first_block + start) * ROWS, (stop - start) * ROWS, seed, device)
            for i, (q, s) in enumerate(zip(codes, scales, strict=True)):
                turned = (q[start:stop].view(-1, BUCKETS) * signs).gather(1, source)
                sums = turned.view(-1, ROWS, BUCKETS).sum(1, dtype=torch.int32)
                torch.mul(sums, s[start:stop, None].to(torch.float64), out=terms[i, : stop - start])
            for group in _halving_sum(terms.view(n, groups, SUM_GROUP, BUCKETS).permute(2, 1, 0, 3)):
                out += group
        return out


def _round_rows(x: Tensor, codes: Tensor, absmax: Tensor, y: Tensor, first: int, seed: int | None) -> None:
    """Fill codes [b, K] and absmax [b] of x [b, K], whole blocks from number `first` on; y is fp32 scratch like x.

    Codes of blocks that are too small or refused are arbitrary here, `_finish` sets them.
    """
    if x.dtype != torch.float32:
        x = x.to(torch.float32)
    torch.amax(torch.abs(x, out=y), 1, out=absmax)
    # full_like: torch computes `127.0 / t` as reciprocal(t) * 127, which rounds twice.
    inverse = torch.full_like(absmax, 127.0).div_(absmax)
    if seed is None:
        codes.copy_(torch.mul(x, inverse[:, None], out=y).round_())
        return
    extreme = y == absmax[:, None]
    # Subnormals count as zero, so that flush-to-zero modes change nothing.
    torch.mul(x.masked_fill(y < NORMAL_MIN, 0.0), inverse[:, None], out=y)
    y.add_(_uniform(first, x.shape[0], seed, x.device)).floor_().clamp_(-127, 127)
    codes.copy_(torch.where(extreme, torch.sign(x) * 127.0, y))


def _finish(codes: Tensor, scales: Tensor) -> int:
    """Turn absmax [B] into scales in place; clear small blocks; the first refused block or -1."""
    small, taken = scales < ABSMAX_MIN, scales < ABSMAX_LIMIT
    scales.div_(torch.full_like(scales, 127.0))
    if bool(small.any()):
        codes[small] = 0
        scales[small] = 0.0
    if bool(taken.all()):
        return -1
    return int(taken.logical_not_().nonzero()[0, 0])


def _uniform(first_block: int, blocks: int, seed: int, device: torch.device) -> Tensor:
    """fp32 [blocks, K] in (0, 1): odd multiples of 2^-24 from the upper 23 bits of each element's word."""
    words = philox_words(first_block * (BLOCK // 4), blocks * (BLOCK // 4), key=seed)
    odd = (words.reshape(blocks, BLOCK) >> 9 << 1) + np.uint32(1)
    return torch.from_numpy(odd.astype(np.float32) * np.float32(2.0**-24)).to(device)


def _sketch_rows(first_row: int, rows: int, seed: SketchSeed, device: torch.device) -> tuple[Tensor, Tensor]:
    """Signs int8 [rows, 64] and, for each bucket, the coordinate that is added to it, int64 [rows, 64]."""
    words = philox_words(first_row, rows, key=seed.key, high=seed.high)
    bits = np.unpackbits(words[:, :2].astype("<u4").view(np.uint8), axis=1, bitorder="little")
    source = (np.arange(BUCKETS) - words[:, 2:3].astype(np.int64)) & (BUCKETS - 1)
    return torch.from_numpy(1 - 2 * bits.view(np.int8)).to(device), torch.from_numpy(source).to(device)


def _halving_sum(terms: Tensor) -> Tensor:
    """Sum over the first dimension, of length 16, by adding the second half to the first until one is left."""
    while terms.shape[0] > 1:
        half = terms.shape[0] // 2
        terms = terms[:half] + terms[half:]
    return terms[0]
