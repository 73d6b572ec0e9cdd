"""Seats, roles and parts: pure functions of the ledger."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btrain.kernels import BLOCK
from btrain.protocol.encoding import sha256
from btrain.protocol.randomness import HashChain
from btrain.protocol.roles import PartLayout, draw_roles
from btrain.protocol.roster import STRIKES_MAX, Roster, Seat

PEERS = sorted(sha256(bytes([i])) for i in range(16))


def roster(count: int, faulty: int, audits: float = 1.0) -> Roster:
    return Roster(tuple(Seat(peer, bytes(32), -1) for peer in PEERS[:count]), faulty, audits)


def after(before: Roster, round: int = 5, **changes: object) -> Roster:
    nothing: dict[str, object] = {"links": {}, "absences": (), "bans": (), "departures": (), "admissions": {}}
    return before.after(round, **{**nothing, **changes})  # type: ignore[arg-type]


def test_an_absent_member_keeps_its_seat_and_its_vote() -> None:
    seats = after(roster(5, 1), absences=[PEERS[2]])
    assert seats.members == tuple(PEERS[:5])
    assert PEERS[2] not in seats.present
    assert (seats.quorum, seats.losses_left) == (3, 1)


def test_a_round_of_which_nothing_was_decided_leaves_nobody_absent() -> None:
    seats = after(roster(5, 1), absences=[PEERS[2]])
    assert after(seats).present == seats.present
    assert after(seats, void=True).present == tuple(PEERS[:5])


def test_strikes_double_the_wait() -> None:
    seats = roster(5, 1)
    for strikes in range(1, STRIKES_MAX + 3):
        seats = after(seats, absences=[PEERS[2]])
        seat = seats.seat(PEERS[2])
        assert seat is not None
        assert seat.returns_at == 5 + 2 ** min(strikes, STRIKES_MAX)
        assert after(seats, absences=[PEERS[2]]).seat(PEERS[2]) == seat  # absent already: no further strike
        seats = after(seats, admissions={PEERS[2]: (bytes(32), -1)})
        assert PEERS[2] in seats.present


def test_a_ban_is_for_ever_and_a_departure_is_not() -> None:
    seats = after(roster(5, 1), bans=[PEERS[0]], departures=[PEERS[1]])
    assert seats.members == tuple(PEERS[2:5])
    again = after(seats, admissions={PEERS[0]: (bytes(32), -1), PEERS[1]: (bytes(32), -1)})
    assert again.members == tuple(PEERS[1:5])
    assert again.seat(PEERS[1]).present_since == 6  # type: ignore[union-attr]


def test_links_move_the_seat_along_its_chain() -> None:
    chain = HashChain(b"s" * 32, b"", 8)
    seats = Roster((Seat(PEERS[0], chain.end, -1),), 0, 0)
    assert seats.opens(PEERS[0], chain.link(4), 4)
    seats = after(seats, 4, links={PEERS[0]: chain.link(4)})
    assert seats.opens(PEERS[0], chain.link(5), 5)
    assert not seats.opens(PEERS[0], chain.link(4), 5)
    assert not seats.opens(PEERS[1], chain.link(5), 5)


def test_fewer_seats_carry_fewer_faulty_ones() -> None:
    assert [roster(count, 7).faulty_max for count in (3, 4, 8, 16)] == [1, 1, 3, 7]
    assert roster(16, 2).faulty_max == 2


@given(count=st.integers(1, 16), round=st.integers(0, 50), numel=st.integers(1, 40_000), seed=st.binary(max_size=4))
def test_roles_share_the_work_out(count: int, round: int, numel: int, seed: bytes) -> None:
    roles = draw_roles(roster(count, 7), sha256(seed), round, numel)
    if round == 0:
        assert roles.workers == () and roles.layout.parts == 0
        return
    assert sorted(roles.validators + roles.workers) == PEERS[:count]
    assert len(roles.validators) == (1 if count >= 4 and round >= 2 else 0)
    assert sorted(roles.owners) == list(roles.workers)
    assert roles.layout.parts == min(len(roles.workers), -(-numel // BLOCK))
    owned = [roles.owned(peer) for peer in roles.owners]
    assert owned[: roles.layout.parts] == list(range(roles.layout.parts))
    for part in range(roles.layout.parts):
        assert roles.aggregator(part, 0) == roles.owners[part]
        heirs = {roles.aggregator(part, attempt) for attempt in range(len(roles.owners))}
        assert heirs == set(roles.owners)
        out = {roles.owners[part]}
        assert roles.aggregator(part, 0, out) not in out
    assert roles.aggregator(0, 1, set(roles.owners)) is None


def test_who_was_not_there_validates_nothing() -> None:
    seats = after(roster(5, 1), 4, absences=[PEERS[0]])
    seats = after(seats, 8, admissions={PEERS[0]: (bytes(32), -1)})
    drawn = {v for i in range(60) for v in draw_roles(seats, sha256(bytes([i])), 9, 5000).validators}
    assert drawn == set(PEERS[1:5])


def test_nobody_validates_when_the_workers_would_lose_their_majority() -> None:
    seats = after(roster(4, 1), 4, absences=[PEERS[0]])
    assert draw_roles(seats, bytes(32), 6, 5000).validators == ()


@given(numel=st.integers(1, 50_000), workers=st.integers(1, 16))
def test_parts_cover_the_gradient_at_block_boundaries(numel: int, workers: int) -> None:
    parts = min(workers, -(-numel // BLOCK))
    layout = PartLayout(numel, parts)
    bounds = [layout.bounds(part) for part in range(parts)]
    assert bounds[0][0] == 0 and bounds[-1][1] == numel
    assert all(end == start for (_, end), (start, _) in pairwise(bounds))
    assert all(start % BLOCK == 0 and end > start for start, end in bounds)
    assert [layout.part_numel(part) for part in range(parts)] == [end - start for start, end in bounds]


@pytest.mark.parametrize(("numel", "parts"), [(650, 1), (1024, 1), (1025, 2), (10**7, 7)])
def test_no_part_is_smaller_than_a_block(numel: int, parts: int) -> None:
    assert draw_roles(roster(8, 3), bytes(32), 5, numel).layout.parts == parts
