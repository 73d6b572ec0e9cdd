"""The page and the figure of `btrain bench attacks`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from btrain.adversary.registry import HONEST

Row = dict[str, Any]
QUIET_ROUNDS: Final = 14  # of matches that no ban ends

FOUND_BY: Final = {
    "wrong_gradient": "recomputed by a validator or the sweep, votes of a quorum",
    "wrong_reduction": "the round's tables, a validator or the sweep; reduced again bit for bit",
    "wrong_table": "the sender of a row, or whoever reduces the part again",
    "false_dispute": "the row it denies, which is right",
    "illegal_encoding": "every decoder; the bytes prove it",
    "illegal_result": "every decoder; the bytes prove it",
    "equivocation": "the two statements",
    "false_accusation": "recomputed by all, votes of a quorum",
    "false_charge": "its own evidence, which proves nothing",
}
SILENT: Final = "a deadline; the seat is lost for 2^strikes rounds"
BOUNDS: Final = {
    "just_inside_tolerance": "a coherent shift of at most 1e-3 of its gradient (fp32), see above",
    "abort_draw": "the seat, for 2^strikes rounds, each time; the audits' targets are drawn in private",
    "custody_loss": "a quorum that cannot get the bytes takes the seat; audits find all else",
    "sybil_join": "requests are bounded, places on probation are drawn",
    "equivocate:kind=charge": "a charge rests on its evidence alone",
    "equivocate:kind=lock": "a lock rests on its certificate alone; here its votes are withheld too",
    "rubber_stamp": "its audits find nothing: proofs come n / (n - b) times later; barred at the first verdict",
    "lie": "b votes are no quorum; barred at the first verdict",
    "bad_proposal": "withheld votes: a second attempt of every decision; a further one for each of its proposals",
    "selective_send": "what some hold is handed on",
    "withhold_part": "relays; at worst its own gradient in that part",
    "complaint_flood": "one part more through a relay for each complaint; at worst a pair out of one round's sum",
    "just_inside_sketch": "about the rounding error of the parts that it reduces, until one of them is audited",
    "withhold_table:kind=approval": "Tables mature without approvals: 3 Delta a round",
    "withhold_table": "its part does not count in that round",
    "slow_drip": "each step waits for less than Delta; it costs no seat",
    "garbage": "its connection is closed",
    "oversize": "its connection is closed",
    "flood": "rates and tables are bounded",
    "replay": "a statement names its slot",
    "state_poison": "a state is what a quorum certified, byte for byte",
    "forged_history": "blocks count with q Finals",
    **dict.fromkeys(HONEST, "an honest peer: no ban may follow"),
    "restart_mid_round": "an honest peer, started again every few seconds and told everything anew: no ban may follow",
}
LATE: Final = (1.05, 1.10)  # largest loss over that without attackers: mean and worst seed
EARLY: Final = (1.10, 1.25)
AIMS: Final = {
    "from round 50": LATE,
    "1 round in 10": EARLY,
    "from round 1": EARLY,
    "from round 50, half as long": LATE,
    "from round 1, no warm-up": EARLY,
}
DRAWN: Final = ("from round 50", "1 round in 10", "from round 1")

INTRODUCTION: Final = """\
# Scoreboard: every attack, what finds it, what it costs

Made by `btrain bench attacks --write docs/scoreboard.md`. The coalition is omniscient, shares everything, and as
validators and voters clears each other. A ban in "3" stands in the block three rounds after the first of the attack.

![rounds to the last ban, and losses](scoreboard.png)
"""
CHAIN: Final = """\
## How soon audits find a coalition

Roles and audits alone, {runs} runs a row, one audit a round: rounds to the block of the first and of the last ban,
median / p95. A round is audited in the next, the block two rounds later bans, that of a sweep comes three blocks after
it: what the whole protocol mostly takes. The attackers abstain where a vote would bar them from validating.
"""
CONFIRMED: Final = "The whole protocol in virtual time, sign_flip from round 3 on, one number a seed:\n"
LOSSES: Final = """\
## What is lost until then

An MLP on the digits, {rounds} rounds, {batch} samples a worker and round, SGD with Nesterov's momentum, the learning
rate warmed up over {warmup} steps and decaying to zero: the attackers, gradients, codec and rule of the protocol over
its roles, audits and sweeps. All over the same rule, seed and validators without attackers: mean of {seeds} seeds
(worst). Against a plain mean that nobody attacks multiply by what the rule itself costs: {rule_over_mean_train:.3f}
(held-out {rule_over_mean_held_out:.3f}).

**Bold** misses the aim: 5 % in the mean, 10 % for the worst seed when the attack starts after round 50; 10 % and 25 %
from the first round on or in strikes. The held-out loss is `final.loss` of a run; the training loss is stricter here.
"Half as long": {half} rounds, of which an attack spoils twice the share.
"""
MISSED: Final = """\
Beyond the aim, training loss: {train}.
Held-out loss: {held_out}.

