"""Where a peer stands, by its own events: kept in status.json while it runs, so that nobody has to read all of them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from btrain.storage.durable import CorruptFile
from btrain.storage.run_directory import RunDirectory
from btrain.storage.streams import read_json_lines

logger = logging.getLogger(__name__)

WRITE_EVERY_S = 1.0
HALTED = "halted"
_FREQUENT = {"round", "block", "trained", "checked", "connected", "disconnected", "refused"}

_RESTORED = ("round", "to_round", "from_step", "step", "rounds_undone")

Event = Mapping[str, Any]


def halted_text(event: Event) -> str:
    """Why nothing can be certified, and what to do."""
    reached, needed = event["reached"], event["needed"]
    more = needed - reached
    return (
        f"halted at round {event['round']}: {reached} of {event['members']} members can be reached, and {needed} must "
        f"sign a block. It goes on when {more} more {'is' if more == 1 else 'are'} back: start them again in their run "
        "directories. If they are gone for good, go on without them in a new run: btrain peer --fork-from RUN_DIR"
    )


def bans_before(round: int, bans: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The bans that stand when the blocks from `round` on do not any more."""
    return [ban for ban in bans if ban["banned_round"] < round]


class Progress:
    """What the events say; the last word on each matter counts. `fields` is plain data."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {
            "state": "starting",
            "round": None, "role": None, "members": None, "present": None, "losses_left": None,
            "loss": None, "metric": None, "clipped_share": None,
            "drifts": 0, "heals": 0, "contested": 0, "forks": 0, "rolled_back": 0, "restored": None, "stalled": None,
            "halted": None, "bans": [], "last_event": None,
        }  # fmt: skip

    @classmethod
    def of(cls, events: Iterable[Event]) -> Self:
        """What these events say; one that lacks what its kind has is passed over."""
        progress = cls()
        for event in events:
            try:
                progress.take(event)
            except (KeyError, TypeError):
                logger.warning("an event cannot be understood and is passed over: %s", event)
        return progress

    def take(self, event: Event) -> None:
        """One more event. `time` is when it was written."""
        found = self.fields
        found["last_event"] = event.get("time", found["last_event"])
        match event["event"]:
            case "started":
                found |= {"state": "started", "halted": None, "stalled": None}
            case "waiting":
                have, need = event["have"], event["need"]
                found["state"] = "waiting" if have is None else f"waiting ({have} of {need})"
            case "founded":
                found["state"] = "training"
            case "round":
                found |= {key: event.get(key) for key in ("round", "role", "members", "present")}
            case "block":
                found |= {key: event[key] for key in ("clipped_share", "losses_left")} | {"stalled": None}
                self._go_on()
            case "caught_up":
                self._go_on()
            case "halted":
                found |= {"state": HALTED, "halted": halted_text(event)}
            case "evaluated":
                found |= {key: event[key] for key in ("loss", "metric")}
            case "banned":
                ban = {"peer_id": event["peer"], "banned_round": event["round"], "reason": event["deed"]}
                found["bans"] = [*found["bans"], ban]
            case "finished":
                found["state"] = event["reason"]
            case "failed":
                found["state"] = f"failed: {event['text'] or event['error']}"
            case "stalled":
                found["stalled"] = event.get("reason")
            case _:
                self._take_fault(event)

    def _go_on(self) -> None:
        if self.fields["state"] == HALTED:
            self.fields |= {"state": "training", "halted": None}

    def _take_fault(self, event: Event) -> None:
        """What happened to the parameters and to the chain."""
        match event["event"]:
            case "drift":
                self.fields["drifts"] += 1
            case "state_loaded" if event.get("healed"):
                self.fields["heals"] += 1
            case "contested":
                self.fields["contested"] += 1
            case "fork":
                self.fields["forks"] += 1
            case "rolled_back":
                self.fields["rolled_back"] += 1
                self.fields["bans"] = bans_before(event["round"], self.fields["bans"])
            case "restored":
                self.fields["restored"] = {key: event[key] for key in _RESTORED}


def logged_events(path: Path) -> Iterator[Event]:
    """The events of a file; damaged lines are passed over. Raises StorageError."""

    def warn(damage: CorruptFile) -> None:
        logger.warning("%s; the line is passed over", damage)

    return read_json_lines(path, warn)


class StatusFile:
    """Keeps a run directory's status.json: about once a second, and at once when something rare happens."""

    def __init__(self, directory: RunDirectory, earlier: Iterable[Event] = ()) -> None:
        self._directory = directory
        self._progress = Progress.of(earlier)
        self._written_at = 0.0
        self._lock = threading.Lock()

    def take(self, event: Event) -> None:
        """An event of this peer; from any thread. Raises StorageFull, StorageError."""
        with self._lock:
            self._progress.take({"time": round(time.time(), 3), **event})
            now = time.monotonic()
            if event["event"] not in _FREQUENT or now - self._written_at >= WRITE_EVERY_S:
                self._written_at = now
                self._directory.write_status(self._progress.fields)
