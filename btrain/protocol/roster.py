"""Who holds a seat: a pure function of the genesis and the blocks."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

from btrain.protocol.encoding import PeerId
from btrain.protocol.quorum import byzantine_limit, fast_quorum, quorum, validators_max
from btrain.protocol.randomness import on_chain

STRIKES_MAX = 10


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
class Roster:
    """The seats of a group in member order, as the block of one round leaves them."""

    seats: tuple[Seat, ...]
    byzantine_max: int
    audits_per_round: float
    banned: frozenset[PeerId] = field(default_factory=frozenset)

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
        admissions: dict[PeerId, bytes],
        barred: Collection[PeerId] = (),
    ) -> Roster:
        """The roster that holds from `round` + 1 on. A returning member keeps its chain, a new one brings its end."""
        absent, gone = set(absences), set(bans) | set(departures)
        seats = []
        for seat in self.seats:
            if seat.peer in gone:
                continue
            if seat.peer in links:
                seat = replace(seat, link=links[seat.peer], link_round=round)
            if seat.peer in absent and not seat.absent:
                strikes = min(seat.strikes + 1, STRIKES_MAX)
                seat = replace(seat, absent=True, strikes=strikes, returns_at=round + 2**strikes)
            elif seat.peer in admissions and seat.absent:
                seat = replace(seat, absent=False, present_since=round + 1)
            if seat.peer in barred:
                seat = replace(seat, barred=True)
            seats.append(seat)
        held = {seat.peer for seat in seats}
        banned = self.banned | set(bans)
        seats += [
            Seat(peer, end, -1, present_since=round + 1)
            for peer, end in admissions.items()
            if peer not in held and peer not in banned
        ]
        return replace(self, seats=tuple(sorted(seats, key=lambda seat: seat.peer)), banned=banned)