sign_flip, ipm and label_flip turn the sum against the gradient by up to the whole clipping radius in every round until
audit, votes and sweep have banned them: a short run has less time to make up for it, and without a warm-up its largest
steps are the first. Attacks in strikes begin in round 50. What restoring the parameters after a ban takes back stands
in [rollback.md](rollback.md).
"""
UNDETECTED: Final = """\
**What is never found**: {attack}, in every round, {byzantine} of 16, each pushing against the honest mean as far as the
tolerance T of an audit lets pass. Derived bound: where rounding hides it, a coherent shift of (T sqrt(3 s / rms))^(2/3)
of a gradient stays below T, 1e-3 for T = 1e-4 (s: a block's scale, s / rms = 0.026). On two seeds: training loss
{train_mean:.3f} ({train_worst:.3f}), held-out {held_out_mean:.3f} ({held_out_worst:.3f}).
"""
PROTOCOL: Final = """\
## Every attack over the whole protocol

So many of 16 do this from round 3 on, whole protocol, virtual time, one run a number ("-": nobody, or not everybody,
was banned within {quiet} rounds, of attacks that audits find within 60 or 100; empty: not played). Where nobody was
banned the last columns say what the attack did in these {quiet} rounds, against the same rounds without attackers: by
how many Delta it made a round longer (the first rounds of a silence are the dearest: then the seats are lost), and over
those rounds what an honest peer sent and the held-out loss. **False bans: {false_bans}, forks: {forks}**, in
{honest_peer_rounds} honest peer-rounds of the runs with attackers on this page.
"""
BELOW: Final = """\
Attacks below the protocol (slow_loris: half-open connections, dripping bytes; floods of handshakes, peers that read
nothing) are met by the network's limits: `tests/p2p/test_hostile.py`.
"""


def page(found: Row) -> str:
    """The document as Markdown."""
    sections = [INTRODUCTION]
    if "chain" in found:
        sections += chain_section(found)
    if "losses" in found:
        sections += loss_section(found["losses"])
    if "protocol" in found:
        sections += protocol_section(found["protocol"])
    return "\n".join(sections)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines of Markdown."""
    head = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows), ""])


# --- the chain ---


def chain_section(found: Row) -> list[str]:
    """Median and p95 of every row, and the same from the whole protocol, seed by seed."""
    rows = [[*_group(row, row["when"]), _quantiles(row, "first"), _quantiles(row, "last")] for row in found["chain"]]
    lines = [
        CHAIN.format(runs=found["chain"][0]["runs"]),
        table(["attackers", "they attack", "sweep", "first ban", "last ban"], rows),
    ]
    seen = [row for row in found.get("protocol", []) if row["attack"] == "sign_flip"]
    if seen:
        shown = [[*_group(row, "always"), _rounds(row["first"]), _rounds(row["last"])] for row in seen]
        lines += [CONFIRMED, table(["attackers", "they attack", "sweep", "first ban", "last ban"], shown)]
    return lines


def _group(row: Row, when: str) -> list[str]:
    return [f"{row['byzantine']} of 16", when, "on" if row["sweep"] else "off"]


def _quantiles(row: Row, which: str) -> str:
    median, late = row[f"{which}_median"], row[f"{which}_p95"]
    return " / ".join("> 350" if rounds is None else str(rounds) for rounds in (median, late))


def _rounds(found: Sequence[int | None]) -> str:
    return ", ".join("-" if rounds is None else str(rounds) for rounds in found)


# --- losses ---


