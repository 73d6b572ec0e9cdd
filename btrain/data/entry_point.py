"""Objects of the user's own code, named "package.module:attribute"."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from btrain.errors import ConfigError


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
