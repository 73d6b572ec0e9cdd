"""Final losses by `verification.rollback`: none, proven_round, window: `python experiments/rollback.py --log FILE`.

Training on the digits over the chain of roles and audits (`btrain.bench.contest`), 7 of 16 attacking, against the same
rule, seed and number of steps without attackers. `--log` keeps every single run, so that an interrupted measurement
goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

from btrain.bench.attacks import GRADIENT_ATTACKS, WARMUP, job_of, run_jobs, with_option
from btrain.bench.contest import Cell
from btrain.protocol.trajectory import ROLLBACK_ROUNDS_MAX

WHEN = {"from round 50": "from=50", "from round 1": "from=1"}
BYZANTINE = 7
MODES = {"none": "sweep", "proven_round": "rollback", "window": "rollback_window"}  # of the contract, and of a Cell

INTRODUCTION = """\
# Rollback against plain continuation

`verification.rollback: proven_round` restores the parameters from before a proven cheat's work since the proof,
`window` from before all of it that members keep, {window} rounds ([protocol.md](protocol.md), section 9). This is
what they gain: `{command}` trains an MLP on the digits ({rounds} steps, {members} members, batch {batch}, SGD with
Nesterov's momentum, a warm-up of {warmup} steps, then cosine to zero, centered_clip) with the attackers, gradients,
codec and rule of the protocol over its roles, audits and sweeps, without its messages. {byzantine} of {members} attack;
the loss is that of the training set at the end, over that of the same rule and seed without attackers, after as many
steps that stand: mean and worst of {seeds} seeds.
"""


def cells(seeds: int, quiet: Cell, attacks: Sequence[str]) -> list[Cell]:
    """Every run that the table needs; `quiet`: the training run, without attackers."""
    found = [replace(quiet, seed=seed) for seed in range(seeds)]
    for when in WHEN.values():
        for attack in attacks:
            for mode in MODES.values():
                found += attacked(with_option(attack, when), mode, seeds, quiet)
    return found


def attacked(attack: str, mode: str, seeds: int, quiet: Cell) -> list[Cell]:
    """The training run of every seed under attack."""
    return [replace(quiet, attack=attack, byzantine=BYZANTINE, seed=s, verification=mode) for s in range(seeds)]


def ratios(results: dict[str, dict[str, Any]], attack: str, mode: str, seeds: int, quiet: Cell) -> list[float]:
    """Of every seed: the loss over that without attackers."""

    def loss(cell: Cell) -> float:
        return float(results[job_of("losses", cell).key]["train"])

    return [loss(cell) / loss(replace(quiet, seed=cell.seed)) for cell in attacked(attack, mode, seeds, quiet)]


def table(results: dict[str, dict[str, Any]], when: str, attacks: Iterable[str], seeds: int, quiet: Cell) -> list[str]:
    """A table in Markdown."""
    titles = "".join(f" {mode}, mean | worst |" for mode in MODES)
    lines = [f"## Attacks {when}", "", f"| attack |{titles}", "|---|" + "---|---|" * len(MODES)]
    columns: list[list[list[float]]] = []
    for attack in attacks:
        named = with_option(attack, WHEN[when])
        columns.append([ratios(results, named, mode, seeds, quiet) for mode in MODES.values()])
        cells = (f"{mean(found):.3f} | {max(found):.3f}" for found in columns[-1])
        lines.append(f"| {attack} | {' | '.join(cells)} |")
    worst = (
        f"{max(mean(row[i]) for row in columns):.3f} | {max(max(row[i]) for row in columns):.3f}"
        for i in range(len(MODES))
    )
    return [*lines, f"| **largest** | {' | '.join(worst)} |", ""]


def main(words: Sequence[str] | None = None) -> None:
    """Run and print the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=600)
    parser.add_argument("--warmup", type=int, default=WARMUP)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--attacks", nargs="*", default=GRADIENT_ATTACKS)
    options = parser.parse_args(words)
    quiet = Cell(rounds=options.rounds, warmup=options.warmup)
    wanted = cells(options.seeds, quiet, options.attacks)
    results = run_jobs([job_of("losses", cell) for cell in wanted], options.processes, options.log)
    shape = asdict(quiet) | {"byzantine": BYZANTINE, "seeds": options.seeds, "window": ROLLBACK_ROUNDS_MAX}
    sys.stdout.write(INTRODUCTION.format(command="python experiments/rollback.py", **shape) + "\n")
    for when in WHEN:
        sys.stdout.write("\n".join(table(results, when, options.attacks, options.seeds, quiet)) + "\n")


if __name__ == "__main__":
    main()
