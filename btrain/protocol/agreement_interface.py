"""What an agreement needs from its owner, and what it asks its owner to do."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeAlias

import msgspec

from btrain.protocol.agreement_messages import ItemKey, Items, Payload, Vote
from btrain.protocol.encoding import PeerId
from btrain.protocol.quorum import fast_quorum, quorum


@dataclass(frozen=True)
class Electorate:
    """Who decides: all seats in member order, E (`present`), b (`faulty_max`), and E in the order of proposing."""

    seats: tuple[PeerId, ...]
    present: frozenset[PeerId]
    faulty_max: int
    proposers: tuple[PeerId, ...]

    @cached_property
    def quorum(self) -> int:
        """q: votes that certify in attempt 1 and later, Finals that prove the decision to everybody."""
        return quorum(len(self.seats))

    @cached_property
    def fast_quorum(self) -> int:
        """Votes that certify in attempt 0."""
        return fast_quorum(len(self.seats), self.faulty_max)

    @cached_property
    def leaderless(self) -> bool:
        """Whether attempt 0 can succeed; with fewer present seats than its quorum it is skipped."""
        return len(self.present) >= self.fast_quorum

    def proposer(self, attempt: int) -> PeerId | None:
        """Who proposes in an attempt from 1 on."""
        return self.proposers[(attempt - 1) % len(self.proposers)] if attempt and self.proposers else None


@dataclass(frozen=True)
class Timing:
    """Delta, the deadline of attempt 0 counted from the start, and that of later attempts counted from their entry."""

    delta_us: int
    first_deadline_us: int
    later_deadline_us: int


class Rules(Protocol):
    """What the owner knows about the items, total on anything a peer may send.

    The answers depend only on the arguments and on what the owner holds; it calls `recheck` when that changes.
    """

    def complete(self, held: Items) -> bool:
        """Whether these are the messages of all of E, and the owner may vote for them in attempt 0."""

    def acceptable(self, items: Items, attempt: int) -> bool:
        """Whether every body is held and checked.

        That an item's sender is known to equivocate is no reason to refuse: who learns it at a chosen moment would
        block the attempt.
        """

    def digest(self, items: Items) -> bytes:
        """The 32-byte digest of a value."""

    def void_allowed(self, attempt: int, held: Items) -> bool:
        """Whether deciding nothing may be proposed and voted for; false where a void decision does not exist."""

    def verify_vote(self, envelope: bytes) -> tuple[PeerId, Vote] | None:
        """The sender and content of a signed vote of this decision, None if it is anything else."""


class Sign(msgspec.Struct, frozen=True):
    """Sign the payload in its slot, store, broadcast, and give it back to `receive` as a message of oneself.

    On a slot that is already signed the old bytes are sent and given back instead.
    """

    payload: Payload


class Forward(msgspec.Struct, frozen=True):
    """Hand signed messages on, in this order, to one peer or to everybody."""

    envelopes: tuple[bytes, ...]
    to: PeerId | None = None


class PushBodies(msgspec.Struct, frozen=True):
    """Send the bodies of these items to one peer or to everybody."""

    keys: tuple[ItemKey, ...]
    to: PeerId | None = None


class PushValue(msgspec.Struct, frozen=True):
    """Send this value (unsigned; its digest proves it) to one peer or to everybody, who give it to `value`."""

    items: Items
    to: PeerId | None = None


class NeedValue(msgspec.Struct, frozen=True):
    """Ask these peers for the items behind a digest (their `known_value`), until one answers."""

    digest: bytes
    holders: tuple[PeerId, ...]


class Persist(msgspec.Struct, frozen=True):
    """Store the snapshot durably, and the bodies of all held items, before the effects that follow."""

    snapshot: bytes


class SetTimer(msgspec.Struct, frozen=True):
    """Call `timer(name)` at a time, in place of an earlier call of that name."""

    name: str
    at_us: int


class CancelTimer(msgspec.Struct, frozen=True):
    """Forget a timer."""

    name: str


class Entered(msgspec.Struct, frozen=True):
    """An attempt from 1 on has begun for this member."""

    attempt: int


class Decided(msgspec.Struct, frozen=True):
    """The decision. Bodies of its items may still have to be fetched by their hashes."""

    items: Items


class Certified(msgspec.Struct, frozen=True):
    """q Finals: what the ledger, newcomers and laggards accept."""

    envelopes: tuple[bytes, ...]


Effect: TypeAlias = (
    Sign
    | Forward
    | PushBodies
    | PushValue
    | NeedValue
    | Persist
    | SetTimer
    | CancelTimer
    | Entered
    | Decided
    | Certified
)
