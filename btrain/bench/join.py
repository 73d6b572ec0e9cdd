"""`btrain bench join`: how long a peer takes from its start to its first contribution to a run that is under way.

Real peers on loopback, imports done (they are forked from a process that has everything loaded). Newcomers are on the
run's list, so that no probation is counted, and come one after the other. Medians over the newcomers.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from btrain.bench.page import write_section
from btrain.bench.round import machine
from btrain.config import loads
from btrain.errors import BtrainError
from btrain.identity import create_key, peer_id_text
from btrain.peer.options import PeerOptions
from btrain.swarm.processes import Processes, start_server, stop_server
from btrain.templates import template

FOUNDERS, NEWCOMERS, PARAMETERS, WARM_ROUNDS = 4, 3, 100_000, 5
PATIENCE_S = 120.0
PHASES = {
    "prepare": "configuration, data, model, run directory, port",
    "find": "reach a member, get the genesis",
    "follow": "the ledger so far, verified",
    "seat": "parameters brought to the ledger's head, the block that gives the seat",
    "contribute": "the first round as a worker or validator, until its block",
}

Event = dict[str, Any]


FRAMEWORK = ("prepare", "find", "follow")  # what follows takes as long as the run's own rounds
_HEADER = """\
Made by `btrain bench join --write docs/benchmarks.md`. Real peers on loopback, their imports done; newcomers are on the
run's list (in an open run probation comes in between), and come one after the other to a run of a few rounds. Medians
over the newcomers. The framework's own time is that of the first three phases; a seat, and a contribution in it, take a
round each of the run's own pace, and what is left of the one that is open.
"""


class JoinFailed(BtrainError):
    """A peer of the benchmark ended, or got no seat in time."""


class Group:
    """Founders and newcomers of one run, each in a process and a directory of its own."""

    def __init__(self, folder: Path, parameters: int) -> None:
        self.names = [f"peer-{index}" for index in range(FOUNDERS + NEWCOMERS)]
        self._folder = folder
        ids = {}
        for name in self.names:
            (folder / name).mkdir()
            ids[name] = peer_id_text(create_key(folder / name / "identity.key").public_key)
        self.names.sort(key=ids.__getitem__)  # the first of the list puts the genesis together
        self._logged: dict[str, list[Event]] = {name: [] for name in self.names}
        self._read_bytes = dict.fromkeys(self.names, 0)  # of each peer's log
        hidden = max(1, round((parameters - 10) / 75))
        group = {"start_when": FOUNDERS, "admission": "allowlist", "members": sorted(ids.values())}
        settings = [
            f"model.hidden=[{hidden}]", f"group={json.dumps(group)}", "rounds=2000", "eval.every=100000",
            "optimizer.schedule={name: constant}", "local.listen=/ip4/127.0.0.1/tcp/0",
        ]  # fmt: skip
        self.numel = hidden * 75 + 10
        self.processes = Processes(loads(template("digits"), "bench", settings).to_yaml())

    def start(self, name: str, join: str | None = None) -> float:
        """Start a peer; returns when, seconds since the epoch."""
        begin = time.time()
        options = PeerOptions(run_dir=self._folder / name, join=(join,) if join else ())
        self.processes.start(name, options)
        return begin

    def events(self, name: str) -> list[Event]:
        """What a peer has logged so far. Each line is read once: a peer that is to be timed shares this machine."""
        path = self._folder / name / "events.jsonl"
        if path.exists():
            with path.open("rb") as file:
                file.seek(self._read_bytes[name])
                data = file.read()
            end = data.rfind(b"\n") + 1
            self._read_bytes[name] += end
            self._logged[name] += map(json.loads, data[:end].splitlines())
        return self._logged[name]

    def wait(self, what: str, reached: Callable[[], bool]) -> None:
        """Until `reached()`. Raises JoinFailed."""
        end = time.monotonic() + PATIENCE_S
        while not reached():
            for name, event in self.processes.wait(0.1):
                if event["event"] == "error":
                    raise JoinFailed(f"{name}: {event['text']}")
            for name, peer in self.processes.running.items():
                if self.processes.ended(name):
                    raise JoinFailed(f"{name} ended with exit code {peer.exit_code}")
            if time.monotonic() > end:
                raise JoinFailed(f"nothing came of it in {PATIENCE_S:g} s: {what}")

    def address(self, name: str) -> str:
        """Where a peer that has started is reached."""
        self.wait(f"{name} listens", lambda: _first(self.events(name), "started") is not None)
        started = _first(self.events(name), "started")
        assert started is not None
        return str(started["addresses"][0])

    def found(self) -> str:
        """Start the founders; returns the address of one once the run is under way."""
        first, *others = self.names[:FOUNDERS]
        self.start(first)
        address = self.address(first)
        for name in others:
            self.start(name, address)
        self.wait("the founders' first rounds", lambda: self._height(first) >= WARM_ROUNDS)
        return address

    def _height(self, name: str) -> int:
        return sum(event["event"] == "block" for event in self.events(name))

    def join(self, name: str, address: str) -> dict[str, float]:
        """Let a newcomer come; seconds by phase."""
        begin = self.start(name, address)
        self.wait(f"{name} contributes", lambda: _contribution(self.events(name)) is not None)
        return phases_of(begin, self.events(name))

    def round_s(self) -> float:
        """The median time from block to block at the first founder."""
        times = [event["time"] for event in self.events(self.names[0]) if event["event"] == "block"]
        return float(median(b - a for a, b in pairwise(times[1:])))


def _first(events: Iterable[Event], name: str) -> Event | None:
    return next((event for event in events if event["event"] == name), None)


def _contribution(events: Sequence[Event]) -> tuple[Event, Event] | None:
    """The beginning and the block of the first round in which the peer works."""
    begin = next((e for e in events if e["event"] == "round" and e["role"] in ("worker", "validator")), None)
    if begin is None:
        return None
    block = next((e for e in events if e["event"] == "block" and e["round"] == begin["round"]), None)
    return None if block is None else (begin, block)


def phases_of(begin: float, events: Sequence[Event]) -> dict[str, float]:
    """Seconds of every phase, from a newcomer's events; `begin` is when it was started."""
    started, founded = _first(events, "started"), _first(events, "founded")
    contribution = _contribution(events)
    assert started is not None and founded is not None and contribution is not None
    follows = _first(events, "caught_up") or contribution[0]
    times = [begin, started["time"], founded["time"], follows["time"], contribution[0]["time"], contribution[1]["time"]]
    return dict(zip(PHASES, (b - a for a, b in pairwise(times)), strict=True))


