"""Commands that run a whole group on this machine: demo, swarm, simulate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from btrain.cli.options import ConfigFile, Settings
from btrain.cli.output import AsJson, Output, output
from btrain.cli.reporting import report_text

if TYPE_CHECKING:
    from btrain.swarm import SwarmPlan

Attack = Annotated[
    list[str] | None,
    typer.Option(
        "--attack", metavar="NAME[:key=value,...]", help="What attackers do; given again, they take them in turn."
    ),
]
Byzantine = Annotated[int, typer.Option(min=0, help="How many of the peers attack.")]
AttackFrom = Annotated[int, typer.Option(min=0, help="First round of the attacks.")]
Seed = Annotated[int, typer.Option(min=0, help="Who attacks and when is drawn from it.")]
Baseline = Annotated[bool, typer.Option("--baseline", help="Run once more without attackers and compare the losses.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (demo, swarm, simulate):
        app.command()(command)


def demo(
    run_dir: Annotated[Path | None, typer.Option(help="Folder of the run; default: runs/demo-TIME.")] = None,
    settings: Settings = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Eight real peers on this machine train on handwritten digits, three of them attack and are banned."""
    from btrain.config import loads
    from btrain.swarm import SwarmPlan
    from btrain.templates import template

    with output(as_json) as out:
        text = template("digits").replace("run: digits", "run: demo").replace("runs/digits", "runs/demo")
        config = loads(text, "demo", settings or (), peers=8)
        _run_swarm(SwarmPlan.new(config, byzantine=3, attacks=("sign_flip",), run_dir=run_dir, seed=seed), out)


def swarm(
    config: ConfigFile = Path("run.yaml"),
    peers: Annotated[int, typer.Option(min=1, max=64, help="Number of peers.")] = 8,
    byzantine: Byzantine = 0,
    attack: Attack = None,
    attack_from: AttackFrom = 0,
    run_dir: Annotated[
        Path | None, typer.Option(help="Folder of the run; default: local.run_dir and the time.")
    ] = None,
    settings: Settings = None,
    seed: Seed = 0,
    baseline: Baseline = False,
    as_json: AsJson = False,
) -> None:
    """Run many real peers on this machine, some of them attackers, on one screen."""
    from btrain.config import load
    from btrain.swarm import SwarmPlan

    with output(as_json) as out:
        loaded = load(config, settings or (), peers=peers)
        plan = SwarmPlan.new(
            loaded, byzantine=byzantine, attacks=tuple(attack or ()), attack_from=attack_from, run_dir=run_dir,
            seed=seed, baseline=baseline,
        )  # fmt: skip
        _run_swarm(plan, out)


def simulate(
    config: ConfigFile = Path("run.yaml"),
    peers: Annotated[int, typer.Option(min=1, max=256, help="Number of peers.")] = 8,
    byzantine: Byzantine = 0,
    attack: Attack = None,
    attack_from: AttackFrom = 0,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds; default: those of the file.")] = None,
    settings: Settings = None,
    seed: Seed = 0,
    baseline: Baseline = False,
    stop_when_banned: Annotated[
        bool, typer.Option("--stop-when-banned", "--until-banned", help="End as soon as every attacker is banned.")
    ] = False,
    faults: Annotated[
        Path | None, typer.Option(help="A YAML file of faults; see docs/simulator.md.", show_default=False)
    ] = None,
    signatures: Annotated[
        Literal["real", "counted"],
        typer.Option(help="real, or counted: a keyed hash in place of Ed25519, several times faster."),
    ] = "real",
    as_json: AsJson = False,
) -> None:
    """Run the real protocol with many peers in one process and virtual time; one seed gives one document."""
    from btrain.config import load

    with output(as_json) as out:
        loaded = load(config, settings or (), peers=peers)
        loaded.require("model", "data", "optimizer")
        import torch

        from btrain.monitor import RoundLine
        from btrain.simulation.fault_file import load_faults
        from btrain.simulation.scenario import simulate as run_simulation

        plan = None if faults is None else load_faults(faults)
        torch.set_num_threads(1)  # sums keep one order on every machine
        report = run_simulation(
            loaded, peers=peers, byzantine=byzantine, attacks=tuple(attack or ()), attack_from=attack_from,
            rounds=rounds, seed=seed, baseline=baseline, stop_when_banned=stop_when_banned,
            faults=None if plan is None else plan.faults(peers, seed),
            liveness=None if plan is None else plan.liveness, signatures=signatures,
            base=config.resolve().parent, on_round=RoundLine(rounds or loaded.rounds, out.say),
        )  # fmt: skip
        out.document(report.document(), report_text(report))


def _run_swarm(plan: SwarmPlan, out: Output) -> None:
    from btrain.swarm import run_swarm

    closing = run_swarm(plan, out.say, live=not out.as_json)
    out.document(closing.report.document(), report_text(closing.report, closing.names, closing.errors))
    raise typer.Exit(closing.exit_code)
