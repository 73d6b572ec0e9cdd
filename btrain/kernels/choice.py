"""Which backend does the work: the fastest that is there, and never an error for what a machine lacks."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

from btrain.kernels import native_backend
from btrain.kernels.backend import Backend
from btrain.kernels.errors import BackendUnavailable
from btrain.kernels.torch_backend import TorchBackend

ENVIRONMENT = "BTRAIN_KERNELS"
"""What "auto" stands for: auto (default), torch (never compiles or loads anything), native, triton."""
BUILD_MIN_ELEMENTS = 1 << 20
"""The compiled path is built for the first vector of this size; below it is used only if it was built before."""


def choose(name: str, device: torch.device, elements: int) -> Backend:
    """The backend called `name` for `elements` elements on `device`; "auto" never fails."""
    if name == "auto" and ENVIRONMENT in os.environ:
        name = os.environ[ENVIRONMENT]
    if name == "torch":
        return _torch()
    if name == "native":
        return _native(device)
    if name == "triton":
        return _triton(device)
    if name != "auto":
        raise BackendUnavailable(f"no kernel backend named {name!r}: auto, torch, native or triton")
    if device.type == "cuda":
        return _triton(device) if _triton_installed() else _torch()
    if device.type == "cpu":
        return native_backend.ready(build=elements >= BUILD_MIN_ELEMENTS) or _torch()
    return _torch()


def _torch() -> Backend:
    return TorchBackend()


def _native(device: torch.device) -> Backend:
    if device.type != "cpu":
        raise BackendUnavailable(f"the native backend works on CPU tensors, not on {device}")
    return native_backend.demanded()


def _triton(device: torch.device) -> Backend:
    if not _triton_installed():
        raise BackendUnavailable("the triton backend needs the package triton: pip install 'btrain[gpu]'")
    from btrain.kernels.triton_backend import TritonBackend

    return TritonBackend(device)


def _triton_installed() -> bool:
    return find_spec("triton") is not None
