"""What a peer's events say about its part in the run, gathered as they come."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from btrain.swarm.plan import PlannedPeer

Event = Mapping[str, Any]


@dataclass
class Outcome:
    """One peer's part in the run. `evidence` is by (accused, round, deed)."""

    peer: PlannedPeer
    founded: bool = False
    round: int | None = None
    finished: Event | None = None
    error: str | None = None
    banned: set[str] = field(default_factory=set)
    evidence: dict[tuple[str, int, str], str] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def take(self, event: Event) -> None:
        """Take in one of the peer's own events."""
        match event["event"]:
            case "founded":
                self.founded = True
            case "round":
                self.round = event["round"]
            case "block":
                self.round = event["round"]
                for phase, seconds in (event.get("seconds") or {}).items():
                    self.seconds[phase].append(seconds)
            case "banned":
                self.banned.add(event["peer"])
            case "evidence":
                self.evidence.setdefault((event["peer"], event["round"], event["deed"]), event["path"])
            case "finished":
                self.finished = event
            case "error":
                self.error = event["text"]
