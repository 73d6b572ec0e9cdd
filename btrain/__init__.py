"""Train one PyTorch model on machines that do not trust each other."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from btrain.optimizer import Optimizer
    from btrain.run import Run

__version__ = "0.1.0"
__all__ = ["Optimizer", "Run", "__version__"]

_HOME = {"Optimizer": "btrain.optimizer", "Run": "btrain.run"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
