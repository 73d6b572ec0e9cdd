"""From the `data:` section of a run's configuration to a source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from btrain.data.digits import open_digits
from btrain.data.entry_point import call_entry_point
from btrain.data.fashion_mnist import open_fashion_mnist
from btrain.data.source import Source
from btrain.data.text import open_stdlib_text, open_text_file
from btrain.data.token_file import open_token_file
from btrain.errors import ConfigError

KINDS = ("builtin", "text", "tokens", "entry_point")
OPTIONS: dict[str, frozenset[str]] = {
    "digits": frozenset({"path"}),
    "fashion_mnist": frozenset({"path"}),
    "stdlib_text": frozenset({"context"}),
    "text": frozenset({"context", "eval"}),
    "tokens": frozenset({"context", "eval", "vocabulary"}),
    "entry_point": frozenset({"args"}),
}
BUILTINS = ("digits", "fashion_mnist", "stdlib_text")
CONTEXT_DEFAULT = 32
CONTEXT_MAX = 1 << 20


def open_source(config: Mapping[str, Any], *, context: int | None = None, base: Path | None = None) -> Source:
    """The source that `config` describes: one of builtin, text, tokens, entry_point, with its options.

    `context` is the model's, for token sequences. Relative paths and entry points start from `base` (default: the
    working directory). Raises ConfigError naming the key or file and what to do.
    """
    kind = _kind(config)
    value = config[kind]
    name = value if kind == "builtin" else kind
    if kind == "builtin" and name not in BUILTINS:
        raise ConfigError(f"data.builtin: {name!r} is unknown; expected one of {', '.join(BUILTINS)}")
    options = {key: item for key, item in config.items() if key not in KINDS and item is not None}
    for key in options:
        if key not in OPTIONS[name]:
            known = ", ".join(sorted(OPTIONS[name]))
            raise ConfigError(f"data.{key}: not an option of {name}; expected one of: {known}")
    if name == "entry_point":
        return _from_entry_point(value, options.get("args", {}), base)
    if name in ("digits", "fashion_mnist"):
        path = _path(options["path"], "data.path", base) if "path" in options else None
        return open_digits(path) if name == "digits" else open_fashion_mnist(path)
    tokens_context = _context(options.get("context"), context)
    if name == "stdlib_text":
        return open_stdlib_text(context=tokens_context)
    file = _path(value, f"data.{name}", base)
    eval_file = _path(options["eval"], "data.eval", base) if "eval" in options else None
    if name == "text":
        return open_text_file(file, context=tokens_context, eval_path=eval_file)
    return open_token_file(file, context=tokens_context, eval_path=eval_file, vocabulary=options.get("vocabulary"))


def _kind(config: Mapping[str, Any]) -> str:
    kinds = [kind for kind in KINDS if config.get(kind) is not None]
    if len(kinds) != 1:
        raise ConfigError(f"data: expected exactly one of {', '.join(KINDS)}, got {', '.join(kinds) or 'none'}")
    return kinds[0]


def _path(value: object, key: str, base: Path | None) -> Path:
    if not isinstance(value, str | Path):
        raise ConfigError(f"{key}: expected a path, got {value!r}")
    return (base or Path.cwd()) / Path(value).expanduser()


def _context(own: object, models: int | None) -> int:
    value = own if own is not None else models if models is not None else CONTEXT_DEFAULT
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= CONTEXT_MAX:
        raise ConfigError(f"data.context: expected a whole number from 1 to {CONTEXT_MAX}, got {value!r}")
    if models is not None and value != models:
        raise ConfigError(f"data.context: {value} differs from model.context, which is {models}; leave one of them out")
    return value


def _from_entry_point(name: object, args: object, base: Path | None) -> Source:
    source = call_entry_point(name, args, "data", base)
    if not isinstance(source, Source):
        raise ConfigError(f"data.entry_point: {name} returned {type(source).__name__}, expected a btrain.data.Source")
    return source
