"""Options that several commands share, and how those that name a field of run.yaml override it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from btrain.config import Override

ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="The run's run.yaml; `btrain init` writes one.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a field, for example --set optimizer.lr=3e-4."),
]


def overrides(settings: list[str] | None, **local: object) -> list[str | Override]:
    """--set as given, then the options that stand for a field under `local:`; None means not given."""
    given: list[str | Override] = list(settings or ())
    for field, value in local.items():
        if value is not None:
            shown = str(value) if isinstance(value, Path) else value
            given.append(Override(f"local.{field}", shown, f"--{field.replace('_', '-')}"))
    return given
