"""From whom Commits come, and handing on to those who do not hear somebody what he says.

A member that misses somebody's Commit while others have it asks three members to hand on to it, at once, all that they
hear from him in this round. With the relays for parts that makes a broken link cost one message delay more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from btrain.protocol.encoding import PeerId
from btrain.protocol.messages import Commit, Message
from btrain.protocol.randomness import permutation

HELPERS = 3


def helpers_of(
    randomness: bytes, me: PeerId, unheard: Iterable[PeerId], present: Iterable[PeerId]
) -> tuple[PeerId, ...]:
    """Who is asked to hand on to `me`."""
    others = set(present) - set(unheard) - {me}
    return permutation(randomness, f"hand on/{me.hex()}", others)[:HELPERS]


@dataclass
class Hearing:
    """The Commits of one round at one member: which came from their signers."""

    first_hand: set[PeerId] = field(default_factory=set)

    def heard(self, message: Message, deliverer: PeerId) -> None:
        """A statement has come, from its signer or handed on."""
        if isinstance(message.body, Commit) and deliverer == message.sender:
            self.first_hand.add(deliverer)

    def unheard(self, peers: Iterable[PeerId]) -> frozenset[PeerId]:
        """Those of the peers whose Commit did not come from themselves."""
        return frozenset(peers) - self.first_hand


@dataclass
class Listeners:
    """Who has asked this member to hand on what others say, in one round."""

    _wanted: dict[PeerId, set[PeerId]] = field(default_factory=dict)  # speaker -> who does not hear it
    _asked: dict[PeerId, set[PeerId]] = field(default_factory=dict)  # asker -> speakers

    def ask(self, asker: PeerId, speakers: Iterable[PeerId], speakers_max: int) -> set[PeerId]:
        """Note a request; returns the speakers that are new in it, within the bound for one asker."""
        known = self._asked.setdefault(asker, set())
        fresh = [peer for peer in dict.fromkeys(speakers) if peer not in known and peer != asker]
        fresh = fresh[: speakers_max - len(known)]
        known |= set(fresh)
        for speaker in fresh:
            self._wanted.setdefault(speaker, set()).add(asker)
        return set(fresh)

    def of(self, speaker: PeerId) -> list[PeerId]:
        """Who wants to be told what `speaker` says."""
        return sorted(self._wanted.get(speaker, ()))
