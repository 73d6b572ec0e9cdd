"""What a command writes: lines for people, or with --json one document on stdout and the lines on stderr."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from btrain.errors import BtrainError

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything else goes to stderr.")]


class Output:
    """Where a command's words go."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def say(self, text: str) -> None:
        """A line for people."""
        typer.echo(text, err=self.as_json)

    def document(self, document: Mapping[str, Any], text: str = "") -> None:
        """The command's result: the document with --json, else the text."""
        if self.as_json:
            typer.echo(json.dumps(document, indent=2, default=str))
        elif text:
            typer.echo(text)


@contextlib.contextmanager
def output(as_json: bool) -> Iterator[Output]:
    """A command's output. A BtrainError becomes its message (and a document with --json) and the exit code."""
    try:
        yield Output(as_json)
    except BtrainError as error:
        typer.echo(f"btrain: {error}", err=True)
        if as_json:
            document = {"error": str(error), "kind": type(error).__name__, "exit_code": error.exit_code}
            typer.echo(json.dumps(document, indent=2))
        raise typer.Exit(error.exit_code) from None
