"""The command line. Each command imports what it needs when it runs, so that `btrain --help` is there at once."""

from __future__ import annotations

import typer

from btrain.cli import benches, checks, files, groups, peers

EXIT_CODES = """\
Exit codes: 0 done; 1 the run failed; 2 wrong usage or configuration; 3 a ledger, certificate or evidence does not
verify; 4 a peer or the network cannot be reached; 5 another contract; 6 identity in use or
unreadable; 130 stopped by Ctrl-C.
"""

app = typer.Typer(
    name="btrain",
    help="Train one PyTorch model on machines that do not trust each other.\n\n" + EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for group in (groups, peers, files, checks, benches):
    group.add_to(app)


def main() -> None:
    """The entry point of the installed command."""
    app(prog_name="btrain")


__all__ = ["app", "main"]
