"""The peer's clock: monotonic microseconds that leave out the time in which the process could not run."""

from __future__ import annotations

import trio

TICK_SHARE = 8  # ticks in a Delta
FROZEN_TICKS = 4  # a gap of so many ticks between two looks at the clock is a freeze, not a busy moment


class PeerClock:
    """Time as the protocol sees it. A process that was stopped (SIGSTOP, a suspended laptop) has heard nothing
    meanwhile, so its deadlines must not fall due before it has: on waking, the clock goes on where it was.

    `tick` must be a task of the caller; without it any quiet time would look like a freeze.
    """

    def __init__(self, delta_us: int) -> None:
        self._tick_us = max(10_000, delta_us // TICK_SHARE)
        self._last_us = self._skipped_us = 0
        self._started = False

    @property
    def frozen_us(self) -> int:
        """Time left out so far."""
        return self._skipped_us

    def now(self) -> int:
        """Microseconds; never backwards."""
        raw = int(trio.current_time() * 1e6)
        gap = raw - self._last_us
        if self._started and gap > FROZEN_TICKS * self._tick_us:
            self._skipped_us += gap - self._tick_us
        self._last_us, self._started = raw, True
        return raw - self._skipped_us

    async def tick(self) -> None:
        """Look at the clock at least every tick, until cancelled."""
        while True:
            self.now()
            await trio.sleep(self._tick_us / 1e6)
