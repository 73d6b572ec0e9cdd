"""Learning rates as functions of the step count."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from btrain.errors import ConfigError

ScheduleName = Literal["constant", "cosine", "linear"]


@dataclass(frozen=True)
class Schedule:
    """A factor on the learning rate: up linearly over `warmup` steps, then constant, or falling to `final` at `steps`.

    A function of the step count alone, so that a peer that replays a step uses the rate that the others used.
    """

    name: ScheduleName = "constant"
    warmup: int = 0
    steps: int = 1
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in ("constant", "cosine", "linear"):
            raise ConfigError(f"optimizer.schedule.name: {self.name!r}; expected constant, cosine or linear")
        if self.warmup < 0 or self.steps < 1:
            raise ConfigError(f"optimizer.schedule: warmup {self.warmup} and {self.steps} steps must not be negative")

    def factor(self, step: int) -> float:
        """The factor of the update number `step`, the first being 0."""
        if step < self.warmup:
            return _on_grid((step + 1) / self.warmup)
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        if self.name == "linear":
            return _on_grid(1.0 - (1.0 - self.final) * progress)
        if self.name == "cosine":
            return _on_grid(self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * progress)))
        return 1.0


def _on_grid(factor: float) -> float:
    """Rounded to a multiple of 2^-40: C libraries differ in the last bit of a cosine."""
    return math.floor(factor * 2.0**40 + 0.5) * 2.0**-40
