"""The 8-bit block codec `i8-absmax-1024-v1`; exact Gram matrices, weighted sums and sketches of encoded vectors."""

from btrain.kernels.blocks import BLOCK, FORMAT, QuantizedBlocks, block_count, encoded_bytes
from btrain.kernels.codec import block_gram, dequantize_blockwise, quantize_blockwise, sketch, weighted_sum
from btrain.kernels.errors import BackendUnavailable, IllegalEncoding, KernelUsageError, NotEncodable

__all__ = [
    "BLOCK",
    "FORMAT",
    "BackendUnavailable",
    "IllegalEncoding",
    "KernelUsageError",
    "NotEncodable",
    "QuantizedBlocks",
    "block_count",
    "block_gram",
    "dequantize_blockwise",
    "encoded_bytes",
    "quantize_blockwise",
    "sketch",
    "weighted_sum",
]
