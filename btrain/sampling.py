"""Which samples a worker takes: a function of a public seed, the same in every language and on every machine."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from btrain.errors import BtrainError

SEED_BYTES = 32
SAMPLE_DOMAIN = b"btrain/sample/v1"


class SamplingError(BtrainError):
    """A seed of the wrong length, or a count that cannot be drawn."""


def batch_indices(batch_seed: bytes, count: int, num_samples: int) -> npt.NDArray[np.int64]:
    """`count` indices in [0, num_samples), int64 [count], drawn with replacement.

    SHAKE-256 of the 32-byte seed, read as little-endian u64, each modulo `num_samples`; the bias is below
    num_samples / 2^64. Raises SamplingError.
    """
    _check_seed(batch_seed)
    if count < 0 or not 1 <= num_samples < 1 << 63:
        raise SamplingError(f"cannot draw {count} of {num_samples} samples")
    stream = hashlib.shake_256(batch_seed).digest(8 * count)
    return (np.frombuffer(stream, dtype="<u8") % np.uint64(num_samples)).astype(np.int64)


def sample_seed(batch_seed: bytes, position: int) -> bytes:
    """The 32-byte seed of the sample at `position` of the batch, for augmentation: SHA-256(domain, seed, u64)."""
    _check_seed(batch_seed)
    return hashlib.sha256(SAMPLE_DOMAIN + batch_seed + position.to_bytes(8, "little")).digest()


def _check_seed(batch_seed: bytes) -> None:
    if len(batch_seed) != SEED_BYTES:
        raise SamplingError(f"a batch seed has {SEED_BYTES} bytes, got {len(batch_seed)}")
