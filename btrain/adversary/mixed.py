"""One attacker that does several things: every part in the rounds of its own attack, in the order given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from btrain.adversary.adversary import Adversary
from btrain.protocol.behaviour import Behaviour, Replay
from btrain.protocol.messages import Message
from btrain.protocol.reduction import ReducedPart

if TYPE_CHECKING:
    from btrain.protocol.desk import Desk
    from btrain.protocol.effects import Effect
    from btrain.protocol.round import Round


def steps() -> list[str]:
    """The steps of a peer that an adversary can override."""
    return [name for name, step in vars(Behaviour).items() if callable(step) and not name.startswith("_")]


class Mixed(Adversary):
    """Every part changes what the one before it has made; decisions are those of the first part that makes them."""

    def __init__(self, parts: Sequence[Adversary]) -> None:
        first = min(part.attack_from for part in parts)
        super().__init__(coalition=parts[0].coalition, seed=parts[0].seed, attack_from=first)
        self.name = "+".join(part.name for part in parts)
        self.parts_of_it = tuple(parts)
        self.outcome = next((part.outcome for part in parts if part.outcome == "banned"), parts[0].outcome)  # type: ignore[misc]
        for step in steps():
            if step not in vars(Mixed):
                own = (part for part in parts if getattr(type(part), step) is not getattr(Adversary, step))
                setattr(self, step, getattr(next(own, parts[0]), step))

    def attacks(self, round: int) -> bool:
        """Whether this round is one of any part's attack."""
        return any(part.attacks(round) for part in self.parts_of_it)

    def gradient(self, own: Tensor, round: Round, replay: Replay) -> Tensor:
        """The gradient to commit to, float32 [d]."""
        for part in self.parts_of_it:
            own = part.gradient(own, round, replay)
        return own

    def parts(self, parts: list[bytes], round: Round) -> list[bytes]:
        """The encoded parts to commit to."""
        for part in self.parts_of_it:
            parts = part.parts(parts, round)
        return parts

    def reduced(self, reduced: ReducedPart, part: int, round: Round) -> ReducedPart:
        """The reduction to publish."""
        for adversary in self.parts_of_it:
            reduced = adversary.reduced(reduced, part, round)
        return reduced

    def broadcast(self, desk: Desk, message: Message, round: Round) -> None:
        """Send a statement, as the first part sends it if it hands it on to the second, and so on."""
        self._from(0, desk, message, round)

    def _from(self, place: int, desk: Any, message: Message, round: Round) -> None:
        if place == len(self.parts_of_it):
            desk.broadcast(message)
        else:
            onward = _Onward(desk, lambda passed: self._from(place + 1, desk, passed, round))
            self.parts_of_it[place].broadcast(onward, message, round)  # type: ignore[arg-type]

    def effects(self, effects: list[Effect], round: int, now: int) -> list[Effect]:
        """Last look at everything that leaves the protocol."""
        for part in self.parts_of_it:
            effects = part.effects(effects, round, now)
        return effects


class _Onward:
    """A desk whose broadcasts go to the next part."""

    def __init__(self, desk: Desk, broadcast: Any) -> None:
        self._desk, self.broadcast = desk, broadcast

    def __getattr__(self, name: str) -> Any:
        return getattr(self._desk, name)
