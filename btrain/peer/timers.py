"""Named timers on trio's clock."""

from __future__ import annotations

from collections.abc import Callable

import trio


def now_us() -> int:
    """Microseconds of the monotonic clock; it goes on while the process is stopped."""
    return int(trio.current_time() * 1e6)


class Timers:
    """Calls back for every timer that is due; `run` is a task of the caller's nursery."""

    def __init__(self, ring: Callable[[str], None]) -> None:
        self._ring = ring
        self._due: dict[str, int] = {}
        self._changed = trio.Event()

    def set(self, name: str, at_us: int) -> None:
        """Set a timer, in place of one of the same name."""
        self._due[name] = at_us
        self._changed.set()

    def cancel(self, name: str) -> None:
        """Forget a timer."""
        self._due.pop(name, None)

    def clear(self, prefix: str) -> None:
        """Forget all timers whose name begins so."""
        self._due = {name: at for name, at in self._due.items() if not name.startswith(prefix)}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._changed = trio.Event()
            first = min(self._due.values(), default=None)
            if first is None:
                await self._changed.wait()
                continue
            with trio.move_on_after(max(0.0, (first - now_us()) / 1e6)):
                await self._changed.wait()
            now = now_us()
            for name in sorted((n for n, at in self._due.items() if at <= now), key=lambda n: (self._due[n], n)):
                if self._due.pop(name, None) is not None:
                    self._ring(name)
