"""Starting, watching and ending the peers' processes. Whatever happens, none is left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from btrain.peer.options import PeerOptions

LEAVE_GRACE_S = 10.0
KILL_WAIT_S = 5.0
GROUP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def start_server() -> None:
    """Start the process that the peers are forked from; it loads torch and libp2p while the caller goes on."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(_preload()))
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(_THREADS)  # read when torch is loaded: no thread may exist before a fork
    resource_tracker.ensure_running()  # unblocks signals when it starts, so it must not start below
    # What is sent to the whole process group is not for it: without it nobody could tell how its children ended.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def stop_server() -> None:
    """End the process that peers are forked from, and return when it is gone. No peer may be left.

    By itself it ends only after this process, and not before it has loaded everything.
    """
    server = forkserver._forkserver  # type: ignore[attr-defined, unused-ignore]
    pid = getattr(server, "_forkserver_pid", None)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
        server._stop()  # type: ignore[attr-defined, unused-ignore]


def _preload() -> Sequence[str]:
    from btrain.swarm import child

    return child.PRELOAD


@dataclass
class PeerProcess:
    """One peer's current process, or what is left of the last one."""

    name: str
    process: ForkServerProcess
    channel: Connection
    closed: bool = field(default=False, init=False)

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self.process.exitcode

    def terminate(self) -> None:
        """Ask it to leave in order."""
        if self.exit_code is None:
            self.process.terminate()

    def kill(self) -> None:
        """End it at once."""
        if self.exit_code is None:
            self.process.kill()

    def read(self) -> Iterator[dict[str, Any]]:
        """The events that have come; the end of the channel closes it."""
        try:
            while not self.closed and self.channel.poll():
                yield self.channel.recv()
        except (EOFError, OSError):
            self.close()

    def close(self) -> None:
        """Close the channel."""
        self.closed = True
        self.channel.close()


class Processes:
    """All processes of a swarm by peer name; a context manager that ends every one of them."""

    def __init__(self, config_text: str) -> None:
        self._config_text = config_text
        self._context = multiprocessing.get_context("forkserver")
        self.running: dict[str, PeerProcess] = {}

    def start(self, name: str, options: PeerOptions) -> PeerProcess:
        """Start a peer, or start it again."""
        from btrain.swarm.child import run_child

        receiving, sending = self._context.Pipe(duplex=False)
        process = self._context.Process(target=run_child, args=(sending, self._config_text, options), name=name)
        process.start()
        sending.close()
        self.running[name] = PeerProcess(name, process, receiving)
        return self.running[name]

    def wait(self, timeout_s: float) -> list[tuple[str, dict[str, Any]]]:
        """Events that have come, in order for each peer; returns after `timeout_s` at the latest."""
        channels: dict[Connection, str] = {p.channel: n for n, p in self.running.items() if not p.closed}
        if not channels:
            time.sleep(timeout_s)
            return []
        ready = connection.wait(list(channels), timeout_s)
        return [(name, event) for c, name in channels.items() if c in ready for event in self.running[name].read()]

    def ended(self, name: str) -> bool:
        """Whether the peer's process is gone and all of its events were read."""
        peer = self.running[name]
        return peer.closed and peer.exit_code is not None

    def alive(self) -> list[PeerProcess]:
        """Processes that have not ended."""
        return [peer for peer in self.running.values() if peer.exit_code is None]

    def terminate(self) -> None:
        """Ask all to leave in order."""
        for peer in self.alive():
            peer.terminate()

    def kill(self) -> None:
        """End all at once, and return when they are gone."""
        for peer in self.alive():
            peer.kill()
        for peer in self.running.values():
            peer.process.join(KILL_WAIT_S)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *error: object) -> None:
        with _undisturbed():
            self.kill()
            for peer in self.running.values():
                peer.close()
                if peer.exit_code is not None:
                    peer.process.close()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No signal interrupts what follows."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def last_words(log: Path, lines: int = 3) -> str:
    """The end of a peer's log, for the report of its death."""
    try:
        words = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return "\n".join(words[-lines:])
