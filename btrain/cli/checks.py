"""Commands that check something: audit, evidence, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from btrain.cli.output import AsJson, output
from btrain.errors import ConfigError


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (audit, evidence, doctor):
        app.command()(command)


def audit(
    run_dir: Annotated[Path, typer.Argument(help="A peer's or a swarm's run directory.")],
    as_json: AsJson = False,
) -> None:
    """Verify a run offline: founders' signatures, every block, certificate, ban, evidence file and checkpoint."""
    from btrain.verify import audit_run, audit_text

    with output(as_json) as out:
        document = audit_run(run_dir)
        out.document(document, audit_text(document))
        if not document["ok"]:
            raise typer.Exit(3)


def evidence(
    file: Annotated[Path, typer.Argument(help="A file of a run directory's evidence folder.")],
    as_json: AsJson = False,
) -> None:
    """Check what an evidence file proves; the file alone is enough."""
    from btrain.verify import evidence_text, verify_evidence_file

    with output(as_json) as out:
        if not file.is_file():
            raise ConfigError(f"{file}: no such file; a run directory keeps them in its folder `evidence`")
        document = verify_evidence_file(file)
        out.document(document, evidence_text(document))


def doctor(
    run_dir: Annotated[Path | None, typer.Argument(help="Also look at this run directory.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what btrain finds on this machine, and what is unhealthy in a run."""
    from btrain.doctor import doctor_text, examine

    with output(as_json) as out:
        document = examine(run_dir)
        out.document(document, doctor_text(document))
