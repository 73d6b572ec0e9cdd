"""SGD, Adam and AdamW that give the same bits on every machine.

torch's own optimizers use fused operations (lerp, addcmul, addcdiv), which round once or twice depending on the
processor, and torch.sqrt, which MKL builds round to within one bit only. These take one elementwise operation at a
time, each of which IEEE 754 rounds in one way. The formulas are those of torch.optim, to which the results are equal up
to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from btrain.errors import ConfigError


class ExactOptimizer(Optimizer):
    """Base: `update` changes one parameter in place; `state_keys` are the names of the state it keeps."""

    state_keys: frozenset[str] = frozenset()

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update from the parameters' `grad`; a parameter without one stays as it is."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, parameter.grad, self.state[parameter], group)
        return loss

    def update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """Change `parameter` and `state` in place."""
        raise NotImplementedError


class SGD(ExactOptimizer):
    """Stochastic gradient descent with momentum, optionally Nesterov's, and L2 decay (Sutskever et al. 2013)."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        if nesterov and momentum <= 0.0:
            raise ConfigError("optimizer.nesterov: needs momentum above 0")
        self.state_keys = frozenset({"momentum_buffer"}) if momentum else frozenset()
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov})

    def update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """w -= lr * direction, as torch.optim.SGD without dampening."""
        direction = gradient
        if group["weight_decay"]:
            direction = parameter.mul(group["weight_decay"]).add_(direction)
        if group["momentum"]:
            velocity = state.get("momentum_buffer")
            if velocity is None:
                velocity = state["momentum_buffer"] = direction.clone()
            else:
                velocity.mul_(group["momentum"]).add_(direction)
            direction = velocity.mul(group["momentum"]).add_(direction) if group["nesterov"] else velocity
        parameter.sub_(direction.mul(group["lr"]))


class Adam(ExactOptimizer):
    """Adam (Kingma and Ba 2015, algorithm 1); weight decay is a part of the gradient unless `decoupled`."""

    state_keys = frozenset({"step", "exp_avg", "exp_avg_sq"})
    decoupled = False

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})

    def update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """One step with bias-corrected moments, as torch.optim.Adam and AdamW."""
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
        state["step"] += 1
        (beta1, beta2), lr, decay = group["betas"], group["lr"], group["weight_decay"]
        if decay and self.decoupled:
            parameter.mul_(1.0 - lr * decay)
        elif decay:
            gradient = parameter.mul(decay).add_(gradient)
        first, second = state["exp_avg"], state["exp_avg_sq"]
        scratch = gradient.mul(1.0 - beta1)
        first.mul_(beta1).add_(scratch)
        torch.mul(gradient, gradient, out=scratch)
        second.mul_(beta2).add_(scratch.mul_(1.0 - beta2))
        _square_root(second, scratch)
        scratch.mul_(1.0 / math.sqrt(1.0 - beta2 ** state["step"])).add_(group["eps"])
        torch.div(first, scratch, out=scratch)
        parameter.sub_(scratch.mul_(lr / (1.0 - beta1 ** state["step"])))


def _square_root(x: Tensor, out: Tensor) -> None:
    """out = sqrt(x), correctly rounded; on the CPU by numpy, because torch's is not."""
    if x.device.type == "cpu":
        np.sqrt(x.numpy(), out=out.numpy())
    else:
        torch.sqrt(x, out=out)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    decoupled = True


OPTIMIZERS: dict[str, type[ExactOptimizer]] = {"SGD": SGD, "Adam": Adam, "AdamW": AdamW}


def build_optimizer(name: str, params: Iterable[Tensor], **options: Any) -> ExactOptimizer:
    """The optimizer `name` over `params`. Raises ConfigError for an unknown name or option."""
    if name not in OPTIMIZERS:
        raise ConfigError(f"optimizer.name: {name!r} is unknown; expected one of {', '.join(OPTIMIZERS)}")
    try:
        return OPTIMIZERS[name](params, **options)
    except TypeError as error:
        raise ConfigError(f"optimizer {name}: wrong options {sorted(options)}: {error}") from error
