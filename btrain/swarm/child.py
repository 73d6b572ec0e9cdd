"""One peer's process: forked from a server that has torch and libp2p loaded, ends with its parent."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from btrain.config import loads
from btrain.errors import BtrainError
from btrain.peer.options import PeerOptions

# torch._dynamo: torch loads it at the first use of an optimizer, which would cost every peer seconds.
PRELOAD = (
    "torch",
    "torch._dynamo",
    "btrain.p2p.network",
    "btrain.training",
    "btrain.adversary",
    "btrain.peer.running",
    "btrain.peer.setting",
    "btrain.peer.shell",
    __name__,
)
ORPHAN_GRACE_S = 5.0
LOG = "peer.log"


def run_child(channel: Connection, config_text: str, options: PeerOptions) -> None:
    """Run a peer until it ends; its events go through the channel, its words into peer.log."""
    os.setpgid(0, 0)  # Ctrl-C in the terminal is for the parent, which then asks its peers to leave
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    assert options.run_dir is not None
    _redirect_output(options.run_dir / LOG)
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    sys.exit(_run(channel, config_text, options))


def _run(channel: Connection, config_text: str, options: PeerOptions) -> int:
    sending = threading.Lock()  # events come from the training loop, the protocol and the evaluation

    def tell(event: dict[str, Any]) -> None:
        with sending, contextlib.suppress(OSError):  # the parent is gone: `_end_with_parent` sees to that
            channel.send(event)

    import torch

    torch.set_num_threads(1)
    from btrain.peer import run_peer

    try:
        return run_peer(loads(config_text, "config.yaml"), options, tell)
    except BtrainError as error:
        tell({"event": "error", "text": str(error)})
        return error.exit_code


def _redirect_output(path: Path) -> None:
    """stdout and stderr of everything in this process to a file: the parent's screen is the parent's."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s", force=True)


def _end_with_parent() -> None:
    """Leave in order when the parent is gone, however it ended, and end for certain a little later."""
    parent = parent_process()
    if parent is None:
        return
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(ORPHAN_GRACE_S)
    os._exit(1)
