"""`btrain bench attacks`: every attack against what finds it, how soon, and what is lost meanwhile.

Three measurements. `chain`: roles and audits alone, thousands of runs (`btrain.bench.chain`). `protocol`: the whole
protocol in virtual time, a few seeds. `losses`: training on the digits over the chain, with the real attackers,
gradients, codec and rule (`btrain.bench.contest`). `--log` keeps every single run, so that an interrupted benchmark
goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from btrain.adversary import Adversary, adversary_names, first_round, get_adversary
from btrain.bench.chain import Chain, Schedule, detection
from btrain.bench.page import whole_lines
from btrain.bench.scoreboard import QUIET_ROUNDS, page, write

MEMBERS: Final = 16
ATTACK_FROM: Final = 3  # by then deadlines follow what is measured
BYZANTINE: Final = (3, 7)
CHAIN_RUNS: Final = 4000
CHAIN_ROUNDS_MAX: Final = 400
SHARES: Final = tuple(i / 20 for i in range(1, 20))  # of the distributions in the figure
SCHEDULES: Final = {
    "always": Schedule(),
    "from round 50": Schedule(start=50),
    "1 round in 10": Schedule(every=10),
    "3 rounds in 10": Schedule(every=10, on=3),
}
WARMUP: Final = 50  # steps
GRADIENT_ATTACKS: Final = (
    "sign_flip", "random_direction", "ipm:epsilon=0.1", "ipm:epsilon=0.6", "ipm:epsilon=100", "alie", "rop",
    "label_flip", "delayed", "min_max", "mimic",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A column of the loss table: who attacks when, in which training run."""

    when: str
    option: str
    byzantine: int = 7
    warmup: int = WARMUP
    shorter: int = 1  # what the rounds of a run are divided by


PLANS: Final = (
    Plan("from round 50", "from=50"),
    Plan("1 round in 10", "from=50,every=10"),
    Plan("from round 1", "from=1"),
    Plan("from round 50", "from=50", byzantine=3),
    Plan("from round 50, half as long", "from=50", shorter=2),
    Plan("from round 1, no warm-up", "from=1", warmup=0),
)
VARIANTS: Final = (
    *(f"equivocate:kind={kind}" for kind in ("result", "reveal", "table", "dispute", "approval", "vote", "final")),
    *(f"equivocate:kind={kind}" for kind in ("missing", "accusation", "charge", "quit", "lock", "proposal")),
    "bad_proposal:kind=void",
    "bad_proposal:kind=two",
    "false_accuse:charge=true",
    "custody_loss:everything=true",
    "forged_history:kind=junk",
    "withhold_part:aggregators=1",
    "withhold_table:kind=approval",
    "sign_flip:from=40",
    "sign_flip:every=5",
    "wrong_reduce:every=4,on=2",
    "alie+rubber_stamp",
    "sign_flip+abort_link",
    "sign_flip+abort_draw",
    "sign_flip+sybil_join",
    "sign_flip+lie",
    "label_flip+custody_loss",
    "wrong_reduce+equivocate:kind=table",
    "nan+freeze:from=6",
)
PLAIN: Final = ("centered_clip", "mean")
SPLITS: Final = ("train", "held_out")
UNDETECTED: Final = "just_inside_tolerance"
INSIDE: Final = Plan("in every round", "from=1")
UNDETECTED_SEEDS: Final = 2  # it bisects against the audit itself: each run takes minutes


@dataclass(frozen=True)
class Match:
    """One run of the whole protocol.

    attack: empty for honest peers alone, which others are compared with.
    """

    attack: str
    members: int
    byzantine: int
    seed: int
    rounds: int = 60
    sweep: bool = True


@dataclass(frozen=True)
class Job:
    """Anything that takes long: a key for the log, and what computes the JSON to keep."""

    key: str
    kind: str
    arguments: dict[str, Any]


