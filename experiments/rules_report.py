"""The tables and the figure of experiments/rules.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from rules_training import ATTACKS, RULES, TASKS, Cell

LOST = 1.5
"""A loss of this many times the one without attackers counts as lost."""
CANDIDATES = ("centered_clip c=1", "centered_clip c=2", "geometric_median", "nnm + centered_clip")
DECISIVE = ("sign_flip", "ipm 0.6", "ipm 100", "label_flip", "tuned")
"""The rules that the default is chosen from, and the attacks that tell them apart."""
TITLES = {
    "off": "verification off",
    "audit": "one audit a round",
    "sweep": "one audit a round and the sweep",
}
INTRODUCTION = """# Rules against attacks, measured

Made by `python experiments/rules.py` (no option; it needs scikit-learn's digits file, the text is Python's own).
Final training loss over that of the same rule, seed and number of senders without attackers: mean over {seeds} seeds
(worst seed). 1.00 means that the attack did nothing. 16 members, batch 32 each, learning rate decaying to zero,
gradients through the 8-bit codec as one part. The coalition knows all honest gradients and attacks in every round from
the end of the first third on; `tuned` chooses each round, among eleven strengths of ipm and alie, what turns the result
of the very rule furthest against the honest mean.

With verification the table shows the chain of roles and audits, drawn as the protocol draws them, not the protocol
itself: messages are never lost, votes never late. An honest auditor that hits a worker who cheated in the round before
has it banned from the next round on; with the sweep all who cheated in that round are banned one round later. Auditors
of the coalition clear everybody.
"""


def select(results: Iterable[Cell], **wanted: object) -> list[Cell]:
    """The runs whose fields have these values."""
    return [cell for cell in results if all(getattr(cell, key) == value for key, value in wanted.items())]


def ratio(results: dict[Cell, float], cells: Iterable[Cell], base: Callable[[Cell], Cell]) -> tuple[float, float]:
    """Mean and worst over seeds of a run's loss over its base's."""
    ratios = [results[cell] / results[base(cell)] for cell in cells]
    return sum(ratios) / len(ratios), max(ratios)


def shown(mean: float, worst: float) -> str:
    """`mean (worst)` with as many digits as mean something."""

    def number(value: float) -> str:
        if not math.isfinite(value):
            return "diverged"
        return f"{value:.2f}" if value < 10 else f"{value:.0f}" if value < 1e4 else f"{value:.0e}".replace("e+0", "e")

    return f"{number(mean)} ({number(worst)})" if math.isfinite(mean) else "diverged"


def unattacked(cell: Cell) -> Cell:
    """The same rule, seed and number of senders without attackers."""
    return Cell(cell.task, cell.rule, None, 0, "off" if cell.verification == "off" else "audit", cell.batch, cell.seed)


def attack_table(results: dict[Cell, float], task: str, byzantine: int, verification: str) -> list[str]:
    """Rule x attack, as lines of Markdown."""
    cells = select(results, task=task, byzantine=byzantine, verification=verification, batch=32)
    if verification == "sweep":
        cells = select(cells, rule="centered_clip c=1")
    attacks = [attack for attack in ATTACKS if any(c.attack == attack for c in cells)]
    lines = ["| rule | " + " | ".join(attacks) + " |", "|---" * (len(attacks) + 1) + "|"]
    for rule in RULES:
        row = [select(cells, rule=rule, attack=attack) for attack in attacks]
        if all(row):
            lines.append("| " + " | ".join([rule, *(shown(*ratio(results, cell, unattacked)) for cell in row)]) + " |")
    return lines


def cost_table(results: dict[Cell, float], task: str) -> list[str]:
    """What each rule costs without attackers against the plain mean, as lines of Markdown."""
    honest = select(results, task=task, attack=None, verification="off")
    batches = sorted({c.batch for c in honest})
    lines = ["| rule | " + " | ".join(f"batch {batch}" for batch in batches) + " |", "|---" * (len(batches) + 1) + "|"]
    for rule in RULES:
        row = [select(honest, rule=rule, batch=batch) for batch in batches]
        if all(row):
            costs = [
                shown(*ratio(results, cell, lambda c: Cell(task, "mean", batch=c.batch, seed=c.seed))) for cell in row
            ]
            lines.append("| " + " | ".join([rule, *costs]) + " |")
    return lines


def decision_table(results: dict[Cell, float], task: str) -> list[str]:
    """What is left of a rule under its worst attack at 7 of 16, over the plain mean that nobody attacks."""
    columns = [(batch, verification) for batch in (8, 32) for verification in ("audit", "sweep")]
    lines = ["| rule | " + " | ".join(f"batch {batch}, {verification}" for batch, verification in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for rule in CANDIDATES:
        row = []
        for batch, verification in columns:
            losses = {}
            for attack in DECISIVE:
                cells = select(results, task=task, rule=rule, attack=attack, byzantine=7, batch=batch)
                cells = select(cells, verification=verification)
                losses[attack] = ratio(results, cells, lambda c: Cell(task, "mean", batch=c.batch, seed=c.seed))
            worst = max(losses, key=lambda attack: losses[attack][0])
            row.append(f"{shown(*losses[worst])} {worst}")
        lines.append("| " + " | ".join([rule, *row]) + " |")
    return lines


def write_figure(results: dict[Cell, float], path: Path) -> bool:
    """Loss ratios at 7/16 on the digits with and without verification; False where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, verification in zip(figure.subplots(2, 1, sharex=True), ("off", "audit"), strict=True):
        for offset, rule in enumerate(RULES):
            heights = []
            for attack in ATTACKS:
                runs = select(results, task="digits", rule=rule, attack=attack, byzantine=7, batch=32)
                seeds = select(runs, verification=verification)
                heights.append(min(ratio(results, seeds, unattacked)[0], 1e6) if seeds else math.nan)
            axes.bar(np.arange(len(ATTACKS)) + 0.12 * (offset - 3), heights, 0.12, label=rule)
        axes.set(
            yscale="log", ylabel="loss / loss without attackers", title=f"digits, 7 of 16, verification {verification}"
        )
        axes.axhline(1, color="black", linewidth=0.5)
    axes.set_xticks(range(len(ATTACKS)), list(ATTACKS))
    axes.legend(ncols=4, fontsize="small", loc="upper right")
    figure.savefig(path, dpi=120)
    return True


