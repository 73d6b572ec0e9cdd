"""Real peers come, leave and are killed for a few minutes: `python experiments/churn_processes.py`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from btrain.swarm.churn import Churn
from btrain.swarm.churn_plan import ChurnPlan


def main() -> int:
    """Run, print the report as JSON; 1 if something that must hold did not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=ChurnPlan.peers)
    parser.add_argument("--periods", type=int, default=ChurnPlan.periods)
    parser.add_argument("--quiet", type=float, default=ChurnPlan.quiet_s, help="seconds without churn, to compare with")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run-dir", type=Path, help="a new folder to keep; default: one that is deleted")
    options = parser.parse_args()
    plan = ChurnPlan(peers=options.peers, replaced=options.peers // 2, periods=options.periods, quiet_s=options.quiet,
                     seed=options.seed)  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="btrain-churn-") as folder:
        run_dir = options.run_dir or Path(folder) / "run"
        report = Churn(plan, run_dir, lambda text: print(text, file=sys.stderr, flush=True)).run()
    print(json.dumps(asdict(report), indent=2))
    return 1 if report.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
