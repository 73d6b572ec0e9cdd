"""The trainer: steps, schedule, state that continues bit for bit, and whole runs that learn."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from btrain.config import loads
from btrain.data import Batch, TokenSource
from btrain.errors import ConfigError
from btrain.training import (
    ApplyError,
    Evaluation,
    Evaluator,
    Schedule,
    ShapeError,
    State,
    StateError,
    Trainer,
    Training,
    build_training,
    choose_device,
    flatten,
)
from btrain.training.optimizers import SGD, AdamW

DIGITS = """
run: test
model: {builtin: mlp, hidden: [32]}
data: {builtin: digits}
optimizer: {name: SGD, lr: 0.3, momentum: 0.9, nesterov: true, schedule: {name: cosine}}
batch_size: 32
rounds: 100
"""
TEXT = """
run: test
model: {builtin: gpt, layers: 1, width: 32, heads: 2, context: 16}
data: {builtin: stdlib_text}
optimizer: {name: AdamW, lr: 1e-2, weight_decay: 0.1, clip_grad_norm: 1.0, schedule: {name: cosine, warmup: 10}}
batch_size: 16
rounds: 100
eval: {every: 20, samples: 256}
"""


def train(training: Training, first: int, last: int, workers: int) -> None:
    for step in range(first, last):
        x = training.trainer.parameters()
        seeds = [hashlib.sha256(f"{step}/{worker}".encode()).digest() for worker in range(workers)]
        gradients = torch.stack([training.oracle.gradient(x, seed) for seed in seeds])
        training.trainer.apply(gradients.mean(0), step)


@pytest.mark.parametrize("changes", [[], ["model={builtin: logreg}", "optimizer.lr=0.5"]])
def test_eight_workers_learn_the_digits(changes: list[str]) -> None:
    training = build_training(loads(DIGITS, overrides=changes))
    before = training.trainer.evaluate()
    train(training, 0, 100, workers=8)
    after = training.trainer.evaluate()
    assert before.metric is not None
    assert after.metric is not None
    assert before.metric < 0.3
    assert after.metric >= 0.95
    assert after.loss < 0.2 < before.loss


def test_gpt_learns_text() -> None:
    training = build_training(loads(TEXT, overrides=["rounds=200"]))  # 100 do not do for every Python
    before = training.trainer.evaluate(256)
    train(training, 0, 200, workers=2)
    after = training.trainer.evaluate(256)
    assert before.loss == pytest.approx(5.5, abs=0.2)
    assert isinstance(training.source, TokenSource)
    assert after.loss < training.source.unigram_entropy()
    assert after.metric is None


@pytest.mark.parametrize("config", [DIGITS, TEXT])
def test_a_loaded_state_continues_bit_for_bit(config: str) -> None:
    straight = build_training(loads(config))
    train(straight, 0, 5, workers=2)
    saved, digest = straight.trainer.state_bytes(), straight.trainer.state_digest()
    train(straight, 5, 9, workers=2)

    resumed = build_training(loads(config, overrides=["seed=99"]))
    train(resumed, 0, 2, workers=1)
    resumed.trainer.load_state(saved)
    assert resumed.trainer.step == 5
    assert resumed.trainer.state_digest() == digest == State.from_bytes(saved).digest()
    assert resumed.trainer.state_bytes() == saved
    train(resumed, 5, 9, workers=2)
    assert resumed.trainer.state_digest() == straight.trainer.state_digest() != digest
    assert torch.equal(resumed.trainer.parameters(), straight.trainer.parameters())


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.AdamW(p, foreach=False), lambda p: torch.optim.SGD(p, lr=0.1), torch.optim.RMSprop]
)
def test_torch_optimizers_continue_bit_for_bit(make: Any) -> None:
    def trainer() -> Trainer:
        torch.manual_seed(0)
        model = nn.Linear(5, 3)
        return Trainer(model, make(model.parameters()))

    generator = torch.Generator().manual_seed(0)
    updates = [torch.randn(18, generator=generator) for _ in range(6)]
    straight, resumed = trainer(), trainer()
    for update in updates[:3]:
        straight.apply(update)
    resumed.load_state(straight.state_bytes())
    for update in updates[3:]:
        straight.apply(update)
        resumed.apply(update)
    assert torch.equal(straight.parameters(), resumed.parameters())
    assert straight.state_digest() == resumed.state_digest()


def small(optimizer: type[SGD] | type[AdamW] = AdamW, **options: Any) -> Trainer:
    model = nn.Linear(2, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    return Trainer(model, optimizer(model.parameters(), **{"lr": 0.1, **options}))


def test_apply_writes_what_the_optimizer_does_with_the_gradient() -> None:
    trainer = small(SGD)
    x = trainer.parameters()
    trainer.apply(torch.tensor([1.0, 2.0, 3.0]))
    assert torch.allclose(trainer.parameters(), torch.tensor([0.9, 0.8, 0.7]))
    assert x.tolist() == [1.0, 1.0, 1.0]
    assert trainer.step == 1
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_the_schedule_follows_the_step_count() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    trainer = Trainer(model, SGD(model.parameters(), lr=1.0), Schedule("linear", steps=4))
    for expected in (-1.0, -1.75, -2.25, -2.5, -2.5):
        trainer.apply(torch.ones(1))
        assert trainer.parameters().item() == expected


@pytest.mark.parametrize(
    ("aggregate", "step", "error"),
    [
        (torch.ones(3), 1, ApplyError),
        (torch.tensor([1.0, float("nan"), 0.0]), 0, ApplyError),
        (torch.tensor([1.0, float("inf"), 0.0]), 0, ApplyError),
        (torch.ones(2), 0, ShapeError),
        (torch.ones(3, dtype=torch.float64), 0, ShapeError),
    ],
)
def test_refused_aggregates_change_nothing(aggregate: Tensor, step: int, error: type[Exception]) -> None:
    trainer = small()
    digest = trainer.state_digest()
    with pytest.raises(error):
        trainer.apply(aggregate, step)
    assert trainer.state_digest() == digest


def changed(state: State, **tensors: Tensor | None) -> bytes:
    kept = {name: tensors.get(name.replace("/", "_"), tensor) for name, tensor in state.tensors.items()}
    return State(state.step, {name: t for name, t in kept.items() if t is not None}, state.scalars).to_bytes()


def test_foreign_states_are_refused_and_change_nothing() -> None:
    donor = small()
    donor.apply(torch.ones(3))
    state = donor.state()
    extra = State(1, state.tensors | {"parameter/more": torch.ones(1)}, state.scalars)
    unknown = State(1, state.tensors | {"optimizer/gone/exp_avg": torch.ones(1)}, state.scalars)
    keys = State(1, state.tensors | {"optimizer/weight/momentum_buffer": torch.ones(1, 2)}, state.scalars)
    refused = [
        (changed(state, parameter_weight=None), "parameter/weight is missing"),
        (extra.to_bytes(), "parameter/more is not part of this model"),
        (changed(state, parameter_weight=torch.ones(2, 1)), r"parameter/weight is torch.float32 \[2, 1\], expected"),
        (changed(state, parameter_bias=torch.ones(1).double()), "parameter/bias is torch.float64"),
        (changed(state, optimizer_weight_exp_avg=torch.ones(5)), r"exp_avg is \[5\], its parameter \[1, 2\]"),
        (changed(state, optimizer_weight_exp_avg=None), "optimizer/weight holds .* expected"),
        (unknown.to_bytes(), "optimizer/gone/exp_avg belongs to no parameter"),
        (keys.to_bytes(), "optimizer/weight holds .*momentum_buffer.*expected"),
        (b"nonsense", "no safetensors content"),
    ]
    trainer = small()
    trainer.apply(torch.tensor([3.0, 2.0, 1.0]))
    digest = trainer.state_digest()
    for data, message in refused:
        with pytest.raises(StateError, match=message):
            trainer.load_state(data)
        assert trainer.state_digest() == digest
    trainer.load_state(state.to_bytes())
    assert trainer.state_digest() == donor.state_digest()


def test_a_loaded_state_shares_no_memory_with_its_donor() -> None:
    donor, trainer = small(), small()
    donor.apply(torch.ones(3))
    trainer.load_state(donor.state_bytes())
    digest = donor.state_digest()
    trainer.apply(torch.ones(3))
    assert donor.state_digest() == digest


def test_an_optimizer_of_another_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 of its parameters are no trainable parameters of the model"):
        Trainer(nn.Linear(2, 1), AdamW(nn.Linear(2, 1).parameters(), lr=0.1))


class SquaredError:
    """A user's task without an evaluation of its own."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        loss: Tensor = (model(batch[0].flatten(1)).squeeze(1) - batch[1]).square().mean()
        return loss


