"""`btrain bench`: each benchmark is a module of btrain.bench, started here with its own arguments."""

from __future__ import annotations

import json
import subprocess
import sys
from enum import StrEnum
from typing import Annotated, Any

import typer

from btrain.cli.output import AsJson, output
from btrain.errors import BtrainError


class Benchmark(StrEnum):
    """What can be measured."""

    QUANTIZE = "quantize"
    AGGREGATE = "aggregate"
    ROUND = "round"
    JOIN = "join"
    ATTACKS = "attacks"
    ALL = "all"


class BenchmarkFailed(BtrainError):
    """A benchmark ended with an error, which it has told itself."""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(bench)


def bench(
    context: typer.Context,
    name: Annotated[Benchmark, typer.Argument(help="What to measure.")] = Benchmark.ALL,
    as_json: AsJson = False,
) -> None:
    """Measure the codec, the reduction, whole rounds, joining or attacks; further options go to the benchmark."""
    with output(as_json) as out:
        names = [b for b in Benchmark if b is not Benchmark.ALL] if name is Benchmark.ALL else [name]
        documents = {str(benchmark): _run(benchmark, as_json, context.args) for benchmark in names}
        out.document(documents if name is Benchmark.ALL else documents[name])


def _run(benchmark: Benchmark, as_json: bool, arguments: list[str]) -> dict[str, Any]:
    """Run one in a process of its own; with --json returns its document, else it writes to the screen itself."""
    module = f"btrain.bench.{benchmark}"
    command = [sys.executable, "-m", module, *(["--json"] if as_json else []), *arguments]
    result = subprocess.run(command, check=False, stdout=subprocess.PIPE if as_json else None)
    if result.returncode:
        raise BenchmarkFailed(f"bench {benchmark}: ended with exit code {result.returncode}")
    return dict(json.loads(result.stdout)) if as_json else {}
