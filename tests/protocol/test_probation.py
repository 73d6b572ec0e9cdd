"""Newcomers of an open run: they work before they get a seat, whoever does not is found, and keys alone buy nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from btrain.adversary.registry import get_adversary
from btrain.adversary.sender import others
from btrain.identity import SigningKey
from btrain.protocol.audit import GradientCheck
from btrain.protocol.behaviour import Behaviour, Replay
from btrain.protocol.desk import Desk
from btrain.protocol.effects import Effect, PutBlob
from btrain.protocol.encoding import PeerId, encode, sha256
from btrain.protocol.evidence import open_evidence, verify_evidence
from btrain.protocol.ledger import Block
from btrain.protocol.messages import Admission, Message, Trial, TrialEntry, Verifier, sign
from btrain.protocol.packets import Envelopes
from btrain.protocol.probation import SILENT_ROUNDS_MIN, Probation, auditors
from btrain.protocol.roster import Former, Roster, Seat
from btrain.protocol.round import Round
from btrain.simulation.faults import rolling_outages
from btrain.simulation.world import World
from tests.protocol.test_misdeeds import Encoding, Reversed

SECOND = 1_000_000
Run = Any  # the fixture of conftest.py
PEERS = sorted(sha256(bytes([i])) for i in range(20))
KEY = SigningKey.from_seed(bytes([7]) * 32)
NOBODY = Roster((), 0, 1)


def step(probation: Probation, round: int, roster: Roster = NOBODY, **changes: Any) -> Probation:
    nothing: dict[str, Any] = {"trainees": (), "trials": (), "gone": (), "seated": ()}
    return probation.after(round, roster, **{**nothing, **changes})


def begun(count: int, k: int = 4, roster: Roster = NOBODY) -> Probation:
    return step(Probation(k), 10, roster, trainees=[Admission(peer, bytes(32)) for peer in PEERS[:count]])


def trials(*peers: PeerId) -> tuple[TrialEntry, ...]:
    return tuple(TrialEntry(peer, bytes(32)) for peer in peers)


def test_a_seat_is_due_after_k_recorded_trials() -> None:
    probation = begun(1)
    for round in range(11, 15):
        assert probation.graduate(round) is None
        probation = step(probation, round, trials=trials(PEERS[0]))
    graduate = probation.graduate(15)
    assert graduate is not None and graduate.peer == PEERS[0]
    after = step(probation, 15, seated=[PEERS[0]])
    assert after.trainees == () and after.seated == 15


def test_one_gets_a_seat_in_k_rounds() -> None:
    probation = begun(2)
    for round in range(11, 15):
        probation = step(probation, round, trials=trials(*PEERS[:2]))
    first = probation.graduate(15)
    assert first is not None
    probation = step(probation, 15, seated=[first.peer], trials=trials(*PEERS[:2]))
    assert [probation.graduate(round) is None for round in range(16, 21)] == [True, True, True, False, False]


def test_k_doubles_with_every_seat_lost() -> None:
    roster = replace(NOBODY, former={PEERS[0]: Former(3, 0, 0)})
    assert [trainee.rounds for trainee in begun(2, roster=roster).trainees] == [4 * 2**3, 4]


def test_who_is_silent_makes_room_and_begins_anew() -> None:
    probation = begun(2)
    for round in range(11, 10 + SILENT_ROUNDS_MIN):
        probation = step(probation, round, trials=trials(PEERS[1]))
        assert probation.peers == tuple(PEERS[:2])
    assert step(probation, 10 + SILENT_ROUNDS_MIN).peers == (PEERS[1],)


@pytest.mark.parametrize(("members", "places"), [(1, 1), (8, 1), (15, 1), (16, 2), (64, 8), (256, 32)])
def test_places_are_an_eighth_of_the_seats(members: int, places: int) -> None:
    assert Probation(4).places_left(members) == places
    assert begun(1).places_left(members) == places - 1


def test_every_trainee_has_an_auditor_of_its_own_that_was_present() -> None:
    seats = [Seat(peer, bytes(32), -1) for peer in PEERS[:16]]
    seats[3] = replace(seats[3], absent=True)
    seats[5] = replace(seats[5], present_since=9)
    able = {seat.peer for seat in seats} - {PEERS[3], PEERS[5]}
    drawn = set()
    for i in range(200):
        found = auditors(PEERS[16:18], sha256(bytes([i])), Roster(tuple(seats), 3, 1), 8)
        assert len(set(found.values())) == 2
        drawn |= set(found.values())
    assert drawn == able


# --- whole runs ---


def progress(world: World, peer: PeerId) -> tuple[list[int], list[int], list[int]]:
    """Rounds in which a peer began probation, had a trial recorded, and got a seat."""
    blocks = world.blocks(world.honest[0])
    return (
        [b.round for b in blocks if any(entry.peer == peer for entry in b.trainees)],
        [b.round for b in blocks if any(entry.peer == peer for entry in b.trials)],
        [b.round for b in blocks if any(entry.peer == peer for entry in b.admissions)],
    )


def banned(world: World) -> dict[PeerId, str]:
    return {ban.peer: ban.deed for block in world.blocks(world.honest[0]) for ban in block.bans}


def dismissed(world: World) -> set[PeerId]:
    return {peer for block in world.blocks(world.honest[0]) for peer in block.dismissed}


def counted(blocks: list[Block], peer: PeerId) -> list[int]:
    return [b.round for b in blocks if peer in b.contributors or any(entry.peer == peer for entry in b.commits)]


def test_a_newcomer_works_its_k_rounds_and_counts_only_then(run: Run) -> None:
    world = run.world(5, 24, seed=2, probation_rounds=6)
    world.add_newcomer(KEY, SECOND)
    run.to_the_end(world)
    began, tried, seated = progress(world, KEY.public_key)
    assert len(began) == len(seated) == 1
    assert len([round for round in tried if round < seated[0]]) == 6
    blocks = world.blocks(world.honest[0])
    assert min(counted(blocks, KEY.public_key)) == seated[0] + 1
    assert all(block.absences == () for block in blocks)  # nobody waits for it, and it misses nothing


def joined(run: Run, behaviour: Behaviour, rounds: int = 30, **options: Any) -> World:
    world: World = run.world(5, rounds, seed=4, probation_rounds=8, **options)
    world.add_newcomer(KEY, SECOND // 2, behaviour)
    return run.to_the_end(world)  # type: ignore[no-any-return]


@dataclass
class FreeRider(Behaviour):
    """Hands in what it has not computed, and gives nobody the bytes."""

    def gradient(self, own: Tensor, round: Round, replay: Replay) -> Tensor:
        return torch.ones_like(own)

    def effects(self, effects: list[Effect], round: int, now: int) -> list[Effect]:
        return [effect for effect in effects if not isinstance(effect, PutBlob)]


class TwoTrials(Behaviour):
    """Shows another Trial to every other member."""

    def broadcast(self, desk: Desk, message: Message, round: Round) -> None:
        if isinstance(message.body, Trial):
            first, *rest = message.body.leaves
            statement = msgspec.structs.replace(message.statement, body=encode(Trial((sha256(first), *rest))))
            for position, peer in enumerate(others(round)):
                desk.send(Envelopes(((sign(desk.key, statement) if position % 2 else message).data,)), peer)
        else:
            desk.broadcast(message)


# Two Trials meet when r draws an auditor that was shown the second one: two of the five here, in the eighth round.
@pytest.mark.parametrize(("behaviour", "deed", "found_in"), [
    (Reversed(), "wrong_gradient", 3), (Encoding(scale=1e38), "illegal_encoding", 3), (TwoTrials(), "equivocation", 8),
], ids=["reversed", "scale", "two trials"])  # fmt: skip
def test_a_cheat_on_probation_is_banned_on_evidence(run: Run, behaviour: Behaviour, deed: str, found_in: int) -> None:
    world = joined(run, behaviour, rounds=22)
    assert banned(world) == {KEY.public_key: deed}
    began, tried, seated = progress(world, KEY.public_key)
    assert len(began) == 1 and not seated
    assert len(tried) <= found_in
    evidence = {data for peer in world.honest for *_, data in world.identities[peer].disk.evidence}
    assert evidence
    if deed != "wrong_gradient":  # that one is attested by votes
        for data in evidence:
            assert verify_evidence(open_evidence(data), Verifier(), lambda _: run.rule).accused == KEY.public_key


def test_who_withholds_what_it_says_it_computed_gets_no_seat_and_no_ban(run: Run) -> None:
    world = joined(run, FreeRider(), rounds=36)
    assert banned(world) == {}
    assert dismissed(world) == {KEY.public_key}
    assert not progress(world, KEY.public_key)[2]


class Doubter(Behaviour):
    """Accuses whomever it audits."""

    def accuses(self, check: GradientCheck, tolerance: float) -> bool:
        return check.on_trial


def test_false_doubts_neither_ban_nor_keep_out(run: Run) -> None:
    world = run.world(5, 26, seed=6, byzantine={0: Doubter()}, probation_rounds=8)
    world.add_newcomer(KEY, SECOND // 2)
    run.to_the_end(world)
    assert banned(world) == {} and dismissed(world) == set()
    assert len(progress(world, KEY.public_key)[2]) == 1
    looked_into = [fields for _, name, fields in world.identities[world.honest[0]].events
                   if name == "checked" and "trial" in fields and not fields["audit"]]  # fmt: skip
    assert len(looked_into) <= 2  # who doubts for nothing is not believed for ever


def test_the_trainees_gradient_is_in_no_sum(run: Run) -> None:
    """The run's parameters are those of the same run without the newcomer, as long as it has no seat."""
    alone = run.to_the_end(run.world(4, 12, seed=9))
    world = run.world(4, 12, seed=9, probation_rounds=64)
    world.add_newcomer(KEY, 0, Reversed())
    run.to_the_end(world)
    assert world.node(world.honest[0]).learner.distance == alone.node(alone.honest[0]).learner.distance


