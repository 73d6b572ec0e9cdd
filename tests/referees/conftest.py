"""Other people's implementations as judges. `make referees` installs them; without them these tests are skipped.

byzfl imports torchvision, whose published wheel is built for CUDA and looks for two operators that a CPU build of torch
lacks; declaring them is enough for the import.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from types import ModuleType

import pytest
import torch

_declared: list[torch.library.Library] = []


def _declare_torchvision_operators() -> None:
    if _declared or hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _declared.append(library)


def _referee(name: str) -> ModuleType:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: `make referees` installs it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "byzfl":
            _declare_torchvision_operators()
        return importlib.import_module(name)


@pytest.fixture(scope="session")
def byzfl() -> ModuleType:
    """byzfl 0.0.11."""
    return _referee("byzfl")


@pytest.fixture(scope="session")
def byzpy() -> ModuleType:
    """byzpy 0.1.4."""
    return _referee("byzpy")
