"""The model and its optimizer as the rounds see them: parameters out, aggregates in, a state that can be certified.

Shapes: d trainable parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from btrain.errors import BtrainError, ConfigError
from btrain.training.evaluation import Evaluator
from btrain.training.parameters import FlatView, flatten, trainable
from btrain.training.schedule import Schedule
from btrain.training.state import Scalar, State, StateError, model_tensors
from btrain.training.task import Evaluation


class ApplyError(BtrainError):
    """An aggregate cannot be applied: not finite, or for another step than the next one."""


class Trainer:
    """Owns the model's parameters and steps the optimizer with what the group agreed on.

    `schedule` sets the learning rate from the step count; without one the optimizer's own rates stay. `step` is the
    number of updates applied so far. The optimizers of btrain.training.optimizers give the same bits on every machine;
    torch's give them on equal hardware only, and should be made with foreach=False and fused=False.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: Schedule | None = None,
        evaluator: Evaluator | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.evaluator = evaluator
        self.step = 0
        self._named = trainable(model)
        self._view = FlatView(list(self._named.values()))
        self._base_lr = [float(group["lr"]) for group in optimizer.param_groups]
        self._set_lr = list(self._base_lr)  # as this trainer left them
        self._optimized = _names_of_optimized(optimizer, self._named)

    @property
    def numel(self) -> int:
        """d, the number of trainable parameters."""
        return self._view.numel

    def parameters(self) -> Tensor:
        """A copy of the parameters, float32 [d], on the CPU."""
        return flatten(self._named.values())

    def apply(self, aggregate: Tensor, step: int | None = None) -> None:
        """One optimizer step with `aggregate` (finite float32 [d]) as the gradient.

        `step` says which update it is: it must be the number applied so far. Raises ShapeError, ApplyError; nothing
        has changed then.
        """
        if step is not None and step != self.step:
            raise ApplyError(f"update {step} cannot be applied: {self.step} updates have been")
        pieces = self._view.split(aggregate)
        if not bool(torch.isfinite(aggregate).all()):
            raise ApplyError("an aggregate that is not finite cannot be applied")
        for parameter, piece in zip(self._named.values(), pieces, strict=True):
            parameter.grad = piece.to(parameter.device)
        if self.schedule is not None:
            self._set_lr = self._scheduled_lr()
            for group, lr in zip(self.optimizer.param_groups, self._set_lr, strict=True):
                group["lr"] = lr
        self.optimizer.step()
        self.step += 1
        for parameter in self._named.values():
            parameter.grad = None

    def _scheduled_lr(self) -> list[float]:
        assert self.schedule is not None
        factor = self.schedule.factor(self.step)
        return [base_lr * factor for base_lr in self._base_lr]

    def rates_changed(self) -> bool:
        """Whether somebody else has set a learning rate since the last step."""
        return [float(group["lr"]) for group in self.optimizer.param_groups] != self._set_lr

    def evaluate(self, samples: int | None = None, parameters: Tensor | None = None) -> Evaluation:
        """Loss and metric on the held-out split, on a replica; at `parameters` (float32 [d]) if given."""
        if self.evaluator is None:
            raise ConfigError("this trainer has no held-out data to evaluate on")
        return self.evaluator.evaluate(self.parameters() if parameters is None else parameters, samples)

    def state(self) -> State:
        """The state of now; its tensors share memory with the trainer."""
        tensors = model_tensors(self.model)
        scalars: dict[str, Scalar] = {}
        for name, parameter in self._optimized.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{name}/{key}"] = value
                elif value is None or isinstance(value, bool | int | float):
                    scalars[f"optimizer/{name}/{key}"] = value
                else:
                    raise StateError(f"state: {type(self.optimizer).__name__} keeps {key} as {type(value).__name__}")
        return State(self.step, tensors, scalars)

    def state_bytes(self) -> bytes:
        """Parameters, buffers, optimizer state and step as safetensors."""
        return self.state().to_bytes()

    def state_digest(self) -> bytes:
        """SHA-256, 32 bytes, equal for equal states."""
        return self.state().digest()

    def load_state(self, data: bytes) -> None:
        """Continue from `state_bytes` of an equal model and optimizer. Raises StateError; nothing has changed then."""
        state = State.from_bytes(data)
        own = {name: tensor for name, tensor in self.state().tensors.items() if not name.startswith("optimizer/")}
        optimizer_state = self._checked_optimizer_state(state)
        theirs = {name: tensor for name, tensor in state.tensors.items() if not name.startswith("optimizer/")}
        for name in own.keys() ^ theirs.keys():
            raise StateError(f"state: {name} is {'missing' if name in own else 'not part of this model'}")
        for name, tensor in theirs.items():
            if tensor.shape != own[name].shape or tensor.dtype != own[name].dtype:
                raise StateError(
                    f"state: {name} is {tensor.dtype} {list(tensor.shape)}, "
                    f"expected {own[name].dtype} {list(own[name].shape)}"
                )
        with torch.no_grad():
            for name, tensor in theirs.items():
                own[name].copy_(tensor)
        for name, parameter in self._optimized.items():
            self.optimizer.state.pop(parameter, None)
            if optimizer_state[name]:
                self.optimizer.state[parameter].update(optimizer_state[name])
        self.step = state.step

    def _checked_optimizer_state(self, state: State) -> dict[str, dict[str, Any]]:
        """The optimizer's entries of `state` by parameter and key, as fresh tensors beside their parameters."""
        entries: dict[str, dict[str, Any]] = {name: {} for name in self._optimized}
        for full_name, value in (state.tensors | state.scalars).items():
            if not full_name.startswith("optimizer/"):
                continue
            name, _, key = full_name.removeprefix("optimizer/").rpartition("/")
            if name not in entries:
                raise StateError(f"state: {full_name} belongs to no parameter of this optimizer")
            entries[name][key] = self._checked_entry(full_name, self._optimized[name], value)
        expected = getattr(self.optimizer, "state_keys", None)
        for name, entry in entries.items():
            if expected is not None and entry.keys() not in ({}.keys(), expected):
                raise StateError(f"state: optimizer/{name} holds {sorted(entry)}, expected {sorted(expected)}")
        return entries

    def _checked_entry(self, full_name: str, parameter: Tensor, value: Tensor | Scalar) -> Tensor | Scalar:
        if not isinstance(value, Tensor):
            return value
        if value.dim() == 0:
            return value.clone()
        if value.shape != parameter.shape:
            raise StateError(f"state: {full_name} is {list(value.shape)}, its parameter {list(parameter.shape)}")
        return value.to(parameter.device, copy=True)


def _names_of_optimized(optimizer: Optimizer, named: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The parameters that `optimizer` steps, by their names in the model; raises ConfigError for foreign ones."""
    members = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if foreign := members - {id(parameter) for parameter in named.values()}:
        raise ConfigError(f"optimizer: {len(foreign)} of its parameters are no trainable parameters of the model")
    return {name: parameter for name, parameter in named.items() if id(parameter) in members}
