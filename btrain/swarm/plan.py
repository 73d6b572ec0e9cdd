"""Who takes part in a swarm, who attacks and how, and where each peer lives."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from btrain.config import RunConfig, loads
from btrain.errors import ConfigError
from btrain.identity import create_key, peer_id_text
from btrain.storage.durable import replace_file, storage_error

RESTART = "restart_mid_round"
SIMULATED_ONLY = ("kill", "broken_link")
LOCAL_LISTEN = "/ip4/127.0.0.1/tcp/0"


@dataclass(frozen=True)
class PlannedPeer:
    """One peer of a swarm. `attack` is None for an ordinary one; `attack_from` is the attack's first round."""

    name: str
    run_dir: Path
    peer_id: str
    attack: str | None
    attack_from: int = 0

    @property
    def restarted(self) -> bool:
        """Whether the harness kills it once and starts it again."""
        return self.attack is not None and self.attack.partition(":")[0] == RESTART

    @property
    def byzantine(self) -> bool:
        """Whether it misbehaves."""
        return self.attack is not None and not self.restarted


@dataclass(frozen=True)
class SwarmPlan:
    """A swarm before it starts. `attackers` holds indices of peers, peer 0 (the bootstrap) not among them."""

    config: RunConfig
    run_dir: Path
    attackers: tuple[int, ...]
    attacks: tuple[str, ...]
    attack_from: int = 0
    seed: int = 0
    baseline: bool = False

    @classmethod
    def new(
        cls,
        config: RunConfig,
        *,
        byzantine: int = 0,
        attacks: Sequence[str] = (),
        attack_from: int = 0,
        run_dir: Path | None = None,
        seed: int = 0,
        baseline: bool = False,
    ) -> SwarmPlan:
        """Draw the attackers and check what was asked for. Raises ConfigError."""
        config.require("model", "data", "optimizer")
        peers, limit = config.group.start_when, config.group.byzantine_max
        if byzantine > limit:
            most = "none" if limit == 0 else f"at most {limit}"
            raise ConfigError(f"--byzantine {byzantine}: {most} of {peers} peers may attack (group.byzantine_max)")
        if byzantine and not attacks:
            raise ConfigError(f"--byzantine {byzantine}: name what they do with --attack, for example sign_flip")
        if attacks and not byzantine:
            raise ConfigError(f"--attack {attacks[0]}: say how many attack with --byzantine, at most {limit} here")
        for attack in attacks:
            if attack.partition(":")[0].strip() in SIMULATED_ONLY:
                raise ConfigError(f"--attack {attack}: `btrain simulate` does that to honest peers")
        if attack_from >= config.rounds:
            raise ConfigError(f"--attack-from {attack_from}: the run's last round is {config.rounds - 1}")
        chosen = sorted(random.Random(seed).sample(range(1, peers), byzantine))
        if run_dir is None:
            run_dir = config.local.run_dir.with_name(f"{config.local.run_dir.name}-{time.strftime('%Y%m%d-%H%M%S')}")
        return cls(config, run_dir, tuple(chosen), tuple(attacks), attack_from, seed, baseline)

    @property
    def peers(self) -> int:
        """How many."""
        return self.config.group.start_when

    def attack_of(self, index: int) -> str | None:
        """What the peer does; attackers take the attacks in turn."""
        if index not in self.attackers:
            return None
        return self.attacks[self.attackers.index(index) % len(self.attacks)]

    def _starts(self, index: int) -> int:
        from btrain.adversary import first_round  # loads torch, which the server of the peers loads meanwhile

        attack = self.attack_of(index)
        return self.attack_from if attack is None else first_round(attack, self.attack_from)

    def without_attackers(self) -> SwarmPlan:
        """The run to compare with: the same peers, all honest."""
        return replace(self, run_dir=self.run_dir / "baseline", attackers=(), attacks=(), baseline=False)

    def config_text(self) -> str:
        """The peers' run.yaml: as given, but reachable on this machine only, on any free port."""
        listening = self.config.local.model_copy(update={"listen": LOCAL_LISTEN, "announce": (), "join": ()})
        listening = listening.model_copy(update={"identity": None, "run_dir": self.run_dir})
        return self.config.model_copy(update={"local": listening}).to_yaml()

    def check_folder(self) -> None:
        """Raise ConfigError if something is there already."""
        if self.run_dir.exists() and not self.run_dir.is_dir():
            raise ConfigError(f"{self.run_dir}: is no folder; a swarm starts in a new --run-dir")
        if self.run_dir.exists() and any(self.run_dir.iterdir()):
            raise ConfigError(f"{self.run_dir}: is not empty; a swarm starts in a new --run-dir")

    def prepare(self) -> list[PlannedPeer]:
        """Make the folders and keys. Raises ConfigError if something is there already, StorageError, IdentityError."""
        self.check_folder()
        planned = []
        try:
            for index in range(self.peers):
                folder = self.run_dir / f"peer-{index}"
                folder.mkdir(parents=True)
                peer_id = peer_id_text(create_key(folder / "identity.key").public_key)
                planned.append(PlannedPeer(folder.name, folder, peer_id, self.attack_of(index), self._starts(index)))
        except OSError as error:
            raise storage_error(self.run_dir, "be made", error) from error
        text = self.config_text()
        loads(text, "the swarm's run.yaml")
        replace_file(self.run_dir / "config.yaml", text.encode(), durable=False)
        listing = {
            "v": 1,
            "seed": self.seed,
            "attack_from": self.attack_from,
            "peers": [{"name": p.name, "peer_id": p.peer_id, "attack": p.attack} for p in planned],
        }
        replace_file(self.run_dir / "swarm.json", json.dumps(listing, indent=1).encode() + b"\n", durable=False)
        return planned


def prepared_names(run_dir: Path) -> dict[str, str]:
    """Names of a swarm's peers by peer id, from its folder; empty where there is no swarm."""
    try:
        listing = json.loads((run_dir / "swarm.json").read_bytes())
        return {str(peer["peer_id"]): str(peer["name"]) for peer in listing["peers"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