def play_match(match: Match) -> dict[str, Any]:
    """One run of the whole protocol: when bans came, for what, and whether anybody honest was hit."""
    from btrain.config import loads
    from btrain.simulation.report import Report
    from btrain.simulation.scenario import stage
    from btrain.templates import template

    sweep = "true" if match.sweep else "false"
    config = loads(
        template("digits"),
        overrides=["batch_size=32", f"verification.sweep={sweep}", "verification.final_sweep=0"],
        peers=match.members,
    )
    scenario = stage(
        config, peers=match.members, byzantine=match.byzantine, attacks=[match.attack] if match.attack else [],
        rounds=match.rounds, attack_from=ATTACK_FROM, seed=match.seed, stop_when_banned=True, signatures="counted",
    )  # fmt: skip
    scenario.run()
    scenario.world.check()
    report: Report = scenario.report()
    attackers = [row for row in report.peers if row.attack is not None]
    banned = [row for row in attackers if row.status == "banned"]
    blocks, _ = scenario.ledger()
    return {
        "first": report.rounds_to_first_ban,
        "last": report.rounds_to_all_banned,
        "banned": len(banned),
        "deeds": sorted({row.reason or "" for row in banned}),
        "absent": sum((row.reason or "").startswith("absent") for row in attackers),
        "false_bans": report.false_bans,
        "forks": 0 if report.digests_equal else 1,
        "rounds": report.rounds,
        "honest_peer_rounds": report.rounds * (match.members - match.byzantine),
        "seconds": scenario.world.heap.now / 1e6,
        "bytes": report.bytes_sent_per_parameter,
        "void_parts": sum(len(block.void_parts) for block in blocks),
        "loss": report.final.loss,
    }


def compute(job: Job) -> tuple[Job, dict[str, Any]]:
    """Do a job, in whatever process."""
    import torch

    from btrain.bench.contest import Cell, contest

    torch.set_num_threads(1)
    if job.kind == "protocol":
        return job, play_match(Match(**job.arguments))
    return job, {name: str(loss) for name, loss in asdict(contest(Cell(**job.arguments))).items()}


def run_jobs(jobs: Sequence[Job], processes: int, log: Path | None) -> dict[str, dict[str, Any]]:
    """Results by key; what the log holds is not computed again."""
    done = read_log(log)
    missing = [job for job in jobs if job.key not in done]
    for count, (job, result) in enumerate(_computed(missing, processes), 1):
        done[job.key] = result
        if log is not None:
            with log.open("a") as file:
                file.write(json.dumps({"key": job.key, "result": result}) + "\n")
        print(f"{count}/{len(missing)} {job.key}", file=sys.stderr)
    return done


def read_log(log: Path | None) -> dict[str, dict[str, Any]]:
    """The results that a log holds, by key."""
    if log is None or not log.exists():
        return {}
    return {entry["key"]: entry["result"] for entry in map(json.loads, whole_lines(log))}


