"""`btrain bench`: each benchmark is a module of btrain.bench, started here with its own arguments."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from enum import StrEnum
from typing import Annotated

import typer

from btrain.cli.output import AsJson, output
from btrain.errors import ConfigError


class Benchmark(StrEnum):
    """What can be measured."""

    QUANTIZE = "quantize"
    AGGREGATE = "aggregate"
    ROUND = "round"
    ALL = "all"


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(bench)


def bench(
    context: typer.Context,
    name: Annotated[Benchmark, typer.Argument(help="What to measure.")] = Benchmark.ALL,
    as_json: AsJson = False,
) -> None:
    """Measure the codec, the reduction or whole rounds; further options go to the benchmark."""
    with output(as_json):
        names = [b for b in Benchmark if b is not Benchmark.ALL] if name is Benchmark.ALL else [name]
        if as_json and len(names) > 1:
            raise ConfigError("bench all: --json takes one benchmark at a time: quantize, aggregate or round")
        for benchmark in names:
            module = f"btrain.bench.{benchmark}"
            if importlib.util.find_spec(module) is None:
                raise ConfigError(f"bench {benchmark}: {module} is not there")
            arguments = [*(["--json"] if as_json else []), *context.args]
            code = subprocess.run([sys.executable, "-m", module, *arguments], check=False).returncode
            if code:
                raise typer.Exit(code)
