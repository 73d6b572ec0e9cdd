"""The builtin models, and the start parameters x[0] that every peer builds alike.

Shapes: B samples, T tokens of context, C channels (width), V vocabulary, K classes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from btrain.data.entry_point import call_entry_point
from btrain.data.source import Source
from btrain.errors import ConfigError

BUILTINS = ("logreg", "mlp", "cnn", "gpt")
INIT_DOMAIN = "btrain/init/v1"
GPT_DEVIATION = 0.02


class LogisticRegression(nn.Module):
    """One linear layer: inputs [B, ...] to logits [B, K]. 650 parameters on the digits."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.linear(inputs.flatten(1))
        return logits


class Mlp(nn.Module):
    """Linear layers with ReLU between them: inputs [B, ...] to logits [B, K].

    On the digits, hidden [32] has 2,410 parameters, [280, 280] 1e5, [960, 960] 1e6 and [3125, 3125] 1e7.
    """

    def __init__(self, features: int, hidden: tuple[int, ...], classes: int) -> None:
        super().__init__()
        widths = (features, *hidden, classes)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, inputs: Tensor) -> Tensor:
        x: Tensor = self.layers[0](inputs.flatten(1))
        for layer in self.layers[1:]:
            x = layer(functional.relu(x))
        return x


class Cnn(nn.Module):
    """3x3 convolutions, each halving the image, then a hidden layer: images [B, C, H, W] to logits [B, K].

    105,866 parameters on Fashion-MNIST with channels [16, 32] and hidden 64. Without batch normalisation, whose
    running statistics are no gradients and would drift apart between peers.
    """

    def __init__(self, image: tuple[int, int, int], channels: tuple[int, ...], hidden: int, classes: int) -> None:
        super().__init__()
        planes = (image[0], *channels)
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, kernel_size=3, padding=1) for a, b in pairwise(planes))
        height, width = image[1] >> len(channels), image[2] >> len(channels)
        if height < 1 or width < 1:
            raise ConfigError(f"model.channels: {len(channels)} halvings leave nothing of images of {image[1:]}")
        self.hidden = nn.Linear(planes[-1] * height * width, hidden)
        self.output = nn.Linear(hidden, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for convolution in self.convolutions:
            x = functional.max_pool2d(functional.relu(convolution(x)), 2)
        logits: Tensor = self.output(functional.relu(self.hidden(x.flatten(1))))
        return logits


class Block(nn.Module):
    """A pre-norm transformer block on [B, T, C] (Radford et al. 2019, section 2.3)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_output = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x_BTC: Tensor) -> Tensor:
        batch, tokens, width = x_BTC.shape
        qkv = self.qkv(self.attention_norm(x_BTC)).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x_BTC = x_BTC + self.attention_output(mixed.transpose(1, 2).reshape(batch, tokens, width))
        out_BTC: Tensor = x_BTC + self.down(functional.gelu(self.up(self.mlp_norm(x_BTC))))
        return out_BTC


class Gpt(nn.Module):
    """A decoder-only transformer: tokens int64 [B, T] to logits [B, T, V]; learned positions, tied embeddings.

    On bytes, layers 2, width 64, context 32 has 117,376 parameters; layers 8, width 320, context 128 has 9,964,160.
    """

    def __init__(self, vocabulary: int, layers: int, width: int, heads: int, context: int) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"model.width: {width} cannot be divided among {heads} heads")
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTC = self.tokens(tokens_BT) + self.positions.weight[: tokens_BT.shape[1]]
        for block in self.blocks:
            x_BTC = block(x_BTC)
        logits_BTV: Tensor = functional.linear(self.norm(x_BTC), self.tokens.weight)
        return logits_BTV


def build_model(config: Mapping[str, Any], source: Source, seed: int, *, base: Path | None = None) -> nn.Module:
    """The model that `config` describes for the samples of `source`, on the CPU, with its start parameters.

    Builtin models draw them from SHAKE-256 of the seed and the parameter's name: the same bits on every machine and
    torch release. An entry point is called under torch's generator seeded with `seed`. Does not disturb torch's global
    generator. Raises ConfigError.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        if config.get("entry_point") is not None:
            model = _from_entry_point(config, base)
        else:
            model = _builtin(config, source)
            initialise(model, seed)
    _refuse_running_statistics(model)
    return model


def initialise(model: nn.Module, seed: int) -> None:
    """Draw all parameters anew, bit for bit the same everywhere.

    Weights and biases of linear and convolutional layers are uniform in +-1/sqrt(fan in), as torch draws them. In a
    Gpt, weights are uniform with deviation 0.02, those that write to the residual stream with 0.02 / sqrt(2 layers).
    Norms stay at one and zero.
    """
    residual_scale = 1.0 / math.sqrt(2 * len(model.blocks)) if isinstance(model, Gpt) else 1.0
    with torch.no_grad():
        for path, module in model.named_modules():
            if not isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
                continue
            bound = 1.0 / math.sqrt(module.weight[0].numel())
            if isinstance(model, Gpt):
                bound = GPT_DEVIATION * math.sqrt(3.0)
                if path.endswith(("attention_output", "down")):
                    bound *= residual_scale
            for name, parameter in module.named_parameters(recurse=False):
                parameter.copy_(_uniform(f"{seed}/{path}.{name}", parameter.numel(), bound).view_as(parameter))


def _uniform(name: str, count: int, bound: float) -> Tensor:
    """float32 [count], uniform in [-bound, bound): 24 bits each of SHAKE-256, one exact and one rounded product."""
    stream = hashlib.shake_256(f"{INIT_DOMAIN}/{name}".encode()).digest(4 * count)
    signed = (np.frombuffer(stream, dtype="<u4") >> 8).astype(np.float32) - np.float32(1 << 23)
    return torch.from_numpy(signed * np.float32(2.0**-23) * np.float32(bound))


def _builtin(config: Mapping[str, Any], source: Source) -> nn.Module:
    name = config.get("builtin")
    options = {key: value for key, value in config.items() if key != "builtin" and value is not None}
    builders = {"logreg": _logreg, "mlp": _mlp, "cnn": _cnn, "gpt": _gpt}
    if name not in builders:
        raise ConfigError(f"model.builtin: {name!r} is unknown; expected one of {', '.join(BUILTINS)}")
    try:
        return builders[name](source, **options)
    except TypeError as error:
        raise ConfigError(f"model.builtin {name}: wrong options {sorted(options)}: {error}") from error


def _logreg(source: Source) -> nn.Module:
    return LogisticRegression(math.prod(source.sample_shape), _classes(source, "logreg"))


def _mlp(source: Source, hidden: tuple[int, ...] | list[int] = (32,)) -> nn.Module:
    return Mlp(math.prod(source.sample_shape), tuple(hidden), _classes(source, "mlp"))


def _cnn(source: Source, channels: tuple[int, ...] | list[int] = (16, 32), hidden: int = 64) -> nn.Module:
    classes = _classes(source, "cnn")
    if len(source.sample_shape) != 3:
        raise ConfigError(
            f"model.builtin cnn: needs images [channels, height, width], the data has {source.sample_shape}"
        )
    return Cnn(
        (source.sample_shape[0], source.sample_shape[1], source.sample_shape[2]), tuple(channels), hidden, classes
    )


def _gpt(source: Source, layers: int = 2, width: int = 64, heads: int = 4, context: int = 32) -> nn.Module:
    if source.vocabulary is None:
        raise ConfigError("model.builtin gpt: needs text or tokens, the data has no vocabulary")
    if source.sample_shape != (context,):
        raise ConfigError(f"model.context: {context}, but a sample of the data is {source.sample_shape}")
    return Gpt(source.vocabulary, layers, width, heads, context)


def _classes(source: Source, name: str) -> int:
    if source.classes is None:
        raise ConfigError(f"model.builtin {name}: needs classes to tell apart, the data is a text; use gpt")
    return source.classes


def _from_entry_point(config: Mapping[str, Any], base: Path | None) -> nn.Module:
    name = config["entry_point"]
    model = call_entry_point(name, config.get("args") or {}, "model", base)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model.entry_point: {name} returned {type(model).__name__}, expected a torch.nn.Module")
    wrong = [path for path, parameter in model.named_parameters() if parameter.dtype != torch.float32]
    if wrong:
        raise ConfigError(f"model.entry_point: {name}: parameter {wrong[0]} is not float32")
    return model


def _refuse_running_statistics(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if getattr(module, "running_mean", None) is not None:
            raise ConfigError(
                f"model: {path} ({type(module).__name__}) keeps running statistics, which are no gradients and drift "
                "apart between peers; use GroupNorm or LayerNorm, or track_running_stats=False"
            )


def is_deterministic(model: nn.Module) -> bool:
    """Whether `model` is a builtin one, none of which draws random numbers."""
    return isinstance(model, LogisticRegression | Mlp | Cnn | Gpt)
