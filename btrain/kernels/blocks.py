"""The encoded vector and its wire format `i8-absmax-1024-v1`.

Legend: B blocks, K = 1024 codes a block. On the wire: all codes, block after block, then all scales, little-endian
fp32; nothing else. A vector of `numel` elements has B = ceil(numel / K) blocks and B * (K + 4) bytes; the codes behind
the last element are 0.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from btrain.kernels import errors

BLOCK = 1024
FORMAT = "i8-absmax-1024-v1"
SCALE_BYTES = 4
ABSMAX_MIN = 2.0**-110
"""Blocks whose largest magnitude is below this become zeros: 127/absmax stays finite and FTZ modes do not matter."""
ABSMAX_LIMIT = 2.0**127
"""Blocks whose largest magnitude reaches this are refused: one decoded code could be Inf."""
SCALE_MIN = 2.0**-126
SCALE_MIN_BITS = 0x00800000
SCALE_MAX_BITS = int((np.float32(2.0**127) / np.float32(127)).view(np.uint32))
"""Bits of 2^127/127: the largest legal scale; positive floats order like their bits."""


def block_count(numel: int) -> int:
    """Number of blocks of a vector of `numel` elements."""
    return -(-numel // BLOCK)


def encoded_bytes(numel: int) -> int:
    """Length in bytes of the wire encoding of a vector of `numel` elements."""
    return block_count(numel) * (BLOCK + SCALE_BYTES)


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedBlocks:
    """A flat vector as int8 codes with one fp32 scale a block: element k of block b is `codes[b, k] * scales[b]`.

    codes int8 [B, 1024] contiguous, scales float32 [B], both on one device; numel = elements of the vector.
    Raises KernelUsageError when shapes or dtypes do not fit; says nothing about the values, see `check`.
    """

    codes: Tensor
    scales: Tensor
    numel: int

    def __post_init__(self) -> None:
        blocks = block_count(self.numel)
        if self.codes.dtype != torch.int8 or self.codes.shape != (blocks, BLOCK) or not self.codes.is_contiguous():
            raise errors.KernelUsageError(
                f"codes: expected contiguous int8 [{blocks}, {BLOCK}] for {self.numel} elements, "
                f"got {self.codes.dtype} {list(self.codes.shape)}"
            )
        if self.scales.dtype != torch.float32 or self.scales.shape != (blocks,):
            raise errors.KernelUsageError(
                f"scales: expected float32 [{blocks}], got {self.scales.dtype} {list(self.scales.shape)}"
            )

    def to_bytes(self) -> bytes:
        """The wire encoding: `encoded_bytes(numel)` bytes, the same on every machine."""
        codes = self.codes.detach().cpu().numpy()
        scales = self.scales.detach().cpu().contiguous().numpy().astype("<f4", copy=False)
        return b"".join((codes.data, scales.data))

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview, numel: int) -> QuantizedBlocks:
        """Decode the wire encoding of `numel` elements; raises the IllegalEncoding that names the first broken rule."""
        if numel < 0:
            raise errors.KernelUsageError(f"numel: expected 0 or more, got {numel}")
        if len(data) != encoded_bytes(numel):
            raise errors.WrongLength(f"{numel} elements take {encoded_bytes(numel)} bytes, got {len(data)}")
        blocks = block_count(numel)
        if blocks == 0:
            return cls(torch.empty((0, BLOCK), dtype=torch.int8), torch.empty(0), 0)
        raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        codes = raw[: blocks * BLOCK].view(torch.int8).view(blocks, BLOCK)
        scales = raw[blocks * BLOCK :].view(torch.float32)
        if sys.byteorder == "big":
            scales = torch.from_numpy(scales.numpy().byteswap())
        decoded = cls(codes, scales, numel)
        decoded.check()
        return decoded

    def check(self) -> None:
        """Raise the IllegalEncoding of the first rule that the values break; an honest encoding passes."""
        if self.numel == 0:
            return
        codes = self.codes.detach().cpu().numpy()
        bits = self.scales.detach().cpu().contiguous().numpy().view(np.uint32)
        low = codes.min(axis=1).astype(np.int16)
        magnitude = np.maximum(codes.max(axis=1), -low)
        zero, normal = bits == 0, (bits >= SCALE_MIN_BITS) & (bits <= SCALE_MAX_BITS)
        if not np.all((zero & (magnitude == 0)) | (normal & (magnitude == 127) & (low >= -127))):
            _name_fault(bits, low, magnitude)
        if codes.reshape(-1)[self.numel :].any():
            raise errors.NonzeroPadding(block=codes.shape[0] - 1)


def _name_fault(bits: npt.NDArray[np.uint32], low: npt.NDArray[np.int16], magnitude: npt.NDArray[np.int16]) -> None:
    """Raise the error of the first broken rule; each [B]: the scale's bits, the least code, the largest |code|."""
    exponent, negative, zero = bits >> 23 & 0xFF, bits >> 31 == 1, bits == 0
    rules = (
        (errors.NonFiniteScale, exponent == 0xFF),
        (errors.NegativeZeroScale, bits == 1 << 31),
        (errors.NegativeScale, negative),
        (errors.SubnormalScale, ~zero & (exponent == 0)),
        (errors.ScaleTooLarge, bits > SCALE_MAX_BITS),
        (errors.CodeMinus128, low == -128),
        (errors.NonzeroCodesUnderZeroScale, zero & (magnitude != 0)),
        (errors.BlockWithoutExtreme, ~zero & (magnitude != 127)),
    )
    for error, broken in rules:
        if broken.any():
            raise error(block=int(np.argmax(broken)))
