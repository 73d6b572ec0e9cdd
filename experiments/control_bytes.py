"""What peers send besides gradients: `python experiments/control_bytes.py`.

Simulated rounds of the smallest model, by kind of statement, without faults and with b of the members frozen or killed,
with broken links. What is sent besides parts, results and states does not depend on the size of the model: it is
compared with the bytes of a model of 1e7 parameters. Writes the table of docs/simulator.md to the screen.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec
import torch

from btrain.adversary import get_adversary
from btrain.aggregation import get_rule
from btrain.kernels import BLOCK
from btrain.protocol.behaviour import Behaviour
from btrain.protocol.encoding import PeerId
from btrain.protocol.ledger import Charter
from btrain.protocol.messages import Envelope, Statement
from btrain.protocol.packets import Envelopes, decode_packet
from btrain.protocol.quorum import byzantine_limit, validators_max
from btrain.simulation.faults import Faults, Outage
from btrain.simulation.heap import Cut, LinkPlan, NetworkPlan, NodeId
from btrain.simulation.quadratic import Quadratic
from btrain.simulation.signatures import simulated_keys
from btrain.simulation.world import World

DELTA_US = 500_000
LINK = LinkPlan(1_000, 20_000)
PARAMETERS = 10_000_000
WARM_ROUNDS = 2
PATIENCE_US = 600_000_000
FAULTS = ("calm", "freeze", "kill", "broken links")
BULK = ("push", "blob")


def set_up(peers: int, fault: str, rounds: int) -> tuple[World, list[PeerId]]:
    """The world, and the peers that work: b freeze at round 3 or are killed, or b pairs have no link."""
    faulty = byzantine_limit(peers, validators_max(peers, 1))
    keys = simulated_keys(0, peers, "counted")
    ids = [key.public_key for key in keys]
    byzantine: Mapping[int, Behaviour] = {}
    plan, faults = NetworkPlan(LINK), Faults()
    if fault == "freeze":
        coalition = frozenset(ids[peers - faulty :])
        byzantine = {i: get_adversary("freeze", coalition=coalition, attack_from=3, seed=0)
                     for i in range(peers - faulty, peers)}  # fmt: skip
    elif fault == "kill":
        faults = Faults(tuple(Outage(i, "crash", 700_000, None) for i in range(faulty)))
    elif fault == "broken links":
        cuts = (Cut(frozenset({ids[2 * i]}), frozenset({ids[2 * i + 1]}), 0, 10**12) for i in range(faulty))
        plan = replace(plan, cuts=tuple(cuts))
    charter = Charter(
        rounds=rounds, byzantine_max=faulty, audits_per_round=1, tolerance=1e-4, rule=get_rule("centered_clip"),
        message_us=DELTA_US, compute_us=DELTA_US, transfer_us=DELTA_US,
    )  # fmt: skip
    gone = frozenset(range(faulty)) if fault == "kill" else frozenset()
    world = World(
        charter, lambda: Quadratic(peers * BLOCK), peers, plan=plan, byzantine=byzantine, gone=gone,
        signatures="counted",
    )  # fmt: skip
    faults.schedule(world.heap, keys)
    return world, world.staying


@dataclass
class Tally:
    """Bytes that some peers send besides blobs, by kind: a statement's own sender's, or handed on by another."""

    of: frozenset[PeerId]
    bytes: Counter[str] = field(default_factory=Counter)

    def count(self, src: NodeId, payload: object, size_bytes: int) -> None:
        """One packet."""
        assert isinstance(src, bytes) and isinstance(payload, tuple)
        if src not in self.of:
            return
        if payload[0] != "control":
            self.bytes["requests and headers"] += size_bytes - (len(payload[2]) if payload[0] in BULK else 0)
            return
        packet, within = decode_packet(payload[1]), 0
        if isinstance(packet, Envelopes):
            for data in packet.envelopes:
                statement = msgspec.msgpack.decode(
                    msgspec.msgpack.decode(data, type=Envelope).statement, type=Statement
                )
                handed_on = "" if statement.sender == src else ", handed on"
                self.bytes[statement.kind + handed_on] += len(data)
                within += len(data)
            self.bytes["packets"] += size_bytes - within
        else:
            self.bytes[type(packet).__name__] += size_bytes


def measure(peers: int, fault: str, rounds: int) -> dict[str, object]:
    """Bytes a working peer sends in a round besides blobs, in all and by kind."""
    world, working = set_up(peers, fault, rounds + 3 + WARM_ROUNDS)
    tally, send = Tally(frozenset(working)), world.heap.send

    def watching(src: NodeId, dst: NodeId, payload: object, size_bytes: int) -> None:
        tally.count(src, payload, size_bytes)
        send(src, dst, payload, size_bytes)

    world.heap.send = watching  # type: ignore[method-assign]
    world.heap.run(lambda: world.height(working[0]) >= 3 + WARM_ROUNDS)
    tally.bytes.clear()
    first, began_us = world.height(working[0]), world.heap.now
    last = first + rounds
    world.heap.run(lambda: world.height(working[0]) >= last or world.heap.now > began_us + PATIENCE_US)
    peer_rounds = (world.height(working[0]) - first) * len(working)
    kinds = {kind: round(size / peer_rounds) for kind, size in tally.bytes.most_common()}
    gradients = 2 * (peers - 1) / peers * PARAMETERS * (1 + 4 / BLOCK)
    return {"peers": peers, "fault": fault, "seconds_per_round": (world.heap.now - began_us) / 1e6 * len(working)
            / peer_rounds, "bytes": sum(kinds.values()), "share": sum(kinds.values()) / gradients,
            "kinds": kinds}  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--faults", nargs="+", default=list(FAULTS), choices=FAULTS)
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["| peers | | virtual time a round | sent a peer and round | of what 1e7 parameters take |",
             "|---:|---|---:|---:|---:|"]  # fmt: skip
    for peers in options.peers:
        for fault in options.faults:
            row = measure(peers, fault, options.rounds)
            print(json.dumps(row), flush=True)
            lines.append(f"| {peers} | {fault} | {row['seconds_per_round']:.1f} s | {row['bytes'] / 1000:.0f} kB "  # type: ignore[operator]
                         f"| {row['share']:.2%} |")  # fmt: skip
    print("\n".join(lines))


if __name__ == "__main__":
    main()
