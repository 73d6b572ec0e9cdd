"""Gradients: equal to a plain torch loop, pure, the same bits in every process."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from btrain.data import Batch, Source, open_source
from btrain.errors import ConfigError
from btrain.models import build_model
from btrain.sampling import batch_indices
from btrain.training import GradientOracle, ShapeError, TaskError, flatten, vector_digest

MODELS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"builtin": "logreg"}, {"builtin": "digits"}),
    ({"builtin": "mlp"}, {"builtin": "digits"}),
    ({"builtin": "cnn"}, {"builtin": "digits"}),
    ({"builtin": "gpt", "layers": 1, "width": 16, "heads": 2, "context": 8}, {"builtin": "stdlib_text"}),
]


def seed_of(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(4, "little")).digest()


def make(model: dict[str, Any], data: dict[str, Any], **options: Any) -> tuple[nn.Module, Source, GradientOracle]:
    source = open_source(data, context=model.get("context"))
    module = build_model(model, source, seed=0)
    return module, source, GradientOracle(module, source, **{"batch_size": 16, **options})


def plain_gradient(module: nn.Module, source: Source, seed: bytes, clip: float | None = None) -> Tensor:
    inputs, targets = source.batch(batch_indices(seed, 16, len(source)))
    module.zero_grad()
    logits = module(inputs)
    functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)).backward()  # type: ignore[no-untyped-call]
    if clip is not None:
        nn.utils.clip_grad_norm_(module.parameters(), clip, foreach=False)
    return flatten([p.grad for p in module.parameters() if p.grad is not None])


@pytest.mark.parametrize(("model", "data"), MODELS)
def test_gradient_equals_a_plain_loop(model: dict[str, Any], data: dict[str, Any]) -> None:
    module, source, oracle = make(model, data)
    x = flatten(module.parameters())
    assert torch.equal(oracle.gradient(x, seed_of(1)), plain_gradient(module, source, seed_of(1)))
    assert oracle.numel == x.numel()


@pytest.mark.parametrize("clip", [0.01, 100.0])
def test_clipping_equals_torchs(clip: float) -> None:
    module, source, oracle = make(*MODELS[1], clip_grad_norm=clip)
    gradient = oracle.gradient(flatten(module.parameters()), seed_of(1))
    assert torch.equal(gradient, plain_gradient(module, source, seed_of(1), clip))
    assert (float(gradient.norm()) <= 0.0101) == (clip == 0.01)


def test_gradients_are_pure_and_follow_their_arguments() -> None:
    module, _, oracle = make(*MODELS[1])
    x = flatten(module.parameters())
    first = oracle.gradient(x, seed_of(1))
    kept = first.clone()
    other_seed = oracle.gradient(x, seed_of(2))
    other_x = oracle.gradient(x * 0.5, seed_of(1))
    assert torch.equal(first, kept)
    assert torch.equal(oracle.gradient(x, seed_of(1)), first)
    assert not torch.equal(other_seed, first)
    assert not torch.equal(other_x, first)


def test_nothing_else_is_disturbed() -> None:
    module, _, oracle = make(*MODELS[1])
    x = flatten(module.parameters())
    before = x.clone()
    generator = torch.get_rng_state()
    with torch.no_grad():
        oracle.gradient(x * 3, seed_of(1))
    assert torch.equal(x, before)
    assert torch.equal(flatten(module.parameters()), before)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


def test_the_same_bits_in_another_process() -> None:
    program = f"""
import torch
torch.set_num_threads({torch.get_num_threads()})
from btrain.data import open_source
from btrain.models import build_model
from btrain.training import GradientOracle, flatten, vector_digest
for model, data in {MODELS!r}:
    source = open_source(data, context=model.get("context"))
    module = build_model(model, source, seed=0)
    oracle = GradientOracle(module, source, batch_size=16)
    print(vector_digest(oracle.gradient(flatten(module.parameters()), bytes.fromhex("{seed_of(1).hex()}"))).hex())
"""
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    digests = []
    for model, data in MODELS:
        module, _, oracle = make(model, data)
        digests.append(vector_digest(oracle.gradient(flatten(module.parameters()), seed_of(1))).hex())
    assert other.stdout.split() == digests


def test_a_label_map_changes_the_batch_only() -> None:
    module, source, oracle = make(*MODELS[0])
    x = flatten(module.parameters())

    def flipped(batch: Batch) -> Batch:
        return batch[0], 9 - batch[1]

    gradient = oracle.gradient(x, seed_of(1), transform=flipped)
    inputs, targets = source.batch(batch_indices(seed_of(1), 16, len(source)))
    pieces = torch.autograd.grad(functional.cross_entropy(module(inputs), 9 - targets), list(module.parameters()))
    assert torch.equal(gradient, flatten(pieces))
    assert not torch.equal(oracle.gradient(x, seed_of(1)), gradient)


class Noisy(nn.Module):
    """A model whose loss depends on torch's generator, whose buffer counts its calls, with an idle parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.idle = nn.Parameter(torch.ones(3))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = self.linear(functional.dropout(inputs.flatten(1), 0.5)) * self.calls
        return logits


