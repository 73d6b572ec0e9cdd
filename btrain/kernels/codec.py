"""What callers use: checks the arguments, picks the backend, refuses what cannot be encoded.

Legend: N vectors, B blocks, K = 1024 codes a block. Wherever `codes_NBK` and `scales_NB` are taken, a sequence of N
tensors [B, K] and [B] will do as well, and saves the copy that stacking them would cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from btrain.kernels.backend import SketchSeed
from btrain.kernels.blocks import BLOCK, SCALE_MIN, QuantizedBlocks, block_count
from btrain.kernels.choice import choose
from btrain.kernels.errors import KernelUsageError, NotEncodable

Rounding = Literal["nearest", "stochastic"]
Stack = Tensor | Sequence[Tensor]
INPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SKETCH_SEED_BYTES = 16


def quantize_blockwise(
    x: Tensor, *, rounding: Rounding = "nearest", seed: int | None = None, backend: str = "auto"
) -> QuantizedBlocks:
    """Encode a tensor (fp32, bf16 or fp16; any shape, read as flat) with one scale per 1024 elements.

    "nearest" rounds half to even. "stochastic" rounds up with the probability of the fraction, by Philox4x32-10 with
    the 64-bit `seed` as key and element index // 4 as counter; the largest magnitude of a block stays exact.
    Raises NotEncodable naming the first block that holds NaN, Inf or 2^127 and more; KernelUsageError.
    """
    if x.dtype not in INPUT_DTYPES:
        raise KernelUsageError(f"x: expected float32, bfloat16 or float16, got {x.dtype}")
    if rounding not in ("nearest", "stochastic") or (rounding == "stochastic") != (seed is not None):
        raise KernelUsageError(f"rounding: 'nearest' without a seed or 'stochastic' with one, got {rounding!r}, {seed}")
    if seed is not None and not 0 <= seed < 1 << 64:
        raise KernelUsageError(f"seed: expected 0 to 2^64-1, got {seed}")
    flat = x.detach().reshape(-1)
    blocks = block_count(flat.numel())
    codes = torch.empty((blocks, BLOCK), dtype=torch.int8, device=x.device)
    scales = torch.empty(blocks, dtype=torch.float32, device=x.device)
    if blocks:
        refused = choose(backend, x.device, flat.numel()).quantize(flat, codes, scales, seed)
        if refused >= 0:
            raise NotEncodable(refused)
    return QuantizedBlocks(codes, scales, flat.numel())


def dequantize_blockwise(q: QuantizedBlocks, out: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """Decode to float32 [numel], one multiplication each; `out` (contiguous float32 of numel elements) is filled."""
    if out is None:
        out = torch.empty(q.numel, dtype=torch.float32, device=q.codes.device)
    elif out.dtype != torch.float32 or out.numel() != q.numel or not out.is_contiguous():
        raise KernelUsageError(f"out: expected contiguous float32 with {q.numel} elements")
    if q.numel:
        choose(backend, q.codes.device, q.numel).dequantize(q.codes, q.scales, out.detach().view(-1))
    return out


def block_gram(codes_NBK: Stack, scales_NB: Stack, *, backend: str = "auto") -> Tensor:
    """Inner products of N encoded vectors: float64 [N, N], symmetric, on the vectors' device.

    A block's product is an exact integer (127 * 127 * 1024 < 2^24). It is multiplied by the product of its two scales
    in fp64; 16 consecutive blocks are summed by halving (first half plus second half), these sums one after another.
    """
    codes, scales = _stack(codes_NBK, scales_NB)
    if codes[0].shape[0] == 0:
        return torch.zeros((len(codes), len(codes)), dtype=torch.float64, device=codes[0].device)
    return choose(backend, codes[0].device, len(codes) * codes[0].numel()).block_gram(codes, scales)


def weighted_sum(codes_NBK: Stack, scales_NB: Stack, coefficients_N: Tensor, *, backend: str = "auto") -> Tensor:
    """`sum_i c_i x_i` of N encoded vectors: float32 [B * K].

    The weight of a block is fp32(c_i * scale), the product taken in fp64, zero where that is subnormal. Then, from
    zero, multiply and add over i = 0, 1, ..., each rounded to fp32, never fused. Coefficients: N finite numbers.
    """
    codes, scales = _stack(codes_NBK, scales_NB)
    device = codes[0].device
    coefficients = coefficients_N.to(device=device, dtype=torch.float64)
    if coefficients.shape != (len(codes),) or not bool(torch.isfinite(coefficients).all()):
        raise KernelUsageError(f"coefficients: expected {len(codes)} finite numbers, got {coefficients_N}")
    wide_NB = torch.stack(tuple(scales)).to(torch.float64).mul_(coefficients[:, None])
    weights_NB = wide_NB.masked_fill_(wide_NB.abs() < SCALE_MIN, 0.0).to(torch.float32)
    out_BK = torch.empty(codes[0].shape, dtype=torch.float32, device=device)
    if out_BK.numel():
        choose(backend, device, len(codes) * out_BK.numel()).weighted_sum(codes, weights_NB, out_BK)
    return out_BK.view(-1)


def sketch(codes_NBK: Stack, scales_NB: Stack, seed: bytes, *, first_block: int = 0, backend: str = "auto") -> Tensor:
    """Count sketches of N encoded vectors under one seed: float64 [N, 64], linear in the vector, E|S|^2 = |x|^2.

    Rows of 64 coordinates get random signs and a random rotation and are added into 64 buckets. Row r of the flat
    vector (block `first_block` holds rows 16 * first_block and on) draws one Philox4x32-10 counter: key = bytes 0 to 7
    of the seed, counter = (r, bytes 8 to 15), all little-endian. Bit k of words 0 and 1 negates coordinate k, which
    goes to bucket (k + (word 2 mod 64)) mod 64. Integers within a block, fp64 over blocks in block_gram's order;
    round to fp32 once, last. Seeds longer than 16 bytes (a hash) are cut.
    """
    codes, scales = _stack(codes_NBK, scales_NB)
    if len(seed) < SKETCH_SEED_BYTES or first_block < 0:
        raise KernelUsageError(
            f"seed: expected {SKETCH_SEED_BYTES} bytes or more, got {len(seed)}; block {first_block}"
        )
    words = SketchSeed(int.from_bytes(seed[:8], "little"), int.from_bytes(seed[8:16], "little"))
    if codes[0].shape[0] == 0:
        return torch.zeros((len(codes), 64), dtype=torch.float64, device=codes[0].device)
    backend_used = choose(backend, codes[0].device, len(codes) * codes[0].numel())
    return backend_used.sketch(codes, scales, words, first_block)


def _stack(codes_NBK: Stack, scales_NB: Stack) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """The N tensors [B, K] and [B] of a stack, contiguous; raises KernelUsageError."""
    if len(codes_NBK) == 0 or len(codes_NBK) != len(scales_NB):
        raise KernelUsageError(f"expected one or more vectors, got {len(codes_NBK)} codes and {len(scales_NB)} scales")
    codes = [part.contiguous() for part in codes_NBK]
    scales = [part.contiguous() for part in scales_NB]
    blocks, device = codes[0].shape[0], codes[0].device
    for q, s in zip(codes, scales, strict=True):
        if q.dtype != torch.int8 or q.shape != (blocks, BLOCK) or q.device != device:
            raise KernelUsageError(f"codes: expected int8 [{blocks}, {BLOCK}], got {q.dtype} {list(q.shape)}")
        if s.dtype != torch.float32 or s.shape != (blocks,) or s.device != device:
            raise KernelUsageError(f"scales: expected float32 [{blocks}], got {s.dtype} {list(s.shape)}")
    return codes, scales
