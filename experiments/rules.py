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
import hashlib
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from btrain.aggregation import AffineRule, NonFiniteInput, Rule, aggregate, get_rule, reduce_part
from btrain.data import open_source
from btrain.kernels import BLOCK, QuantizedBlocks, block_count, dequantize_blockwise, quantize_blockwise
from btrain.kernels import NonFiniteInput as NotEncodable
from btrain.models import build_model
from btrain.protocol.randomness import permutation

MEMBERS = 16
RULES: dict[str, Rule] = {
    "mean": get_rule("mean"),
    "centered_clip c=1": get_rule("centered_clip"),
    "centered_clip c=2": get_rule("centered_clip", c=2.0),
    "geometric_median": get_rule("geometric_median"),
    "multi_krum": get_rule("multi_krum"),
    "trimmed_mean": get_rule("trimmed_mean"),
    "nnm + centered_clip": get_rule("nearest_neighbor_mixing"),
}
ON_THE_WIRE = tuple(name for name, rule in RULES.items() if isinstance(rule, AffineRule))


LOST = 1.5
"""A loss of this many times the one without attackers counts as lost."""
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


@dataclass(frozen=True)
class Task:
    """A model, its data and how it is trained."""

    data: dict[str, object]
    model: dict[str, object]
    steps: int
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer]
    context: int | None = None


TASKS = {
    "digits": Task(
        {"builtin": "digits"},
        {"builtin": "mlp", "hidden": [32]},
        150,
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
    ),
    "text": Task(
        {"builtin": "stdlib_text"},
        {"builtin": "gpt", "layers": 1, "width": 16, "heads": 2, "context": 8},
        90,
        lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
        context=8,
    ),
}


@dataclass(frozen=True)
class Cell:
    """One training run."""

    task: str
    rule: str
    attack: str | None = None
    byzantine: int = 0
    verification: str = "off"
    """off, audit (one auditor a round) or sweep (and all who cheated in a proven round)."""
    batch: int = 32
    seed: int = 0


