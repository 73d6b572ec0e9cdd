"""What an agreement is about to do: effects in order, timers that are set, slots given out for signing.

Timers are set and cancelled at the head of a step's effects, each at most once: a message that the owner gives back
while it still executes the step that had it signed may move a timer, and nothing older may come after that.
"""

from __future__ import annotations

from btrain.protocol.agreement_interface import CancelTimer, Effect, Persist, SetTimer, Sign
from btrain.protocol.agreement_messages import Final, ItemKey, Payload


class Outbox:
    """Collects the effects of a step; `now` is the time of the step in microseconds."""

    def __init__(self) -> None:
        self.now = 0
        self.dirty = False  # the state must be stored before the effects take place
        self._effects: list[Effect] = []
        self._due: dict[str, int] = {}
        self._told: dict[str, int] = {}  # the timers as the owner knows them
        self._given_out: set[tuple[type, int]] = set()
        self._pushed: set[ItemKey] = set()

    def emit(self, effect: Effect) -> None:
        """Add an effect after those already there."""
        self._effects.append(effect)

    def take(self, snapshot: bytes | None) -> list[Effect]:
        """The effects so far, behind a Persist where one is needed."""
        effects: list[Effect] = [] if snapshot is None else [Persist(snapshot)]
        if self._told != self._due:
            effects += self._timer_changes()
        effects += self._effects
        self._effects = []
        self.dirty = False
        return effects

    def _timer_changes(self) -> list[Effect]:
        effects: list[Effect] = [CancelTimer(name) for name in self._told if name not in self._due]
        effects += [SetTimer(name, at_us) for name, at_us in self._due.items() if self._told.get(name) != at_us]
        self._told = dict(self._due)
        return effects

    def sign(self, payload: Payload) -> None:
        """Have the payload signed, once for its slot."""
        slot = (type(payload), 0 if isinstance(payload, Final) else payload.attempt)
        if slot not in self._given_out:
            self._given_out.add(slot)
            self.emit(Sign(payload))

    def gave_out(self, kind: type, attempt: int) -> bool:
        """Whether a payload of this kind and attempt was given out for signing."""
        return (kind, attempt) in self._given_out

    def unpushed(self, keys: set[ItemKey]) -> tuple[ItemKey, ...]:
        """Those of the keys whose bodies were not yet pushed to everybody; from now on they count as pushed."""
        fresh = keys - self._pushed
        self._pushed |= fresh
        return tuple(sorted(fresh))

    def set_timer(self, name: str, delay_us: int) -> None:
        """Set a timer, in place of one of that name."""
        self._due[name] = self.now + delay_us

    def due(self, name: str) -> int | None:
        """When a timer rings, None if it is not set."""
        return self._due.get(name)

    def ring(self, name: str) -> bool:
        """Whether the timer is set and due; it is set no longer."""
        self._told.pop(name, None)
        due = self._due.get(name)
        if due is None or self.now < due:
            return False
        del self._due[name]
        return True

    def cancel(self, *names: str) -> None:
        """Cancel those timers that are set; all if none is named."""
        for name in names or tuple(self._due):
            self._due.pop(name, None)
