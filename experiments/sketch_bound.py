"""What the tables of CHECK see and what they do not: `python experiments/sketch_bound.py`.

Honest tables under fresh seeds (how often is there an alarm?), shifts of 1 to 30 rounding errors, directed rounding,
contributors that steer the rounding of an honest aggregator, and an aggregator with seven contributors who forge their
rows as cleverly as the limits allow. Everything goes through the protocol's own reduction, rows and limits.

Writes docs/sketch-bound.md. Shapes: N contributors, D elements, S 64 buckets.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from btrain.adversary.aggregator import rounded_up, shifted
from btrain.aggregation import CenteredClip, Reduction, reduce_with_report
from btrain.kernels import BLOCK, QuantizedBlocks, quantize_blockwise, weighted_sum
from btrain.protocol.messages import Table
from btrain.protocol.table_limits import CERTAIN, DISTANCE_LIMIT, SOUND, Judgement, judge
from btrain.protocol.tables import UNIT, distance, packed, read_row, row_of, sketch_of, sketches_of

RULE = CenteredClip()
CONTRIBUTORS, COALITION = 15, 7
NUMEL = 4096
SEEDS_PER_ROUND = 200  # sketches under as many seeds of one reduced part


@dataclass
class Case:
    """A reduced part with everything that its Table is made of."""

    sent: list[QuantizedBlocks]
    reduction: Reduction

    @classmethod
    def of(cls, x_ND: Tensor) -> Case:
        sent = [quantize_blockwise(x) for x in x_ND]
        return cls(sent, reduce_with_report({bytes([i]): q for i, q in enumerate(sent)}, RULE))

    @property
    def error(self) -> float:
        """E, the root mean square of the rounding of the part."""
        return math.sqrt(BLOCK / 12 * float(self.reduction.blocks.scales.double().square().sum()))

    @cached_property
    def distances(self) -> list[float]:
        """|g_i - v| of every contributor: no seed changes them."""
        return [distance(q, self.reduction.blocks) for q in self.sent]

    @property
    def tau(self) -> float:
        return math.inf if self.reduction.tau is None else self.reduction.tau

    def judged(self, seed: bytes, published: QuantizedBlocks | None = None) -> Judgement:
        """What everybody says of an honest Table about the published part."""
        part = self.reduction.blocks if published is None else published
        distances = self.distances if published is None else [distance(q, part) for q in self.sent]
        rows = tuple(packed(d, s) for d, s in zip(distances, sketches_of(self.sent, seed), strict=True))
        table = Table(bytes(32), b"", self.tau, rows)
        return judge(table, len(self.sent), self.reduction.coefficients, part, RULE, seed)

    def exact(self) -> Tensor:
        """The weighted sum before it is rounded, float32 [D]."""
        coefficients = torch.tensor(self.reduction.coefficients, dtype=torch.float64)
        return weighted_sum([q.codes for q in self.sent], [q.scales for q in self.sent], coefficients)


def seeds(count: int, generator: torch.Generator) -> list[bytes]:
    return [bytes(row.tolist()) for row in torch.randint(0, 256, (count, 32), generator=generator)]


def gaussian(g: torch.Generator) -> Tensor:
    return torch.randn(CONTRIBUTORS, NUMEL, generator=g) + torch.randn(NUMEL, generator=g)


def heavy(g: torch.Generator) -> Tensor:
    """Student's t with 1.5 degrees of freedom."""
    chi = torch.distributions.Gamma(0.75, 0.75)
    torch.manual_seed(int(torch.randint(2**31, (1,), generator=g)))
    return torch.randn(CONTRIBUTORS, NUMEL, generator=g) / chi.sample((CONTRIBUTORS, NUMEL)).sqrt()


def sparse(g: torch.Generator) -> Tensor:
    return gaussian(g) * (torch.rand(NUMEL, generator=g) < 0.01)


def attacked(g: torch.Generator) -> Tensor:
    x_ND = gaussian(g)
    x_ND[-COALITION:] *= -1000
    return x_ND


