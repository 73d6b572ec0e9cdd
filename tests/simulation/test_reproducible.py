"""A seed gives one run, byte for byte, in whatever process."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import hashlib
from btrain.simulation.soak import draw_case, set_up
for seed in (7, 18, 20):
    case = draw_case(seed)
    world = set_up(case, "counted")
    world.heap.trace = hashlib.sha256()
    world.run(case.rounds, case.faults.end_us + 100_000_000)
    for identity in world.identities.values():
        world.heap.trace.update(repr(identity.events).encode())
    print(world.heap.trace.hexdigest())
"""


def traces(hash_seed: str) -> list[str]:
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_every_packet_timer_and_event_is_the_same_under_another_hash_seed() -> None:
    one, other = traces("1"), traces("2")
    assert one == other
    assert len(set(one)) == 3
