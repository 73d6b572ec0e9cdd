"""`btrain bench round`: what a round of real peers costs on this machine, by phase, and the bytes they send.

Each row is a swarm of honest peers that train an MLP of the given size on the digits. Seconds are medians over rounds
and peers; a peer's bytes are those of its whole run, audits included, over parameters and rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from btrain.bench.page import write_section
from btrain.config import loads
from btrain.swarm import SwarmPlan, run_swarm
from btrain.templates import template

PEERS = (4, 8)
PARAMETERS = (100_000, 1_000_000)
ROUNDS = 12
_INPUTS, _CLASSES = 64, 10
_HEADER = """\
Made by `btrain bench round --write docs/benchmarks.md`. Real peers on one machine: every peer computes, signs, encodes,
sends, reduces and audits, and all of them share the machine's cores. Seconds are the median over rounds and peers;
`commit` includes the sending of the parts, `reduce` the sending of the results. Bytes are what one peer sends for every
parameter and round, audits included.
"""


def measure(peers: int, parameters: int, rounds: int) -> dict[str, Any]:
    """One swarm."""
    hidden = round((parameters - _CLASSES) / (_INPUTS + 1 + _CLASSES))
    settings = [
        f"model.hidden=[{hidden}]",
        f"rounds={rounds}",
        f"eval.every={rounds + 1}",
        "optimizer.lr=0.01",
        "deadlines.message=5s",
        "verification.final_sweep=0",
    ]
    config = loads(template("digits"), "bench", settings, peers=peers)
    with tempfile.TemporaryDirectory(prefix="btrain-bench-") as folder:
        plan = SwarmPlan.new(config, run_dir=Path(folder) / "run")
        report = run_swarm(plan, lambda line: print(line, file=sys.stderr), live=False).report
    phases = dict(report.seconds_by_phase or {})
    return {
        "peers": peers,
        "parameters": hidden * (_INPUTS + 1 + _CLASSES) + _CLASSES,
        "rounds": report.rounds,
        "seconds_by_phase": phases,
        "seconds": sum(phases.values()),
        "bytes_sent_per_parameter": report.bytes_sent_per_parameter,
    }


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": _processor(), "cores": cores, "load_before": round(os.getloadavg()[0], 1)}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def as_table(document: dict[str, Any]) -> str:
    """The rows as a Markdown table."""
    phases = list(document["rows"][0]["seconds_by_phase"])
    columns = ["peers", "parameters", *(f"{phase} (s)" for phase in phases), "round (s)", "bytes / parameter"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---:|' * len(columns)}"]
    for row in document["rows"]:
        seconds = [f"{row['seconds_by_phase'][phase]:.3f}" for phase in phases]
        cells = [str(row["peers"]), f"{row['parameters']:,}", *seconds, f"{row['seconds']:.3f}"]
        lines.append(f"| {' | '.join([*cells, format(row['bytes_sent_per_parameter'], '.2f')])} |")
    of = document["machine"]
    lines += ["", f"{of['processor']}, {of['cores']} cores, load before the first row {of['load_before']}."]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    parser.add_argument("--peers", type=int, nargs="+", default=list(PEERS), help="numbers of peers")
    parser.add_argument("--parameters", type=int, nargs="+", default=list(PARAMETERS), help="sizes of the model")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of each swarm")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the section of a page, too")
    options = parser.parse_args(arguments)
    document: dict[str, Any] = {"machine": machine(), "rows": []}
    for peers in options.peers:
        for parameters in options.parameters:
            print(f"{peers} peers, {parameters} parameters", file=sys.stderr)
            document["rows"].append(measure(peers, parameters, options.rounds))
    print(json.dumps(document, indent=2) if options.json else as_table(document))
    if options.write is not None:
        write_section(options.write, "Rounds", f"{_HEADER}\n{as_table(document)}")


if __name__ == "__main__":
    main()
