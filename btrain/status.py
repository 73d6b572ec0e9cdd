"""Where a run stands, read from its directory while peers go on writing to it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from btrain.errors import ConfigError
from btrain.identity import short_id
from btrain.storage.run_directory import list_run
from btrain.storage.streams import read_json_lines

SILENT_S = 30.0


def read_status_of(path: Path) -> dict[str, Any]:
    """A peer's directory or a swarm's. Raises ConfigError if there is no run, CorruptFile for damaged streams."""
    if not path.is_dir():
        raise ConfigError(f"{path}: is no run directory")
    folders = (
        [path] if _is_peer(path) else sorted(filter(_is_peer, path.iterdir()), key=lambda p: (len(p.name), p.name))
    )
    if not folders:
        raise ConfigError(f"{path}: no peer has run here: no events.jsonl in it or in a folder of it")
    peers = [_peer(folder) for folder in folders]
    banned = {ban["peer_id"] for peer in peers for ban in peer["bans"]}
    for peer in peers:
        if peer["peer_id"] in banned:
            peer["state"] = "banned"
    return {"run_dir": str(path), "peers": peers}


def _is_peer(path: Path) -> bool:
    return (path / "events.jsonl").exists()


def _peer(path: Path) -> dict[str, Any]:
    """One peer by its events: the last word on each matter counts."""
    listing = list_run(path)
    found: dict[str, Any] = {
        "path": str(path),
        "peer_id": None if listing.binding is None else listing.binding.identity,
        "blocks": listing.blocks,
        "evidence": listing.evidence,
        "checkpoints": listing.checkpoints,
        "state": "starting",
        "round": None, "role": None, "loss": None, "metric": None, "clipped_share": None, "losses_left": None,
        "bans": [], "seconds_since_last_event": None,
    }  # fmt: skip
    for event in read_json_lines(path / "events.jsonl"):
        _take(found, event)
        found["seconds_since_last_event"] = round(time.time() - event["time"], 1)
    return found


def _take(found: dict[str, Any], event: Mapping[str, Any]) -> None:
    match event["event"]:
        case "started":
            found["state"] = "started"
        case "waiting":
            found["state"] = "waiting" if event["have"] is None else f"waiting ({event['have']} of {event['need']})"
        case "founded":
            found["state"] = "training"
        case "round":
            found["round"], found["role"] = event["round"], event["role"]
        case "block":
            found["clipped_share"], found["losses_left"] = event["clipped_share"], event["losses_left"]
        case "evaluated":
            found["loss"], found["metric"] = event["loss"], event["metric"]
        case "banned":
            found["bans"].append({"peer_id": event["peer"], "banned_round": event["round"], "reason": event["deed"]})
        case "finished":
            found["state"] = "left" if event["reason"] == "left" else event["reason"]


def status_text(document: Mapping[str, Any]) -> str:
    """A status in words."""
    lines = []
    for peer in document["peers"]:
        name = Path(peer["path"]).name
        loss = "" if peer["loss"] is None else f", loss {peer['loss']:.4f}"
        accuracy = "" if peer["metric"] is None else f", accuracy {peer['metric']:.4f}"
        silent = peer["seconds_since_last_event"] or 0.0
        quiet = f", silent for {silent:.0f} s" if silent > SILENT_S and peer["state"] == "training" else ""
        where = "" if peer["round"] is None else f", round {peer['round']}"
        lines.append(f"{name}: {peer['state']}{where}, {peer['blocks']} blocks{loss}{accuracy}{quiet}")
    bans = {ban["peer_id"]: ban for peer in document["peers"] for ban in peer["bans"]}
    lines += [f"banned in round {b['banned_round']}: {short_id(peer)} for {b['reason']}" for peer, b in bans.items()]
    return "\n".join(lines)
