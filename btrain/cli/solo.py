"""What one peer shows of its run: how others join it, whom it waits for, how it goes, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from btrain.config import RunConfig
from btrain.identity import short_id
from btrain.monitor import Board, Say, Screen
from btrain.progress import bans_before, halted_text
from btrain.storage.run_directory import RunDirectory

SMALL_GROUPS = {
    1: "alone: nobody checks this run",
    2: "two members: no liar is tolerated, and one crash stops the run",
    3: "three members: one may fail, but there are no audits below four",
}


class PeerScreen:
    """Shows the events of one peer; a context manager around the run."""

    def __init__(self, config: RunConfig, config_file: Path, say: Say, *, live: bool) -> None:
        self._config_file = config_file
        self._say_late = say
        self._screen = Screen(Board(config.rounds), say, live=live)
        self._peer_id = ""
        self._founding = ""  # what founders add to the line by which others join
        self._document: dict[str, Any] = {
            "run_dir": str(config.local.run_dir),
            "bans": [],
            "evidence": [],
            "halted": None,
        }

    def __enter__(self) -> Self:
        self._screen.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._screen.__exit__(*error)

    def event(self, event: Mapping[str, Any]) -> None:
        """Take in one of the peer's events."""
        for line in self._lines(event):
            self._screen.say(line)
        self._screen.feed(self._peer_id, event)

    def _lines(self, event: Mapping[str, Any]) -> list[str]:
        match event["event"]:
            case "origin":
                return self._origin(event)
            case "started":
                return self._started(event["peer_id"], event["addresses"])
            case "waiting":
                return [_waiting(event["have"], event["need"])]
            case "founded":
                return self._founded(event["run_id"], event["members"], event.get("round", 0))
            case "halted":
                self._document["halted"] = halted_text(event)
            case "block" | "caught_up":
                self._document["halted"] = None
            case "banned":
                self._document["bans"].append(
                    {"peer_id": event["peer"], "banned_round": event["round"], "reason": event["deed"]}
                )
            case "rolled_back":
                self._document["bans"] = bans_before(event["round"], self._document["bans"])
            case "evidence":
                self._document["evidence"].append(event["path"])
                return [f"evidence kept: {event['path']}"]
            case "finished":
                self._document |= {
                    "rounds": event["round"],
                    "reason": event["reason"],
                    "final": {"loss": event["loss"], "metric": event["metric"]},
                    "digest": event["digest"],
                    "bytes_sent": event["bytes_sent"],
                }
            case "warning":
                return [f"warning: {event['text']}"]
        return []

    def _origin(self, event: Mapping[str, Any]) -> list[str]:
        key, what = "model.fingerprint", "starts from parameters in a file"
        if event["parent"] is not None:
            banned = f", with {len(event['banned'])} banned there" if event["banned"] else ""
            key, what = "fork_from", f"goes on from run {event['parent'][:12]} at block {event['block']}{banned}"
        if not event["here"]:
            return [f"the run {what}; its members will give this peer the state to start from"]
        if event["parent"] is not None:
            self._founding = " --fork-from THEIR_COPY_OF_THAT_RUN"
        copy = RunDirectory.config_path(self._document["run_dir"])
        return [f"the run {what}; who joins later and has it not takes `{key}` over from {copy}"]

    def _started(self, peer_id: str, addresses: list[str]) -> list[str]:
        self._peer_id = peer_id
        self._document["peer_id"] = peer_id
        self._screen.board.add(peer_id, f"{short_id(peer_id)} (this peer)")
        reachable = [address for address in addresses if "/127.0.0.1/" not in address] or addresses
        lines = [
            f"  btrain peer --config {self._config_file} --join {address} --run-dir DIR{self._founding}"
            for address in reachable
        ]
        return [f"peer {peer_id} is up; the others join it with", *lines]

    def _founded(self, run_id: str, members: list[str], round: int) -> list[str]:
        self._document["run_id"] = run_id
        board = self._screen.board
        for member in members:
            if member not in board.rows:
                board.add(member, short_id(member))
                board.rows[member].status = "active"
        begins = f"returns to run {run_id[:12]} at round {round}" if round else f"run {run_id[:12]} begins"
        lines = [f"{begins}: {len(members)} members: {', '.join(map(short_id, members))}"]
        return lines + ([SMALL_GROUPS[len(members)]] if len(members) in SMALL_GROUPS else [])

    def document(self, exit_code: int) -> dict[str, Any]:
        """The closing document."""
        return self._document | {"exit_code": exit_code}

    def closing(self) -> str:
        """The end in words."""
        final = self._document.get("final")
        if final is None or "run_id" not in self._document:
            return "left before the run began"
        loss = "" if final["loss"] is None else f", loss {final['loss']:.4f}"
        accuracy = "" if final["metric"] is None else f", accuracy {final['metric']:.4f}"
        done = "left after" if self._document["reason"] == "left" else "done:"
        ended = f"{done} {self._document['rounds']} rounds{loss}{accuracy}"
        if self._document["halted"]:
            ended = f"{ended}; the run was {self._document['halted']}"
        return f"{ended}\ncheck it: btrain audit {self._document['run_dir']}"


def _waiting(have: int | None, need: int) -> str:
    if have is None:
        return f"waiting to found the run together with {need - 1} other peers"
    more = need - have
    if more <= 0:
        return f"all {need} peers are here; they found the run"
    return f"waiting for {more} more peer{'' if more == 1 else 's'} ({have} of {need})"
