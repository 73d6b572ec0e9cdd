"""`btrain.Optimizer` alone is the wrapped optimizer and nothing else; what torch puts on optimizers works on it."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import btrain


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def train(optimizer: torch.optim.Optimizer, net: nn.Module, scheduler: object = None) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        inputs = torch.randn(16, 4, generator=generator)
        optimizer.zero_grad()
        net(inputs).square().mean().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()  # type: ignore[attr-defined]
    return [parameter.detach().clone() for parameter in net.parameters()]


@pytest.fixture(autouse=True)
def no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BTRAIN_CONFIG", raising=False)


def test_alone_it_is_plain_torch_bit_for_bit() -> None:
    plain, wrapped = model(), model()
    one = torch.optim.AdamW(plain.parameters(), lr=1e-2)
    two = btrain.Optimizer(torch.optim.AdamW(wrapped.parameters(), lr=1e-2))
    rates = [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5) for optimizer in (one, two)]
    for a, b in zip(train(one, plain, rates[0]), train(two, wrapped, rates[1]), strict=True):
        assert torch.equal(a, b)
    assert two.param_groups[0]["lr"] == one.param_groups[0]["lr"] < 1e-2
    assert isinstance(two, torch.optim.Optimizer)


def test_state_dicts_go_in_and_out() -> None:
    net, other = model(), model()
    optimizer = btrain.Optimizer(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9))
    train(optimizer, net)
    again = btrain.Optimizer(torch.optim.SGD(other.parameters(), lr=0.5))
    other.load_state_dict(net.state_dict())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert again.param_groups[0]["lr"] == 0.1
    for a, b in zip(train(optimizer, net), train(again, other), strict=True):
        assert torch.equal(a, b)
    assert len(again.state) == len(list(other.parameters()))


def test_closures_hooks_and_gradient_scaling() -> None:
    net, called = model(), []
    optimizer = btrain.Optimizer(torch.optim.SGD(net.parameters(), lr=0.1))
    optimizer.register_step_post_hook(lambda *_: called.append("post"))
    before = [parameter.detach().clone() for parameter in net.parameters()]

    def closure() -> float:
        optimizer.zero_grad()
        loss = net(torch.ones(2, 4)).square().mean()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) is not None
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(net(torch.ones(2, 4)).square().mean()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert called == ["post", "post"]
    assert not all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_groups_can_be_added() -> None:
    net = model()
    optimizer = btrain.Optimizer(torch.optim.SGD(net[0].parameters(), lr=0.1))  # type: ignore[index]
    optimizer.add_param_group({"params": list(net[2].parameters()), "lr": 0.01})  # type: ignore[index]
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.01]
    assert "SGD" in repr(optimizer)


def test_a_stray_file_is_not_picked_up_and_libp2p_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("run: stray\n")
    code = (
        "import sys, torch, btrain; p = torch.nn.Parameter(torch.ones(1));"
        "o = btrain.Optimizer(torch.optim.SGD([p], lr=1.0)); p.grad = torch.ones(1); o.step();"
        "assert p.item() == 0.0 and o.run is None and 'libp2p' not in sys.modules and 'trio' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=100)
