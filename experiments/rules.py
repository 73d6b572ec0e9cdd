"""Final loss of every rule under every attack, against the same rule without attackers: `python experiments/rules.py`.

Sixteen members train one model; the coalition is omniscient and always on from a third of the run. Gradients go
through the 8-bit codec as one part. With verification, roles are drawn by the protocol's own permutation: one member a
round audits instead of sending; an honest auditor that hits a worker who cheated in the round before gets it banned
from the next round on, and with the sweep all who cheated in that round one round later. This is the chain of roles and
audits, not the protocol itself: no message is lost, no vote is late. Attackers who audit clear everybody.

Writes docs/rules.md, and docs/rules.png where matplotlib is installed.
Shapes: N members that send, H honest ones of them, B samples, D parameters.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from dataclasses import asdict
from pathlib import Path

import torch
from rules_report import CANDIDATES, DECISIVE, document, write_figure
from rules_training import ATTACKS, RULES, TASKS, Cell, train

from btrain.bench.page import whole_lines

DEFAULT = "centered_clip c=1"
"""The sweep is run for the default rule alone."""


def grid(task: str, seeds: int, quick: bool) -> list[Cell]:
    """Every run that the tables need."""
    rules = [*RULES] if task == "digits" else ["mean", *CANDIDATES]
    attacks = [*ATTACKS] if task == "digits" else ["sign_flip", "ipm 0.6", "label_flip", "tuned"]
    if quick:
        rules, attacks = rules[:2], attacks[:2]
    cells = []
    for seed in range(seeds):
        for rule in rules:
            cells += [Cell(task, rule, verification=v, seed=seed) for v in ("off", "audit")]
            cells += [Cell(task, rule, batch=batch, seed=seed) for batch in (8, 128) if task == "digits"]
            for attack in attacks:
                for byzantine in (3, 7):
                    for verification in ("off", "audit", "sweep") if rule == DEFAULT else ("off", "audit"):
                        cells.append(Cell(task, rule, attack, byzantine, verification, seed=seed))
        if task == "digits" and not quick:
            cells += [
                Cell(task, rule, attack, 7, verification, batch, seed)
                for rule in CANDIDATES
                for attack in DECISIVE
                for verification in ("audit", "sweep")
                for batch in (8, 32)
            ]
    return list(dict.fromkeys(cells))


def measured(cell: Cell) -> tuple[Cell, float]:
    """One run in a worker process."""
    torch.set_num_threads(1)
    return cell, train(cell)


def run_all(cells: list[Cell], processes: int, log: Path | None) -> dict[Cell, float]:
    """Train every cell, in parallel; what `log` already holds is not trained again."""
    results: dict[Cell, float] = {}
    if log is not None and log.exists():
        for line in whole_lines(log):
            entry = json.loads(line)
            results[Cell(**entry["cell"])] = float(entry["loss"])
    missing = [cell for cell in cells if cell not in results]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for count, (cell, loss) in enumerate(pool.imap_unordered(measured, missing), 1):
            results[cell] = loss
            if log is not None:
                with log.open("a") as file:
                    file.write(json.dumps({"cell": asdict(cell), "loss": str(loss)}) + "\n")
            if count % 50 == 0:
                print(f"{count}/{len(missing)} runs", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="two rules, two attacks")
    parser.add_argument("--log", type=Path, help="one JSON line a run; an interrupted experiment goes on from it")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "docs" / "rules.md")
    options = parser.parse_args()
    began = time.monotonic()
    cells = [cell for task in options.tasks for cell in grid(task, options.seeds, options.quick)]
    results = run_all(cells, options.processes, options.log)
    print(f"{len(cells)} runs in {time.monotonic() - began:.0f} s", flush=True)
    figure = write_figure(results, options.out.with_suffix(".png"))
    print("figure written" if figure else "no figure: matplotlib is not installed")
    options.out.write_text(document(results, options.tasks, options.seeds, figure))
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