def survivors(results: dict[Cell, float], task: str) -> str:
    """The attacks that no rule withstands at 7/16 without verification, in words."""
    lost = []
    attacked = select(results, task=task, byzantine=7, verification="off", batch=32)
    for attack in ATTACKS:
        cells = {rule: select(attacked, rule=rule, attack=attack) for rule in RULES}
        means = {rule: ratio(results, runs, unattacked)[0] for rule, runs in cells.items() if runs}
        if means and min(means.values()) > LOST:
            best = min(means, key=means.__getitem__)
            lost.append(f"{attack} (best: {best}, {shown(means[best], means[best])[:4]})")
    return ", ".join(lost) or "none of those tried"


def document(results: dict[Cell, float], tasks: list[str], seeds: int, figure: bool) -> str:
    """docs/rules.md."""
    lines = [INTRODUCTION.format(seeds=seeds)]
    lines += ["![loss ratios at 7 of 16](rules.png)\n"] if figure else []
    for task in tasks:
        setting = TASKS[task]
        lines.append(f"\n## {task}: {setting.model}, {setting.steps} rounds\n")
        lines.append("What the rule costs without attackers: its final loss over that of the plain mean.\n")
        lines += cost_table(results, task)
        lines.append(f"\nWithout verification and at 7 of 16 no rule stays within {LOST:.1f} of its own loss under: ")
        lines[-1] += survivors(results, task) + ".\n"
        if select(results, task=task, attack="tuned", batch=8):
            lines.append("### All in all: the worst attack at 7 of 16, over the plain mean without attackers\n")
            lines += decision_table(results, task)
        for verification, title in TITLES.items():
            for byzantine in (3, 7):
                if select(results, task=task, byzantine=byzantine, verification=verification):
                    lines.append(f"\n### {byzantine} of 16, {title}\n")
                    lines += attack_table(results, task, byzantine, verification)
    return "\n".join(lines) + "\n"