def test_evaluation_is_on_a_replica_and_weighs_samples_equally() -> None:
    training = build_training(loads(DIGITS))
    trainer, evaluator = training.trainer, training.trainer.evaluator
    assert evaluator is not None
    whole = trainer.evaluate()
    assert whole == trainer.evaluate(10_000) == trainer.evaluate(297)
    first, rest = trainer.evaluate(256), trainer.evaluate(1)
    assert first != whole != rest
    assert rest.metric in (0.0, 1.0)
    zeros = trainer.evaluate(parameters=torch.zeros(trainer.numel))
    assert zeros.loss == pytest.approx(2.302585, abs=1e-5)
    assert trainer.evaluate() == whole
    model = nn.Linear(64, 1)
    by_task = Evaluator(model, training.source.split("eval"), SquaredError()).evaluate(flatten(model.parameters()))
    inputs, targets = training.source.split("eval").batch(torch.arange(297).numpy())
    with torch.no_grad():
        expected = float(SquaredError().loss(model, (inputs, targets)))
    assert by_task == Evaluation(by_task.loss, None)
    assert by_task.loss == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ConfigError, match="no held-out data"):
        small().evaluate()


def test_what_is_given_is_not_built_again() -> None:
    config = loads(DIGITS)
    first = build_training(config)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    second = build_training(config, source=first.source, model=model)
    assert second.source is first.source
    assert second.trainer.model is model
    assert second.oracle.numel == 650


def test_problems_of_building() -> None:
    with pytest.raises(ConfigError, match="optimizer: missing"):
        build_training(loads("run: x\nmodel: {builtin: mlp}\ndata: {builtin: digits}"))
    with pytest.raises(ConfigError, match=r"local\.device: cuda:99 cannot be used"):
        choose_device("cuda:99")
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"data\.fingerprint: expected 123456"):
        build_training(loads(DIGITS, overrides=[f"data.fingerprint='{'123456' + '0' * 58}'"]))
