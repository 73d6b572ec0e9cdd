"""The smallest model that can be trained: a noisy quadratic bowl, for runs in which learning is beside the point."""

from __future__ import annotations

import torch
from torch import Tensor

NOISE = 0.1
RATE = 0.1


class Quadratic:
    """f(x) = |x - target|^2 / 2 with gaussian noise that is a function of the batch seed; plain gradient steps."""

    def __init__(self, numel: int = 3000) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(numel, generator=generator)
        self.target = torch.randn(numel, generator=generator)

    @property
    def distance(self) -> float:
        """|x - target|."""
        return float((self.x - self.target).norm())

    def parameters(self) -> Tensor:
        """A copy of x, float32 [d]."""
        return self.x.clone()

    def gradient(self, x: Tensor, batch_seed: bytes, *, flip_labels: bool = False) -> Tensor:
        """x - target and the seed's noise, float32 [d]; with flipped labels it points the other way."""
        generator = torch.Generator().manual_seed(int.from_bytes(batch_seed[:7], "little"))
        noise = NOISE * torch.randn(len(x), generator=generator)
        return (self.target - x if flip_labels else x - self.target) + noise

    def apply(self, update: Tensor, step: int) -> None:
        """One gradient step."""
        self.x -= RATE * update

    def state_bytes(self) -> bytes:
        """x; the optimizer has no state."""
        return self.x.numpy().tobytes()

    def is_close(self, own: bytes, other: bytes, tolerance: float) -> bool:
        """Whether the distance is at most `tolerance` of the own length."""
        if len(own) != len(other):
            return False
        x, y = (torch.frombuffer(bytearray(data), dtype=torch.float32).double() for data in (own, other))
        return bool((x - y).norm() <= tolerance * x.norm())

    def load_state(self, data: bytes) -> None:
        """Replace x."""
        self.x = torch.frombuffer(bytearray(data), dtype=torch.float32).clone()
