"""Attacks on the agreement: two statements in one slot, of every kind that has slots, and proposals nobody may want."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from btrain.adversary.sender import Withholding, others
from btrain.protocol.agreement_messages import Certificate, Final, ItemPairs, Lock, Proposal, Quit, Vote
from btrain.protocol.encoding import ZERO, PeerId, digest, encode
from btrain.protocol.messages import (
    Accusation,
    Approval,
    Charge,
    Commit,
    Dispute,
    Message,
    Missing,
    Result,
    Reveal,
    Statement,
    Table,
    sign,
)
from btrain.protocol.packets import Envelopes

if TYPE_CHECKING:
    from btrain.protocol.desk import Desk
    from btrain.protocol.round import Round

VOLUNTEERED = ("missing", "dispute", "accusation", "charge")  # an honest peer seldom has a reason to make one
OF_LATER_ATTEMPTS = ("quit", "lock", "proposal")  # there is one only when attempt 0 has failed
UNCOMPARED = ("lock", "charge")  # what they say proves itself, so nobody hands them on and no two of them meet
EMPTY = Certificate(0, (), ())


def with_body(message: Message, body: msgspec.Struct) -> Statement:
    """The statement with another body."""
    return msgspec.structs.replace(message.statement, body=encode(body))


@dataclass
class Stalling(Withholding):
    """Base: can keep attempt 0 of a decision from its end: its vote and its certificate to itself."""

    def stalled(self, desk: Desk, message: Message, round: Round) -> Message | None:
        """What to say instead of a statement; None: nothing."""
        body, s = message.body, message.statement
        engine = round.engines[s.index] if isinstance(body, Vote | Lock | Final) else None
        if engine is not None and engine.attempt == 0:
            self.withhold(message)
            return None
        if isinstance(body, Quit | Lock) and body.certificate is not None and body.certificate.attempt == 0:
            self.withhold(message)
            return sign(desk.key, with_body(message, msgspec.structs.replace(body, certificate=None)))
        return message

    def two_faced(self, desk: Desk, one: Message, other: Statement, round: Round) -> None:
        """Sign another statement in the slot of one and show one of the two to each half of the members."""
        halves = others(round)[::2], others(round)[1::2]
        for message, half in zip((one, sign(desk.key, other)), halves, strict=True):
            self.withhold(message, half)
            for peer in half:
                desk.send(Envelopes((message.data,)), peer)


@dataclass
class Equivocate(Stalling):
    """Signs two statements of one kind for one slot and shows one to each half of the members."""

    name = "equivocate"
    kind: str = field(
        default="commit",
        metadata={
            "choices": (
                "commit", "result", "reveal", "table", "approval", "vote", "final", *VOLUNTEERED, *OF_LATER_ATTEMPTS,
            )
        },
    )  # fmt: skip
    _commits: tuple[int, Mapping[PeerId, Message]] = field(default=(-1, {}), init=False, repr=False)

    def __post_init__(self) -> None:
        self.outcome = "bounded" if self.kind in UNCOMPARED else "banned"  # type: ignore[misc]

    def broadcast(self, desk: Desk, message: Message, round: Round) -> None:
        """Send a statement, or two, or none where attempt 0 shall fail."""
        if not self.attacks(round.round):
            desk.broadcast(message)
            return
        said = self.stalled(desk, message, round) if self.kind in OF_LATER_ATTEMPTS else message
        if said is None:
            return
        if said.statement.kind == self.kind and self.kind not in VOLUNTEERED:
            self.two_faced(desk, said, self._other(said), round)
        elif self.kind == "dispute" and isinstance(said.body, Approval):
            self._dispute(desk, round)
        else:
            desk.broadcast(said)
            if isinstance(said.body, Commit) and self.kind in VOLUNTEERED:
                self._volunteer(desk, round)

    def _other(self, message: Message) -> Statement:
        """Another statement of the same slot."""
        body = message.body
        match body:
            case Commit():
                return with_body(message, msgspec.structs.replace(body, compute_ms=body.compute_ms + 1))
            case Result():
                return with_body(message, msgspec.structs.replace(body, hash=digest(body.hash)))
            case Reveal():
                return with_body(message, Reveal(digest(body.link + b"other")))
            case Table():
                return with_body(message, msgspec.structs.replace(body, tau=body.tau + 1.0))
            case Approval():
                return msgspec.structs.replace(message.statement, ctx=digest(message.statement.ctx))
            case Vote():
                return with_body(message, Vote(body.attempt, digest(body.digest)))
            case Final():
                return with_body(message, Final(digest(body.digest)))
            case Quit() | Lock():
                return with_body(message, msgspec.structs.replace(body, certificate=EMPTY))
            case Proposal():
                return with_body(message, msgspec.structs.replace(body, items=body.items[1:], certificate=None))
        raise AssertionError(self.kind)

    def _dispute(self, desk: Desk, round: Round) -> None:
        """A dispute of an honest Table, and in its slot one of a Table that there is not."""
        tables = (m for m in round.statements.bodies.values() if isinstance(m.body, Table))
        table = next((m for m in tables if m.sender not in self.coalition), None)
        if table is not None:
            part, head = table.statement.index, round.state.head
            first = desk.sign(desk.statement(Dispute(), prev=head, round=round.round, index=part, ctx=table.hash))
            self.two_faced(desk, first, msgspec.structs.replace(first.statement, ctx=digest(table.hash)), round)

    def _volunteer(self, desk: Desk, round: Round) -> None:
        """Two complaints, accusations or charges of a slot that this member has in the round."""
        claims = self._claims(round)
        self._commits = round.round, round.statements.commits
        if len(claims) < 2:
            return
        prev = round.state.head if self.kind == "missing" else desk.run
        first = desk.sign(desk.statement(claims[0], prev=prev, round=round.round))
        self.two_faced(desk, first, with_body(first, claims[1]), round)

    def _claims(self, round: Round) -> list[msgspec.Struct]:
        victims = self.honest_workers(round)[:2]
        match self.kind:
            case "missing":
                part = round.roles.owned(round.me)
                return [] if part is None else [Missing(part, (victim,)) for victim in victims]
            case "accusation":
                of, commits = self._commits
                accused = [peer for peer in sorted(commits) if peer not in self.coalition and has_leaves(commits[peer])]
                able = round.me in round.roles.validators and of == round.round - 1
                return [Accusation(peer, of, commits[peer].hash) for peer in accused[:2]] if able else []
            case "charge":
                return [Charge(victim, round.round, "illegal_encoding", digest(victim)) for victim in victims]
        return []


def has_leaves(commit: Message) -> bool:
    """Whether a Commit is to a gradient."""
    return isinstance(commit.body, Commit) and bool(commit.body.leaves)


@dataclass
class DoubleVote(Equivocate):
    """Votes for two values in one attempt."""

    name = "double_vote"
    kind: str = field(default="vote", init=False)


@dataclass
class BadProposal(Stalling):
    """Lets attempt 0 fail for want of its vote, and where it is the proposer proposes what it may not.

    kind: omit (leaves out what an honest member said and everybody holds), void, or two (one for each half).
    """

    name = "bad_proposal"
    kind: str = field(default="omit", metadata={"choices": ("omit", "void", "two")})

    def broadcast(self, desk: Desk, message: Message, round: Round) -> None:
        """Send a statement, but nothing that ends attempt 0 and no honest proposal."""
        body = message.body
        if not self.attacks(round.round):
            desk.broadcast(message)
        elif isinstance(body, Proposal):
            self._propose(desk, message, body, round)
        elif (said := self.stalled(desk, message, round)) is not None:
            desk.broadcast(said)

    def _propose(self, desk: Desk, message: Message, body: Proposal, round: Round) -> None:
        items = (("void", ZERO),) if self.kind == "void" else self._without_one(body.items)
        forged = Proposal(body.attempt, items, None)
        if self.kind == "two":
            self.two_faced(desk, message, with_body(message, forged), round)
        else:
            self.withhold(message)
            desk.broadcast(sign(desk.key, with_body(message, forged)))

    def _without_one(self, items: ItemPairs) -> ItemPairs:
        """All but the first item that names nobody of the coalition."""
        friends = [peer.hex() for peer in self.coalition]
        victim = next((key for key, _ in items if not any(friend in key for friend in friends)), None)
        return tuple(item for item in items if item[0] != victim)
