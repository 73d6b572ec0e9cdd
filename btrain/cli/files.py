"""Commands about files and keys: init, keygen, id."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from btrain.cli.output import AsJson, output
from btrain.errors import ConfigError
from btrain.identity import KeyFile, create_key, peer_id_text, read_key


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (init, keygen):
        app.command()(command)
    app.command("id")(show_id)


def init(
    name: Annotated[str, typer.Argument(help="gpt, digits, fashion or custom.")] = "gpt",
    file: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("run.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a commented run.yaml."""
    from btrain.templates import template

    with output(as_json) as out:
        text = template(name)
        try:
            with file.open("w" if force else "x", encoding="utf-8") as target:
                target.write(text)
        except FileExistsError:
            raise ConfigError(f"{file}: exists already; name another with --output, or give --force") from None
        except OSError as error:
            raise ConfigError(f"{file}: cannot be written: {error.strerror}") from None
        out.document(
            {"file": str(file), "template": name},
            f"wrote {file}\n  btrain swarm --config {file}    try it on this machine\n"
            f"  btrain peer --config {file}     take part; it prints the --join line for the others",
        )


def keygen(
    file: Annotated[Path, typer.Argument(help="The key file to make; an existing one is never overwritten.")],
    as_json: AsJson = False,
) -> None:
    """Make a new identity."""
    with output(as_json) as out:
        peer = peer_id_text(create_key(file).public_key)
        out.document({"file": str(file), "peer_id": peer}, peer)


def show_id(
    config: Annotated[Path | None, typer.Option(help="Take the key that this run.yaml names.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Take the key in this run directory.")] = None,
    identity: Annotated[Path | None, typer.Option(help="The key file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print this peer's id, which others list under group.members; makes the key if there is none."""
    with output(as_json) as out:
        path = _key_path(config, run_dir, identity)
        if path.exists():
            key = read_key(path)
        else:
            with KeyFile.open_or_create(path) as file:
                key = file.key
            out.say(f"made a new key: {path}")
        peer = peer_id_text(key.public_key)
        out.document({"file": str(path), "peer_id": peer}, peer)


def _key_path(config: Path | None, run_dir: Path | None, identity: Path | None) -> Path:
    if identity is not None:
        return identity
    if run_dir is not None:
        return run_dir / "identity.key"
    if config is None and not Path("run.yaml").exists():
        raise ConfigError("whose id? name --identity FILE, --run-dir DIR or --config FILE")
    from btrain.config import load

    return load(config or Path("run.yaml")).local.identity_path
