"""Importing the package costs nothing; what is heavy comes with the first network."""

from __future__ import annotations

import subprocess
import sys

import pytest

import btrain.p2p


def test_errors_and_limits_come_without_libp2p_and_trio() -> None:
    program = (
        "import sys, btrain.p2p, btrain.p2p.errors, btrain.p2p.addresses; btrain.p2p.Limits();"
        "print([name for name in ('libp2p', 'trio', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_offers_what_it_lists_and_nothing_else() -> None:
    for name in btrain.p2p.__all__:
        assert getattr(btrain.p2p, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Host'"):
        _ = btrain.p2p.Host  # type: ignore[attr-defined]
