"""Attacks on the gradient that need no knowledge of the others'. Names and sizes as in BTARD (Gorbunov et al. 2022)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from btrain.adversary.adversary import Adversary
from btrain.protocol.behaviour import Replay
from btrain.protocol.randomness import batch_seed

if TYPE_CHECKING:
    from btrain.protocol.round import Round


@dataclass
class SignFlip(Adversary):
    """-scale times the own gradient."""

    name = "sign_flip"
    outcome = "banned"
    scale: float = 1000.0

    def forged(self, own: Tensor, round: Round, replay: Replay) -> Tensor:
        """float32 [d]."""
        return own * -self.scale


@dataclass
class RandomDirection(Adversary):
    """All attackers push in one constant direction that they drew from their common seed."""

    name = "random_direction"
    outcome = "banned"
    scale: float = 1000.0

    def forged(self, own: Tensor, round: Round, replay: Replay) -> Tensor:
        """float32 [d] of length scale * |own|."""
        generator = torch.Generator().manual_seed(self.seed)
        direction: Tensor = torch.randn(own.numel(), generator=generator)
        push: Tensor = direction * (self.scale * own.norm() / direction.norm())
        return push


@dataclass
class LabelFlip(Adversary):
    """The gradient of flipped labels: class y becomes classes - 1 - y, a token the next one."""

    name = "label_flip"
    outcome = "banned"

    def forged(self, own: Tensor, round: Round, replay: Replay) -> Tensor:
        """float32 [d]."""
        state = round.state
        return replay(batch_seed(state.run, state.seed_randomness, round.me, state.round), flip_labels=True)


@dataclass
class FreeRider(Adversary):
    """Never computes: commits to zeros, the cheapest gradient and one that no statistic points at."""

    name = "free_rider"
    outcome = "banned"

    def forged(self, own: Tensor, round: Round, replay: Replay) -> Tensor:
        """float32 [d]."""
        return torch.zeros_like(own)


@dataclass
class Delayed(Adversary):
    """The own gradient of `delay` rounds ago (1000 in BTARD); the oldest there is until so many are kept."""

    name = "delayed"
    outcome = "banned"
    delay: int = 1000
    _kept: deque[Tensor] = field(default_factory=deque, init=False, repr=False)

    def gradient(self, own: Tensor, round: Round, replay: Replay) -> Tensor:
        """The own gradient, or the one of long ago."""
        self._kept.append(own.clone())
        if len(self._kept) > self.delay + 1:
            self._kept.popleft()
        return super().gradient(own, round, replay)

    def forged(self, own: Tensor, round: Round, replay: Replay) -> Tensor:
        """float32 [d]; with no older one than that of this round, its opposite."""
        return self._kept[0] if len(self._kept) > 1 else -own
