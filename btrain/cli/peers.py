"""Commands about one peer: peer, status."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from btrain.cli.options import ConfigFile, Settings, overrides
from btrain.cli.output import AsJson, output
from btrain.config import RunConfig, contract_difference, load
from btrain.errors import ConfigError, ContractError
from btrain.identity import peer_id_bytes, read_key
from btrain.storage.run_directory import run_was_founded


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (peer, invite, status):
        app.command()(command)


def peer(
    config: ConfigFile = Path("run.yaml"),
    join: Annotated[
        list[str] | None, typer.Option("--join", "--initial-peers", help="Address that another peer printed.")
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="This peer's folder; each peer needs one of its own.")] = None,
    identity: Annotated[Path | None, typer.Option(help="Key file; default: identity.key in the run directory.")] = None,
    listen: Annotated[str | None, typer.Option(help="Address to listen on, as /ip4/0.0.0.0/tcp/4001.")] = None,
    announce: Annotated[str | None, typer.Option(help="Address that others shall dial, if it is another.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = None,
    fork_from: Annotated[
        str | None,
        typer.Option(metavar="RUN_DIR[:ROUND]", help="Go on from a run, as of a block: its bans, its certified state."),
    ] = None,
    settings: Settings = None,
    adversary: Annotated[
        str | None, typer.Option(metavar="NAME[:key=value,...]", help="Attack the run, to see how it defends itself.")
    ] = None,
    attack_from: Annotated[int, typer.Option(min=0, help="First round of the attack.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Take part in a run: found it together with others, join it with --join, or return to it after a crash."""
    with output(as_json) as out:
        given = overrides(
            settings, join=tuple(join) if join else None, run_dir=run_dir, identity=identity, listen=listen,
            announce=announce, device=device, fork_from=fork_from,
        )  # fmt: skip
        loaded = load(config, given)
        loaded.require("model", "data", "optimizer")
        _check_directory(loaded)
        from btrain.cli.solo import PeerScreen
        from btrain.peer import PeerOptions, run_peer

        local = loaded.local
        options = PeerOptions(
            run_dir=local.run_dir, identity=local.identity, listen=local.listen,
            announce=local.announce[0] if local.announce else None, join=local.join, device=local.device,
            adversary=adversary, attack_from=attack_from,
        )  # fmt: skip
        screen = PeerScreen(loaded, config, out.say, live=not as_json)
        with screen:
            code = run_peer(loaded, options, screen.event)
        out.document(screen.document(code), screen.closing())
    raise typer.Exit(code)


def _check_directory(config: RunConfig) -> None:
    """What would end the peer later, found before torch is loaded: a wrong key, a directory of another run."""
    run_dir, key = config.local.run_dir, config.local.identity_path
    if key.exists():
        read_key(key)
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError(f"{run_dir}: is no folder; name another --run-dir")
    kept = run_dir / "config.yaml"
    if not run_was_founded(run_dir) or not kept.exists() or config.data is None:
        return
    before = load(kept)
    config = config.completed_by(before)
    difference = contract_difference(config.contract_bytes(), before.contract_bytes())
    if difference:
        raise ContractError(
            f"{run_dir}: belongs to a run under another contract: {difference}; name another --run-dir for a new run"
        )


def invite(
    peer_id: Annotated[str, typer.Argument(metavar="PEER_ID", help="Whom to invite; the guest runs `btrain id`.")],
    run_dir: Annotated[Path, typer.Option(help="This member's run directory.")],
    identity: Annotated[Path | None, typer.Option(help="Key file; default: identity.key in the run directory.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="For how many rounds the invitation holds.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """Write an invitation to a run that admits by `invite`: for one peer and one seat. The guest sets
    local.invitations."""
    with output(as_json) as out:
        from btrain.inviting import write_invitation

        guest = peer_id_bytes(peer_id)
        invited = write_invitation(run_dir, identity or run_dir / "identity.key", guest, rounds)
        typer.echo(invited.advice, err=True)
        out.document(
            {"invitation": invited.text, "peer_id": peer_id, "since": invited.since, "until": invited.until,
             "needed": invited.needed},
            invited.text,
        )  # fmt: skip


def status(
    run_dir: Annotated[Path, typer.Argument(help="A peer's or a swarm's run directory.")],
    as_json: AsJson = False,
) -> None:
    """Show where a run stands, also while it runs."""
    from btrain.status import read_status_of, status_text

    with output(as_json) as out:
        document = read_status_of(run_dir)
        out.document(document, status_text(document))
