"""Loss and accuracy on the held-out split, on a replica, so that it can run beside training."""

from __future__ import annotations

import copy
import math
import threading

import numpy as np
import torch
from torch import Tensor, nn

from btrain.data.source import Source
from btrain.training.parameters import FlatView, trainable
from btrain.training.task import CrossEntropy, Evaluation, Task

CHUNK_SAMPLES_MAX = 256
CHUNK_LOGITS_MAX = 1 << 22


class Evaluator:
    """Evaluates parameters on the first samples of `source`, the held-out split. Thread-safe."""

    def __init__(
        self, model: nn.Module, source: Source, task: Task | None = None, *, device: torch.device | str = "cpu"
    ) -> None:
        self.source = source
        self._model = model
        self._task: Task = task if task is not None else CrossEntropy()
        self._device = torch.device(device)
        self._replica: nn.Module | None = None
        self._lock = threading.Lock()

    def evaluate(self, x: Tensor, samples: int | None = None) -> Evaluation:
        """Mean loss and metric at `x` (float32 [d]) on the first `samples`, by default on all. Raises ShapeError."""
        count = len(self.source) if samples is None else min(samples, len(self.source))
        chunk = _chunk_samples(self.source)
        with self._lock, torch.no_grad():
            replica = self._loaded(x)
            parts = [
                (size, self._evaluate_chunk(replica, start, size))
                for start in range(0, count, chunk)
                for size in [min(chunk, count - start)]
            ]
        loss = math.fsum(size * part.loss for size, part in parts) / count
        metrics = [size * part.metric for size, part in parts if part.metric is not None]
        return Evaluation(loss, math.fsum(metrics) / count if len(metrics) == len(parts) else None)

    def _loaded(self, x: Tensor) -> nn.Module:
        if self._replica is None:
            self._replica = copy.deepcopy(self._model).to(self._device).eval()
        parameters = list(trainable(self._replica).values())
        for parameter, values in zip(parameters, FlatView(parameters).split(x), strict=True):
            parameter.copy_(values)
        return self._replica

    def _evaluate_chunk(self, replica: nn.Module, start: int, size: int) -> Evaluation:
        inputs, targets = self.source.batch(np.arange(start, start + size, dtype=np.int64))
        batch = (inputs.to(self._device), targets.to(self._device))
        evaluate = getattr(self._task, "evaluate", None)
        if evaluate is None:
            return Evaluation(float(self._task.loss(replica, batch)))
        evaluation: Evaluation = evaluate(replica, batch)
        return evaluation


def _chunk_samples(source: Source) -> int:
    """Samples that are evaluated at a time: few where each has many logits."""
    logits = math.prod(source.sample_shape) * (source.vocabulary or 0)
    return max(1, min(CHUNK_SAMPLES_MAX, CHUNK_LOGITS_MAX // max(1, logits)))
