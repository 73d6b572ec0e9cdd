"""A real peer in a process of its own, forked from a server that has everything loaded; and how to kill it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from btrain.config import loads
from btrain.errors import BtrainError
from btrain.identity import peer_id_bytes
from btrain.peer import PeerOptions, run_peer
from btrain.peer.executor import Executor
from btrain.peer.learning import Learning
from btrain.peer.shell import Shell
from btrain.protocol.effects import Effect, Send
from btrain.protocol.encoding import decode
from btrain.protocol.messages import ENVELOPE_BYTES_MAX, Envelope, Statement
from btrain.protocol.packets import Envelopes, decode_packet


def run(
    channel: Connection,
    text: str,
    options: dict[str, Any],
    die: tuple[str, int, bool] | None,
    apart: tuple[str, ...] = (),
    nudge: int | None = None,
) -> None:
    """Run a peer. Events go through the channel; `die` = (kind, round, after): SIGKILL before or after its first own
    statement of the kind leaves in that round or a later one. apart: peers that it cannot reach, nor they it. nudge:
    the round at whose start the last bits of some of its parameters change."""
    os.setpgid(0, 0)
    sys.stdin.close()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    log = os.open(Path(options["run_dir"]).with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    sending = threading.Lock()

    def tell(event: dict[str, Any]) -> None:
        with sending, contextlib.suppress(OSError):
            channel.send(event)

    if die is not None:
        _die_when_sending(*die)
    _keep_apart(apart)
    if nudge is not None:
        _nudge_at(nudge)
    try:
        code = run_peer(loads(text), PeerOptions(**options), tell)
    except BtrainError as error:
        tell({"event": "error", "name": type(error).__name__, "text": str(error)})
        code = error.exit_code
    left = [t.name for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon]
    tell({"event": "ended", "threads": left})
    sys.exit(code)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _keep_apart(peers: tuple[str, ...]) -> None:
    begin = Shell._begin

    def beginning(self: Shell) -> None:
        for peer in peers:
            self._network.block(peer_id_bytes(peer), "the network is broken in two")
        begin(self)

    Shell._begin = beginning  # type: ignore[method-assign]


def _nudge_at(round: int) -> None:
    at = Learning.at

    def nudged(self: Learning, reached: int, **options: Any) -> None:
        if reached == round and self.x_round < round:
            with torch.no_grad():
                values = next(self.trainer.model.parameters()).view(-1)[:64]
                values.copy_(torch.nextafter(values, torch.full_like(values, torch.inf)))
        at(self, reached, **options)

    Learning.at = nudged  # type: ignore[method-assign]


def _die_when_sending(kind: str, round: int, after: bool) -> None:
    execute = Executor._execute

    def executing(self: Executor, effect: Effect) -> None:
        hit = isinstance(effect, Send) and any(s.kind == kind and s.round >= round for s in _own(self, effect))
        if hit and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        execute(self, effect)
        if hit:
            threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGKILL)).start()  # what was queued may leave

    Executor._execute = executing  # type: ignore[method-assign]


def _own(executor: Executor, effect: Send) -> list[Statement]:
    packet = decode_packet(effect.packet)
    if not isinstance(packet, Envelopes):
        return []
    opened = [decode(Envelope, data, ENVELOPE_BYTES_MAX).statement for data in packet.envelopes]
    statements = [decode(Statement, data, ENVELOPE_BYTES_MAX) for data in opened]
    member = executor._listener.member
    return [s for s in statements if member is not None and s.sender == member.me]
