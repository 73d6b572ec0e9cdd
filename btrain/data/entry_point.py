"""Objects of the user's own code, named "package.module:attribute"."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from btrain.errors import ConfigError


def call_entry_point(name: object, arguments: object, section: str, base: Path | None = None) -> Any:
    """What the entry point `name` returns for the keyword arguments; `section` ("data", "model") is for errors.

    Raises ConfigError for whatever is wrong with name and arguments; an error inside the function is the user's to see.
    """
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise ConfigError(f"{section}.entry_point: expected a string, and {section}.args a mapping of its arguments")
    function = load_entry_point(name, f"{section}.entry_point", base)
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"{section}.args: wrong arguments for {name}: {error}") from error
    return function(**arguments)


def load_entry_point(name: str, key: str, base: Path | None = None) -> Callable[..., Any]:
    """The callable that `name` ("package.module:attribute") points at.

    Modules are looked for beside the run's configuration (`base`, default the working directory) as well as among
    the installed packages. `key` is the configuration key that errors name. Raises ConfigError.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise ConfigError(f'{key}: {name!r} is no entry point; expected "package.module:function"')
    folder = str((base or Path.cwd()).resolve())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        target: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{key}: cannot import {module_name!r}: {error} (looked in {folder} too)") from error
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise ConfigError(f"{key}: {module_name!r} has no {attribute!r}")
        target = getattr(target, part)
    if not callable(target):
        raise ConfigError(f"{key}: {name} is no function but {type(target).__name__}")
    found: Callable[..., Any] = target
    return found
