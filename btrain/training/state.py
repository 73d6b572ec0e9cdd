"""Parameters and optimizer state as bytes (safetensors) and as one digest that equal states share.

The digest covers names, types, shapes and values in the order of the names; it does not depend on the version of the
library that writes the bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from btrain.errors import VerificationError

DIGEST_DOMAIN = b"btrain/state/v1\0"
METADATA_KEY = "btrain"
VERSION = 1
HEADER_BYTES_MAX = 64 << 20

Scalar = int | float | bool | None


class StateError(VerificationError):
    """A state is damaged, non-finite, or does not belong to this model and optimizer."""


@dataclass(frozen=True)
class State:
    """A trainer's whole state after `step` updates.

    `tensors` by name: `parameter/NAME`, `buffer/NAME`, `optimizer/NAME/KEY`; `scalars`: `optimizer/NAME/KEY`.
    """

    step: int
    tensors: dict[str, Tensor]
    scalars: dict[str, Scalar]

    def digest(self) -> bytes:
        """SHA-256, 32 bytes."""
        names = sorted(self.tensors)
        described = [[name, str(self.tensors[name].dtype), list(self.tensors[name].shape)] for name in names]
        digest = hashlib.sha256(DIGEST_DOMAIN)
        digest.update(_json({"step": self.step, "scalars": _tagged(self.scalars), "tensors": described}).encode())
        for name in names:
            digest.update(_raw(self.tensors[name]))
        return digest.digest()

    def to_bytes(self) -> bytes:
        """A safetensors file. Step and scalars go into a single metadata entry: several have no fixed order."""
        about = {"version": VERSION, "step": self.step, "scalars": _tagged(self.scalars)}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        return safetensors.torch.save(tensors, metadata={METADATA_KEY: _json(about)})

    @classmethod
    def from_bytes(cls, data: bytes) -> State:
        """The state in `data`; raises StateError for damaged, foreign or non-finite content."""
        try:
            tensors = safetensors.torch.load(data)
        except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise StateError(f"state: no safetensors content: {error}") from error
        about = _about(data)
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise StateError(f"state: {name} holds a number that is not finite")
        return cls(step=about["step"], tensors=tensors, scalars=_untagged(about["scalars"]))


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's part of a state: its parameters and persistent buffers, sharing memory with it."""
    kept = model.state_dict(keep_vars=True)
    named = {f"parameter/{name}": parameter.detach() for name, parameter in model.named_parameters()}
    return named | {f"buffer/{name}": buffer for name, buffer in model.named_buffers() if name in kept}


def states_close(own: bytes, other: bytes, tolerance: float) -> bool:
    """Whether `other` is a state like `own` but for rounding: in each tensor the root mean square of the differences is
    at most `tolerance` times that of the own values, and everything that is no vector of floats is equal.
    """
    try:
        ours, theirs = State.from_bytes(own), State.from_bytes(other)
    except StateError:
        return False
    if (ours.step, ours.scalars) != (theirs.step, theirs.scalars) or ours.tensors.keys() != theirs.tensors.keys():
        return False
    return all(_tensors_close(tensor, theirs.tensors[name], tolerance) for name, tensor in ours.tensors.items())


def _tensors_close(own: Tensor, other: Tensor, tolerance: float) -> bool:
    if own.shape != other.shape or own.dtype != other.dtype:
        return False
    if not own.is_floating_point() or own.dim() == 0:
        return torch.equal(own, other)
    distance = torch.linalg.vector_norm(own.double() - other.double())
    return bool(distance <= tolerance * torch.linalg.vector_norm(own.double()))


def _about(data: bytes) -> dict[str, Any]:
    """The metadata entry, checked for its form; `data` is known to be well-formed safetensors."""
    header_bytes = int.from_bytes(data[:8], "little")
    if header_bytes > HEADER_BYTES_MAX:
        raise StateError(f"state: header of {header_bytes} bytes, more than {HEADER_BYTES_MAX}")
    metadata = json.loads(data[8 : 8 + header_bytes]).get("__metadata__", {})
    try:
        about = json.loads(metadata[METADATA_KEY])
    except (KeyError, ValueError, RecursionError) as error:
        raise StateError(f"state: no readable metadata entry {METADATA_KEY!r}") from error
    if set(metadata) != {METADATA_KEY} or not isinstance(about, dict) or set(about) != {"version", "step", "scalars"}:
        raise StateError("state: unexpected metadata")
    if about["version"] != VERSION:
        raise StateError(f"state: version {about['version']!r}, expected {VERSION}")
    if type(about["step"]) is not int or not 0 <= about["step"] < 1 << 62 or not isinstance(about["scalars"], dict):
        raise StateError("state: unexpected metadata")
    return about


def _raw(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _tagged(scalars: dict[str, Scalar]) -> dict[str, list[Any]]:
    """Scalars with their type; floats in hexadecimal, which is exact."""
    return {
        name: [type(value).__name__, value.hex() if isinstance(value, float) else value]
        for name, value in scalars.items()
    }


def _untagged(tagged: dict[str, Any]) -> dict[str, Scalar]:
    return {name: _scalar(name, item) for name, item in tagged.items()}


def _scalar(name: str, item: object) -> Scalar:
    match item:
        case ["NoneType", None]:
            return None
        case ["bool", bool() as flag]:
            return flag
        case ["int", int() as whole] if not isinstance(whole, bool) and abs(whole) < 1 << 63:
            return whole
        case ["float", str() as text]:
            try:
                number = float.fromhex(text)
            except (ValueError, OverflowError):
                number = math.nan
            if math.isfinite(number) and number.hex() == text:
                return number
    raise StateError(f"state: {name} is no valid number")