def test_dropout_draws_from_the_batch_seed() -> None:
    source = open_source({"builtin": "digits"})
    model = Noisy()
    oracle = GradientOracle(model, source, batch_size=8)
    x = flatten(parameter for parameter in model.parameters() if parameter.requires_grad)
    assert oracle.numel == 653
    torch.manual_seed(1)
    generator = torch.get_rng_state()
    first = oracle.gradient(x, seed_of(1))
    assert torch.equal(torch.get_rng_state(), generator)
    torch.manual_seed(2)
    assert torch.equal(oracle.gradient(x, seed_of(1)), first)
    assert torch.equal(GradientOracle(model, source, batch_size=8).gradient(x, seed_of(1)), first)
    assert first[:3].tolist() == [0.0, 0.0, 0.0]
    assert float(model.calls) == 0.0


def test_oracles_in_threads_give_the_same_bits() -> None:
    source = open_source({"builtin": "digits"})
    model = Noisy()
    x = flatten(parameter for parameter in model.parameters() if parameter.requires_grad)
    oracles = [GradientOracle(model, source, batch_size=8) for _ in range(2)]
    expected = [vector_digest(oracles[0].gradient(x, seed_of(i))) for i in range(20)]
    found: dict[int, list[bytes]] = {}

    def work(number: int) -> None:
        found[number] = [vector_digest(oracles[number % 2].gradient(x, seed_of(i))) for i in range(20)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(4)] == [expected] * 4


class Augmented(Source):
    """Hands the first byte of each sample's seed out as the input."""

    sample_shape = (1,)
    classes = 2
    uses_seeds = True

    def __len__(self) -> int:
        return 100

    def batch(self, indices: np.ndarray[Any, Any], seeds: Any = None) -> Batch:
        assert seeds is not None
        assert len({*seeds}) == len(indices)
        return torch.tensor([[seed[0] / 255] for seed in seeds]), torch.from_numpy(indices % 2)

    def fingerprint(self) -> str:
        return "0" * 64

    def split(self, name: str) -> Source:
        return self


def test_augmenting_sources_get_a_seed_for_each_sample() -> None:
    oracle = GradientOracle(nn.Linear(1, 2), Augmented(), batch_size=8)
    inputs = oracle.batch(seed_of(1))[0]
    assert torch.equal(inputs, oracle.batch(seed_of(1))[0])
    assert not torch.equal(inputs, oracle.batch(seed_of(2))[0])


def test_bf16_is_close_and_still_fp32_at_the_seam() -> None:
    module, _, oracle = make(*MODELS[1])
    _, _, short = make(*MODELS[1], precision="bf16")
    x = flatten(module.parameters())
    exact, rounded = oracle.gradient(x, seed_of(1)), short.gradient(x, seed_of(1))
    assert rounded.dtype == torch.float32
    assert 1e-5 < float((exact - rounded).norm() / exact.norm()) < 2e-2
    assert torch.equal(short.gradient(x, seed_of(1)), rounded)


class WrongTask:
    def __init__(self, loss: Tensor) -> None:
        self._loss = loss

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._loss


@pytest.mark.parametrize("loss", [torch.zeros(()), torch.zeros(3, requires_grad=True)])
def test_losses_that_cannot_be_differentiated(loss: Tensor) -> None:
    module, _, oracle = make(*MODELS[0], task=WrongTask(loss))
    with pytest.raises(TaskError, match="must be a scalar that depends on the model"):
        oracle.gradient(flatten(module.parameters()), seed_of(1))


def test_wrong_vectors_and_models() -> None:
    module, source, oracle = make(*MODELS[0])
    x = flatten(module.parameters())
    for wrong in (x[:-1], x.double(), x.view(1, -1)):
        with pytest.raises(ShapeError, match=r"expected float32 \[650\]"):
            oracle.gradient(wrong, seed_of(1))
    with pytest.raises(ConfigError, match="no parameter that requires a gradient"):
        GradientOracle(nn.Flatten(), source, batch_size=4)
