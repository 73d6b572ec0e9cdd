"""Rounds until a coalition is banned, with the sweep and without: `python experiments/sweep.py`.

The real protocol in virtual time: every message, vote and block, with counted signatures, on the quadratic bowl. Seven
of sixteen cheat in every round from round 5 on; the coalition's validators clear their friends. Rounds are counted from
the first cheat to the block that bans. Prints a table in Markdown, and a line for every run on stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from statistics import median

from btrain.adversary import get_adversary
from btrain.aggregation import get_rule
from btrain.protocol.ledger import Charter
from btrain.protocol.quorum import byzantine_limit, validators_max
from btrain.simulation.heap import LinkPlan, NetworkPlan
from btrain.simulation.quadratic import Quadratic
from btrain.simulation.signatures import simulated_keys
from btrain.simulation.world import World

DELTA_US = 500_000
FROM_ROUND = 5
NEVER = 10**6


def world_of(attack: str, sweep: bool, peers: int, byzantine: int, rounds: int, seed: int) -> World:
    """A run that is set up; the last peers in member order attack."""
    keys = simulated_keys(seed, peers, "counted")
    members = range(peers - byzantine, peers)
    coalition = frozenset(keys[i].public_key for i in members)
    charter = Charter(
        rounds, byzantine_limit(peers, validators_max(peers, 1)), 1, 1e-4, get_rule("centered_clip"), DELTA_US,
        DELTA_US, DELTA_US, sweep=sweep,
    )  # fmt: skip
    return World(
        charter,
        lambda: Quadratic(2100),
        peers,
        seed=seed,
        byzantine={i: get_adversary(attack, coalition=coalition, attack_from=FROM_ROUND, seed=seed) for i in members},
        plan=NetworkPlan(LinkPlan(1_000, 20_000)),
        signatures="counted",
    )


def bans(world: World) -> list[int]:
    """Rounds from the first cheat to each ban, in order; all invariants are checked on the way."""
    one, found, read = world.honest[0], [], 0
    while world.height(one) < world.charter.rounds and len(found) < len(world.byzantine):
        world.heap.run(world.heap.now + DELTA_US)
        world.check()
        blocks = world.blocks(one)[read:] if world.height(one) > read else []
        found += [block.round - FROM_ROUND for block in blocks for _ in block.bans]
        read += len(blocks)
    return found


def p95(values: Sequence[int]) -> int:
    """The smallest value that 95 of 100 do not exceed."""
    return sorted(values)[-(-95 * len(values) // 100) - 1]


def row(attack: str, sweep: bool, options: argparse.Namespace) -> str:
    """One row of the table."""
    first, last = [], []
    for seed in range(options.seeds):
        rounds = bans(world_of(attack, sweep, options.peers, options.byzantine, options.rounds, seed))
        first.append(rounds[0] if rounds else NEVER)
        last.append(rounds[-1] if len(rounds) == options.byzantine else NEVER)
        print(attack, sweep, seed, rounds, file=sys.stderr, flush=True)
    numbers = [f"{median(first):g}", p95(first), f"{median(last):g}", p95(last), max(last)]
    return f"| {attack} | {'on' if sweep else 'off'} | " + " | ".join(map(str, numbers)) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--peers", type=int, default=16)
    parser.add_argument("--byzantine", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=250)
    parser.add_argument("--attack", action="append", help="default: sign_flip, alie, ipm, label_flip")
    parser.add_argument("--sweep", choices=["on", "off", "both"], default="both")
    options = parser.parse_args()
    print("| attack | sweep | first ban, median | p95 | all banned, median | p95 | most |")
    print("|---|---|---|---|---|---|---|")
    for attack in options.attack or ["sign_flip", "alie", "ipm", "label_flip"]:
        for sweep in (True, False):
            if options.sweep in ("both", "on" if sweep else "off"):
                print(row(attack, sweep, options), flush=True)


if __name__ == "__main__":
    main()
