"""Requests for seats and farewells: each is good for one coming or going, however often it is shown again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from btrain.identity import SigningKey
from btrain.protocol.blocks import Ban
from btrain.protocol.desk import Desk
from btrain.protocol.encoding import ZERO
from btrain.protocol.errors import StaleMessage
from btrain.protocol.membership import freed
from btrain.protocol.messages import Admission, Join, Verifier
from btrain.protocol.quorum import byzantine_limit
from btrain.protocol.seats import Membership, Seats
from tests.protocol.test_ledger import PEERS, decided, start, statement
from tests.protocol.test_roster import PEERS as OTHERS
from tests.protocol.test_roster import after, roster

SECOND = 1_000_000
Run = Any  # the fixture of conftest.py


def test_who_returns_is_not_sent_away_by_its_old_farewell(run: Run) -> None:
    """Three members cannot spare a seat: the leaver's stays, absent, and may soon be taken again."""
    world = run.world(3, 24, seed=2)
    leaver = world.honest[2]
    world.run(3, 10 * SECOND)
    world.leave(leaver)
    while not world.node(leaver).member.state.roster.seat(leaver).absent:
        world.heap.run(world.heap.now + 10_000)
    world.heap.crash(leaver, world.heap.now)
    world.heap.restart(leaver, world.heap.now + 1_000)
    world.run(16, 60 * SECOND)
    blocks = world.blocks(world.honest[0])
    assert [leaver in block.departures for block in blocks].count(True) == 1
    assert any(leaver in block.contributors for block in blocks[-4:])


def test_a_request_is_no_reason_to_admit_who_has_lost_its_seat_since(run: Run) -> None:
    """Whoever shows it again would have everybody wait for one who is gone, and cost that one a strike each time."""
    state = start(run)
    seats = Seats(Desk(SigningKey.from_seed(bytes(32)), state.run, Verifier()), Membership(ZERO, ZERO, 0.0, ZERO))
    asked = statement(state, 4, Join(ZERO, ZERO, ZERO, 0.0, (), ready=True), "join")
    state = state.advance(decided(state, {i: {} for i in range(4)}))
    assert state.roster.lost(PEERS[4]) == 0 and state.roster.lost(PEERS[0]) == -1
    with pytest.raises(StaleMessage):
        seats.asked(asked, asked.body, PEERS[0], state)
    assert seats.admissions(state) == ()
    anew = statement(state, 4, asked.body, "join")
    seats.asked(anew, anew.body, PEERS[4], state)
    assert [entry.peer for entry in seats.admissions(state)] == [PEERS[4]]


@pytest.mark.parametrize(
    ("founders", "since", "bans", "admitted"),
    [(6, {"newcomers": 1}, [0], []), (4, {"convicted": 1}, [], [5])],
)
def test_a_block_that_bans_or_admits_frees_no_seat_that_is_needed(
    run: Run, founders: int, since: dict[str, int], bans: list[int], admitted: list[int]
) -> None:
    """Who is banned may not have been one of b, since newcomers may be faulty too; and who comes may be."""
    seats = replace(roster(founders, 2, 0.0), **since)
    state = replace(start(run), roster=seats)
    banned = [Ban(OTHERS[i], "equivocation", 1, ()) for i in bans]
    given = [Admission(OTHERS[i], ZERO) for i in admitted]
    freed_too = freed(state, OTHERS[1:2], given, banned)
    left = after(
        seats,
        bans=[ban.peer for ban in banned],
        departures=freed_too,
        admissions={entry.peer: (entry.chain_end, -1) for entry in given},
    )
    assert seats.spare() == 1 and freed_too == ()
    assert byzantine_limit(len(left.seats), 0) >= left.faulty_left
