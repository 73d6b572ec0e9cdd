"""What a block takes back: a pure function of the blocks, of which a coalition gets a bounded use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btrain.protocol.blocks import Ban, Block, CertifiedState, ResultEntry, TableEntry
from btrain.protocol.clock import RESTORING_FACTOR, Clock
from btrain.protocol.contest import Contest, after
from btrain.protocol.encoding import ZERO, digest, sha256
from btrain.protocol.errors import InconsistentMessage
from btrain.protocol.ledger import OVERTIME_ROUNDS_MAX
from btrain.protocol.messages import Charge, Verdict
from btrain.protocol.trajectory import Past, Trajectory, Undone
from tests.protocol.test_ledger import PEERS, decided, start

Run = Any  # the fixture of conftest.py
WINDOW, REACH = 4, 64


def made(
    round: int,
    workers: Sequence[bytes] = tuple(PEERS),
    bans: Sequence[Ban] = (),
    *,
    aggregators: Sequence[bytes] = (),
    unsound: Sequence[int] = (),
    void: int = 0,
    certified: Sequence[CertifiedState] = (),
) -> Block:
    """A block of which nothing else matters. Part p is reduced by aggregators[p]."""
    results = tuple(ResultEntry(part, 0, peer, ZERO) for part, peer in enumerate(aggregators))
    tables = tuple(TableEntry(part, 2 * (part in unsound), ZERO) for part in range(len(results)))
    fields: dict[str, Any] = dict.fromkeys(Block.__struct_fields__, ())
    fields |= {"version": 1, "run": ZERO, "group": 0, "round": round, "prev": ZERO, "randomness": ZERO, "step": 0,
               "compute_ms": 0, "transfer_ms": 0, "contributors": tuple(sorted(workers)), "bans": tuple(bans),
               "void": void, "results": results, "tables": tables, "state": tuple(certified)}  # fmt: skip
    return Block(**fields)


def along(blocks: Sequence[Block], way: Trajectory | None = None) -> tuple[Trajectory, int]:
    """The way after these blocks, and the steps; everything that must hold does after each of them."""
    way, step = way or Trajectory(WINDOW, reach=REACH), 0
    for block in blocks:
        restored, before = way.restored_by(block, step, block.bans), way
        way = way.after(block, step, block.bans)
        step = step + (block.void == 0) if restored is None else restored.step
        check(way, before, block)
    return way, step


def check(way: Trajectory, before: Trajectory, block: Block) -> None:
    spans = way.undone
    assert all(one.last < other.first for one, other in pairwise(spans))
    undone = way.rounds_undone - before.rounds_undone
    assert 0 <= undone <= WINDOW + 1
    assert all(span in way.undone or span.first >= way.undone[-1].first for span in before.undone)
    assert way.passes(block.round + 1)
    assert all(way.passes(state.round) for state in way.states)
    assert all(way.steps(past.round) for past in way.pasts)


def cheat(peer: bytes, round: int, deed: str = "wrong_gradient") -> Ban:
    return Ban(peer, deed, round, ())


def rounds(count: int, **options: Any) -> list[Block]:
    return [made(round, **options) for round in range(count)]


def test_the_ban_of_a_cheat_restores_the_round_that_proves_it() -> None:
    way, step = along([*rounds(7), made(7, bans=[cheat(PEERS[0], 5)])])
    assert way.undone == (Undone(5, 7),)
    assert (step, way.rounds_undone) == (5, 3)
    assert [way.passes(round) for round in range(4, 10)] == [True, True, False, False, True, True]
    assert [way.steps(round) for round in range(4, 10)] == [True, False, False, False, True, True]
    assert [way.after_undone(round) for round in (4, 5, 8)] == [4, 8, 8]


def test_nothing_is_undone_unless_the_contract_says_so() -> None:
    way, step = along([*rounds(7), made(7, bans=[cheat(PEERS[0], 5)])], Trajectory())
    assert (way.undone, way.pasts, step) == ((), (), 8)


@pytest.mark.parametrize("deed", ["illegal_encoding", "illegal_result", "equivocation", "false_charge",
                                  "false_accusation", "false_dispute"])  # fmt: skip
def test_what_never_was_in_the_parameters_undoes_nothing(deed: str) -> None:
    blocks = [*rounds(7, aggregators=PEERS), made(7, bans=[cheat(PEERS[0], 5, deed)])]
    assert along(blocks)[0].undone == ()


@pytest.mark.parametrize("deed", ["wrong_reduction", "wrong_table"])
def test_a_reduction_spoils_what_it_reduced_and_only_where_it_counted(deed: str) -> None:
    counted = [*rounds(7, aggregators=PEERS[:2]), made(7, bans=[cheat(PEERS[1], 5, deed)])]
    void = [*rounds(7, aggregators=PEERS[:2], unsound=[1]), made(7, bans=[cheat(PEERS[1], 5, deed)])]
    assert along(counted)[0].undone == (Undone(5, 7),)
    assert along(void)[0].undone == ()


def test_the_restored_round_is_the_first_in_which_the_banned_had_a_share() -> None:
    others = tuple(PEERS[1:])
    blocks = [made(0), made(1), made(2, others), made(3, void=1), made(4), made(5)]
    assert along([*blocks, made(6, bans=[cheat(PEERS[0], 2)])])[0].undone == (Undone(4, 6),)
    assert along([*blocks, made(6, bans=[cheat(sha256(b"a trainee"), 2)])])[0].undone == ()


def test_of_several_bans_the_oldest_round_counts() -> None:
    bans = [cheat(PEERS[0], 6), cheat(PEERS[1], 4), cheat(PEERS[2], 7)]
    assert along([*rounds(8), made(8, bans=bans)])[0].undone == (Undone(4, 8),)


def test_no_block_goes_back_further_than_the_window() -> None:
    way, step = along([*rounds(20), made(20, bans=[cheat(PEERS[0], 3)])])
    assert way.undone == (Undone(20 - WINDOW, 20),)
    assert step == 20 - WINDOW


def test_the_whole_window_goes_back_to_before_the_first_share(run: Run) -> None:
    others = tuple(PEERS[1:])
    way = Trajectory(WINDOW, whole=True, reach=REACH)
    blocks = [made(0), made(1), made(2), made(3, others), made(4), made(5), made(6), made(7, bans=[cheat(PEERS[0], 6)])]
    assert along(blocks, way)[0].undone == (Undone(4, 7),)
    assert along([*rounds(7), made(7, bans=[cheat(PEERS[0], 6, "illegal_encoding")])], way)[0].undone == ()
    assert start(run, rollback=True, rollback_whole=True).trajectory.whole


def test_a_friend_proven_of_an_undone_round_costs_what_it_had_a_share_in_since() -> None:
    first = [*rounds(8), made(8, bans=[cheat(PEERS[0], 6)])]
    idle = tuple(PEERS[2:])
    way, step = along([*first, made(9, idle), made(10), made(11, bans=[cheat(PEERS[1], 6)])])
    assert way.undone == (Undone(6, 8), Undone(10, 11))
    assert step == 7
    way, _ = along([*first, made(9, idle), made(10, idle), made(11, idle, bans=[cheat(PEERS[1], 6)])])
    assert way.undone == (Undone(6, 8),)


def test_who_is_proven_of_an_earlier_round_takes_in_what_was_undone() -> None:
    blocks = [*rounds(8), made(8, bans=[cheat(PEERS[0], 7)]), made(9, bans=[cheat(PEERS[1], 5)])]
    way, step = along(blocks)
    assert way.undone == (Undone(5, 9),)
    assert (step, way.rounds_undone) == (5, 5)


def test_states_of_undone_rounds_are_forgotten_and_those_that_lead_back_are_kept() -> None:
    blocks = [made(round, certified=[CertifiedState(round, ZERO)] if round % 3 == 0 else ()) for round in range(12)]
    way, _ = along(blocks)
    assert [state.round for state in way.states] == [6, 9]
    way, _ = along([*blocks, made(12, bans=[cheat(PEERS[0], 8)], certified=[CertifiedState(12, ZERO)])])
    assert (way.state, way.anchor) == (CertifiedState(6, ZERO), 6)


def test_what_cannot_be_rebuilt_is_not_restored() -> None:
    blocks = rounds(REACH)
    assert along([*blocks, made(REACH, bans=[cheat(PEERS[0], REACH - 1)])])[0].undone == (Undone(REACH - 1, REACH),)
    late = [*blocks, made(REACH), made(REACH + 1, bans=[cheat(PEERS[0], REACH)])]
    assert along(late)[0].undone == (Undone(REACH + 1, REACH + 1),)  # x of the open round is at hand


def test_a_contest_about_an_undone_state_ends() -> None:
    contest = Contest(6, (ZERO,))
    block = made(8, bans=[cheat(PEERS[0], 5)])
    way, _ = along([*rounds(8), block])
    assert after(contest, block, way) is None
    assert after(Contest(5, (ZERO,)), block, way) == Contest(5, (ZERO,))


CHEATS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12)), max_size=2)  # peer, rounds since


@given(st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 4)), st.booleans(), CHEATS), max_size=40))
@settings(max_examples=200, deadline=None)
def test_whatever_is_banned_rounds_are_undone_once_and_steps_count_what_stands(plan: list[Any]) -> None:
    blocks, bans = [], 0
    for round, (void, workers, certifies, cheats) in enumerate(plan):
        proven = [cheat(PEERS[peer], max(0, round - age)) for peer, age in cheats]
        bans += len(proven)
        certified = [CertifiedState(round, digest(bytes([round])))] if certifies else []
        blocks.append(made(round, [PEERS[i] for i in workers], proven, void=int(void), certified=certified))
    way, step = along(blocks)
    standing = [block for block in blocks if way.steps(block.round)]
    assert step == sum(block.void == 0 for block in standing)
    assert way.rounds_undone == len(blocks) - len(standing) <= bans * (WINDOW + 1)
    assert replayed(way, 0, len(blocks)) == [block.round for block in standing]
    for state in way.states:
        assert replayed(way, state.round, len(blocks)) == [b.round for b in standing if b.round >= state.round]


def replayed(way: Trajectory, x_round: int, until: int) -> list[int]:
    """The rounds whose updates lead from x[x_round] to the parameters of now."""
    found = []
    while x_round < until:
        resumed = way.after_undone(x_round)
        if resumed == x_round:
            found.append(x_round)
            resumed += 1
        x_round = resumed
    assert x_round == until
    return found


def test_a_block_that_restores_names_the_steps_before_and_the_run_makes_up(run: Run) -> None:
    state = start(run, rollback=True)
    for _ in range(3):
        state = state.advance(decided(state, {i: {} for i in range(5)}))
    past = Past(2, 0, frozenset(PEERS), frozenset())  # as if the round before had had an update
    state = replace(state, step=9, trajectory=replace(state.trajectory, pasts=(past,)))
    guilty = {"verdicts": (Verdict(PEERS[0], PEERS[1], 2, 1),)}
    block = decided(state, dict.fromkeys(range(5), guilty))
    assert (block.bans[0].round, block.step) == (2, 0)
    later = state.advance(block)
    assert (later.step, later.trajectory.undone) == (0, (Undone(2, 3),))
    with pytest.raises(InconsistentMessage, match="step"):
        state.advance(msgspec.structs.replace(block, step=9))
    assert Clock.of(later).compute_us == RESTORING_FACTOR * Clock.of(state).compute_us
    planned = state.charter.rounds
    assert not replace(later, round=planned + 1).over and replace(later, round=planned + 2).over
    endless = replace(later.trajectory, undone=(Undone(0, 2 * OVERTIME_ROUNDS_MAX),))
    assert replace(later, round=planned + OVERTIME_ROUNDS_MAX, trajectory=endless).over


def test_who_was_banned_for_something_else_before_its_cheat_was_proven_is_not_spared(run: Run) -> None:
    state = start(run, rollback=True)
    for _ in range(3):
        state = state.advance(decided(state, {i: {} for i in range(5)}))
    past = Past(2, 0, frozenset(PEERS), frozenset())  # as if that round had had an update
    state = replace(state, trajectory=replace(state.trajectory, pasts=(past,)))
    two_faced = {"charges": (Charge(PEERS[1], 2, "equivocation", ZERO),)}
    state = state.advance(decided(state, dict.fromkeys((0, 2, 3, 4), two_faced)))
    assert state.roster.seat(PEERS[1]) is None and state.trajectory.undone == ()
    guilty = {"verdicts": (Verdict(PEERS[0], PEERS[1], 2, 1),)}
    state = state.advance(decided(state, dict.fromkeys((0, 2, 3, 4), guilty)))
    assert state.trajectory.undone == (Undone(2, 4),)
    earlier = replace(state, trajectory=replace(state.trajectory, pasts=(replace(past, round=1),)))
    again = {"verdicts": (Verdict(PEERS[0], PEERS[1], 1, 1),)}
    block = decided(earlier, dict.fromkeys((0, 2, 3, 4), again))
    assert earlier.advance(block).trajectory.undone == (Undone(2, 4),)  # each member has rounds undone once
