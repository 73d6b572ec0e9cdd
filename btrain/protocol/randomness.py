"""The public randomness of a run: hash chains, r[t], and everything that is drawn from it.

Every member publishes the end of a hash chain when it gets its seat and opens one link a round, so r[t] is fixed before
it is known and nobody can change it but by losing the seat.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable, Sequence

from btrain.protocol.encoding import PeerId, sha256

SPARE_LINKS = 1024  # rounds beyond the planned ones that a chain covers
PERMUTATIONS_KEPT = 1024  # the latest drawn: a round asks for the same ones again and again
ANCHOR_ROUNDS = 1024  # who gets a seat late publishes the link of the last multiple of it: checking costs few hashes


class HashChain:
    """A member's own chain: link(t) for round t, `end` is published. Derived, so that a restart keeps it.

    Of n links about 2 sqrt(n) are held: every sqrt(n)-th, and those of the segment in use.
    """

    def __init__(self, secret: bytes, salt: bytes, rounds: int) -> None:
        self._length = rounds + SPARE_LINKS
        self._stride = math.isqrt(self._length)
        self._marks: list[bytes] = []
        self._segment: list[bytes] = []  # links from self._first on, in the order of hashing
        self._first = 0
        link = sha256(b"btrain/chain/v1", secret, salt)
        for position in range(self._length):
            if position % self._stride == 0:
                self._marks.append(link)
            link = hashlib.sha256(link).digest()
        self.end = link  # published; it plays the link of round -1

    def link(self, round: int) -> bytes:
        """The link that belongs to `round`; hashing it once gives the link of the round before."""
        position = self._length - 1 - round
        if position < 0:
            raise IndexError(f"the chain ends before round {round}")
        if position == self._length:
            return self.end
        if not self._first <= position < self._first + len(self._segment):
            self._first = position - position % self._stride
            self._segment = [self._marks[position // self._stride]]
            while len(self._segment) < min(self._stride, self._length - self._first):
                self._segment.append(hashlib.sha256(self._segment[-1]).digest())
        return self._segment[position - self._first]

    def anchor(self, round: int) -> tuple[bytes, int]:
        """A link that may be published in `round`, and the round that it belongs to: no later than the last one."""
        at = anchor_round(round)
        return self.link(at), at


def anchor_round(round: int) -> int:
    """The round whose link a peer publishes that asks for a seat in `round`; -1 is a chain's end."""
    return round // ANCHOR_ROUNDS * ANCHOR_ROUNDS - 1


def on_chain(link: bytes, round: int, known: bytes, known_round: int) -> bool:
    """Whether `link` of `round` leads to the link `known` of the earlier `known_round`."""
    for _ in range(round - known_round):
        link = hashlib.sha256(link).digest()
    return round > known_round and link == known


def next_randomness(previous: bytes, round: int, links: Sequence[bytes]) -> bytes:
    """r[t] = H(r[t-1], t, links in member order); without links r[t] = H("void", r[t-1], t)."""
    position = round.to_bytes(8, "little")
    return sha256(b"btrain/r/v1", previous, position, *links) if links else sha256(b"void", previous, position)


def permutation(randomness: bytes, purpose: str, peers: Iterable[PeerId]) -> tuple[PeerId, ...]:
    """A pseudo-random order of the peers, the same for everybody."""
    return _permuted(randomness, purpose, tuple(peers))


@functools.lru_cache(PERMUTATIONS_KEPT)
def _permuted(randomness: bytes, purpose: str, peers: tuple[PeerId, ...]) -> tuple[PeerId, ...]:
    domain = b"btrain/permutation/" + purpose.encode()
    return tuple(sorted(peers, key=lambda peer: (sha256(domain, randomness, peer), peer)))


def batch_seed(run: bytes, randomness: bytes, worker: PeerId, round: int) -> bytes:
    """xi of a worker's minibatch: H("btrain/batch/v1", run, r[t-2], peer id, t)."""
    return sha256(b"btrain/batch/v1", run, randomness, worker, round.to_bytes(8, "little"))


def drawn_count(randomness: bytes, rate: float) -> int:
    """An integer with expectation `rate`: its whole part, and one more with the fraction's probability."""
    whole = int(rate)
    draw = int.from_bytes(sha256(b"btrain/count/v1", randomness)[:8], "little") / 2**64
    return whole + (draw < rate - whole)
