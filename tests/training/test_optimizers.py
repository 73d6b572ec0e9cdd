"""The exact optimizers against torch's, and against numpy, operation by operation."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from btrain.errors import ConfigError
from btrain.training.optimizers import OPTIMIZERS, build_optimizer

CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("Adam", {"lr": 0.01}),
    ("Adam", {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-6}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.1}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_equal_to_torchs_up_to_rounding(name: str, options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(7, 5, generator=generator), torch.randn(33, generator=generator)]
    ours, theirs = ([tensor.clone().requires_grad_() for tensor in start] for _ in range(2))
    our_optimizer = build_optimizer(name, ours, **options)
    their_optimizer = getattr(torch.optim, name)(theirs, **options, foreach=False)
    for _ in range(30):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        our_optimizer.step()
        their_optimizer.step()
    for a, b, x in zip(ours, theirs, start, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(a, x, atol=1e-3)


def test_adamw_is_one_rounding_for_each_operation() -> None:
    """numpy's elementwise float32 operations are IEEE's; equal bits mean that no operation was fused."""
    generator = torch.Generator().manual_seed(1)
    parameter = torch.randn(1003, generator=generator).requires_grad_()
    optimizer = build_optimizer("AdamW", [parameter], lr=0.01, weight_decay=0.1)
    x: npt.NDArray[Any] = parameter.detach().numpy().copy()
    m: npt.NDArray[Any] = np.zeros_like(x)
    v: npt.NDArray[Any] = np.zeros_like(x)
    f = np.float32
    for step in range(1, 6):
        g = torch.randn(1003, generator=generator)
        parameter.grad = g
        optimizer.step()
        gradient = g.numpy()
        x = x * f(1 - 0.01 * 0.1)
        m = m * f(0.9) + gradient * f(1 - 0.9)
        v = v * f(0.999) + (gradient * gradient) * f(1 - 0.999)
        denominator = np.sqrt(v) * f(1 / (1 - 0.999**step) ** 0.5) + f(1e-8)
        x = x - (m / denominator) * f(0.01 / (1 - 0.9**step))
        assert np.array_equal(parameter.detach().numpy(), x)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_gradients_are_left_alone_and_may_be_missing(name: str, options: dict[str, Any]) -> None:
    moved, still = torch.ones(4, requires_grad=True), torch.ones(4, requires_grad=True)
    optimizer = build_optimizer(name, [moved, still], **options)
    moved.grad = torch.full((4,), 0.5)
    optimizer.step()
    assert moved.grad.tolist() == [0.5] * 4
    assert still.tolist() == [1.0] * 4
    assert max(moved.tolist()) < 1.0


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_closure_and_state_dict_work_as_in_torch(name: str) -> None:
    parameter = torch.ones(3, requires_grad=True)
    optimizer = build_optimizer(name, [parameter], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (parameter**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    assert optimizer.step(closure) == 3.0
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_wrong_options() -> None:
    parameter = torch.ones(1, requires_grad=True)
    with pytest.raises(ConfigError, match=r"'Lion' is unknown; expected one of SGD, Adam, AdamW"):
        build_optimizer("Lion", [parameter], lr=0.1)
    with pytest.raises(ConfigError, match="wrong options"):
        build_optimizer("Adam", [parameter], lr=0.1, momentum=0.9)
    with pytest.raises(ConfigError, match="needs momentum above 0"):
        build_optimizer("SGD", [parameter], lr=0.1, nesterov=True)
