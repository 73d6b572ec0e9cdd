"""First parameters from a file: what fits is taken bit for bit, all else is refused by name and changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from btrain.config import loads
from btrain.errors import ConfigError
from btrain.training import GradientOracle, State, build_training
from btrain.training.initial import load_parameters


class Small(nn.Module):
    """Two parameters, one of them fixed, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, 3))
        self.fixed = nn.Parameter(torch.zeros(2), requires_grad=False)
        self.register_buffer("scale", torch.ones(3))


TENSORS = {"w": torch.arange(6.0).view(2, 3), "fixed": torch.tensor([4.0, 5.0]), "scale": torch.full((3,), 2.0)}


def file_of(folder: Path, tensors: dict[str, Tensor], **metadata: Any) -> Path:
    path = folder / "first.safetensors"
    safetensors.torch.save_file(tensors, path, **metadata)
    return path


def test_a_state_dict_is_taken_over_bit_for_bit(tmp_path: Path) -> None:
    model = Small()
    fingerprint = load_parameters(model, file_of(tmp_path, TENSORS))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in TENSORS.items())
    other = TENSORS | {"w": TENSORS["w"].clone().index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(1e-30))}
    assert load_parameters(Small(), file_of(tmp_path, other)) != fingerprint


def test_a_checkpoint_gives_its_parameters_and_buffers(tmp_path: Path) -> None:
    tensors = {"parameter/w": TENSORS["w"], "parameter/fixed": TENSORS["fixed"], "buffer/scale": TENSORS["scale"]}
    state = State(9, tensors | {"optimizer/w/exp_avg": torch.ones(2, 3)}, {"optimizer/w/step": 9})
    (tmp_path / "state.safetensors").write_bytes(state.to_bytes())
    as_file = load_parameters(Small(), file_of(tmp_path, TENSORS))
    assert load_parameters(Small(), tmp_path / "state.safetensors") == as_file


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"w": None}, "w is missing"),
        ({"scale": None}, "scale is missing"),
        ({"v": torch.ones(1)}, "v is not part of the model"),
        ({"w": torch.zeros(3, 2)}, r"w is torch.float32 \[3, 2\], expected torch.float32 \[2, 3\]"),
        ({"w": torch.zeros(2, 3, dtype=torch.bfloat16)}, "w is torch.bfloat16"),
        ({"w": torch.full((2, 3), float("nan"))}, "w holds a number that is not finite"),
        ({"scale": torch.tensor([1.0, 1.0, float("inf")])}, "scale holds a number that is not finite"),
        ({f"v{i}": torch.ones(1) for i in range(5)}, "v2 is not part of the model; and 2 more"),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(
    changes: dict[str, Tensor | None], words: str, tmp_path: Path
) -> None:
    model = Small()
    tensors = {name: tensor for name, tensor in (TENSORS | changes).items() if tensor is not None}
    with pytest.raises(ConfigError, match=rf"model\.from: .*first\.safetensors: .*{words}"):
        load_parameters(model, file_of(tmp_path, tensors))
    assert not model.w.any() and not model.fixed.any() and bool((model.scale == 1).all())


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff" * 64])
def test_what_is_no_safetensors_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ConfigError, match="is no safetensors file"):
        load_parameters(Small(), tmp_path / "x")


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = file_of(tmp_path, {"parameter/w": TENSORS["w"]}, metadata={"btrain": "{}"})
    with pytest.raises(ConfigError, match="unexpected metadata"):
        load_parameters(Small(), path)


def test_a_file_that_is_not_there_says_what_newcomers_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.fingerprint in its place"):
        load_parameters(Small(), tmp_path / "none.safetensors")


DIGITS = "run: x\nmodel: {builtin: mlp, hidden: [8]}\ndata: {builtin: digits}\noptimizer: {name: SGD, lr: 0.1}\n"


def test_the_contract_names_the_content_and_not_the_file(tmp_path: Path) -> None:
    model = build_training(loads(DIGITS, overrides=["seed=5"])).trainer.model
    path = file_of(tmp_path, model.state_dict())
    training = build_training(loads(DIGITS, overrides=[f"model.from={path}"]))
    assert torch.equal(
        training.trainer.parameters(), build_training(loads(DIGITS, overrides=["seed=5"])).trainer.parameters()
    )
    assert training.trainer.state_digest().hex() == training.config.start_fingerprint
    assert str(path) not in training.config.contract_bytes().decode()
    renamed = path.rename(tmp_path / "other.safetensors")
    again = build_training(loads(DIGITS, overrides=[f"model.from={renamed}"]))
    assert again.config.contract_bytes() == training.config.contract_bytes()
    without = loads(training.config.contract_bytes().decode())
    assert without.contract_bytes() == training.config.contract_bytes() and without.model is not None
    with pytest.raises(ConfigError, match=r"model\.fingerprint: expected 0{64}, but the file of model\.from holds"):
        build_training(loads(DIGITS, overrides=[f"model.from={renamed}", f"model.fingerprint='{'0' * 64}'"]))


def test_gradients_take_over_what_is_not_trained() -> None:
    class Scaled(Small):
        def forward(self, inputs: Tensor) -> Tensor:
            features: Tensor = inputs.flatten(1)[:, :2] @ self.w[:, :2] * self.scale[:2] + self.fixed
            return torch.cat([features, torch.zeros(len(features), 8)], dim=1)

    source, seed = build_training(loads(DIGITS)).source, bytes(32)
    loaded = Scaled()
    loaded.load_state_dict(TENSORS)
    expected = GradientOracle(loaded, source, batch_size=4).gradient(torch.zeros(6), seed)
    oracle = GradientOracle(Scaled(), source, batch_size=4)
    assert not torch.equal(oracle.gradient(torch.zeros(6), seed), expected)
    oracle.start_from(loaded)
    assert torch.equal(oracle.gradient(torch.zeros(6), seed), expected)