def few(g: torch.Generator) -> Tensor:
    return gaussian(g)[:3]


def small(g: torch.Generator) -> Tensor:
    return gaussian(g)[:, :650]


HONEST: dict[str, Callable[[torch.Generator], Tensor]] = {
    "gaussian noise": gaussian,
    "heavy tails (t, 1.5 degrees)": heavy,
    "99 % zeros": sparse,
    "7 of 15 send -1000 times theirs": attacked,
    "3 contributors": few,
    "650 values": small,
}


def false_alarms(trials: int, g: torch.Generator) -> list[tuple[str, int, int, int, float]]:
    """(case, trials, alarms, void, largest share of the limit) over honest tables."""
    rows = []
    for name, draw in HONEST.items():
        alarms = void = count = 0
        largest = 0.0
        while count < trials // len(HONEST):
            case = Case.of(draw(g))
            for seed in seeds(SEEDS_PER_ROUND, g):
                judgement = case.judged(seed)
                count += 1
                alarms += judgement.alarm > 1
                void += judgement.verdict != SOUND
                largest = max(largest, judgement.alarm)
        rows.append((name, count, alarms, void, largest))
    return rows


def power(trials: int, g: torch.Generator) -> list[tuple[str, float, float]]:
    """(attack, share with an alarm, share void) of an aggregator with honest rows."""
    rows = []
    for errors in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 10.0, 30.0):
        found = [_shifted(errors, g) for _ in range(trials)]
        rows.append((f"shift of {errors:g} E", *_shares(found)))
    found = []
    for _ in range(trials):
        case = Case.of(gaussian(g))
        found.append(case.judged(seeds(1, g)[0], rounded_up(case.exact(), NUMEL)))
    rows.append(("directed rounding", *_shares(found)))
    return rows


def _shifted(errors: float, g: torch.Generator) -> Judgement:
    case = Case.of(gaussian(g))
    seed = seeds(1, g)[0]
    return case.judged(seed, shifted(case.reduction.blocks, errors * case.error, int.from_bytes(seed[:4], "little")))


def _shares(found: list[Judgement]) -> tuple[float, float]:
    return float(np.mean([j.alarm > 1 for j in found])), float(np.mean([j.verdict != SOUND for j in found]))


