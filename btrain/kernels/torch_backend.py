"""The reference backend in plain torch operations: always there, chunked, and the twin that every other one must equal.

Legend: N vectors, B blocks, K = 1024 codes a block. Every result is defined by IEEE single operations in a fixed
order, never by a library reduction whose order depends on vector width or thread count.
"""

from __future__ import annotations

import torch
from torch import Tensor

from btrain.kernels.blocks import ABSMAX_LIMIT, ABSMAX_MIN, BLOCK

QUANTIZE_CHUNK_BLOCKS = 512
"""Blocks per torch call: 2 MiB of fp32, large against the cost of a call and small against the cache."""
DEQUANTIZE_CHUNK_BLOCKS = 64
SUM_GROUP = 16
"""Sums over blocks: groups of 16 consecutive blocks by halving, then the groups one after the other."""
SCRATCH_BYTES = 1 << 20


class TorchBackend:
    """Works on any device torch has; the bits are those of the CPU."""

    name = "torch"

    def quantize(self, x: Tensor, codes: Tensor, scales: Tensor, seed: int | None) -> None:
        """Encode x [numel] (fp32, bf16, fp16) into codes [B, K], scales [B]; a refused block gets scale NaN."""
        whole = x.numel() // BLOCK
        rows_x, step = x[: whole * BLOCK].view(whole, BLOCK), QUANTIZE_CHUNK_BLOCKS
        scratch = torch.empty((min(whole, step), BLOCK), dtype=torch.float32, device=x.device)
        for start in range(0, whole, step):
            rows = slice(start, min(start + step, whole))
            _quantize_rows(rows_x[rows], codes[rows], scales[rows], scratch[: rows.stop - start], start, seed)
        if x.numel() % BLOCK:
            tail = torch.zeros((1, BLOCK), dtype=torch.float32, device=x.device)
            tail[0, : x.numel() % BLOCK] = x[whole * BLOCK :]
            _quantize_rows(tail, codes[whole:], scales[whole:], torch.empty_like(tail), whole, seed)

    def dequantize(self, codes: Tensor, scales: Tensor, out: Tensor) -> None:
        """out [numel] fp32 = codes * scales, one multiplication each."""
        whole, step = out.numel() // BLOCK, DEQUANTIZE_CHUNK_BLOCKS
        rows_out = out[: whole * BLOCK].view(whole, BLOCK)
        for start in range(0, whole, step):
            rows = slice(start, min(start + step, whole))
            rows_out[rows].copy_(codes[rows]).mul_(scales[rows, None])
        if out.numel() % BLOCK:
            out[whole * BLOCK :] = codes[whole, : out.numel() % BLOCK].to(torch.float32) * scales[whole]

    def block_gram(self, codes_NBK: Tensor, scales_NB: Tensor) -> Tensor:
        """float64 [N, N]. A block's products are below 2^24 together, so the fp32 product is an exact integer."""
        n, blocks, _ = codes_NBK.shape
        gram = torch.zeros((n, n), dtype=torch.float64, device=codes_NBK.device)
        step = min(SUM_GROUP, max(1, SCRATCH_BYTES // max(1, n * BLOCK * 4)))
        for start in range(0, blocks, SUM_GROUP):
            stop = min(start + SUM_GROUP, blocks)
            terms = torch.zeros((SUM_GROUP, n, n), dtype=torch.float64, device=codes_NBK.device)
            for low in range(start, stop, step):
                high = min(low + step, stop)
                x_bNK = codes_NBK[:, low:high].to(torch.float32).transpose(0, 1)
                terms[low - start : high - start] = torch.bmm(x_bNK, x_bNK.transpose(1, 2))
            s_bN = scales_NB[:, start:stop].t().to(torch.float64)
            terms[: stop - start].mul_(s_bN[:, :, None] * s_bN[:, None, :])
            gram += _halving_sum(terms)
        return gram

    def weighted_sum(self, codes_NBK: Tensor, weights_NB: Tensor, out_BK: Tensor) -> None:
        """out [B, K] fp32 = ((w_0 q_0 + w_1 q_1) + w_2 q_2) + ..., each product and sum rounded to fp32."""
        step = DEQUANTIZE_CHUNK_BLOCKS
        term = torch.empty((min(out_BK.shape[0], step), BLOCK), dtype=torch.float32, device=out_BK.device)
        for start in range(0, out_BK.shape[0], step):
            rows = slice(start, min(start + step, out_BK.shape[0]))
            out, part = out_BK[rows].zero_(), term[: rows.stop - start]
            for i in range(codes_NBK.shape[0]):
                out.add_(part.copy_(codes_NBK[i, rows]).mul_(weights_NB[i, rows, None]))


def _quantize_rows(x: Tensor, codes: Tensor, scales: Tensor, y: Tensor, first: int, seed: int | None) -> None:
    """Encode whole blocks: x [b, K] to codes [b, K], scales [b]; y is fp32 scratch of x's shape."""
    absmax = torch.abs(x).amax(1).to(torch.float32) if x.dtype != torch.float32 else torch.abs(x, out=y).amax(1)
    # full_like: torch computes `127.0 / t` as reciprocal(t) * 127, which rounds twice.
    inverse = torch.div(torch.full_like(absmax, 127.0), absmax)
    torch.div(absmax, torch.full_like(absmax, 127.0), out=scales)
    small = absmax < ABSMAX_MIN
    scales.masked_fill_(small, 0.0).masked_fill_(~(absmax < ABSMAX_LIMIT), float("nan"))
    inverse.masked_fill_(small | scales.isnan(), 0.0)
    torch.mul(x, inverse[:, None], out=y)
    codes.copy_(y.round_())


def _halving_sum(terms: Tensor) -> Tensor:
    """Sum over the first dimension, a power of two, by adding its second half to its first until one is left."""
    while terms.shape[0] > 1:
        half = terms.shape[0] // 2
        terms = terms[:half] + terms[half:]
    return terms[0]
