"""A peer that has nothing of a run yet gets x[0] from the members before anything else, and follows from there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from btrain.protocol.catchup import Replay
from btrain.protocol.desk import Desk
from btrain.protocol.effects import Event, FetchBlob, LoadState, StartOver
from btrain.protocol.encoding import encode
from btrain.protocol.errors import InconsistentMessage
from btrain.protocol.ledger import CertifiedState, LedgerState
from btrain.protocol.messages import Verifier
from btrain.protocol.pieces import PIECE_BYTES, CutState, cut
from tests.protocol.test_ledger import KEYS, PEERS, decided, start

Run = Any  # the fixture of conftest.py
X0 = cut(bytes(PIECE_BYTES) + b"x0")
LATER = CertifiedState(1, bytes(32))


class Following:
    """A Replay and what it asks for."""

    def __init__(self, run: Run, x_round: int = -1) -> None:
        before = start(run)
        before = replace(before, genesis=replace_state(before, X0))
        self.block = decided(before, {i: {} for i in range(5)})
        after = before.advance(self.block)
        self.state = replace(after, trajectory=replace(after.trajectory, states=(LATER,)))
        self.desk = Desk(KEYS[0], self.state.run, Verifier())
        self.replay = Replay(self.desk, lambda _: self.block, self.state.charter, x_round)

    def go(self) -> list[Any]:
        self.replay.go(self.state, tuple(PEERS[1:]))
        return self.desk.take()

    def give(self, hash: bytes, data: bytes | None) -> list[Any]:
        self.replay.blob(hash, data, self.state, tuple(PEERS[1:]))
        return self.desk.take()


def replace_state(state: LedgerState, x0: CutState) -> Any:
    genesis = state.genesis
    return type(genesis)(genesis.version, genesis.contract, genesis.nonce, genesis.numel, genesis.x0,
                         genesis.probe_norm, genesis.founders, 0, (x0.digest,))  # fmt: skip


def asked(effects: list[Any]) -> set[bytes]:
    return {effect.hash for effect in effects if isinstance(effect, FetchBlob)}


def test_x0_comes_first_although_a_later_state_is_certified(run: Run) -> None:
    peer = Following(run)
    assert peer.replay.undone and asked(peer.go()) == {X0.digest}
    assert asked(peer.give(X0.digest, encode(X0.manifest))) == set(X0.manifest.pieces)
    for hash, piece in zip(X0.manifest.pieces, X0.pieces, strict=True):
        peer.give(hash, piece)
    assert peer.replay.loads
    assert [effect for effect in peer.go() if isinstance(effect, LoadState)] == [LoadState(0, X0.digest)]
    assert peer.replay.loaded() == CertifiedState(0, X0.digest)
    assert (peer.replay.x_round, peer.replay.undone) == (0, False)
    assert asked(peer.go()) == set()  # the void block 0 is replayed
    assert peer.replay.applying == 1


def test_who_gets_x0_from_nobody_asks_again_and_takes_nothing_else(run: Run) -> None:
    peer = Following(run)
    peer.go()
    stalled = [effect for effect in peer.give(X0.digest, None) if isinstance(effect, Event)]
    assert [event.name for event in stalled] == ["stalled"]
    assert asked(peer.go()) == {X0.digest}


def test_a_rollback_in_between_changes_nothing_of_that(run: Run) -> None:
    peer = Following(run)
    peer.go()
    peer.replay.undo(0)
    effects = peer.go()
    assert asked(effects) == {X0.digest} and not any(isinstance(effect, StartOver) for effect in effects)


def test_a_founder_that_was_banned_in_the_parent_run_makes_no_run(run: Run) -> None:
    state = start(run)
    with pytest.raises(InconsistentMessage, match="banned in the parent run"):
        LedgerState.start(state.genesis, replace(state.charter, banned=frozenset(PEERS[3:4])))
    stranger = frozenset({bytes(32)})
    later = LedgerState.start(state.genesis, replace(state.charter, banned=stranger))
    assert later.roster.banned == stranger
    assert (later.roster.faulty_left, later.roster.spare()) == (state.roster.faulty_left, state.roster.spare())
