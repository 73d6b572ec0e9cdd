"""What a model is trained for: the loss of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from btrain.data.source import Batch


class Task(Protocol):
    """The loss of a batch. A function of (parameters, batch, torch's generator) and of nothing else.

    A task may also have `evaluate(model, batch) -> Evaluation`; without it an evaluation is the mean loss.
    """

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """A scalar to differentiate."""


@dataclass(frozen=True)
class Evaluation:
    """Mean loss, and the metric (accuracy for classification) where there is one."""

    loss: float
    metric: float | None = None


class CrossEntropy:
    """Mean cross entropy in nats: logits [B, K] against labels [B], or [B, T, V] against tokens [B, T]."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean over all targets of the batch."""
        inputs, targets = batch
        return _cross_entropy(model(inputs), targets)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batch: Batch) -> Evaluation:
        """Mean loss, and the share of right answers if each sample has one answer."""
        inputs, targets = batch
        logits = model(inputs)
        loss = float(_cross_entropy(logits, targets))
        if targets.dim() != 1:
            return Evaluation(loss)
        return Evaluation(loss, int((logits.argmax(1) == targets).sum()) / targets.numel())


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    if targets.dim() == 2:
        logits, targets = logits.flatten(0, 1), targets.flatten()
    return functional.cross_entropy(logits, targets)