def measure(parameters: int) -> dict[str, Any]:
    """One run with its newcomers."""
    start_server()
    try:
        with tempfile.TemporaryDirectory(prefix="btrain-bench-") as folder:
            group = Group(Path(folder), parameters)
            with group.processes:
                address = group.found()
                joined = [group.join(name, address) for name in group.names[FOUNDERS:]]
                round_s = group.round_s()
    finally:
        stop_server()
    seconds = {phase: median(one[phase] for one in joined) for phase in PHASES}
    return {
        "founders": FOUNDERS,
        "newcomers": len(joined),
        "parameters": group.numel,
        "seconds_by_phase": seconds,
        "framework_seconds": median(sum(one[phase] for phase in FRAMEWORK) for one in joined),
        "seconds": median(sum(one.values()) for one in joined),
        "round_seconds": round_s,
    }


def as_text(document: dict[str, Any]) -> str:
    """The table as Markdown."""
    seconds, of = document["seconds_by_phase"], document["machine"]
    lines = ["| phase | what | seconds |", "|---|---|---:|"]
    lines += [f"| {phase} | {PHASES[phase]} | {seconds[phase]:.2f} |" for phase in PHASES]
    lines.append(f"| framework | {', '.join(FRAMEWORK)} | {document['framework_seconds']:.2f} |")
    lines.append(f"| all | start to first contribution | {document['seconds']:.2f} |")
    peers = f"{document['founders']} founders, {document['newcomers']} newcomers, {document['parameters']:,} parameters"
    where = f"{of['processor']}, {of['cores']} cores, load before {of['load_before']}"
    return "\n".join([*lines, "", f"{peers}; a round takes {document['round_seconds']:.2f} s. {where}."])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    parser.add_argument("--parameters", type=int, default=PARAMETERS, help="size of the model")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the section of a page, too")
    options = parser.parse_args(arguments)
    before = machine()
    try:
        document = {"benchmark": "join", "machine": before} | measure(options.parameters)
    except BtrainError as error:
        print(f"btrain: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    print(json.dumps(document, indent=2) if options.json else as_text(document))
    if options.write is not None:
        write_section(options.write, "Joining", f"{_HEADER}\n{as_text(document)}")


if __name__ == "__main__":
    main()