def steered(trials: int, g: torch.Generator) -> tuple[float, float, float]:
    """Contributors that know everything bring every value of an honest sum near the middle between two codes.

    (mean of |v - sum|^2 / E^2, share with an alarm, share void).
    """
    found, energies = [], []
    for _ in range(max(1, trials // 20)):
        x_ND = gaussian(g)
        case = Case.of(x_ND)
        for _ in range(4):  # scales and coefficients move a little each time
            step_D = case.reduction.blocks.scales.repeat_interleave(BLOCK)[:NUMEL]
            exact = case.exact()[:NUMEL]
            middle = ((exact / step_D).floor() + 0.5) * step_D
            x_ND[-1] += (middle - exact) / case.reduction.coefficients[-1]
            case = Case.of(x_ND)
        decoded = case.reduction.blocks.codes.float() * case.reduction.blocks.scales[:, None]
        energies.append(float((decoded.view(-1)[:NUMEL] - case.exact()[:NUMEL]).square().sum()) / case.error**2)
        found += [case.judged(seed) for seed in seeds(20, g)]
    return float(np.mean(energies)), *_shares(found)


def colluding(spread: float, g: torch.Generator) -> bool:
    """Whether a shift of so many honest spreads stays hidden if the aggregator's seven friends forge their rows.

    Spread: the distance of honest contributors from each other. tau, the friends' norms and their sketches are chosen
    as the limits allow: each friend's sketch lies sqrt(3 * 3.2) of its claimed norm away, in the direction that the sum
    needs.
    """
    case = Case.of(gaussian(g))
    seed = seeds(1, g)[0]
    wide = float(np.median([math.sqrt(2.0) * NUMEL**0.5]))
    part = shifted(case.reduction.blocks, spread * wide, 5)
    honest = [read_row(row_of(q, part, seed)) for q in case.sent[:-COALITION]]
    reduced_S = sketch_of(part, seed)
    norms = np.array([row.norm for row in honest])
    tau = 2 * RULE.c * float(norms.min()) * 0.999  # the friends claim to be the nearer ones
    weights = np.minimum(1.0, tau / norms)
    pull_S = (weights[:, None] * np.stack([row.buckets - reduced_S for row in honest])).sum(0)
    stretch = 0.99 * math.sqrt(CERTAIN * DISTANCE_LIMIT)
    claimed = float(np.sqrt((pull_S**2).sum())) / COALITION / stretch
    if claimed > tau:
        return False
    friend = packed(claimed, reduced_S - pull_S / COALITION)
    rows = [row_of(q, part, seed) for q in case.sent[:-COALITION]] + [friend] * COALITION
    all_weights = np.concatenate((weights, np.ones(COALITION)))
    coefficients = tuple(all_weights / all_weights.sum())
    table = Table(bytes(32), b"", tau * UNIT, tuple(rows))
    return judge(table, len(rows), coefficients, part, RULE, seed).verdict == SOUND


def document(options: argparse.Namespace, g: torch.Generator) -> str:
    """docs/sketch-bound.md."""
    honest = false_alarms(options.trials, g)
    total = sum(row[1] for row in honest)
    command = f"experiments/sketch_bound.py --trials {options.trials} --power-trials {options.power_trials}"
    lines = [
        "# What the tables of CHECK see, measured",
        "",
        f"Made by `python {command}`;",
        "the limits are derived in [protocol.md](protocol.md#7a-check).",
        "E is the root mean square of the rounding of the reduced part, about 1 % of its length. An alarm has a part",
        "reduced again by b+1 members; a void part does not count in its round.",
        "",
        f"## Honest tables: {sum(r[2] for r in honest)} alarms, {sum(r[3] for r in honest)} void in {total}",
        "",
        "| contributors send | tables | alarms | void | largest share of the alarm's limit |",
        "|---|---|---|---|---|",
        *(f"| {name} | {count} | {alarms} | {void} | {largest:.2f} |" for name, count, alarms, void, largest in honest),
        "",
        f"## An aggregator that shifts its part, {options.power_trials} times each",
        "",
        "| deed | alarm | void |",
        "|---|---|---|",
        *(f"| {deed} | {alarm:.1%} | {void:.1%} |" for deed, alarm, void in power(options.power_trials, g)),
        "",
        "## Contributors that steer the rounding of an honest aggregator",
        "",
    ]
    energy, alarm, void = steered(options.power_trials, g)
    lines += [
        "One contributor that knows all the others moves its own values so that every value of the sum falls in",
        f"the middle between two codes. The rounding error is {energy:.2f} E^2 instead of 1; there is an alarm in",
        f"{alarm:.1%} of the rounds, the part is void in {void:.1%}. The contributor's gradient is wrong by several",
        "codes everywhere, for which an audit bans it.",
        "",
        "## An aggregator whose seven friends of fifteen forge their rows",
        "",
        "The shift in units of the distance between two honest contributors, and how often it stays hidden:",
        "",
        "| shift | hidden |",
        "|---|---|",
    ]
    for spread in (0.1, 0.3, 1.0, 2.0, 3.0, 4.0, 6.0, 10.0, 30.0, 1000.0):
        hidden = np.mean([colluding(spread, g) for _ in range(options.power_trials // 20)])
        lines.append(f"| {spread:g} | {hidden:.0%} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=120_000, help="honest tables in all")
    parser.add_argument("--power-trials", type=int, default=1000, help="tables for each attack")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "docs" / "sketch-bound.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    text = document(options, torch.Generator().manual_seed(options.seed))
    options.out.write_text(text)
    print(f"written: {options.out}, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
