"""A source of labelled samples that fit into memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from btrain.data.source import Batch, Indices, Source, SplitName, as_index_tensor, content_digest
from btrain.errors import ConfigError


class ArraySource(Source):
    """Classification samples in two tensors per split.

    `splits` maps "train" and "eval" to (inputs [N, ...] uint8 or float32, labels int64 [N] in [0, classes)).
    Inputs come out as float32, `(input - shift) / scale`.
    """

    classes: int

    def __init__(
        self,
        kind: str,
        splits: Mapping[SplitName, Batch],
        *,
        classes: int,
        shift: float = 0.0,
        scale: float = 1.0,
        name: SplitName = "train",
    ) -> None:
        self.kind = kind
        self.classes = classes
        self._splits = splits
        self._shift = shift
        self._scale = scale
        self._inputs, self._labels = splits[name]
        self._fingerprint: str | None = None
        self.sample_shape = tuple(self._inputs.shape[1:])
        _check(kind, self._inputs, self._labels, classes)

    def __len__(self) -> int:
        return self._labels.numel()

    def batch(self, indices: Indices, seeds: Sequence[bytes] | None = None) -> Batch:
        """Inputs float32 [B, *sample_shape] and labels int64 [B]."""
        rows = as_index_tensor(indices)
        inputs = self._inputs.index_select(0, rows).to(torch.float32)
        if self._shift != 0.0:
            inputs.sub_(self._shift)
        if self._scale != 1.0:
            inputs.div_(self._scale)
        return inputs, self._labels.index_select(0, rows)

    def fingerprint(self) -> str:
        """SHA-256 over both splits and the normalisation."""
        if self._fingerprint is None:
            tensors = [*self._splits["train"], *self._splits["eval"]]
            kind = f"{self.kind} {self._shift.hex()} {self._scale.hex()}"
            self._fingerprint = content_digest(kind, [tensor.numpy() for tensor in tensors])
        return self._fingerprint

    def split(self, name: SplitName) -> ArraySource:
        """The split `name`; both share their memory."""
        return ArraySource(
            self.kind, self._splits, classes=self.classes, shift=self._shift, scale=self._scale, name=name
        )


def _check(kind: str, inputs: Tensor, labels: Tensor, classes: int) -> None:
    """Raise ConfigError unless inputs and labels are as ArraySource describes them."""
    if inputs.dtype not in (torch.uint8, torch.float32) or labels.dtype != torch.int64:
        raise ConfigError(
            f"data {kind}: expected inputs uint8 or float32 and labels int64, got {inputs.dtype} and {labels.dtype}"
        )
    if labels.dim() != 1 or inputs.dim() < 2 or inputs.shape[0] != labels.shape[0] or labels.numel() == 0:
        raise ConfigError(
            f"data {kind}: {tuple(inputs.shape)} inputs do not go with {tuple(labels.shape)} labels; "
            "expected one label for each row and at least one row"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ConfigError(f"data {kind}: a label lies outside 0..{classes - 1}")
