"""From a run's configuration to what trains it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from btrain.config import RunConfig
from btrain.data import Source, open_source
from btrain.errors import ConfigError
from btrain.models import build_model
from btrain.training.evaluation import Evaluator
from btrain.training.initial import load_parameters
from btrain.training.optimizers import build_optimizer
from btrain.training.oracle import GradientOracle
from btrain.training.parameters import trainable
from btrain.training.schedule import Schedule
from btrain.training.task import Task
from btrain.training.trainer import Trainer


class Training(NamedTuple):
    """What a peer trains with: state, gradients, data; and `config`, which names data and parameters by content."""

    trainer: Trainer
    oracle: GradientOracle
    source: Source
    config: RunConfig


def build_training(
    config: RunConfig,
    *,
    source: Source | None = None,
    model: nn.Module | None = None,
    task: Task | None = None,
    base: Path | None = None,
) -> Training:
    """Data, model, optimizer and gradients of `config`; what is given is not built again.

    The trainer's parameters and optimizer live on the CPU, where a step gives the same bits everywhere; gradients and
    evaluations are computed on `local.device`. Relative paths start from `base`. Raises ConfigError.
    """
    config.require("data", "optimizer")
    if source is None:
        source = open_source(config.data_options(), context=_context(config), base=base)
    config = config.with_fingerprint(source.fingerprint())
    if model is None:
        model = build_model(config.model_options(), source, config.seed, base=base)
    if config.model is not None and config.model.start is not None:
        config = config.with_parameters(load_parameters(model, (base or Path()) / config.model.start))
    device = choose_device(config.local.device)
    oracle = build_oracle(config, model, source, task=task)
    evaluator = Evaluator(model, source.split("eval"), task, device=device)
    return Training(build_trainer(config, model, evaluator), oracle, source, config)


def build_trainer(config: RunConfig, model: nn.Module, evaluator: Evaluator | None = None) -> Trainer:
    """A trainer of `model` with the optimizer and schedule of `config`."""
    config.require("optimizer")
    assert config.optimizer is not None
    options = config.optimizer.model_dump(exclude={"schedule", "clip_grad_norm"}, exclude_none=True)
    schedule = Schedule(**config.optimizer.schedule.model_dump(), steps=config.rounds)
    return Trainer(model, build_optimizer(params=trainable(model).values(), **options), schedule, evaluator)


def build_oracle(config: RunConfig, model: nn.Module, source: Source, *, task: Task | None = None) -> GradientOracle:
    """Gradients of `model` as the contract wants them: batch size, clipping and precision of `config`."""
    return GradientOracle(
        model,
        source,
        task,
        batch_size=config.batch_size,
        clip_grad_norm=None if config.optimizer is None else config.optimizer.clip_grad_norm,
        precision=config.precision,
        device=choose_device(config.local.device),
    )


def choose_device(name: str) -> torch.device:
    """`auto` is the first GPU, or the CPU. Raises ConfigError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"local.device: {name} cannot be used: {reason}; cpu always can") from error
    return device


def _context(config: RunConfig) -> int | None:
    context = config.model_options().get("context")
    return context if isinstance(context, int) else None
