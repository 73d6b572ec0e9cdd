"""Gradients as a function of (parameters, public seed): what a worker commits to and what an auditor recomputes.

Shapes: d parameters, B samples in a worker's batch.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from btrain.data.source import Batch, Source
from btrain.errors import BtrainError, ConfigError
from btrain.models import is_deterministic
from btrain.sampling import batch_indices, sample_seed
from btrain.training.parameters import FlatView, flatten, trainable
from btrain.training.task import CrossEntropy, Task

Precision = Literal["fp32", "bf16"]
Transform = Callable[[Batch], Batch]

# torch's generator belongs to the process; whoever seeds it must be alone until it has put the old state back.
_generator_lock = threading.Lock()


class TaskError(BtrainError):
    """A task or model did not give a loss that can be differentiated."""


class GradientOracle:
    """Computes gradients on a replica of its own, so that no other model, generator or `.grad` is ever disturbed.

    Calls are pure: equal (x, batch seed) give equal bits on equal hardware and with equal thread counts. Thread-safe;
    calls on one oracle run one after the other.
    """

    def __init__(
        self,
        model: nn.Module,
        source: Source,
        task: Task | None = None,
        *,
        batch_size: int,
        clip_grad_norm: float | None = None,
        precision: Precision = "fp32",
        device: torch.device | str = "cpu",
    ) -> None:
        self.source = source
        self.task: Task = task if task is not None else CrossEntropy()
        self.batch_size = batch_size
        self.device = torch.device(device)
        self._clip_grad_norm = clip_grad_norm
        self._precision = precision
        self._replica = copy.deepcopy(model).to(self.device).train()
        self._parameters = list(trainable(self._replica).values())
        self._buffers = [(buffer, buffer.clone()) for buffer in self._replica.buffers()]
        self._view = FlatView(self._parameters)
        self._draws = not (is_deterministic(model) and isinstance(self.task, CrossEntropy))
        self._lock = threading.Lock()
        if not self._parameters:
            raise ConfigError("model: has no parameter that requires a gradient")

    @property
    def numel(self) -> int:
        """d, the number of trainable parameters."""
        return self._view.numel

    def start_from(self, model: nn.Module) -> None:
        """Take over from `model` what no call brings along: buffers, and parameters that are not trained."""
        with self._lock, torch.no_grad():
            for own, parameter in zip(self._replica.parameters(), model.parameters(), strict=True):
                own.copy_(parameter)
            for (_, start), buffer in zip(self._buffers, model.buffers(), strict=True):
                start.copy_(buffer)

    def batch(self, batch_seed: bytes) -> Batch:
        """The B samples that belong to the 32-byte seed, on the CPU."""
        indices = batch_indices(batch_seed, self.batch_size, len(self.source))
        seeds = [sample_seed(batch_seed, i) for i in range(self.batch_size)] if self.source.uses_seeds else None
        return self.source.batch(indices, seeds)

    def gradient(self, x: Tensor, batch_seed: bytes, *, transform: Transform | None = None) -> Tensor:
        """The gradient float32 [d] of the loss at `x` (float32 [d]) on the samples of `batch_seed`, on the CPU.

        Clipped to `clip_grad_norm` if there is one. `transform` changes the batch first: that is what an attacker
        on the labels does. Raises ShapeError, TaskError.
        """
        return self.loss_and_gradient(x, batch_seed, transform=transform)[1]

    def loss_and_gradient(
        self, x: Tensor, batch_seed: bytes, *, transform: Transform | None = None
    ) -> tuple[float, Tensor]:
        """The batch's loss beside its `gradient`."""
        self._view.check(x)
        batch = self.batch(batch_seed)
        if transform is not None:
            batch = transform(batch)
        inputs, targets = batch
        batch = (inputs.to(self.device), targets.to(self.device))
        with self._lock, self.generator(batch_seed), _strict_math(self.device), torch.enable_grad():
            self._load(x)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._precision == "bf16"):
                loss = self.task.loss(self._replica, batch)
            gradient = self.clip(self._differentiate(loss))
            return float(loss.detach()), gradient

    def _load(self, x: Tensor) -> None:
        with torch.no_grad():
            for parameter, values in zip(self._parameters, self._view.split(x), strict=True):
                parameter.copy_(values)
            for buffer, start in self._buffers:
                buffer.copy_(start)

    def _differentiate(self, loss: Tensor) -> Tensor:
        if loss.dim() != 0 or not loss.requires_grad:
            raise TaskError(
                f"the task's loss must be a scalar that depends on the model, got shape {list(loss.shape)}, "
                f"requires_grad {loss.requires_grad}"
            )
        pieces = torch.autograd.grad(loss, self._parameters, materialize_grads=True)
        return flatten(pieces)

    def clip(self, gradient: Tensor) -> Tensor:
        """`gradient` (float32 [d], changed in place) at most `clip_grad_norm` long.

        Formula and order of summation are those of torch.nn.utils.clip_grad_norm_.
        """
        if self._clip_grad_norm is not None:
            norm = torch.nn.utils.get_total_norm(self._view.split(gradient), foreach=False)
            gradient.mul_(torch.clamp(self._clip_grad_norm / (norm + 1e-6), max=1.0))
        return gradient

    @contextlib.contextmanager
    def generator(self, batch_seed: bytes) -> Iterator[None]:
        """torch's generator seeded by the batch, for dropout and the like; put back afterwards."""
        if not self._draws:
            yield
            return
        devices = [self.device] if self.device.type == "cuda" else []
        with _generator_lock, torch.random.fork_rng(devices=devices):
            torch.manual_seed(int.from_bytes(batch_seed[:8], "little") >> 1)
            yield


def _strict_math(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """On CUDA: no TF32, no choice of algorithm by timing."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return context
