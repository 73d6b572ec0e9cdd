"""An optimizer whose step goes through the group: wrap yours, keep the rest of the loop."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from btrain.run import LoopError, Parameters, Run

CONFIG_ENV = "BTRAIN_CONFIG"


class Optimizer(torch.optim.Optimizer):
    """Behaves like the wrapped optimizer: schedulers, GradScaler, clip_grad_norm_, state_dict, param_groups work on it.

    With a run, `step` commits the gradients, waits for the group's certified aggregate and steps with that. Without one
    (and without the variable BTRAIN_CONFIG, which names a run.yaml) it is a run of one: the wrapped optimizer and
    nothing else.
    """

    def __init__(self, wrapped: torch.optim.Optimizer, run: Run | None = None) -> None:
        self.wrapped = wrapped
        if run is None and os.environ.get(CONFIG_ENV):
            run = Run(os.environ[CONFIG_ENV], model=Parameters(wrapped))
        self.run = run
        if run is not None:
            run.attach(wrapped)

    def __getattr__(self, name: str) -> Any:
        """Everything else, hooks too, is the wrapped optimizer's."""
        if name == "wrapped":  # while it is being copied
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def __repr__(self) -> str:
        return f"btrain.Optimizer({self.wrapped!r})"

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The wrapped optimizer's groups."""
        return self.wrapped.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The wrapped optimizer's state."""
        return self.wrapped.state

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of the group; alone, of the wrapped optimizer. A closure computes the gradients first."""
        if self.run is None:
            return self.wrapped.step() if closure is None else self.wrapped.step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.run.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        self.wrapped.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's."""
        return self.wrapped.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Into the wrapped optimizer.

        Raises:
            LoopError: in a run, whose certified state alone decides.
        """
        if self.run is not None:
            raise LoopError("in a run the optimizer's state is the one that the group certifies: it cannot be loaded")
        self.wrapped.load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Into the wrapped optimizer.

        Raises:
            LoopError: in a run, whose parameters are fixed when it begins.
        """
        if self.run is not None:
            raise LoopError("in a run the parameters are fixed: add the group before btrain.Optimizer")
        self.wrapped.add_param_group(param_group)
