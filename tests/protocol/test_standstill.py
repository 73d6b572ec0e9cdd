"""A run that cannot certify anything says so, and why: never too early, once for every change, until it goes on."""

from __future__ import annotations

from typing import Any

from btrain.protocol.desk import Desk
from btrain.protocol.effects import Event
from btrain.protocol.messages import Verifier
from btrain.protocol.standstill import STILL_DELTAS, Standstill
from tests.protocol.test_ledger import KEYS, PEERS, start
from tests.simulation.test_healing import DELTA_US, SECOND, events, world_of

Run = Any  # the fixture of conftest.py


def test_fewer_than_a_quorum_within_reach_halt_the_run(run: Run) -> None:
    state = start(run)
    desk = Desk(KEYS[0], state.run, Verifier())
    watch, still_us = Standstill(desk), STILL_DELTAS * state.charter.message_us

    def said(connected: list[bytes], now: int, decided_us: int = 0) -> list[dict[str, object]]:
        watch.look(state, connected, decided_us, now)
        return [effect.fields for effect in desk.take() if isinstance(effect, Event)]

    two = {"round": 0, "reached": 2, "members": 5, "needed": 3}
    assert said(PEERS[1:2], still_us - 1) == []  # it may still decide
    assert said(PEERS[1:3], still_us) == []  # three of five are a quorum
    assert said(PEERS[1:2], still_us) == [two]
    assert said(PEERS[1:2], 2 * still_us) == []  # nothing new
    assert said([bytes(32)], 2 * still_us) == [two | {"reached": 1}]  # a stranger signs nothing
    assert said(PEERS[1:2], 2 * still_us) == [two]
    assert said(PEERS[1:4], 2 * still_us) == []
    assert said(PEERS[1:2], 3 * still_us, decided_us=3 * still_us - 1) == []  # it went on in between
    assert said(PEERS[1:2], 5 * still_us, decided_us=3 * still_us) == [two]


def test_a_member_that_loses_the_others_says_so_until_they_are_back() -> None:
    world = world_of(4, 12, seed=1)
    me, *others = world.honest
    world.run(4, 60 * SECOND)

    def lose() -> None:
        for peer in others[:2]:
            world.heap.crash(peer, world.heap.now)
            world.heap.restart(peer, world.heap.now + 20 * SECOND)
            for other in (me, others[2]):
                node = world.node(other)
                assert node is not None
                node.disconnected(peer, world.heap.now)

    lose()
    lost_at = world.height(me)
    world.heap.run(world.heap.now + 10 * SECOND)
    assert world.height(me) <= lost_at + 1
    assert [(e["reached"], e["members"], e["needed"]) for e in events(world, me, "halted")] == [(2, 4, 3)]
    world.heap.run(world.heap.now + 20 * SECOND)
    world.run(world.charter.rounds, world.heap.now + 200 * SECOND)
    assert world.height(me) == world.charter.rounds and len(events(world, me, "halted")) == 1
    assert STILL_DELTAS * DELTA_US < 10 * SECOND
