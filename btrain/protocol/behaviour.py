"""What a peer does where it could do otherwise. This class is the honest peer; adversaries override one step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from torch import Tensor

from btrain.protocol.audit import ACCUSED, GradientCheck
from btrain.protocol.encoding import PeerId
from btrain.protocol.messages import Message, Table
from btrain.protocol.pieces import CutState
from btrain.protocol.reduction import ReducedPart

if TYPE_CHECKING:
    from btrain.protocol.desk import Desk
    from btrain.protocol.effects import Effect
    from btrain.protocol.round import Round


class Replay(Protocol):
    """What can be recomputed at the parameters of the round: anybody's gradient."""

    def __call__(self, batch_seed: bytes, *, flip_labels: bool = False) -> Tensor:
        """float32 [d], on the minibatch of this seed."""


class Behaviour:
    """An honest peer."""

    name = "honest"

    def gradient(self, own: Tensor, round: Round, replay: Replay) -> Tensor:
        """The gradient to commit to, float32 [d]; runs off the protocol's thread."""
        return own

    def parts(self, parts: list[bytes], round: Round) -> list[bytes]:
        """The encoded parts to commit to."""
        return parts

    def reduced(self, reduced: ReducedPart, part: int, round: Round) -> ReducedPart:
        """The reduction to publish as aggregator of `part`."""
        return reduced

    def table(self, table: Table, part: int, round: Round) -> Table:
        """The Table to publish as aggregator of `part`."""
        return table

    def approves(self, table: Message, right: bool, round: Round) -> bool:
        """Whether to approve the own row of a Table, or to dispute it."""
        return right

    def broadcast(self, desk: Desk, message: Message, round: Round) -> None:
        """Send a signed statement to all members."""
        desk.broadcast(message)

    def accuses(self, check: GradientCheck, tolerance: float) -> bool:
        """Whether, as a validator, to accuse: above 4 T."""
        return check.outcome == "measured" and check.excess > ACCUSED * tolerance

    def vote(self, check: GradientCheck, tolerance: float) -> Literal[0, 1, 2, 3]:
        """The vote on somebody's accusation: innocent up to T, guilty above 2 T, else unsure or lost."""
        return check.vote(tolerance)

    def charges(self, accused: PeerId, deed: str) -> bool:
        """Whether to charge a member on evidence that proves itself."""
        return True

    def state(self, state: CutState, round: int) -> CutState:
        """The own state at the start of `round`, to list and to keep for others."""
        return state

    def finds_close(self, candidate: bytes, close: bool) -> bool:
        """Whether to list a candidate state as like the own one."""
        return close

    def gives(self, peer: PeerId, hash: bytes, data: bytes | None) -> bytes | None:
        """What to give to a peer that asks for a blob; `data` is what is here."""
        return data

    def effects(self, effects: list[Effect], round: int, now: int) -> list[Effect]:
        """Last look at everything that leaves the protocol."""
        return effects

    def hears(self, sender: PeerId, round: int) -> bool:
        """Whether to take in what `sender` sends."""
        return True