def loss_section(losses: Row) -> list[str]:
    """Ratios to the same rule without attackers, and which aims are missed."""
    swept = [row for row in losses["rows"] if row["verification"] == "sweep"]
    columns = list(dict.fromkeys((row["byzantine"], row["when"]) for row in swept))
    found = {(row["attack"], row["byzantine"], row["when"]): row for row in swept}
    attacks = list(dict.fromkeys(row["attack"] for row in swept))
    lines = [LOSSES.format(**losses, half=losses["rounds"] // 2)]
    for split, title in (("train", "training loss"), ("held_out", "held-out loss")):
        rows = [[attack, *(share(found[attack, *column], split) for column in columns)] for attack in attacks]
        lines.append(table([title, *(f"{b} of 16, {when}" for b, when in columns)], rows))
    lines.append(MISSED.format(**{split: _missed(swept, split) for split in ("train", "held_out")}))
    lines += [UNDETECTED.format(**row) for row in losses["rows"] if row["verification"] == "off"]
    return lines


def _missed(rows: Sequence[Row], split: str) -> str:
    beyond = [f"{row['attack']} ({row['byzantine']} of 16, {row['when']})" for row in rows if not reaches(row, split)]
    return ", ".join(beyond) or "none"


def reaches(row: Row, split: str) -> bool:
    """Whether mean and worst seed are within the aim."""
    most_mean, most_worst = AIMS[row["when"]]
    return bool(row[f"{split}_mean"] <= most_mean and row[f"{split}_worst"] <= most_worst)


def share(row: Row, split: str) -> str:
    """Mean and worst seed, bold where an aim is missed."""
    mean, worst = row[f"{split}_mean"], row[f"{split}_worst"]
    shown = f"{mean:.3f} ({worst:.3f})" if math.isfinite(mean) else "diverged"
    return shown if reaches(row, split) else f"**{shown}**"


# --- the whole protocol ---


def protocol_section(rows: Sequence[Row]) -> list[str]:
    """Every name, and what it met."""
    rows = [row for row in rows if row["attack"]]
    total = {what: sum(row[what] for row in rows) for what in ("false_bans", "forks", "honest_peer_rounds")}
    by_attack: dict[str, dict[int, Row]] = {}
    for row in rows:
        if row["sweep"]:
            by_attack.setdefault(row["attack"], {})[row["byzantine"]] = row
    shown = []
    for attack, groups in by_attack.items():
        most = groups[max(groups)]
        bans = [bans_of(groups[byzantine]) if byzantine in groups else "" for byzantine in (7, 3)]
        shown.append([attack, met(most), *bans, *harm(most)])
    columns = ["attack", "found by, or bounded by", "7 of 16: first, last ban", "3 of 16", "+ Delta", "sent", "loss"]
    return [PROTOCOL.format(quiet=QUIET_ROUNDS, **total), table(columns, shown), BELOW]


def bans_of(row: Row) -> str:
    """Rounds to the first and to the last ban in the run of the first seed."""
    return f"{_rounds(row['first'][:1])}, {_rounds(row['last'][:1])}"


def harm(row: Row) -> list[str]:
    """What a row without bans cost over the same rounds without attackers."""
    if any(row["banned"]):
        return ["", "", ""]
    if row["deltas"] is None:
        return ["", "", ""]
    return [f"{row['deltas']:.1f}", f"{row['bytes']:.2f}", f"{row['loss']:.2f}"]


def met(row: Row) -> str:
    """What became of the attackers."""
    if row["deeds"]:
        return "; ".join(FOUND_BY.get(deed, deed.replace("_", " ")) for deed in row["deeds"])
    name = row["attack"] if row["attack"] in BOUNDS else row["attack"].partition(":")[0]
    if any(row["absent"]) and name not in BOUNDS:
        return SILENT
    return BOUNDS.get(name, "no harm in these runs")


# --- the figure ---


def write(found: Row, path: Path) -> None:
    """The page, and beside it the figure where matplotlib is installed and everything for it was measured."""
    path.write_text(page(found))
    if {"chain", "losses"} <= set(found):
        draw(found, path.with_suffix(".png"))


def draw(found: Row, path: Path) -> bool:
    """Rounds to the last ban as distributions, and the loss ratios; False where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    rounds, losses = figure.subplots(1, 2, width_ratios=(1, 1.4))
    _draw_rounds(rounds, [row for row in found["chain"] if row["when"] == "always"])
    _draw_losses(losses, found["losses"])
    figure.savefig(path, dpi=110)
    return True


def _draw_rounds(axes: Any, rows: Sequence[Row]) -> None:
    for row in rows:
        quantiles = zip(row["last_quantiles"], row["shares"], strict=True)
        points = [(rounds, share) for rounds, share in quantiles if rounds is not None]
        label = f"{row['byzantine']} of 16, sweep {'on' if row['sweep'] else 'off'}"
        axes.step(*zip(*points, strict=True), where="post", label=label, ls="-" if row["sweep"] else "--")
    axes.axvline(20, color="grey", lw=0.8, ls=":")
    axes.axhline(0.95, color="grey", lw=0.8, ls=":")
    axes.set(xscale="log", xlabel="rounds from the start of the attack", ylabel="share of the runs")
    axes.set_xticks([3, 5, 10, 20, 50, 100], ["3", "5", "10", "20", "50", "100"])
    axes.set_title("the whole coalition is banned (dotted: the aim)")
    axes.legend(fontsize="small")


def _draw_losses(axes: Any, losses: Row) -> None:
    """Mean (bar) and worst seed (tick) for every attack and schedule at 7 of 16."""
    rows = [row for row in losses["rows"] if row["verification"] == "sweep" and row["byzantine"] == 7]
    attacks = list(dict.fromkeys(row["attack"] for row in rows))
    for offset, when in enumerate(DRAWN):
        chosen = {row["attack"]: row for row in rows if row["when"] == when}
        places = [i + 0.27 * (offset - 1) for i in range(len(attacks))]
        means = [chosen[attack]["train_mean"] - 1 for attack in attacks]
        bars = axes.bar(places, means, 0.25, bottom=1, label=when)
        worst = [chosen[attack]["train_worst"] for attack in attacks]
        axes.plot(places, worst, "_", color=bars.patches[0].get_facecolor(), markersize=9)
    for level in (1.0, 1.05, 1.10):
        axes.axhline(level, color="black" if level == 1.0 else "grey", lw=0.8, ls="-" if level == 1.0 else ":")
    names = [attack.replace("epsilon=", "").replace(":", " ") for attack in attacks]
    axes.set_xticks(range(len(attacks)), names, rotation=35, ha="right")
    axes.set(ylabel="training loss / without attackers", title="7 of 16, sweep on; bar: mean, tick: worst seed")
    axes.legend(fontsize="small")
