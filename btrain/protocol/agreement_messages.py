"""What the members of one decision sign, and the certificate that some of it carries.

A value is a set of items, key -> 32 bytes (SHA-256 of the item's body); on the wire the pairs in the order of the keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeAlias
from typing import Final as Constant

import msgspec

from btrain.protocol.encoding import MEMBERS_MAX, U16, ZERO, Hash, Record

KEY_CHARS_MAX = 160
ITEMS_MAX = 4 * MEMBERS_MAX
VOTE_BYTES_MAX = 1024  # a signed vote

ItemKey: TypeAlias = str
Items: TypeAlias = Mapping[ItemKey, bytes]
ItemPairs = Annotated[
    tuple[tuple[Annotated[str, msgspec.Meta(max_length=KEY_CHARS_MAX)], Hash], ...], msgspec.Meta(max_length=ITEMS_MAX)
]
VoteEnvelope = Annotated[bytes, msgspec.Meta(max_length=VOTE_BYTES_MAX)]

VOID: Constant[Items] = {"void": ZERO}


def item_pairs(items: Items) -> tuple[tuple[ItemKey, bytes], ...]:
    """The canonical order of a value's items."""
    return tuple(sorted(items.items()))


class Certificate(Record, frozen=True):
    """Signed votes of one attempt for one value: enough of them to lock it, never enough to prove it decided."""

    attempt: U16
    items: ItemPairs
    votes: Annotated[tuple[VoteEnvelope, ...], msgspec.Meta(max_length=MEMBERS_MAX)]


class Vote(Record, frozen=True):
    """'In this attempt I am for the value of this digest.' At most one an attempt."""

    attempt: U16
    digest: Hash


class Quit(Record, frozen=True):
    """'I wish to leave this attempt', with the highest certificate the sender holds."""

    attempt: U16
    certificate: Certificate | None


class Lock(Record, frozen=True):
    """'I have entered this attempt, and this is my lock': the highest certificate at the entry."""

    attempt: U16
    certificate: Certificate | None


class Proposal(Record, frozen=True):
    """The attempt's proposer names a value, certified in an earlier attempt or not."""

    attempt: U16
    items: ItemPairs
    certificate: Certificate | None


class Final(Record, frozen=True):
    """'For me the value of this digest is decided.' One a decision."""

    digest: Hash


Payload: TypeAlias = Vote | Quit | Lock | Proposal | Final