class Gradients:
    """Per-member gradients of one model on random minibatches, and the loss on the training set."""

    def __init__(self, task: Task, seed: int) -> None:
        source = open_source(task.data, context=task.context)
        self.model = build_model(task.model, source, seed)
        self.names = [(name, p.shape, p.numel()) for name, p in self.model.named_parameters()]
        indices = np.arange(min(len(source), 8192), dtype=np.int64)
        self.inputs, self.targets = source.batch(indices)
        self.classes = source.classes or source.vocabulary or 0
        self.per_member = vmap(grad(self.loss), in_dims=(None, 0, 0))

    def start(self) -> Tensor:
        """The start parameters, flat [D]."""
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])

    def loss(self, flat_D: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of one minibatch."""
        pieces = torch.split(flat_D, [numel for _, _, numel in self.names])
        named = {name: piece.view(shape) for (name, shape, _), piece in zip(self.names, pieces, strict=True)}
        with sdpa_kernel(SDPBackend.MATH):  # the one that vmap takes apart without a loop
            logits = functional_call(self.model, named, (inputs,))
        return functional.cross_entropy(logits.flatten(0, -2), targets.flatten())

    def minibatches(self, flat_D: Tensor, indices_NB: Tensor, flipped_N: Tensor) -> Tensor:
        """One gradient for each row of indices, with mirrored labels where flipped: [N, D]."""
        targets = self.targets[indices_NB]
        flip = flipped_N.view(-1, *[1] * (targets.dim() - 1))
        targets = torch.where(flip, self.classes - 1 - targets, targets)
        gradients_ND: Tensor = self.per_member(flat_D, self.inputs[indices_NB], targets)
        return gradients_ND

    def total(self, flat_D: Tensor) -> float:
        """Loss on the training set, inf if the run diverged."""
        with torch.no_grad():
            loss = float(self.loss(flat_D, self.inputs, self.targets))
        return loss if math.isfinite(loss) else math.inf


Attack = Callable[[Tensor, Tensor, Rule], Tensor]
"""What the coalition sends, [B, D], from its own gradients [B, D], the honest ones [H, D] and the rule they face."""


def ipm(strength: float) -> Attack:
    """Inner product manipulation (Xie et al. 2019)."""
    return lambda own_BD, honest_HD, rule: (-strength * honest_HD.mean(0)).expand_as(own_BD)


def alie(strength: float) -> Attack:
    """A little is enough (Baruch et al. 2019)."""
    return lambda own_BD, honest_HD, rule: (honest_HD.mean(0) - strength * honest_HD.std(0)).expand_as(own_BD)


def random_direction(own_BD: Tensor, honest_HD: Tensor, rule: Rule) -> Tensor:
    """A thousand times one's gradient's length in one direction that the coalition shares for good."""
    direction_D = torch.randn(own_BD.shape[1], generator=torch.Generator().manual_seed(666))
    scaled_BD: Tensor = 1000 * own_BD.norm(dim=1, keepdim=True) * direction_D / direction_D.norm()
    return scaled_BD


def min_max(own_BD: Tensor, honest_HD: Tensor, rule: Rule) -> Tensor:
    """As far against the deviation as keeps within the largest honest distance (Shejwalkar, Houmansadr 2021)."""
    mean_D, deviation_D = honest_HD.mean(0), honest_HD.std(0)
    diameter = torch.cdist(honest_HD, honest_HD).max()
    low, high = 0.0, 100.0
    for _ in range(20):
        middle = (low + high) / 2
        inside = (honest_HD - (mean_D - middle * deviation_D)).norm(dim=1).max() <= diameter
        low, high = (middle, high) if inside else (low, middle)
    return (mean_D - low * deviation_D).expand_as(own_BD)


def tuned(own_BD: Tensor, honest_HD: Tensor, rule: Rule) -> Tensor:
    """Of ipm and alie in many strengths the one that turns this rule's result furthest against the honest mean."""
    candidates = [ipm(s) for s in (0.3, 0.6, 1.0, 2.0, 4.0, 10.0, 100.0)] + [alie(s) for s in (0.5, 1.0, 2.0, 4.0)]
    mean_D = honest_HD.mean(0)

    def along(attack: Attack) -> float:
        hostile_BD = attack(own_BD, honest_HD, rule)
        return float(aggregate(torch.cat([hostile_BD, honest_HD]), rule) @ mean_D)

    return min(candidates, key=along)(own_BD, honest_HD, rule)


ATTACKS: dict[str, Attack] = {
    "sign_flip": lambda own_BD, honest_HD, rule: -1000 * own_BD,
    "random_direction": random_direction,
    "ipm 0.6": ipm(0.6),
    "ipm 100": ipm(100.0),
    "alie 1.5": alie(1.5),
    "min_max": min_max,
    "mimic": lambda own_BD, honest_HD, rule: honest_HD[0].expand_as(own_BD),
    "label_flip": lambda own_BD, honest_HD, rule: own_BD,  # its minibatches already carry the wrong labels
    "tuned": tuned,
}


@dataclass
class Chain:
    """Who audits whom, and who is banned when."""

    seed: int
    byzantine: frozenset[bytes]
    verification: str
    members: list[bytes]
    cheats: set[bytes] = field(default_factory=set)
    """Who cheated in the round before."""
    pending: dict[int, set[bytes]] = field(default_factory=dict)
    """Bans by the round from which they hold."""

    def workers(self, step: int) -> list[bytes]:
        """Who sends in this round. The one who does not audits the round before."""
        banned = self.pending.pop(step, set())
        self.members = [member for member in self.members if member not in banned]
        if self.verification == "off":
            return self.members
        randomness = hashlib.sha256(f"{self.seed}/{step}".encode()).digest()
        auditor = permutation(randomness, "validate", self.members)[0]
        others = [member for member in self.members if member != auditor]
        target = others[int.from_bytes(hashlib.sha256(randomness + auditor).digest()[:8], "little") % len(others)]
        if auditor not in self.byzantine and target in self.cheats:
            self.pending.setdefault(step + 1, set()).add(target)
            if self.verification == "sweep":
                self.pending.setdefault(step + 2, set()).update(self.cheats)
        return others


def combine(x_ND: Tensor, rule: Rule) -> Tensor:
    """Encode, reduce and decode as a part would be; coordinate-wise rules work on the decoded vectors."""
    blocks = block_count(x_ND.shape[1])
    padded_ND = functional.pad(x_ND, (0, blocks * BLOCK - x_ND.shape[1])).clamp(-1e38, 1e38)
    encoded = quantize_blockwise(padded_ND)
    rows = zip(encoded.codes.view(len(x_ND), blocks, BLOCK), encoded.scales.view(len(x_ND), blocks), strict=True)
    parts = {bytes([i]): QuantizedBlocks(codes, scales, blocks * BLOCK) for i, (codes, scales) in enumerate(rows)}
    if isinstance(rule, AffineRule):
        reduced = dequantize_blockwise(reduce_part(parts, rule))
    else:
        decoded = dequantize_blockwise(encoded).view_as(padded_ND)
        reduced = dequantize_blockwise(quantize_blockwise(aggregate(decoded, rule)))
    return reduced[: x_ND.shape[1]]


def train(cell: Cell) -> float:
    """Final training loss of one run."""
    task = TASKS[cell.task]
    gradients = Gradients(task, cell.seed)
    flat_D = gradients.start().requires_grad_()
    optimizer = task.optimizer([flat_D])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.steps)
    members = [hashlib.sha256(f"{cell.seed}/member/{i}".encode()).digest() for i in range(MEMBERS)]
    byzantine = frozenset(members[: cell.byzantine])
    chain = Chain(cell.seed, byzantine, cell.verification, list(members))
    generator = torch.Generator().manual_seed(cell.seed)
    for step in range(task.steps):
        draws = torch.randint(len(gradients.inputs), (MEMBERS, cell.batch), generator=generator)
        workers = chain.workers(step)
        active = byzantine.intersection(workers) if step >= task.steps // 3 else frozenset()
        hostile_N = torch.tensor([worker in active for worker in workers])
        flipped_N = hostile_N & (cell.attack == "label_flip")
        rows = torch.tensor([members.index(worker) for worker in workers])
        x_ND = gradients.minibatches(flat_D.detach(), draws[rows], flipped_N)
        chain.cheats = set(active)
        try:
            if active:
                attack = ATTACKS[str(cell.attack)]
                x_ND[hostile_N] = attack(x_ND[hostile_N], x_ND[~hostile_N], RULES[cell.rule])
            flat_D.grad = combine(x_ND, RULES[cell.rule])
        except (NonFiniteInput, NotEncodable):
            return math.inf
        optimizer.step()
        schedule.step()
    return gradients.total(flat_D.detach())


