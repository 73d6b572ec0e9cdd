"""How much churn, among whom: the plan of `btrain.swarm.churn`, the contract of its run, and its peers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from btrain.config import loads
from btrain.identity import create_key, peer_id_text
from btrain.protocol.quorum import byzantine_limit, validators_max
from btrain.swarm.footprint import Footprint

COMPUTE_FACTOR = 1.5  # a deadline, in gradients
SETTLED_ROUNDS = 3
CONTRACT = """\
run: churn
model: {{entry_point: "btrain.swarm.pace:paced_classifier", args: {{seconds: {gradient_s}}}}}
data: {{builtin: digits}}
optimizer: {{name: SGD, lr: 0.1, momentum: 0.9}}
batch_size: 32
rounds: 100000
eval: {{every: 100000, samples: 16}}
group: {{start_when: {peers}, byzantine_max: {byzantine_max}, admission: allowlist, members: [{members}]}}
deadlines: {{message: {message_s}s, compute: {compute_s}s, transfer: {message_s}s}}
local: {{listen: /ip4/127.0.0.1/tcp/0}}
"""


@dataclass(frozen=True)
class ChurnPlan:
    """Half of the peers are replaced in a period. In the first of every `kill_every` periods one is killed and started
    again; in the last of so many one of those that go is killed, and counts as failed until its seat is freed.

    The second peer and the attackers stay all the time.
    """

    peers: int = 6
    attackers: int = 1
    attacks: tuple[str, ...] = ("sign_flip", "rubber_stamp")
    quiet_s: float = 32.0
    periods: int = 3
    period_s: float = 40.0
    replaced: int = 3
    kill_every: int = 2
    gradient_s: float = 4.0
    message_s: float = 1.0
    seed: int = 0

    @property
    def byzantine_max(self) -> int:
        """b, the most that so many peers allow."""
        return byzantine_limit(self.peers, validators_max(self.peers, 1))

    @property
    def attack_from(self) -> int:
        """The first round of the attacks: when the quiet time is over."""
        return SETTLED_ROUNDS + round(self.quiet_s / self.gradient_s)

    @property
    def identities(self) -> int:
        """How many may ever come."""
        return self.peers + (self.replaced + self.attackers) * self.periods

    def prepare(self, run_dir: Path) -> list[Participant]:
        """Keys and folders of all that may ever come; the first of the run's list, which puts the genesis together,
        first."""
        made = []
        for index in range(self.identities):
            folder = run_dir / f"peer-{index}"
            folder.mkdir(parents=True)
            made.append(Participant(folder.name, folder, peer_id_text(create_key(folder / "identity.key").public_key)))
        first = min(made, key=lambda peer: peer.peer_id)
        return [first, *(peer for peer in made if peer is not first)]

    def contract(self, listed: Iterable[Participant]) -> str:
        """The run.yaml of all."""
        text = CONTRACT.format(
            gradient_s=self.gradient_s, peers=self.peers, members=", ".join(peer.peer_id for peer in listed),
            message_s=self.message_s, compute_s=COMPUTE_FACTOR * self.gradient_s, byzantine_max=self.byzantine_max,
        )  # fmt: skip
        return loads(text, "the churn's run.yaml").to_yaml()


@dataclass
class Participant:
    """One peer: its current process and what it has told."""

    name: str
    run_dir: Path
    peer_id: str
    attack: str | None = None
    pids: list[int] = field(default_factory=list)  # of its processes, the current one last
    told_to_leave: bool = False
    kills: int = 0
    address: str | None = None
    takes_part: bool = False  # has a role in a round, since its process started
    started_at: float = 0.0
    join_s: float = 0.0  # from a start beside a run to the first role in it
    finished: str | None = None
    error: str | None = None
    exit_code: int | None = None
    decided: dict[int, str] = field(default_factory=dict)  # round -> block hash
    footprints: list[Footprint] = field(default_factory=list)

    @property
    def killed_for_good(self) -> bool:
        """Whether the harness killed its last process."""
        return self.kills == len(self.pids)

    def take(self, event: Mapping[str, Any]) -> None:
        """Take in one of its events."""
        match event["event"]:
            case "started":
                self.address = event["addresses"][0]
            case "round":
                self.takes_part = self.takes_part or event["role"] in ("worker", "validator")
            case "block":
                self.decided[event["round"]] = event["hash"]
            case "finished":
                self.finished = event["reason"]
            case "error":
                self.error = event["text"]
