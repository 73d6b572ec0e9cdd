"""What a process holds while it runs, read from /proc, and what a run directory holds when nobody runs in it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from btrain.identity import LockBusy, ProcessLock

LOCKS = ("lock", "identity.key.lock")
MIB = 1024 * 1024


@dataclass(frozen=True)
class Footprint:
    """At one moment: open file descriptors, those of them that are sockets, threads, resident memory."""

    descriptors: int
    sockets: int
    threads: int
    resident_bytes: int


def footprint(pid: int) -> Footprint | None:
    """Of a process of this user; None if it is gone, or where there is no /proc."""
    folder = Path("/proc") / str(pid)
    try:
        targets = [_target(link) for link in (folder / "fd").iterdir()]
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        resident = 1024 * int(status["VmRSS"].split()[0])
        threads = int(status["Threads"])
    except (OSError, KeyError):  # a process that is ending has no memory
        return None
    return Footprint(len(targets), sum(target.startswith("socket:") for target in targets), threads, resident)


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except FileNotFoundError:  # closed meanwhile
        return ""


def members_of(group: int) -> list[int]:
    """Processes that are alive in a process group."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def left_behind(run_dir: Path) -> list[str]:
    """What a peer that has ended in order must not leave: unfinished files and checkpoints, locks that are held."""
    unfinished = [
        f"{Path(folder) / name} was never finished"
        for folder, folders, names in os.walk(run_dir)
        for name in (*folders, *names)
        if name.startswith(".")
    ]
    return unfinished + [f"{run_dir / name} is still locked" for name in LOCKS if _is_locked(run_dir / name)]


def _is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        ProcessLock.acquire(path).close()
    except LockBusy:
        return True
    return False
