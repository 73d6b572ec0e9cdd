"""What a round costs against the number of peers: `python experiments/simulation_cost.py`.

Simulated runs with the largest number of attackers, none of whom is banned while it is measured (they only send wrong
gradients from the first round after the measurement on), so that every round has all seats. Writes the table and the
figure of docs/simulator.md.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch

from btrain.config import loads
from btrain.simulation.scenario import stage
from btrain.templates import template

SIZES = (8, 16, 32, 64)
WARM_ROUNDS = 2
DOCS = Path(__file__).parents[1] / "docs"


def cost(peers: int, rounds: int) -> dict[str, float]:
    """CPU seconds, packets and bytes of one round, all peers together, and of one honest peer in one round."""
    config = loads(template("digits"), peers=peers)
    byzantine = config.group.byzantine_max
    scenario = stage(
        config, peers=peers, byzantine=byzantine, attacks=["sign_flip"], attack_from=10_000,
        rounds=rounds + WARM_ROUNDS, signatures="counted",
    )  # fmt: skip
    world, heap = scenario.world, scenario.world.heap
    marks = []
    for height in (WARM_ROUNDS, WARM_ROUNDS + rounds):
        heap.run(lambda height=height: world.height(world.honest[0]) >= height)  # type: ignore[misc]
        made = world.height(world.honest[0])
        marks.append((made, time.process_time(), heap.packets_sent, sum(heap.bytes_sent.values())))
    first, last = marks
    made = last[0] - first[0]
    cpu_s, packets, size = ((last[i] - first[i]) / made for i in (1, 2, 3))
    return {"peers": peers, "attackers": byzantine, "rounds": made, "cpu_s_per_round": cpu_s,
            "cpu_ms_per_peer_round": 1e3 * cpu_s / peers, "packets_per_round": packets,
            "cpu_us_per_packet": 1e6 * cpu_s / packets, "kib_sent_per_peer_round": size / peers / 1024}  # fmt: skip


def table(rows: list[dict[str, float]]) -> str:
    """Markdown."""
    lines = ["| peers | attackers | CPU a round | a peer and round | packets a round | CPU a packet | sent a peer |",
             "|---:|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    lines += [
        f"| {r['peers']} | {r['attackers']} | {r['cpu_s_per_round']:.2f} s | {r['cpu_ms_per_peer_round']:.1f} ms "
        f"| {r['packets_per_round']:.0f} | {r['cpu_us_per_packet']:.0f} us | {r['kib_sent_per_peer_round']:.0f} KiB |"
        for r in rows
    ]
    return "\n".join(lines)


def plot(rows: list[dict[str, float]], path: Path) -> None:
    """CPU of a round against n, with the slope of n squared."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    sizes = [row["peers"] for row in rows]
    axes.loglog(sizes, [row["cpu_s_per_round"] for row in rows], "o-", label="measured")
    middle = median(row["cpu_s_per_round"] / row["peers"] ** 2 for row in rows)
    axes.loglog(sizes, [middle * n**2 for n in sizes], "--", label="proportional to n squared")
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.minorticks_off()  # their labels would lie over those of the sizes
    axes.set(xlabel="peers", ylabel="CPU seconds a round, all peers together", title="Cost of a simulated round")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print, write docs/simulation-cost.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for peers in options.sizes:
        rows.append(cost(peers, options.rounds))
        print(json.dumps(rows[-1]), flush=True)
    print(table(rows))
    plot(rows, DOCS / "simulation-cost.png")


if __name__ == "__main__":
    main()
