"""The builtin models: sizes, shapes, start parameters that are the same everywhere, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from btrain.data import Source, open_source
from btrain.errors import ConfigError
from btrain.models import build_model
from btrain.training import flatten, vector_digest
from btrain.training.parameters import trainable

GOLDEN_LOGREG = "2ccb0fa66bb077bd53acfe76d2dab21950484dde9d8f90beebad6c0b1f661bbe"
GOLDEN_MLP = "730007c0af454643df6af06d11b5047d168792aafa2c5f1cb95130e001384f1c"
GOLDEN_CNN = "d591770e3bb8c15f126976b244fd733a26e765613fd1a663019037af9f0e9c51"
GOLDEN_GPT = "860043b75ff01d3301e6455e9bb976d95d2858dfe6df8dbaf6bd2964952cd04c"

MODULE = """
import torch
from torch import nn
def build(width):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Dropout(0.5), nn.Linear(width, 10))
def normalised():
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
def batch_statistics():
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64, track_running_stats=False), nn.Linear(64, 10))
def half():
    return nn.Linear(4, 4).half()
def text():
    return "model"
"""


@pytest.fixture(scope="module")
def digits() -> Source:
    return open_source({"builtin": "digits"})


@pytest.fixture(scope="module")
def text() -> Source:
    return open_source({"builtin": "stdlib_text"}, context=32)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "btrain_test_user_model.py").write_text(MODULE)
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    sys.modules.pop("btrain_test_user_model", None)


def start(config: dict[str, Any], source: Source, seed: int = 0) -> torch.Tensor:
    return flatten(trainable(build_model(config, source, seed)).values())


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        ({"builtin": "logreg"}, 650),
        ({"builtin": "mlp"}, 2_410),
        ({"builtin": "mlp", "hidden": [280, 280]}, 99_690),
        ({"builtin": "mlp", "hidden": (960, 960)}, 994_570),
        ({"builtin": "mlp", "hidden": (3125, 3125)}, 10_003_135),
        ({"builtin": "cnn"}, 13_706),
    ],
)
def test_sizes_on_digits(digits: Source, config: dict[str, Any], parameters: int) -> None:
    model = build_model(config, digits, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model(digits.batch(np.arange(3))[0]).shape == (3, 10)


def test_gpt_sizes(text: Source) -> None:
    model = build_model({"builtin": "gpt"}, text, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 117_376
    inputs, targets = text.batch(np.arange(2) * 5000)
    logits = model(inputs)
    assert logits.shape == (2, 32, 256)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert float(loss.detach()) == pytest.approx(np.log(256), abs=0.3)
    large = {"builtin": "gpt", "layers": 8, "width": 320, "heads": 8, "context": 128}
    long_text = open_source({"builtin": "stdlib_text"}, context=128)
    assert start(large, long_text).numel() == 9_964_160


def test_gpt_sees_no_later_token(text: Source) -> None:
    model = build_model({"builtin": "gpt"}, text, seed=0)
    inputs, _ = text.batch(np.array([0]))
    changed = inputs.clone()
    changed[0, 20:] = 7
    assert torch.allclose(model(inputs)[0, :20], model(changed)[0, :20], atol=1e-6)
    assert not torch.allclose(model(inputs)[0, 20:], model(changed)[0, 20:], atol=1e-3)


@pytest.mark.parametrize(("name", "digest"), [("logreg", GOLDEN_LOGREG), ("mlp", GOLDEN_MLP), ("cnn", GOLDEN_CNN)])
def test_golden_start_parameters(digits: Source, name: str, digest: str) -> None:
    assert vector_digest(start({"builtin": name}, digits)).hex() == digest


def test_golden_start_parameters_of_gpt(text: Source) -> None:
    assert vector_digest(start({"builtin": "gpt"}, text)).hex() == GOLDEN_GPT


def test_start_parameters_follow_the_seed_alone(digits: Source) -> None:
    torch.manual_seed(1)
    first = start({"builtin": "mlp"}, digits, seed=5)
    after = torch.rand(1)
    torch.manual_seed(2)
    assert torch.equal(start({"builtin": "mlp"}, digits, seed=5), first)
    assert not torch.equal(start({"builtin": "mlp"}, digits, seed=6), first)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)


def test_start_parameters_have_the_usual_spread(digits: Source) -> None:
    weight = build_model({"builtin": "mlp", "hidden": [1000]}, digits, seed=0).get_parameter("layers.0.weight")
    assert float(weight.detach().abs().max()) <= 1 / 8
    assert float(weight.detach().std()) == pytest.approx(1 / 8 / 3**0.5, rel=0.02)
    assert float(weight.detach().mean()) == pytest.approx(0.0, abs=1e-3)


def test_gpt_residual_projections_start_smaller(text: Source) -> None:
    model = build_model({"builtin": "gpt", "layers": 8}, text, seed=0)
    assert float(model.get_parameter("blocks.0.up.weight").detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(model.get_parameter("blocks.0.down.weight").detach().std()) == pytest.approx(0.005, rel=0.05)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"builtin": "resnet"}, "'resnet' is unknown; expected one of logreg, mlp, cnn, gpt"),
        ({}, "None is unknown"),
        ({"builtin": "mlp", "width": 5}, "wrong options"),
        ({"builtin": "gpt"}, "needs text or tokens"),
        ({"builtin": "cnn", "channels": [4, 4, 4, 4]}, "4 halvings leave nothing"),
    ],
)
def test_wrong_models_for_digits(digits: Source, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(config, digits, seed=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"builtin": "mlp"}, "needs classes to tell apart"),
        ({"builtin": "gpt", "width": 30}, "30 cannot be divided among 4 heads"),
        ({"builtin": "gpt", "context": 16}, r"16, but a sample of the data is \(32,\)"),
    ],
)
def test_wrong_models_for_text(text: Source, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(config, text, seed=0)


def test_entry_point_is_called_under_the_seed(digits: Source, folder: Path) -> None:
    config = {"entry_point": "btrain_test_user_model:build", "args": {"width": 8}}
    first, again, other = (build_model(config, digits, seed, base=folder) for seed in (3, 3, 4))
    assert torch.equal(flatten(first.parameters()), flatten(again.parameters()))
    assert not torch.equal(flatten(first.parameters()), flatten(other.parameters()))


def test_batch_statistics_without_memory_are_allowed(digits: Source, folder: Path) -> None:
    build_model({"entry_point": "btrain_test_user_model:batch_statistics"}, digits, seed=0, base=folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"entry_point": "btrain_test_user_model:build"}, "missing a required argument: 'width'"),
        ({"entry_point": "btrain_test_user_model:text"}, "returned str, expected a torch.nn.Module"),
        ({"entry_point": "btrain_test_user_model:half"}, "parameter weight is not float32"),
        ({"entry_point": "btrain_test_user_model:normalised"}, r"1 \(BatchNorm1d\) keeps running statistics"),
        ({"entry_point": 5}, r"model\.entry_point: expected a string"),
    ],
)
def test_wrong_entry_points(digits: Source, folder: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(config, digits, seed=0, base=folder)
