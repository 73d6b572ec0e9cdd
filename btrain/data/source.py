"""What a source of training samples is: map-style, pure, fingerprinted.

Shapes: B samples in a batch, T tokens of context.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

SplitName = Literal["train", "eval"]
Indices = npt.NDArray[np.int64]
Batch = tuple[Tensor, Tensor]


class Source(ABC):
    """Random access to samples that every peer of a run holds.

    A batch is a function of (indices, seeds) and of nothing else, so that anybody can recompute a gradient.
    The builtin models read the metadata: `sample_shape` of one input, `classes` for classification,
    `vocabulary` and `sample_shape == (T,)` for token sequences. `uses_seeds` says that `batch` augments samples and
    wants one 32-byte seed for each.
    """

    sample_shape: tuple[int, ...] = ()
    classes: int | None = None
    vocabulary: int | None = None
    uses_seeds: bool = False

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples in this split."""

    @abstractmethod
    def batch(self, indices: Indices, seeds: Sequence[bytes] | None = None) -> Batch:
        """Inputs and targets of the samples `indices` (int64 [B], each in [0, len)), first dimension B."""

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 in hex over the content of all splits; independent of where and how the files lie."""

    @abstractmethod
    def split(self, name: SplitName) -> Source:
        """The split that is trained on ("train"), or the held-out one ("eval")."""


def content_digest(kind: str, arrays: Iterable[npt.NDArray[np.generic]]) -> str:
    """SHA-256 in hex of `kind` and of every array's dtype, shape and little-endian bytes, in order."""
    digest = hashlib.sha256(f"btrain/data/v1/{kind}\0".encode())
    for array in arrays:
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{little.dtype.str}{list(little.shape)}\0".encode())
        digest.update(np.ascontiguousarray(little).data.cast("B") if little.size else b"")
    return digest.hexdigest()


def as_index_tensor(indices: Indices) -> Tensor:
    """`indices` as an int64 tensor, sharing memory where it can."""
    return torch.from_numpy(np.ascontiguousarray(indices, dtype=np.int64))
