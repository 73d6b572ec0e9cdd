"""The signing desk of one peer: one statement per slot, and the effects in the order in which they must happen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

import msgspec

from btrain.identity import SigningKey
from btrain.protocol.agreement_messages import Final, Lock, Proposal, Quit, Vote
from btrain.protocol.effects import Effect, Event, PersistSigned, Send
from btrain.protocol.encoding import ZERO, PeerId, encode
from btrain.protocol.errors import ForeignMessage
from btrain.protocol.forks import FORK_ROUNDS_MAX
from btrain.protocol.messages import (
    Accusation,
    Approval,
    Charge,
    Commit,
    Dispute,
    GenesisSignature,
    Join,
    Kind,
    Leave,
    Message,
    Missing,
    Objection,
    Receipt,
    Result,
    Reveal,
    Statement,
    Table,
    Trial,
    Verifier,
    sign,
    slot_key,
)  # fmt: skip
from btrain.protocol.packets import AnyPacket, Envelopes, encode_packet

KINDS: dict[type[msgspec.Struct], Kind] = {
    Commit: "commit", Missing: "missing", Receipt: "receipt", Result: "result", Reveal: "reveal",
    Vote: "vote", Quit: "quit", Lock: "lock", Proposal: "proposal", Final: "final",
    Accusation: "accusation", Charge: "charge", Join: "join", Leave: "leave", GenesisSignature: "genesis",
    Table: "table", Dispute: "dispute", Approval: "approval",
    Trial: "trial", Objection: "objection",
}  # fmt: skip


SLOTS_MAX = 4096  # slots of one signer in the open rounds; more than all attempts of all decisions have

Notice = Literal["new", "known", "second", "ignored"]


@dataclass
class _Record:
    """What one signer has signed in the open rounds."""

    slots: dict[bytes, Message] = field(default_factory=dict)
    seconds: dict[bytes, Message] = field(default_factory=dict)  # another statement for the same slot

    def forget(self, before_round: int) -> None:
        for slot in [slot for slot, m in self.slots.items() if m.statement.round < before_round]:
            del self.slots[slot]
            self.seconds.pop(slot, None)


@dataclass
class Desk:
    """Signs for `key` in `run` and collects effects. `signed` holds every envelope of the rounds still open."""

    key: SigningKey
    run: bytes
    verifier: Verifier
    group: int = 0
    signed: dict[bytes, Message] = field(default_factory=dict)
    effects: list[Effect] = field(default_factory=list)
    conflicts: list[tuple[Message, Message]] = field(default_factory=list)
    # (round, prev, index) -> digests that ballots of attempt 0 name: bounded as the ballots are
    _ballots: dict[tuple[int, bytes, int], set[bytes]] = field(default_factory=dict)
    _seen: dict[PeerId, _Record] = field(default_factory=dict)  # bounded: only members' and trainees' are noticed
    _over: dict[int, dict[bytes, bytes]] = field(default_factory=dict)  # round -> slot -> what was signed in it

    @property
    def me(self) -> PeerId:
        """This peer."""
        return self.key.public_key

    def emit(self, *effects: Effect) -> None:
        """Add effects after those already there."""
        self.effects.extend(effects)

    def take(self) -> list[Effect]:
        """The effects so far, in order."""
        taken, self.effects = self.effects, []
        return taken

    def event(self, name: str, **fields: object) -> None:
        """Log something."""
        self.emit(Event(name, dict(fields)))

    def statement(
        self, body: msgspec.Struct, *, prev: bytes, round: int, attempt: int = 0, index: int = 0, ctx: bytes = ZERO
    ) -> Statement:
        """The statement that would be signed."""
        kind = KINDS[type(body)]
        return Statement(1, self.run, self.group, prev, round, attempt, kind, index, self.me, ctx, encode(body))

    def sign(self, statement: Statement) -> Message:
        """Sign a statement, or give what was signed in its slot before: a slot is signed once, also over restarts."""
        slot = slot_key(statement)
        known = self.signed.get(slot)
        if known is not None:
            return known
        message = sign(self.key, statement)
        self.signed[slot] = message
        self.emit(PersistSigned(slot, statement.round, message.data))
        return message

    def signed_before(self, statement: Statement) -> Message | None:
        """What was signed in the statement's slot, if anything."""
        return self.signed.get(slot_key(statement))

    def send(self, packet: AnyPacket, to: PeerId | None = None) -> None:
        """Send a packet to one peer, or to all connected members."""
        self.emit(Send(encode_packet(packet), to))

    def broadcast(self, *messages: Message) -> None:
        """Send signed statements to all connected members."""
        self.send(Envelopes(tuple(message.data for message in messages)))

    def notice(self, message: Message) -> Notice:
        """Compare with what is known of the slot; a second statement is set aside as a conflict, any further ignored.

        The caller has seen to it that a signer has few slots; what is beyond the bound is not compared.
        """
        record = self._seen.get(message.sender)
        if record is None:
            record = self._seen[message.sender] = _Record()
        known = record.slots.get(message.slot)
        if known is message or (known is not None and known.statement == message.statement):
            return "known"
        if known is None:
            if len(record.slots) < SLOTS_MAX:
                record.slots[message.slot] = message
                self._count(message)
            return "new"
        first = record.seconds.setdefault(message.slot, message)
        if first is message:
            self.conflicts.append((known, message))
        return "second" if first.statement == message.statement else "ignored"

    def equivocated(self, message: Message) -> bool:
        """Whether another statement for the slot is known."""
        record = self._seen.get(message.sender)
        return record is not None and message.slot in record.seconds

    def _count(self, message: Message) -> None:
        s, body = message.statement, message.body
        if isinstance(body, (Vote, Final)) and s.attempt == 0:
            self._ballots.setdefault((s.round, s.prev, s.index), set()).add(body.digest)

    def dissent(self, prev: bytes, index: int, digest: bytes) -> list[bytes]:
        """Votes of attempt 0 and Finals of a decision for anything but `digest`."""
        if all(b <= {digest} for (_, p, i), b in self._ballots.items() if (p, i) == (prev, index)):
            return []  # as good as always
        return [
            message.data
            for message in self.noticed()
            if isinstance(message.body, (Vote, Final))
            and message.body.digest != digest
            and (message.statement.prev, message.statement.index) == (prev, index)
            and message.statement.attempt == 0
        ]

    def noticed(self) -> Iterator[Message]:
        """The statements of the open rounds that were compared, one for each slot."""
        return chain.from_iterable(record.slots.values() for record in self._seen.values())

    def restore(self, envelopes: Mapping[bytes, bytes]) -> None:
        """Take back what was signed before a restart; a Join that founded the run belongs to none and stays out."""
        for slot, data in envelopes.items():
            try:
                self.signed[slot] = self.verifier.open(data, self.run, self.group)
            except ForeignMessage:
                continue

    def undo(self, round: int) -> None:
        """Rounds from `round` on come again: some slots of theirs may have been signed in, and none is signed anew."""
        for at in [at for at in self._over if at >= round]:
            self.restore(self._over.pop(at))

    def forget(self, before_round: int) -> None:
        """Drop what was signed in rounds that are over; the own envelopes stay as long as a fork can be healed."""
        for slot in [slot for slot, m in self.signed.items() if m.statement.round < before_round]:
            message = self.signed.pop(slot)
            self._over.setdefault(message.statement.round, {})[slot] = message.data
        self._over = {at: own for at, own in self._over.items() if at >= before_round - FORK_ROUNDS_MAX}
        for record in self._seen.values():
            record.forget(before_round)
        self._seen = {peer: record for peer, record in self._seen.items() if record.slots}
        self._ballots = {of: digests for of, digests in self._ballots.items() if of[0] >= before_round}
