"""First parameters that come from a file in place of a seed: another run's checkpoint, or any model's state_dict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from btrain.errors import ConfigError
from btrain.training.state import METADATA_KEY, State, StateError, model_tensors

DIFFERENCES_SHOWN_MAX = 3


def load_parameters(model: nn.Module, path: Path) -> str:
    """Put a safetensors file's tensors into `model`; returns the fingerprint of the state that it starts from now.

    The file holds the model's parameters and persistent buffers under their names, each of the model's shape and type
    and finite, and nothing else; or it is a checkpoint of btrain, of which the optimizer's part is left out. Raises
    ConfigError; nothing has changed then.
    """
    own = model_tensors(model)
    found = _named_as(own, _read(path))
    problems = [*_differences(own, found)]
    if problems:
        more = f"; and {len(problems) - DIFFERENCES_SHOWN_MAX} more" if len(problems) > DIFFERENCES_SHOWN_MAX else ""
        raise ConfigError(f"model.from: {path}: {'; '.join(problems[:DIFFERENCES_SHOWN_MAX])}{more}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(found[name])
    return State(0, own, {}).digest().hex()


def _read(path: Path) -> dict[str, Tensor]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"model.from: {path}: cannot be read: {error.strerror}; who joins a founded run needs no file, but "
            "model.fingerprint in its place, as in the config.yaml of a member's run directory"
        ) from None
    try:
        tensors = safetensors.torch.load(data)
        with safetensors.safe_open(path, framework="pt") as file:
            is_checkpoint = METADATA_KEY in (file.metadata() or {})
        return State.from_bytes(data).tensors if is_checkpoint else tensors
    except (safetensors.SafetensorError, StateError, ValueError, KeyError, OSError) as error:
        raise ConfigError(f"model.from: {path}: is no safetensors file that can be read: {error}") from None


def _named_as(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file under the names of a state: `parameter/NAME`, `buffer/NAME`."""
    whole = {name.partition("/")[2]: name for name in own}
    renamed = {whole.get(name, name): tensor for name, tensor in found.items()}
    return {name: tensor for name, tensor in renamed.items() if not name.startswith("optimizer/")}


def _differences(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Iterator[str]:
    """What keeps the tensors of a file from being the model's."""
    for name in sorted(own.keys() - found.keys()):
        yield f"{name.partition('/')[2]} is missing"
    for name in sorted(found.keys() - own.keys()):
        yield f"{name} is not part of the model"
    for name in sorted(own.keys() & found.keys()):
        mine, theirs, shown = own[name], found[name], name.partition("/")[2]
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            yield f"{shown} is {theirs.dtype} {list(theirs.shape)}, expected {mine.dtype} {list(mine.shape)}"
        elif theirs.is_floating_point() and not bool(torch.isfinite(theirs).all()):
            yield f"{shown} holds a number that is not finite"
