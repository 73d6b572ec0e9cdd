"""A model whose gradient takes a given time, however many peers share the machine's cores.

Rounds are then as long as those of real training, and what is measured is what the protocol loses, not which of many
processes the machine runs first.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn


class PacedClassifier(nn.Module):
    """One hidden layer on 8 x 8 images. Evaluation, which wants no gradient, does not wait."""

    def __init__(self, seconds: float, hidden: int) -> None:
        super().__init__()
        self.seconds = seconds
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))

    def forward(self, images_N88: Tensor) -> Tensor:
        """Logits [N, 10]."""
        if torch.is_grad_enabled():
            time.sleep(self.seconds)
        logits: Tensor = self.layers(images_N88)
        return logits


def paced_classifier(seconds: float, hidden: int = 16) -> nn.Module:
    """An entry point for `model:`: digits, `seconds` a gradient."""
    return PacedClassifier(seconds, hidden)
