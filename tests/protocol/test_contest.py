"""Which state a block certifies: what a quorum holds, else what a quorum finds close to its own."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from btrain.protocol.contest import Contest
from btrain.protocol.encoding import ZERO, digest
from btrain.protocol.errors import InconsistentMessage
from btrain.protocol.ledger import Block, CertifiedState, LedgerState
from tests.protocol.test_ledger import EVERYBODY, decided, start

Run = Any  # the fixture of conftest.py
A, B, C, D = (digest(letter) for letter in (b"a", b"b", b"c", b"d"))


def held(*states: bytes) -> dict[int, dict[str, Any]]:
    """Commits of members 0, 1, ... that list these states as their own; no state for ZERO."""
    return {i: {"state": (known,) if known != ZERO else ()} for i, known in enumerate(states)}


def found_close(*lists: tuple[bytes, ...]) -> dict[int, dict[str, Any]]:
    return {i: {"close": close} for i, close in enumerate(lists)}


def contested(run: Run, *states: bytes) -> tuple[LedgerState, Block]:
    state = start(run)
    block = decided(state, held(*states))
    return state.advance(block), block


def test_what_a_quorum_holds_is_certified_and_there_is_no_contest(run: Run) -> None:
    state, block = contested(run, A, A, A, B, C)
    assert (block.state, block.candidates) == ((CertifiedState(0, A),), ())
    assert state.contest is None


def test_without_a_quorum_the_states_of_b_plus_1_drawn_members_are_candidates(run: Run) -> None:
    state, block = contested(run, A, B, C, D, ZERO)
    assert block.state == ()
    assert len(block.candidates) == state.roster.faulty_max + 1
    assert set(block.candidates) <= {A, B, C, D}
    assert state.contest == Contest(0, block.candidates)


def test_the_first_candidate_that_a_quorum_finds_close_is_certified(run: Run) -> None:
    state, block = contested(run, A, B, C, D, ZERO)
    first, second = block.candidates
    nothing = state.advance(decided(state, found_close((first, second), (second,), (second, A), (), ())))
    assert nothing.state == CertifiedState(0, second) and nothing.contest is None
    both = decided(state, found_close((first, second), (first, second), (second, first), (), ()))
    assert both.state == (CertifiedState(0, first),)
    few = decided(state, found_close((first,), (first,), (second,), (), ()))
    assert few.state == () and state.advance(few).contest == state.contest


def test_what_was_no_candidate_is_never_certified(run: Run) -> None:
    state, block = contested(run, A, B, C, D, ZERO)
    other = next(known for known in (A, B, C, D) if known not in block.candidates)
    assert decided(state, found_close(*[(other,)] * 5)).state == ()


def test_a_new_contest_takes_the_place_of_an_open_one(run: Run) -> None:
    state, _ = contested(run, A, B, C, D, ZERO)
    later = decided(state, held(D, C, B, A, ZERO))
    after = state.advance(later)
    assert after.contest == Contest(1, later.candidates)


def test_a_block_whose_states_do_not_follow_is_refused(run: Run) -> None:
    state, block = contested(run, A, B, C, D, ZERO)
    right = decided(state, found_close(*[block.candidates[:1]] * 3, (), ()))
    for wrong in (
        {"state": (CertifiedState(0, digest(b"poison")),)},
        {"state": (CertifiedState(7, block.candidates[0]),)},
        {"candidates": tuple(bytes([i]) * 32 for i in range(9))},
    ):
        with pytest.raises(InconsistentMessage, match="state"):
            state.advance(msgspec.structs.replace(right, **wrong))  # type: ignore[arg-type]
    state.advance(right)
    calm = decided(start(run), EVERYBODY)
    assert (calm.state, calm.candidates) == ((), ())
