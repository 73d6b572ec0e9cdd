"""What a member knows of one decision: all that survives a restart, and how votes and certificates are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from btrain.protocol.agreement_interface import Rules
from btrain.protocol.agreement_messages import Certificate, Items, Proposal, item_pairs
from btrain.protocol.encoding import PeerId

ATTEMPTS_AHEAD_MAX = 32  # messages of attempts farther ahead are dropped: Quits lead there, and bring them again
NONE = -1  # rank of no certificate


class Suggestion(msgspec.Struct, array_like=True, frozen=True):
    """A proposal, the digest of its value and its signed bytes."""

    digest: bytes
    proposal: Proposal
    envelope: bytes


class State(msgspec.Struct, array_like=True):
    """One member's knowledge. Every table is bounded by seats x (ATTEMPTS_AHEAD_MAX + 2), Finals by seats x seats."""

    attempt: int = 0
    left: bool = False  # `attempt` is left, the next one not yet entered
    quit: int = NONE  # the latest attempt this member wished to leave
    lock: int = NONE  # rank of the lock frozen at the entry of `attempt`
    highest: Certificate | None = None
    held: dict[str, bytes] = msgspec.field(default_factory=dict)
    frozen: dict[str, bytes] = msgspec.field(default_factory=dict)
    equivocated: list[str] = msgspec.field(default_factory=list)
    quits: dict[PeerId, tuple[int, bytes]] = msgspec.field(default_factory=dict)  # each sender's latest
    first_finals: dict[PeerId, bytes] = msgspec.field(default_factory=dict)  # each sender's first digest
    finals: dict[bytes, dict[PeerId, bytes]] = msgspec.field(default_factory=dict)  # for these digests, of all senders
    votes: dict[int, dict[PeerId, tuple[bytes, bytes]]] = msgspec.field(default_factory=dict)
    proposals: dict[int, list[Suggestion]] = msgspec.field(default_factory=dict)  # two an attempt
    values: dict[PeerId, tuple[bytes, dict[str, bytes]]] = msgspec.field(default_factory=dict)  # each sender's latest
    final: bytes | None = None  # the digest this member signs, or signed, Final for
    decided: dict[str, bytes] | None = None

    @property
    def rank(self) -> int:
        """Rank of the highest certificate held with its items."""
        return NONE if self.highest is None else self.highest.attempt

    def in_window(self, attempt: int) -> bool:
        """Whether messages of an attempt are of interest and within the bound on memory."""
        return self.attempt <= attempt <= self.attempt + ATTEMPTS_AHEAD_MAX

    def prune(self) -> None:
        """Forget votes and proposals of attempts before the current one."""
        for table in (self.votes, self.proposals):
            for attempt in [known for known in table if known < self.attempt]:
                del table[attempt]

    def take_final(self, sender: PeerId, digest: bytes, envelope: bytes) -> None:
        """Keep a sender's first Final, and a later one for a digest that is the first of somebody.

        The second Final of a liar must count, or Finals that decide for one member would not for the next, to which the
        liar gave another one before. An honest Final is a first one, so whatever can be decided is counted.
        """
        if self.first_finals.setdefault(sender, digest) == digest or digest in self.finals:
            self.finals.setdefault(digest, {}).setdefault(sender, envelope)

    def finals_for(self, digest: bytes) -> list[bytes]:
        """Finals for a digest, in member order, behind those that are their sender's first."""
        senders = self.finals.get(digest, {})
        return [senders[sender] for sender in sorted(senders, key=lambda s: (self.first_finals[s] != digest, s))]

    def freeze(self) -> None:
        """From now on a proposal without certificate must list what is held now."""
        self.frozen = dict(self.held)

    def drop_item(self, key: str) -> None:
        """Two bodies of this item are known: it counts as never sent."""
        if key not in self.equivocated:
            self.equivocated.append(key)
        self.held.pop(key, None)
        self.frozen.pop(key, None)


def most(digests: Iterable[bytes], enough: int) -> bytes | None:
    """The digest that occurs at least `enough` times."""
    for digest, count in Counter(digests).items():
        if count >= enough:
            return digest
    return None


def valid_certificate(certificate: Certificate, seats: Sequence[PeerId], enough: int, rules: Rules) -> bool:
    """Whether it holds `enough` votes of distinct seats for its attempt and value, in canonical form."""
    items = dict(certificate.items)
    if certificate.items != item_pairs(items) or len(certificate.votes) > len(seats):
        return False
    digest = rules.digest(items)
    voters = set()
    for envelope in certificate.votes:
        verified = rules.verify_vote(envelope)
        if verified is None:
            return False
        sender, vote = verified
        if sender not in seats or (vote.attempt, vote.digest) != (certificate.attempt, digest):
            return False
        voters.add(sender)
    return len(voters) >= enough


def certificate_of(attempt: int, items: Items, votes: Iterable[bytes]) -> Certificate:
    """A certificate in canonical form."""
    return Certificate(attempt, item_pairs(items), tuple(votes))