def _computed(jobs: Sequence[Job], processes: int) -> Iterable[tuple[Job, dict[str, Any]]]:
    if processes == 1 or len(jobs) < 2:
        yield from map(compute, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(compute, jobs)


def job_of(kind: str, what: Any) -> Job:
    """The job of a `Match` or of a `contest.Cell`."""
    arguments = asdict(what)
    return Job(f"{kind} {json.dumps(arguments, sort_keys=True)}", kind, arguments)


# --- the three measurements ---


def chain_rows(runs: int) -> list[dict[str, Any]]:
    """Detection by roles and audits alone."""
    rows = []
    for byzantine in BYZANTINE:
        for name, schedule in SCHEDULES.items():
            for sweep in (True, False):
                found = detection(Chain(MEMBERS, byzantine, schedule, sweep), runs, rounds_max=CHAIN_ROUNDS_MAX)
                rows.append({
                    "byzantine": byzantine, "when": name, "sweep": sweep, "runs": runs, **found.document(),
                    "shares": list(SHARES), "last_quantiles": found.last_quantiles(SHARES),
                })  # fmt: skip
    return rows


def matches(names: Sequence[str], seeds: int) -> list[Match]:
    """Every attack by 7 and by 3 of 16, once; several times that which stands for all that only audits find."""
    found = [Match("", MEMBERS, 0, 0, QUIET_ROUNDS)]
    for byzantine in reversed(BYZANTINE):
        found += [Match(name, MEMBERS, byzantine, 0, _rounds_of(name)) for name in names]
    for byzantine in BYZANTINE:
        found += [Match("sign_flip", MEMBERS, byzantine, seed) for seed in range(1, seeds)]
    found += [Match("sign_flip", MEMBERS, 7, seed, 120, sweep=False) for seed in range(seeds)]
    return sorted(found, key=_urgency)


def _rounds_of(name: str) -> int:
    behaviour = get_adversary(name)
    if not (isinstance(behaviour, Adversary) and behaviour.outcome == "banned"):
        return QUIET_ROUNDS
    return 100 if first_round(name, ATTACK_FROM) > ATTACK_FROM else 60


def _urgency(match: Match) -> int:
    """What the page needs most is played first."""
    return (match.byzantine == BYZANTINE[0]) * 2 + (match.seed > 0) + (not match.sweep) * 3


def cells(seeds: int, rounds: int) -> list[tuple[Plan | None, str, Any]]:
    """Every training run of the loss table: its column (None: nobody attacks), the attack, the run."""
    from btrain.bench.contest import Cell

    shapes = dict.fromkeys((rounds // plan.shorter, plan.warmup) for plan in PLANS)
    found: list[tuple[Plan | None, str, Any]] = [
        (None, "", Cell(rule=rule, seed=seed, rounds=length, warmup=warmup))
        for rule in PLAIN for length, warmup in shapes for seed in range(seeds)
    ]  # fmt: skip
    for plan in PLANS:
        for attack in GRADIENT_ATTACKS:
            found += [(plan, attack, _cell(plan, attack, seed, rounds)) for seed in range(seeds)]
    for seed in range(min(seeds, UNDETECTED_SEEDS)):
        cell = _cell(INSIDE, UNDETECTED, seed, rounds)
        found.append((INSIDE, UNDETECTED, replace(cell, verification="off")))
    return found


def _cell(plan: Plan, attack: str, seed: int, rounds: int) -> Any:
    from btrain.bench.contest import Cell

    named = with_option(attack, plan.option)
    return Cell(named, plan.byzantine, seed=seed, rounds=rounds // plan.shorter, warmup=plan.warmup)


def with_option(attack: str, option: str) -> str:
    """NAME[:options] with one more option."""
    return f"{attack}{',' if ':' in attack else ':'}{option}"


def loss_rows(results: dict[str, dict[str, Any]], seeds: int, rounds: int) -> dict[str, Any]:
    """The loss table: mean and worst over seeds of losses over those of the same run without attackers.

    And what the rule costs without attackers, over the plain mean.
    """
    wanted = cells(seeds, rounds)
    losses = {
        cell: {split: float(loss) for split, loss in results[job_of("losses", cell).key].items()}
        for _, _, cell in wanted
    }

    def shares(split: str, cells: Iterable[Any], rule: str) -> list[float]:
        return [losses[cell][split] / losses[_quiet(cell, rule)][split] for cell in cells]

    rows: dict[tuple[Plan, str], list[Any]] = {}
    for plan, attack, cell in wanted:
        if plan is not None:
            rows.setdefault((plan, attack), []).append(cell)
    honest = [_quiet(_cell(PLANS[0], "alie", seed, rounds), "centered_clip") for seed in range(seeds)]
    return {
        "rows": [
            {"attack": attack, "byzantine": plan.byzantine, "when": plan.when, "verification": played[0].verification}
            | {f"{split}_mean": _mean(shares(split, played, played[0].rule)) for split in SPLITS}
            | {f"{split}_worst": max(shares(split, played, played[0].rule)) for split in SPLITS}
            for (plan, attack), played in rows.items()
        ],
        "seeds": seeds, "rounds": rounds, "batch": honest[0].batch, "warmup": WARMUP,
        **{f"rule_over_mean_{split}": _mean(shares(split, honest, "mean")) for split in SPLITS},
    }  # fmt: skip


def _quiet(cell: Any, rule: str) -> Any:
    """The same training run without attackers, under this rule."""
    return replace(cell, attack=None, byzantine=0, verification="sweep", rule=rule)


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def protocol_rows(results: dict[str, dict[str, Any]], wanted: Iterable[Match]) -> list[dict[str, Any]]:
    """One row for each attack and group, over its seeds."""
    groups: dict[tuple[str, int, bool], list[tuple[Match, dict[str, Any]]]] = {}
    for match in wanted:
        key = match.attack, match.byzantine, match.sweep
        groups.setdefault(key, []).append((match, results[job_of("protocol", match).key]))
    quiet = next((runs[0][1] for (attack, _, _), runs in groups.items() if not attack), None)
    rows = []
    for (attack, byzantine, sweep), played in groups.items():
        runs = [run for _, run in played]
        alike = None if quiet is None or runs[0]["rounds"] != quiet["rounds"] else quiet
        rows.append({
            "attack": attack, "byzantine": byzantine, "sweep": sweep,
            "first": [run["first"] for run in runs], "last": [run["last"] for run in runs],
            "banned": [run["banned"] for run in runs], "absent": [run["absent"] for run in runs],
            "deeds": sorted({deed for run in runs for deed in run["deeds"]}),
            "false_bans": sum(run["false_bans"] for run in runs), "forks": sum(run["forks"] for run in runs),
            "honest_peer_rounds": sum(run["honest_peer_rounds"] for run in runs),
            "void_parts": runs[0]["void_parts"],
            **{of: None if alike is None else runs[0][of] / alike[of] for of in ("bytes", "loss")},
            "deltas": None if alike is None else _deltas_a_round(runs[0]) - _deltas_a_round(alike),
        })  # fmt: skip
    return rows


def _deltas_a_round(run: dict[str, Any]) -> float:
    """How long a round of the attack took, in Delta: a second in the template that matches are played with."""
    return float(run["seconds"] / (run["rounds"] - ATTACK_FROM))


def document(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything that was asked for."""
    wanted: dict[str, list[Any]] = {}
    if "protocol" in options.parts:
        wanted["protocol"] = matches(options.names or (*adversary_names(), *VARIANTS), options.protocol_seeds)
    if "losses" in options.parts:
        wanted["losses"] = [cell for _, _, cell in cells(options.seeds, options.rounds)]
    if options.finished and "protocol" in wanted:
        held = read_log(options.log)
        wanted["protocol"] = [match for match in wanted["protocol"] if job_of("protocol", match).key in held]
    jobs = [job_of(kind, what) for kind, several in wanted.items() for what in several]
    results = run_jobs(jobs, options.processes, options.log)
    found: dict[str, Any] = {"benchmark": "attacks", "members": MEMBERS}
    if "chain" in options.parts:
        found["chain"] = chain_rows(options.chain_runs)
    if "protocol" in wanted:
        found["protocol"] = protocol_rows(results, wanted["protocol"])
    if "losses" in wanted:
        found["losses"] = loss_rows(results, options.seeds, options.rounds)
    return found


def plain(value: Any) -> Any:
    """For json.dumps: what is not finite becomes null."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of tables")
    parser.add_argument("--parts", nargs="+", choices=("chain", "protocol", "losses"),
                        default=["chain", "protocol", "losses"], help="what to measure")  # fmt: skip
    parser.add_argument("--names", nargs="+", metavar="NAME[:key=value,...]", help="attacks on the protocol")
    parser.add_argument("--chain-runs", type=int, default=CHAIN_RUNS, help="runs of the chain for each of its rows")
    parser.add_argument("--protocol-seeds", type=int, default=5, help="runs of the protocol with 16 members")
    parser.add_argument("--seeds", type=int, default=8, help="training runs for each attack")
    parser.add_argument("--rounds", type=int, default=600, help="rounds of a training run")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--log", type=Path, metavar="FILE", help="one JSON line a run; goes on from it")
    parser.add_argument(
        "--finished", action="store_true", help="play no further match of the protocol than those in the log"
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page and, beside it, the figure")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    options = arguments().parse_args(words)
    found = document(options)
    print(json.dumps(plain(found), indent=2) if options.json else page(found))
    if options.write is not None:
        write(found, options.write)


if __name__ == "__main__":
    main()
