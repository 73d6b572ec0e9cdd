"""The contract as bytes: what all peers of a run agree on, in one canonical form, and where two contracts differ."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

CONTRACT_BYTES_MAX: Final = 32 * 1024

_ABSENT: Final = object()


def canonical_bytes(contract: dict[str, Any]) -> bytes:
    """JSON with sorted keys and no white space; floats in the shortest form that reads back as the same number."""
    return json.dumps(_normal(contract), sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def contract_difference(mine: bytes, theirs: bytes) -> str:
    """The first field, in the order of the names, in which two contracts differ, with both values.

    `theirs` may come from anybody: whatever is no contract is called so. Equal contracts give an empty text.
    """
    own, other = _parsed(mine), _parsed(theirs)
    if own is None or other is None:
        whose = "the other peer's" if other is None else "this peer's"
        return f"{whose} contract cannot be read"
    for path, a, b in _differences(own, other, ""):
        return f"{path}: {_shown(a)} here, {_shown(b)} there"
    return ""


def _normal(value: Any) -> Any:
    match value:
        case dict():
            return {key: _normal(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_normal(inner) for inner in value]
        case float():
            return value + 0.0  # -0.0 is 0.0
    return value


def _parsed(data: bytes) -> dict[str, Any] | None:
    if len(data) > CONTRACT_BYTES_MAX:
        return None
    try:
        contract = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return contract if isinstance(contract, dict) else None


def _differences(a: object, b: object, path: str) -> Iterator[tuple[str, object, object]]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            name = key if key.isidentifier() and len(key) <= 64 else repr(key[:64])
            yield from _differences(a.get(key, _ABSENT), b.get(key, _ABSENT), f"{path}.{name}" if path else name)
    elif type(a) is not type(b) or a != b:
        yield path, a, b


def _shown(value: object) -> str:
    if value is _ABSENT:
        return "nothing"
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
