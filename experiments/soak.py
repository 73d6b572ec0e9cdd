"""Random runs of the whole protocol, again and again: `python experiments/soak.py --seconds 600`.

Every run is a seed (peers, attackers, faults, network) and must keep every promise. A broken one ends the soak with the
seed; `python experiments/soak.py --seed N --runs 1 --workers 1` plays it again.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict
from itertools import islice

import torch

from btrain.kernels import BackendUnavailable
from btrain.kernels.native_backend import demanded
from btrain.simulation.soak import Case, Outcome, draw_case, play

Finding = tuple[int, Case, Outcome | None, str, float]  # seed, run, outcome, error, CPU seconds


def _settle() -> None:
    """One thread a worker; what was loaded is never looked through for garbage, a run only once it is over."""
    torch.set_num_threads(1)
    gc.freeze()
    gc.disable()


def one(seed: int) -> Finding:
    """Play the run of a seed."""
    case, started = draw_case(seed), time.process_time()
    outcome, error = None, ""
    try:
        outcome = play(case, "counted")
    except Exception as failure:  # noqa: BLE001 - whatever goes wrong is reported with the seed that brings it back
        error = f"{type(failure).__name__}: {failure}"
    gc.collect()
    return seed, case, outcome, error, time.process_time() - started


def soak(first_seed: int, runs: int | None, seconds: float, workers: int) -> dict[str, object]:
    """Play runs until the time or the number is over; returns the totals."""
    started = time.monotonic()
    with suppress(BackendUnavailable):
        demanded()  # compiled once, for all workers: the same bits in less time
    totals: dict[str, int] = {"runs": 0, "with_faults": 0, "with_attackers": 0, "peer_rounds_with_faults": 0}
    failures: list[str] = []
    cpu_s = 0.0
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_settle) as pool:
        seeds = _seeds(first_seed, runs, started + seconds)
        for seed, case, outcome, error, took_s in _played(pool, seeds, workers):
            faults, attackers = case.has_faults, bool(case.attacks)
            cpu_s += took_s
            totals["runs"] += 1
            totals["with_faults"] += faults
            totals["with_attackers"] += attackers
            if outcome is None:
                failures.append(f"seed {seed}: {error}")
                print(failures[-1], file=sys.stderr, flush=True)
                continue
            for name, value in asdict(outcome).items():
                totals[name] = totals.get(name, 0) + value
            if faults or attackers:
                totals["peer_rounds_with_faults"] += outcome.honest_peer_rounds
    wall_s = time.monotonic() - started
    played = totals.get("honest_peer_rounds", 0)
    return {**totals, "wall_s": round(wall_s, 1), "cpu_s": round(cpu_s, 1), "workers": workers,
            "honest_peer_rounds_per_s": round(played / wall_s, 1),
            "honest_peer_rounds_per_cpu_s": round(played / max(cpu_s, 1e-9), 1),
            "first_seed": first_seed, "failures": failures}  # fmt: skip


def _played(pool: ProcessPoolExecutor, seeds: Iterator[int], workers: int) -> Iterator[Finding]:
    """Findings as they come; a seed is taken when a worker is free."""
    under_way = {pool.submit(one, seed) for seed in islice(seeds, workers)}
    while under_way:
        done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
        under_way |= {pool.submit(one, seed) for seed in islice(seeds, len(done))}
        yield from (future.result() for future in done)


def _seeds(first: int, runs: int | None, until: float) -> Iterator[int]:
    seed = first
    while time.monotonic() < until and (runs is None or seed < first + runs):
        yield seed
        seed += 1


def main() -> int:
    """Run, print the totals as JSON; 1 if a run broke a promise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--runs", type=int, help="end after so many runs")
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    report = soak(options.seed, options.runs, options.seconds, options.workers)
    print(json.dumps(report, indent=2))
    return 1 if report["failures"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
