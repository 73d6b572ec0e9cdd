"""Named timers on the peer's clock."""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

from btrain.peer.clock import PeerClock


class Timers:
    """Calls back for every timer that is due; `run` is a task of the caller's nursery."""

    def __init__(self, clock: PeerClock, ring: Callable[[str], None]) -> None:
        self._clock, self._ring = clock, ring
        self._due: dict[str, int] = {}
        self._changed = trio.Event()
        self._wakes_us: float = math.inf  # when `run` looks again

    def set(self, name: str, at_us: int) -> None:
        """Set a timer, in place of one of the same name."""
        self._due[name] = at_us
        if at_us < self._wakes_us:
            self._changed.set()

    def cancel(self, name: str) -> None:
        """Forget a timer."""
        self._due.pop(name, None)

    async def run(self) -> None:
        """Until cancelled. Whatever has arrived from the network is handled before a timer that is due."""
        while True:
            self._changed = trio.Event()
            self._wakes_us = min(self._due.values(), default=math.inf)
            with trio.move_on_after(max(0.0, self._wakes_us - self._clock.now()) / 1e6):
                await self._changed.wait()
            now = self._clock.now()
            for name in sorted((n for n, at in self._due.items() if at <= now), key=lambda n: (self._due[n], n)):
                if self._due.get(name, now + 1) <= now:  # not cancelled or moved by one that rang before
                    del self._due[name]
                    self._ring(name)
