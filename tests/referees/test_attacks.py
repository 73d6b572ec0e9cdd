"""Our attackers against byzfl's: the same honest gradients, the same vector."""

from __future__ import annotations

import math
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from btrain.adversary import Adversary, get_adversary

HONEST, BYZANTINE = 9, 7


@pytest.fixture(name="honest_HD")
def known_gradients(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """What every attacker is told that the honest workers computed."""
    gradients_HD = torch.randn(HONEST, 1000, generator=torch.Generator().manual_seed(0)) + 0.1
    monkeypatch.setattr(Adversary, "honest_gradients", lambda self, round, replay: gradients_HD)
    return gradients_HD


def forged(name: str, own_D: torch.Tensor, **options: Any) -> torch.Tensor:
    spec = ",".join(f"{key}={value}" for key, value in options.items())
    attack = get_adversary(f"{name}:{spec}" if spec else name)
    round: Any = SimpleNamespace(roles=SimpleNamespace(workers=range(HONEST + BYZANTINE)))
    replay: Any = None
    return attack.forged(own_D, round, replay)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("epsilon", [0.1, 0.6, 100.0])
def test_inner_product_manipulation(byzfl: ModuleType, honest_HD: torch.Tensor, epsilon: float) -> None:
    theirs_D = byzfl.InnerProductManipulation(tau=epsilon)(honest_HD)
    torch.testing.assert_close(forged("ipm", honest_HD[0], epsilon=epsilon), theirs_D)


@pytest.mark.parametrize("z", [0.3, 1.5])
def test_a_little_is_enough(byzfl: ModuleType, honest_HD: torch.Tensor, z: float) -> None:
    """Ours goes against the mean by the deviation of the population, theirs by that of the sample, with a plus."""
    theirs_D = byzfl.ALittleIsEnough(tau=-z * math.sqrt((HONEST - 1) / HONEST))(honest_HD)
    torch.testing.assert_close(forged("alie", honest_HD[0], z=z), theirs_D, rtol=1e-5, atol=1e-5)


def test_sign_flip(byzfl: ModuleType) -> None:
    """Theirs flips the honest mean; with one honest gradient that is one's own."""
    own_D = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(forged("sign_flip", own_D, scale=1.0), byzfl.SignFlipping()(own_D[None]))


def test_mimic(byzfl: ModuleType, honest_HD: torch.Tensor) -> None:
    torch.testing.assert_close(forged("mimic", honest_HD[3]), byzfl.Mimic(epsilon=0)(honest_HD))
