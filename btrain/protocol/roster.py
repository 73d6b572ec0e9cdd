"""Who holds a seat: a pure function of the genesis and the blocks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from btrain.protocol.encoding import PeerId
from btrain.protocol.quorum import byzantine_limit, fast_quorum, quorum, validators_max
from btrain.protocol.randomness import on_chain

STRIKES_MAX = 10
ABSENT_ROUNDS_MAX = 64  # a seat whose holder could return for so long, and did not, is freed if it may be

Anchor = tuple[bytes, int]  # a link of a hash chain, and its round


@dataclass(frozen=True)
class Seat:
    """One seat. An absent member keeps its seat: it counts in n and in the quorum, but nobody waits for it."""

    peer: PeerId
    link: bytes  # last opened link of its hash chain, or the chain's end
    link_round: int  # the round of that link; -1 for the end
    absent: bool = False
    strikes: int = 0
    returns_at: int = 0  # first round in which it may be present again
    present_since: int = 0
    reproaches: tuple[tuple[int, PeerId], ...] = ()  # lately: in the block of which round, by whom
    reliefs: int = 0
    relieved_until: int = 0  # first round in which it may aggregate again
    barred: bool = False  # from validating: it contradicted a quorum's verdict


@dataclass(frozen=True)
class Former:
    """A peer that gave its seat up or lost it. It may have one again, after its strikes."""

    strikes: int
    returns_at: int
    left: int  # round of the block that freed the seat


@dataclass(frozen=True)
class Roster:
    """The seats of a group in member order, as the block of one round leaves them."""

    seats: tuple[Seat, ...]
    byzantine_max: int
    audits_per_round: float
    banned: frozenset[PeerId] = field(default_factory=frozenset)
    former: Mapping[PeerId, Former] = field(default_factory=dict)  # at most one for every seat ever given
    convicted: int = 0  # members that were banned
    newcomers: int = 0  # seats given after the founding

    def seat(self, peer: PeerId) -> Seat | None:
        """The peer's seat, if it holds one."""
        return self._by_peer.get(peer)

    @cached_property
    def _by_peer(self) -> dict[PeerId, Seat]:
        return {seat.peer: seat for seat in self.seats}

    @cached_property
    def members(self) -> tuple[PeerId, ...]:
        """Every seat's peer, in member order."""
        return tuple(seat.peer for seat in self.seats)

    @cached_property
    def present(self) -> tuple[PeerId, ...]:
        """E: members that the others wait for, in member order."""
        return tuple(seat.peer for seat in self.seats if not seat.absent)

    @cached_property
    def faulty_max(self) -> int:
        """b now: the contract's, never more than these seats can carry."""
        n = len(self.seats)
        return min(self.byzantine_max, byzantine_limit(n, validators_max(n, self.audits_per_round)))

    @property
    def faulty_left(self) -> int:
        """Faulty members that may still be among the seats: every ban takes one away, every newcomer may be one."""
        return max(0, min(self.byzantine_max, self.byzantine_max - self.convicted + self.newcomers))

    def spare(self, banned: Collection[PeerId] = (), fresh: int = 0) -> int:
        """How many seats a block may free that bans these and gives so many new seats: those that remain outvote what
        may be faulty among them, validators aside."""
        gone = sum(peer in self._by_peer for peer in banned)
        faulty = replace(self, convicted=self.convicted + gone, newcomers=self.newcomers + fresh).faulty_left
        left = n = len(self.seats) - gone + fresh
        while left > 1 and byzantine_limit(left - 1, validators_max(left - 1, self.audits_per_round)) >= faulty:
            left -= 1
        return n - left

    def overdue(self, round: int) -> tuple[PeerId, ...]:
        """Absent members that could have returned long ago, the longest absent first."""
        gone = (seat for seat in self.seats if seat.absent and round >= seat.returns_at + ABSENT_ROUNDS_MAX)
        return tuple(seat.peer for seat in sorted(gone, key=lambda seat: (seat.returns_at, seat.peer)))

    def lost(self, peer: PeerId) -> int:
        """The round of the block by which the peer last lost its seat or gave it up; -1 if it never did."""
        seat, past = self.seat(peer), self.former.get(peer)
        if seat is not None and seat.returns_at:
            return seat.returns_at - (1 << seat.strikes)
        return past.left if past is not None else -1

    @cached_property
    def quorum(self) -> int:
        """q."""
        return quorum(len(self.seats))

    @cached_property
    def fast_quorum(self) -> int:
        """Votes that are final in attempt 0."""
        return fast_quorum(len(self.seats), self.faulty_max)

    @property
    def losses_left(self) -> int:
        """How many more present members may fail before nothing can be certified."""
        return max(0, len(self.present) - self.quorum)

    def opens(self, peer: PeerId, link: bytes, round: int) -> bool:
        """Whether `link` is the one of `round` on the peer's published chain."""
        seat = self.seat(peer)
        return seat is not None and on_chain(link, round, seat.link, seat.link_round)

    def after(
        self,
        round: int,
        *,
        links: dict[PeerId, bytes],
        absences: Iterable[PeerId],
        bans: Iterable[PeerId],
        departures: Iterable[PeerId],
        admissions: Mapping[PeerId, Anchor],
        barred: Collection[PeerId] = (),
        void: bool = False,
    ) -> Roster:
        """The roster that holds from `round` + 1 on. Who returns or is new publishes where its chain stands.

        void: nothing was decided of the round, and so of nobody that it was silent.
        """
        absent, banned, freed = set(absences), set(bans), set(departures)
        former, seats = dict(self.former), []
        for seat in self.seats:
            if seat.peer in links:
                seat = replace(seat, link=links[seat.peer], link_round=round)
            if seat.peer in absent and not seat.absent:
                strikes = min(seat.strikes + 1, STRIKES_MAX)
                seat = replace(seat, absent=True, strikes=strikes, returns_at=round + 2**strikes)
            elif seat.peer in admissions and seat.absent:
                link, link_round = admissions[seat.peer]
                seat = replace(seat, absent=False, present_since=round + 1, link=link, link_round=link_round)
            if seat.peer in barred:
                seat = replace(seat, barred=True)
            if seat.peer in freed:
                strikes = min(seat.strikes + (not seat.absent), STRIKES_MAX)
                former[seat.peer] = Former(strikes, round + 2**strikes, round)
            if seat.peer not in freed | banned:
                seats.append(seat)
        fresh = admissions.keys() - set(self.members) - self.banned - banned
        for peer in fresh:
            link, link_round = admissions[peer]
            past = former.pop(peer, None)
            seats.append(Seat(peer, link, link_round, strikes=past.strikes if past else 0, present_since=round + 1))
        if void or sum(not seat.absent for seat in seats) < quorum(len(seats)):
            seats = _awaited(seats, round + 1)
        return replace(
            self,
            seats=tuple(sorted(seats, key=lambda seat: seat.peer)),
            banned=self.banned | banned,
            former={peer: past for peer, past in former.items() if peer not in banned},
            convicted=self.convicted + len(banned & set(self.members)),
            newcomers=self.newcomers + len(fresh),
        )


def _awaited(seats: list[Seat], since: int) -> list[Seat]:
    """All are awaited again: where fewer than q are, or those who are there, rounds are void and let nobody back."""
    return [replace(seat, absent=False, present_since=since) if seat.absent else seat for seat in seats]