def grid(task: str, seeds: int, quick: bool) -> list[Cell]:
    """Every run that the tables need."""
    rules = [*RULES] if task == "digits" else ["mean", "centered_clip c=1", "centered_clip c=2"]
    attacks = [*ATTACKS] if task == "digits" else ["sign_flip", "ipm 0.6", "label_flip"]
    if quick:
        rules, attacks = rules[:2], attacks[:2]
    cells = []
    for seed in range(seeds):
        for rule in rules:
            cells += [Cell(task, rule, verification=v, seed=seed) for v in ("off", "audit")]
            cells += [Cell(task, rule, batch=batch, seed=seed) for batch in (8, 128) if task == "digits"]
            for attack in attacks:
                for byzantine in (3, 7) if task == "digits" else (7,):
                    for verification in verifications(rule, byzantine):
                        cells.append(Cell(task, rule, attack, byzantine, verification, seed=seed))
    return cells


def verifications(rule: str, byzantine: int) -> tuple[str, ...]:
    """The sweep is run for the default rule; fewer attackers under audits for those that may become the default."""
    if rule == "centered_clip c=1":
        return ("off", "audit", "sweep")
    return ("off", "audit") if byzantine == 7 or rule in ("mean", "centered_clip c=2") else ("off",)


def measured(cell: Cell) -> tuple[Cell, float]:
    """One run in a worker process."""
    torch.set_num_threads(1)
    return cell, train(cell)


def run_all(cells: list[Cell], processes: int, log: Path | None) -> dict[Cell, float]:
    """Train every cell, in parallel; what `log` already holds is not trained again."""
    results: dict[Cell, float] = {}
    if log is not None and log.exists():
        for line in log.read_text().splitlines():
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
    cells = select(results, task=task, byzantine=byzantine, verification=verification)
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
                seeds = select(results, task="digits", rule=rule, attack=attack, byzantine=7, verification=verification)
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
    attacked = select(results, task=task, byzantine=7, verification="off")
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
        for verification, title in TITLES.items():
            for byzantine in (3, 7):
                if select(results, task=task, byzantine=byzantine, verification=verification):
                    lines.append(f"\n### {byzantine} of 16, {title}\n")
                    lines += attack_table(results, task, byzantine, verification)
    return "\n".join(lines) + "\n"


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
