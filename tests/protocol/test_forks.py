"""Two certified blocks of one height: who is guilty, which one stands, and what is no fork."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from btrain.protocol.agreement_messages import Final
from btrain.protocol.encoding import digest, encode
from btrain.protocol.errors import InconsistentMessage, InvalidCertificate, RemoteProtocolError
from btrain.protocol.forks import BRANCHES_MAX, FORK_ROUNDS_MAX, Forks, Height, History
from btrain.protocol.ledger import Block, LedgerState
from btrain.protocol.messages import Message, Statement, Verifier, sign
from btrain.protocol.packets import CertifiedBlock
from tests.protocol.test_ledger import KEYS, PEERS, decided, start

Run = Any  # the fixture of conftest.py


def final(state: LedgerState, index: int, block: Block) -> Message:
    fields = (
        1,
        state.run,
        0,
        block.prev,
        block.round,
        0,
        "final",
        2,
        PEERS[index],
        block.prev,
        encode(Final(block.hash)),
    )
    return sign(KEYS[index], Statement(*fields))


def certified(state: LedgerState, block: Block, *signers: int) -> CertifiedBlock:
    return CertifiedBlock(encode(block), tuple(final(state, index, block).data for index in signers))


class Fork:
    """Two blocks that follow from one state; `one` has the smaller hash."""

    def __init__(self, run: Run) -> None:
        self.state = start(run)
        blocks = (decided(self.state, {i: {} for i in members}) for members in ((0, 1, 4), (2, 3, 4)))
        self.one, self.other = sorted(blocks, key=lambda block: block.hash)
        self.forks = Forks(Verifier(), {0: self.state}.get)

    def show(self, *, ours: tuple[int, ...], theirs: tuple[int, ...]) -> Height | None:
        """A member stands on `one` and is shown `other`, with these signatures."""
        return self.forks.compare(
            self.other, certified(self.state, self.other, *theirs), certified(self.state, self.one, *ours)
        )


@pytest.fixture
def fork(run: Run) -> Fork:
    return Fork(run)


def test_who_signed_both_is_guilty_and_nobody_else(fork: Fork) -> None:
    height = fork.show(ours=(0, 1, 4), theirs=(2, 3, 4))
    assert height is not None
    assert set(height.conflicts) == {PEERS[4]}
    ((one, other),) = fork.forks.conflicts
    assert one.slot == other.slot and one.statement != other.statement


def test_with_as_many_honest_signatures_the_smaller_hash_stands(fork: Fork) -> None:
    height = fork.show(ours=(0, 1, 4), theirs=(2, 3, 4))
    assert height is not None and height.winner == fork.one.hash


def test_the_block_with_more_honest_signatures_stands_whatever_the_guilty_sign(fork: Fork) -> None:
    height = fork.show(ours=(0, 3, 4), theirs=(1, 2, 3, 4))
    assert height is not None
    assert set(height.conflicts) == {PEERS[3], PEERS[4]}
    assert height.winner == fork.other.hash


def test_members_that_saw_other_signatures_agree_once_they_have_shown_them(run: Run) -> None:
    here, there = Fork(run), Fork(run)
    first = here.show(ours=(0, 1, 4), theirs=(2, 3, 4))
    assert first is not None and first.winner == here.one.hash
    second = there.show(ours=(0, 3, 4), theirs=(2, 3, 4, 1))
    assert second is not None and second.winner == there.other.hash
    for fork, shown in ((here, second), (there, first)):
        for hash, block in ((fork.one.hash, fork.one), (fork.other.hash, fork.other)):
            fork.forks.compare(block, shown.certified(hash), None)
    assert here.forks.heights[0].winner == there.forks.heights[0].winner


def test_the_same_again_says_nothing_new_and_charges_nobody_twice(fork: Fork) -> None:
    assert fork.show(ours=(0, 1, 4), theirs=(2, 3, 4)) is not None
    assert fork.show(ours=(0, 1, 4), theirs=(2, 3, 4)) is None
    assert len(fork.forks.conflicts) == 1


def test_what_is_not_certified_or_does_not_follow_is_no_fork(fork: Fork) -> None:
    for theirs in ((2, 3), (4, 4, 4), ()):
        with pytest.raises(InvalidCertificate):
            fork.show(ours=(0, 1, 4), theirs=theirs)
    wrong = msgspec.structs.replace(fork.other, step=7)
    with pytest.raises(InconsistentMessage, match="step"):
        fork.forks.compare(wrong, certified(fork.state, wrong, 2, 3, 4), certified(fork.state, fork.one, 0, 1, 4))
    assert fork.forks.heights == {} and fork.forks.conflicts == []
    fork.forks.before = lambda _: None
    with pytest.raises(RemoteProtocolError, match="too many rounds ago"):
        fork.show(ours=(0, 1, 4), theirs=(2, 3, 4))


def test_a_decided_block_without_a_certificate_yields_to_a_certified_one(fork: Fork) -> None:
    height = fork.forks.compare(fork.other, certified(fork.state, fork.other, 2, 3, 4), None)
    assert height is not None and height.winner == fork.other.hash
    assert fork.forks.conflicts == []


def test_what_is_kept_is_bounded(fork: Fork) -> None:
    height = Height()
    for number in range(2 * BRANCHES_MAX):
        block = CertifiedBlock(digest(bytes([number])), ())
        height.add(block, [final(fork.state, 0, fork.one)])
    assert len(height.blocks) == BRANCHES_MAX
    fork.show(ours=(0, 1, 4), theirs=(2, 3, 4))
    fork.forks.forget(FORK_ROUNDS_MAX + 1)
    assert fork.forks.heights == {}


def test_the_history_holds_the_last_states_and_finds_them_again_after_a_restart(run: Run) -> None:
    states, stored = [start(run)], []
    for _ in range(FORK_ROUNDS_MAX + 6):
        block = decided(states[-1], {}, links=[])
        stored.append(certified(states[-1], block, 0, 1, 2))
        states.append(states[-1].advance(block))
    head = states[-1].round

    def read(number: int) -> CertifiedBlock | None:
        return stored[number] if number < len(stored) else None

    grown = History(states[0], read)
    for state in states[1:]:
        grown.note(state)
    for history in (grown, History(states[-1], read)):
        assert history.before(head - FORK_ROUNDS_MAX) == states[head - FORK_ROUNDS_MAX]
        assert history.before(head - 1) == states[head - 1]
        assert history.before(head - FORK_ROUNDS_MAX - 1) is None
        assert history.before(head + 1) is None
        assert history.undo(head - 3) == states[head - 3]
        assert history.before(head - 2) is None
