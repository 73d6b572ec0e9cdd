"""What callers use: one schema for every backend. Checks the arguments, picks the backend, refuses what cannot be encoded.

Legend: N vectors, B blocks, K = 1024 codes a block.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from btrain.kernels.blocks import BLOCK, QuantizedBlocks, block_count
from btrain.kernels.errors import BackendUnavailable, KernelUsageError, NonFiniteInput
from btrain.kernels.torch_backend import TorchBackend

Rounding = Literal["nearest", "stochastic"]
INPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def quantize_blockwise(
    x: Tensor, *, rounding: Rounding = "nearest", seed: int | None = None, backend: str = "auto"
) -> QuantizedBlocks:
    """Encode a tensor (fp32, bf16 or fp16; any shape, read as flat) with one scale per 1024 elements.

    Rounding is half-to-even; "stochastic" needs a seed of 64 bits.
    Raises NonFiniteInput naming the first block that holds NaN, Inf or 2^127 and more; KernelUsageError.
    """
    if x.dtype not in INPUT_DTYPES:
        raise KernelUsageError(f"x: expected float32, bfloat16 or float16, got {x.dtype}")
    if (rounding == "stochastic") != (seed is not None) or rounding not in ("nearest", "stochastic"):
        raise KernelUsageError(f"rounding: 'nearest' without a seed or 'stochastic' with one, got {rounding!r}, {seed}")
    if seed is not None and not 0 <= seed < 1 << 64:
        raise KernelUsageError(f"seed: expected 0 to 2^64-1, got {seed}")
    flat = x.detach().reshape(-1)
    blocks = block_count(flat.numel())
    codes = torch.empty((blocks, BLOCK), dtype=torch.int8, device=x.device)
    scales = torch.empty(blocks, dtype=torch.float32, device=x.device)
    if blocks:
        _backend(backend, x.device).quantize(flat, codes, scales, seed)
        refused = scales.isnan()
        if bool(refused.any()):
            raise NonFiniteInput(int(refused.nonzero()[0, 0]))
    return QuantizedBlocks(codes, scales, flat.numel())


def dequantize_blockwise(q: QuantizedBlocks, out: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """Decode to float32 [numel], one multiplication each; `out` (contiguous float32, numel elements) is filled if given."""
    if out is None:
        out = torch.empty(q.numel, dtype=torch.float32, device=q.codes.device)
    elif out.dtype != torch.float32 or out.numel() != q.numel or not out.is_contiguous():
        raise KernelUsageError(f"out: expected contiguous float32 with {q.numel} elements")
    if q.numel:
        _backend(backend, q.codes.device).dequantize(q.codes, q.scales, out.detach().view(-1))
    return out


def block_gram(codes_NBK: Tensor, scales_NB: Tensor, *, backend: str = "auto") -> Tensor:
    """Exact inner products of N encoded vectors: float64 [N, N], symmetric.

    Every block's integer product is exact; blocks are summed in fp64 in one fixed order, so the bits are the same
    on any machine, device and number of threads.
    """
    _check_stack(codes_NBK, scales_NB)
    return _backend(backend, codes_NBK.device).block_gram(codes_NBK, scales_NB)


def weighted_sum(codes_NBK: Tensor, scales_NB: Tensor, coefficients_N: Tensor, *, backend: str = "auto") -> Tensor:
    """`sum_i c_i x_i` of N encoded vectors: float32 [B * K].

    Weight of a block is fp32(c_i * scale) (product in fp64); then multiply and add over i = 0, 1, ..., each rounded
    to fp32, never fused. Coefficients are float64 [N] and finite.
    """
    _check_stack(codes_NBK, scales_NB)
    if coefficients_N.shape != codes_NBK.shape[:1] or not bool(torch.isfinite(coefficients_N).all()):
        raise KernelUsageError(f"coefficients: expected {codes_NBK.shape[0]} finite numbers, got {coefficients_N}")
    coefficients = coefficients_N.to(device=scales_NB.device, dtype=torch.float64)
    weights_NB = (coefficients[:, None] * scales_NB.to(torch.float64)).to(torch.float32)
    out_BK = torch.empty(codes_NBK.shape[1:], dtype=torch.float32, device=codes_NBK.device)
    _backend(backend, codes_NBK.device).weighted_sum(codes_NBK, weights_NB, out_BK)
    return out_BK.view(-1)


def _check_stack(codes_NBK: Tensor, scales_NB: Tensor) -> None:
    if codes_NBK.dtype != torch.int8 or codes_NBK.dim() != 3 or codes_NBK.shape[2] != BLOCK:
        raise KernelUsageError(f"codes: expected int8 [N, B, {BLOCK}], got {codes_NBK.dtype} {list(codes_NBK.shape)}")
    if scales_NB.dtype != torch.float32 or scales_NB.shape != codes_NBK.shape[:2]:
        raise KernelUsageError(
            f"scales: expected float32 {list(codes_NBK.shape[:2])}, got {scales_NB.dtype} {list(scales_NB.shape)}"
        )


def _backend(name: str, device: torch.device) -> TorchBackend:
    if name in ("auto", "torch"):
        return TorchBackend()
    raise BackendUnavailable(f"no kernel backend named {name!r}")
