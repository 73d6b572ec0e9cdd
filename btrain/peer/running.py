"""`btrain peer`: the plain training loop, from the first look at run.yaml to the last evaluation."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from btrain.config import RunConfig
from btrain.optimizer import Optimizer
from btrain.peer.options import PeerOptions
from btrain.run import Run


def run_peer(config: RunConfig, options: PeerOptions, on_event: Callable[[dict[str, Any]], None]) -> int:
    """Train until the run ends or a signal asks to leave; returns the exit code.

    Raises:
        BtrainError: what is wrong with the configuration, the key, the directory, the network or the run.
    """
    config.require("model", "data", "optimizer")
    run = Run(config, options=options, on_event=on_event)
    with _leaving_on_signals(run), run:
        assert run.default_trainer is not None, "the contract has model, data and optimizer"
        optimizer = Optimizer(run.default_trainer.optimizer, run)
        for turn in run.turns():
            loss = run.compute()
            on_event({"event": "trained", "round": turn.effect.round, "loss": loss})
            optimizer.step()
        run.finish()
    return 0


@contextmanager
def _leaving_on_signals(run: Run) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM, or the end of the terminal) leaves in order, the second stops at once.

    Signals are the main thread's. `nohup` has the end of the terminal ignored, and it stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        run.leave()

    heeded = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        heeded.append(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