def test_a_thousand_keys_buy_nothing(run: Run) -> None:
    attack = get_adversary("sybil_join:keys=1000", coalition=frozenset(), seed=1)
    calm = run.to_the_end(run.world(5, 12, seed=8))
    world = run.world(5, 12, seed=8, byzantine={4: attack})
    run.to_the_end(world)
    blocks = world.blocks(world.honest[0])
    assert sum(len(block.trainees) for block in blocks) <= 2  # the one place, and again when nothing came of it
    assert not any(block.admissions or block.absences or block.bans for block in blocks)
    member = world.node(world.honest[0]).member
    assert len(member.seats._requests) <= 256 and len(member.addresses) <= 256 + 5
    assert not member.candidates - set(member.state.probation.peers)
    sent = [w.heap.bytes_sent[w.honest[0]] for w in (calm, world)]
    assert sent[1] < 2 * sent[0]


@settings(max_examples=2)
@given(seed=st.integers(0, 2**32), bad=st.sampled_from((Reversed, FreeRider, lambda: Encoding(scale=-0.0))))
def test_newcomers_come_while_others_crash(run: Run, seed: int, bad: Any) -> None:
    _with_newcomers(run, seed, bad())


@pytest.mark.slow
@settings(max_examples=300)
@given(seed=st.integers(0, 2**32), bad=st.sampled_from((Reversed, FreeRider, lambda: Encoding(scale=-0.0))))
def test_hundreds_of_newcomers_come_while_others_crash(run: Run, seed: int, bad: Any) -> None:
    _with_newcomers(run, seed, bad())


def _with_newcomers(run: Run, seed: int, bad: Behaviour) -> None:
    """Honest and malicious newcomers, members that crash, freeze or are cut off: no fork, no honest peer banned."""
    dice = run.random(seed)
    faults = rolling_outages(dice, 5, 1, dice.choice((1, 2)), 0, 2 * SECOND, dice.choice((300_000, 3 * SECOND)))
    world = run.world(5, 24, seed=seed, faults=faults, probation_rounds=3)
    honest = SigningKey.from_seed(sha256(b"honest", seed.to_bytes(8, "big")))
    hostile = SigningKey.from_seed(sha256(b"hostile", seed.to_bytes(8, "big")))
    world.add_newcomer(hostile, dice.randrange(SECOND), bad)
    world.add_newcomer(honest, dice.randrange(SECOND))
    run.to_the_end(world, faults)
    assert hostile.public_key not in world.node(world.honest[0]).member.state.roster.members
