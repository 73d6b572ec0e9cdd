"""The backends that can run here, and the golden inputs as fixtures."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from btrain.kernels import BackendUnavailable, native_backend

GOLDEN = Path(__file__).with_name("golden.py")


@pytest.fixture(scope="session")
def golden() -> SimpleNamespace:
    """What golden.py defines."""
    return SimpleNamespace(**runpy.run_path(str(GOLDEN)), path=GOLDEN)


@pytest.fixture(params=["torch", "native"])
def backend(request: pytest.FixtureRequest) -> str:
    """A CPU backend's name; the compiled one is skipped, with its reason, where it cannot be built."""
    if request.param == "native":
        try:
            native_backend.demanded()
        except BackendUnavailable as error:
            pytest.skip(str(error))
    return str(request.param)
