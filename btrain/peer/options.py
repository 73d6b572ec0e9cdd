"""What the command line says beyond run.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PeerOptions:
    """Where this peer lives and how it behaves; None and empty leave it to run.yaml."""

    run_dir: Path | None = None
    identity: Path | None = None
    listen: str | None = None
    announce: str | None = None
    join: tuple[str, ...] = ()
    device: str | None = None
    adversary: str | None = None  # "NAME[:key=value,...]"
    attack_from: int = 0
    coalition: tuple[str, ...] = ()  # peer ids of the fellow attackers
