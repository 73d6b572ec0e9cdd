"""A model's trainable parameters as one flat vector, in the order in which the model names them.

Shapes: d parameters in all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from btrain.errors import BtrainError


class ShapeError(BtrainError):
    """A vector does not have one float32 number for each parameter of the model."""


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that take part, by name, tied ones once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """A new CPU float32 [d] with the values of `tensors`, one after the other."""
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    return flat.to(device="cpu", dtype=torch.float32)


class FlatView:
    """Cuts a vector of d numbers into views shaped like given parameters."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._shapes = [parameter.shape for parameter in parameters]
        self._sizes = [parameter.numel() for parameter in parameters]
        self.numel = sum(self._sizes)

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views into `flat`, float32 [d]; raises ShapeError."""
        self.check(flat)
        return [piece.view(shape) for piece, shape in zip(torch.split(flat, self._sizes), self._shapes, strict=True)]

    def check(self, flat: Tensor) -> None:
        """Raise ShapeError unless `flat` is float32 [d]."""
        if flat.dtype != torch.float32 or flat.shape != (self.numel,):
            raise ShapeError(f"expected float32 [{self.numel}], got {flat.dtype} {list(flat.shape)}")


def vector_digest(flat: Tensor) -> bytes:
    """SHA-256 of the little-endian float32 values of a CPU vector [d]."""
    values = flat.detach().contiguous().numpy()
    return hashlib.sha256(values.astype("<f4", copy=False).data).digest()
