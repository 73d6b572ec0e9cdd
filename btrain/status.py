"""Where a run stands, read from its directory while peers go on writing to it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from btrain.errors import ConfigError
from btrain.identity import short_id
from btrain.progress import HALTED, Progress, logged_events
from btrain.storage.durable import CorruptFile
from btrain.storage.run_directory import list_run
from btrain.storage.streams import read_status

SILENT_S = 30.0

logger = logging.getLogger(__name__)


def read_status_of(path: Path) -> dict[str, Any]:
    """A peer's directory or a swarm's. Raises ConfigError if there is no run, CorruptFile for a damaged ledger."""
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
    """One peer."""
    listing, snapshot = list_run(path), _snapshot(path)
    last = snapshot["last_event"]
    return {
        "path": str(path),
        "peer_id": None if listing.binding is None else listing.binding.identity,
        "blocks": listing.blocks,
        "evidence": listing.evidence,
        "checkpoints": listing.checkpoints,
        **{key: value for key, value in snapshot.items() if key not in ("v", "time", "last_event")},
        "seconds_since_last_event": None if last is None else round(time.time() - last, 1),
    }


def _snapshot(path: Path) -> Mapping[str, Any]:
    """A peer's status.json; its events where that is not there, damaged or of another version."""
    try:
        snapshot = read_status(path / "status.json")
    except CorruptFile as damage:
        logger.warning("%s; the events are read in its place", damage)
        snapshot = None
    if snapshot is None or not snapshot.keys() >= Progress().fields.keys():
        return Progress.of(logged_events(path / "events.jsonl")).fields
    return snapshot


def status_text(document: Mapping[str, Any]) -> str:
    """A status in words."""
    lines = [_line(peer) for peer in document["peers"]]
    bans = {ban["peer_id"]: ban for peer in document["peers"] for ban in peer["bans"]}
    lines += list(dict.fromkeys(peer["halted"] for peer in document["peers"] if peer["state"] == HALTED))
    lines += [f"banned in round {b['banned_round']}: {short_id(peer)} for {b['reason']}" for peer, b in bans.items()]
    left = [peer["losses_left"] for peer in document["peers"] if peer["state"] == "training"]
    if left and None not in left:
        lines.append(f"the run can take {min(left)} more loss{'' if min(left) == 1 else 'es'}")
    return "\n".join(lines)


def _line(peer: Mapping[str, Any]) -> str:
    """One peer in words."""
    where = "" if peer["round"] is None else f", round {peer['round']}"
    loss = "" if peer["loss"] is None else f", loss {peer['loss']:.4f}"
    accuracy = "" if peer["metric"] is None else f", accuracy {peer['metric']:.4f}"
    drifted = f", drifted {peer['drifts']} times and healed {peer['heals']}" if peer["drifts"] else ""
    forks = f", {peer['forks']} forks seen, {peer['rolled_back']} times rolled back" if peer["forks"] else ""
    back = peer.get("restored")
    restored = f", rolled back to round {back['to_round']}: step {back['from_step']} -> {back['step']}" if back else ""
    stalled = f", stalled: {peer['stalled']}" if peer["stalled"] else ""
    silent = peer["seconds_since_last_event"] or 0.0
    quiet = f", silent for {silent:.0f} s" if silent > SILENT_S and peer["state"] == "training" else ""
    name = Path(peer["path"]).name
    troubles = f"{drifted}{forks}{restored}{stalled}{quiet}"
    return f"{name}: {peer['state']}{where}, {peer['blocks']} blocks{loss}{accuracy}{troubles}"
