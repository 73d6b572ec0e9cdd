"""Reproaches and strikes: liars and one broken link strike nobody, who fails for many loses its seat for a while."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btrain.adversary.registry import get_adversary
from btrain.protocol.blocks import Reproach
from btrain.protocol.encoding import PeerId
from btrain.protocol.roles import draw_roles
from btrain.protocol.roster import Roster, Seat
from btrain.protocol.strikes import REPROACH_ROUNDS, struck
from btrain.simulation.faults import Faults, Outage
from btrain.simulation.world import World, simulated_keys

Run = Any  # the fixture of conftest.py
SECOND = 1_000_000

PEERS = [key.public_key for key in simulated_keys(3, 16)]


def roster(count: int = 16, faulty: int = 7, **seats: tuple[tuple[int, PeerId], ...]) -> Roster:
    """Seats of the first peers; `p3=...` are the reproaches of peer 3."""
    return Roster(
        tuple(Seat(peer, bytes(32), -1, reproaches=seats.get(f"p{i}", ())) for i, peer in enumerate(PEERS[:count])),
        faulty,
        1,
    )


@given(st.integers(1, 7), st.integers(8, 14), st.lists(st.integers(0, 15), max_size=8), st.integers(0, 30))
def test_liars_and_one_broken_link_strike_nobody(faulty: int, victim: int, ages: list[int], round: int) -> None:
    liars = PEERS[:faulty]
    before = tuple((round - age, liars[age % faulty]) for age in ages)
    now = [Reproach(by, PEERS[victim]) for by in (*liars, PEERS[15])]
    assert struck(roster(faulty=faulty, **{f"p{victim}": before}), round, now) == ()


def test_one_more_strikes_now_or_within_so_many_rounds() -> None:
    by = PEERS[7:16]
    assert struck(roster(), 40, [Reproach(peer, PEERS[0]) for peer in by]) == (PEERS[0],)
    earlier = tuple((40 - REPROACH_ROUNDS + 1 + i, peer) for i, peer in enumerate(by[:8]))
    last = [Reproach(by[8], PEERS[0])]
    assert struck(roster(p0=earlier), 40, last) == (PEERS[0],)
    assert struck(roster(p0=((40 - REPROACH_ROUNDS, by[0]), *earlier[1:])), 40, last) == ()


def test_of_more_than_b_at_a_time_it_is_the_networks_fault() -> None:
    many = [Reproach(by, of) for of in PEERS[:8] for by in PEERS if by != of]
    assert struck(roster(), 9, many) == ()
    assert struck(roster(), 9, [r for r in many if r.of != PEERS[7]]) == tuple(PEERS[:7])


def test_relieved_members_aggregate_nothing_while_others_can() -> None:
    def seats(until: dict[int, int]) -> Roster:
        return Roster(
            tuple(Seat(p, bytes(32), -1, relieved_until=until.get(i, 0)) for i, p in enumerate(PEERS[:5])), 2, 0
        )

    roles = draw_roles(seats({1: 9, 3: 8}), bytes(32), 8, 100_000)
    assert set(roles.workers) == set(PEERS[:5]) and roles.layout.parts == 4
    assert PEERS[1] not in roles.owners[:4] and roles.owners[4] == PEERS[1]
    assert draw_roles(seats(dict.fromkeys(range(5), 9)), bytes(32), 8, 100_000).layout.parts == 5


# --- over the real protocol ---


def attacked(
    run: Run, peers: int, rounds: int, attack: str, who: tuple[int, ...], seed: int = 0, **changes: Any
) -> World:
    coalition = frozenset(simulated_keys(seed, peers)[i].public_key for i in who)
    byzantine = {i: get_adversary(attack, coalition=coalition, attack_from=1, seed=seed) for i in who}
    world: World = run.world(peers, rounds, seed=seed, byzantine=byzantine, numel=1024 * peers, **changes)
    return world


def lost_seats(run: Run, world: World, faults: Faults | None = None) -> dict[int, list[int]]:
    """Rounds in which attackers lost their seat; no honest one may, but for an outage, and nobody is banned."""
    run.to_the_end(world, faults)
    blocks = world.blocks(world.honest[0])
    assert not any(block.bans for block in blocks)
    index = {key.public_key: i for i, key in enumerate(world.keys)}
    lost: dict[int, list[int]] = {}
    for block in blocks:
        for peer in block.absences:
            lost.setdefault(index[peer], []).append(block.round)
    crashed = set() if faults is None else {outage.peer for outage in faults.outages}
    assert set(lost) <= set(world.byzantine) | crashed
    return lost


def test_who_withholds_from_all_is_struck(run: Run) -> None:
    assert lost_seats(run, attacked(run, 5, 8, "withhold_part", (1,)))[1][0] <= 3


@pytest.mark.parametrize(
    "attack", ["withhold_part:aggregators=1", "complaint_flood", "selective_send", "slow_drip", "flap"]
)
def test_no_honest_member_loses_its_seat_through(run: Run, attack: str) -> None:
    world = attacked(run, 5, 12, attack, (3,))
    lost_seats(run, world)
    blocks = world.blocks(world.honest[0])
    assert not any(block.void for block in blocks[1:])


def test_flapping_is_waited_for_ever_longer(run: Run) -> None:
    lost = lost_seats(run, attacked(run, 4, 40, "flap", (2,)))[2]
    waits = [later - sooner for sooner, later in pairwise(lost)]
    assert len(lost) >= 3 and all(wait >= 2**strike for strike, wait in enumerate(waits, 1))


COMBINED = [
    (6, (0,), 3, 2),
    *(pytest.param(8, who, crashed, seed, marks=pytest.mark.slow)
      for who, crashed, seed in (((0, 1), 3, 3014), ((2, 5), 6, 7), ((0, 1), 7, 1))),
]  # fmt: skip


@pytest.mark.parametrize(("peers", "who", "crashed", "seed"), COMBINED)
def test_withheld_parts_and_a_crash_together(
    run: Run, peers: int, who: tuple[int, ...], crashed: int, seed: int
) -> None:
    faults = Faults((Outage(crashed, "crash", 400_000, 12 * SECOND),))
    world = attacked(run, peers, 8, "withhold_part", who, seed, faults=faults)
    lost_seats(run, world, faults)
    assert not any(block.void for block in world.blocks(world.honest[0])[1:])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_withheld_parts_and_crashes_among_sixteen(run: Run, seed: int) -> None:
    faults = Faults((Outage(9, "crash", 600_000, 20 * SECOND), Outage(12, "freeze", 900_000, 15 * SECOND)))
    world = attacked(run, 16, 8, "withhold_part", (0, 3, 5, 8, 14), seed, faults=faults)
    lost_seats(run, world, faults)
