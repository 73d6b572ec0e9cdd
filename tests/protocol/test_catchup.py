"""Replay at one member, step by step: what it asks for when blocks take rounds back, and when chains change besides."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from btrain.protocol.blocks import Block
from btrain.protocol.catchup import Replay
from btrain.protocol.desk import Desk
from btrain.protocol.effects import Apply, Effect, FetchBlob, StartOver
from btrain.protocol.ledger import LedgerState
from btrain.protocol.trajectory import Undone
from tests.protocol.test_ledger import PEERS, start
from tests.protocol.test_trajectory import made

Run = Any  # the fixture of conftest.py


class Bench:
    """A Replay whose effects are carried out one at a time. Block t of the ledger is void unless it is in `full`."""

    def __init__(self, run: Run, x_round: int, *, full: tuple[int, ...] = ()) -> None:
        self.effects: list[Effect] = []
        self.full = full
        self.state: LedgerState = start(run, rollback=True)
        desk = SimpleNamespace(emit=lambda *effects: self.effects.extend(effects), event=lambda *_, **__: None)
        self.replay = Replay(cast("Desk", desk), self.block, self.state.charter, x_round)

    def block(self, round: int) -> Block:
        return made(round, aggregators=PEERS[:1]) if round in self.full else made(round, void=1)

    def stand_at(self, round: int, *undone: Undone) -> None:
        """The ledger has these blocks, and they took these rounds back."""
        way = replace(self.state.trajectory, undone=undone)
        self.state = replace(self.state, round=round, trajectory=way)

    def go(self) -> Effect | None:
        """What is asked for next."""
        self.effects.clear()
        self.replay.go(self.state, ())
        return self.effects[-1] if self.effects else None

    def done(self, effect: Effect | None) -> None:
        if isinstance(effect, Apply):
            self.replay.applied(effect.round + 1)
        else:
            assert isinstance(effect, StartOver)
            self.replay.loaded()

    def to_the_end(self) -> list[int | str]:
        """The rounds applied, and "start" where everything began again."""
        asked: list[int | str] = []
        while (effect := self.go()) is not None:
            asked.append(effect.round if isinstance(effect, Apply) else "start")
            self.done(effect)
        return asked


def test_who_stands_on_what_was_undone_goes_back_and_leaps_over_it(run: Run) -> None:
    bench = Bench(run, 7)
    bench.stand_at(8, Undone(3, 7))
    effect = bench.go()
    assert effect == StartOver(later_holds=True)
    bench.done(effect)
    assert bench.to_the_end() == [0, 1, 2, 7]
    assert bench.replay.x_round == 8


def test_who_stands_where_the_block_restores_only_leaps(run: Run) -> None:
    bench = Bench(run, 7)
    bench.stand_at(8, Undone(7, 7))
    assert bench.to_the_end() == [7]


def test_who_was_behind_never_applies_what_was_undone(run: Run) -> None:
    bench = Bench(run, 1)
    bench.stand_at(12, Undone(3, 7), Undone(8, 9))
    assert bench.to_the_end() == [1, 2, 7, 9, 10, 11]


def test_results_that_were_asked_for_are_given_up_when_their_round_is_undone(run: Run) -> None:
    bench = Bench(run, 3, full=(3,))
    bench.stand_at(6)
    fetch = bench.go()
    assert isinstance(fetch, FetchBlob)
    bench.stand_at(7, Undone(3, 6))
    assert bench.to_the_end() == [6]
    bench.replay.blob(fetch.hash, b"", bench.state, ())
    assert bench.replay.x_round == 7


def test_another_chain_that_parts_before_the_leap_is_over_makes_everybody_return(run: Run) -> None:
    bench = Bench(run, 3)
    bench.stand_at(8, Undone(3, 7))
    leap = bench.go()
    assert isinstance(leap, Apply) and leap.round == 7
    bench.replay.undo(6)  # block 7 stands no more, and x[8] is on its way
    bench.stand_at(7)
    assert bench.go() is None
    bench.done(leap)
    assert bench.go() == StartOver(later_holds=False)
    bench.done(StartOver())
    assert bench.to_the_end() == list(range(7))


@pytest.mark.parametrize("parts_at", [4, 6])
def test_another_chain_that_parts_later_than_the_parameters_lets_the_replay_go_on(run: Run, parts_at: int) -> None:
    bench = Bench(run, 7)
    bench.stand_at(8, Undone(4, 7))
    for _ in range(3):
        bench.done(bench.go())
    assert bench.replay.x_round == 2
    bench.replay.undo(parts_at)
    bench.stand_at(parts_at + 1)
    assert bench.to_the_end() == list(range(2, parts_at + 1))
