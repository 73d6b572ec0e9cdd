"""Attacks on the agreement: two statements in one slot, of every kind that has slots, and proposals nobody may want."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from btrain.adversary.adversary import Adversary
from btrain.adversary.sender import others
from btrain.protocol.agreement_messages import Certificate, Final, ItemPairs, Lock, Proposal, Quit, Vote
from btrain.protocol.encoding import ZERO, PeerId, digest, encode
from btrain.protocol.messages import Accusation, Charge, Commit, Message, Missing, Result, Reveal, sign
from btrain.protocol.packets import Envelopes

if TYPE_CHECKING:
    from btrain.protocol.desk import Desk
    from btrain.protocol.round import Round

VOLUNTEERED = ("missing", "accusation", "charge")  # an honest peer seldom has a reason to make one
OF_LATER_ATTEMPTS = ("quit", "lock", "proposal")  # there is one only when attempt 0 has failed
EMPTY = Certificate(0, (), ())


def two_faced(desk: Desk, one: Message, other: msgspec.Struct, round: Round) -> None:
    """Sign another body in the slot of a statement and show one of the two to each half of the members."""
    second = sign(desk.key, msgspec.structs.replace(one.statement, body=encode(other)))
    for position, peer in enumerate(others(round)):
        desk.send(Envelopes(((second if position % 2 else one).data,)), peer)


@dataclass
class Equivocate(Adversary):
    """Signs two statements of one kind for one slot and shows one to each half of the members."""

    name = "equivocate"
    outcome = "banned"
    kind: str = field(
        default="commit",
        metadata={"choices": ("commit", "result", "reveal", "vote", "final", *VOLUNTEERED, *OF_LATER_ATTEMPTS)},
    )

    def broadcast(self, desk: Desk, message: Message, round: Round) -> None:
        """Send a statement, or two."""
        if not self.attacks(round.round):
            desk.broadcast(message)
        elif message.statement.kind == self.kind:
            two_faced(desk, message, self._other(message), round)
        elif not (self.kind in OF_LATER_ATTEMPTS and isinstance(message.body, Vote) and message.body.attempt == 0):
            desk.broadcast(message)
            if isinstance(message.body, Commit) and self.kind in VOLUNTEERED:
                self._volunteer(desk, round)

    def _other(self, message: Message) -> msgspec.Struct:
        """Another body of the same kind."""
        body = message.body
        match body:
            case Commit():
                return msgspec.structs.replace(body, compute_ms=body.compute_ms + 1)
            case Result():
                return msgspec.structs.replace(body, hash=digest(body.hash))
            case Reveal():
                return Reveal(digest(body.link + b"other"))
            case Vote():
                return Vote(body.attempt, digest(body.digest))
            case Final():
                return Final(digest(body.digest))
            case Quit() | Lock():
                return msgspec.structs.replace(body, certificate=None if body.certificate else EMPTY)
            case Proposal():
                return msgspec.structs.replace(body, items=body.items[1:])
        raise AssertionError(self.kind)

    def _volunteer(self, desk: Desk, round: Round) -> None:
        """Two complaints, accusations or charges of the slot that each has once in a round."""
        victims = self.honest_workers(round)[:2]
        if len(victims) < 2:
            return
        bodies = [self._claim(victim, round) for victim in victims]
        prev = round.state.head if self.kind == "missing" else desk.run
        first = desk.sign(desk.statement(bodies[0], prev=prev, round=round.round))
        two_faced(desk, first, bodies[1], round)

    def _claim(self, victim: PeerId, round: Round) -> msgspec.Struct:
        if self.kind == "missing":
            return Missing(round.roles.owned(round.me) or 0, (victim,))
        if self.kind == "accusation":
            return Accusation(victim, max(0, round.round - 1), digest(victim))
        return Charge(victim, round.round, "illegal_encoding", digest(victim))


@dataclass
class DoubleVote(Equivocate):
    """Votes for two values in one attempt."""

    name = "double_vote"
    kind: str = field(default="vote", init=False)


@dataclass
class BadProposal(Adversary):
    """Lets attempt 0 fail for want of its vote, and where it is the proposer proposes what it may not.

    kind: omit (leaves out what an honest member said and everybody holds), void, or two (one for each half).
    """

    name = "bad_proposal"
    kind: str = field(default="omit", metadata={"choices": ("omit", "void", "two")})

    def broadcast(self, desk: Desk, message: Message, round: Round) -> None:
        """Send a statement, but no vote of attempt 0 and no honest proposal."""
        body = message.body
        if not self.attacks(round.round):
            desk.broadcast(message)
        elif isinstance(body, Proposal):
            self._propose(desk, message, body, round)
        elif not (isinstance(body, Vote) and body.attempt == 0):
            desk.broadcast(message)

    def _propose(self, desk: Desk, message: Message, body: Proposal, round: Round) -> None:
        items = (("void", ZERO),) if self.kind == "void" else self._without_one(body.items)
        forged = Proposal(body.attempt, items, None)
        if self.kind == "two":
            two_faced(desk, message, forged, round)
        else:
            desk.broadcast(sign(desk.key, msgspec.structs.replace(message.statement, body=encode(forged))))

    def _without_one(self, items: ItemPairs) -> ItemPairs:
        """All but the first item that names nobody of the coalition."""
        friends = [peer.hex() for peer in self.coalition]
        victim = next((key for key, _ in items if not any(friend in key for friend in friends)), None)
        return tuple(item for item in items if item[0] != victim)
