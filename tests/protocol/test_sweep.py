"""The sweep: whoever cheated in a round in which a cheat was proven is banned soon after, and nobody else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from torch import Tensor

from btrain.adversary.registry import get_adversary
from btrain.adversary.validator import CustodyLoss, FalseAccuse
from btrain.protocol.behaviour import Behaviour, Replay
from btrain.protocol.blocks import Ban
from btrain.protocol.cheats import CHEATS
from btrain.protocol.effects import Effect, Event, Send
from btrain.protocol.encoding import decode, sha256
from btrain.protocol.messages import ENVELOPE_BYTES_MAX, Envelope, Statement
from btrain.protocol.packets import Envelopes, decode_packet
from btrain.protocol.roster import Roster, Seat
from btrain.protocol.round import Round
from btrain.protocol.sweep import SWEEP_ROUNDS, Sweep, sweeps_after
from btrain.simulation.faults import Faults, Outage, rolling_outages
from btrain.simulation.world import World

SECOND = 1_000_000
Run = Any  # the fixture of conftest.py
PEERS = [sha256(bytes([i])) for i in range(9)]
RUN, RANDOMNESS = sha256(b"run"), sha256(b"r")


def roster(seats: int = 9, byzantine_max: int = 3, **first: Any) -> Roster:
    held = [Seat(peer, peer, -1) for peer in sorted(PEERS[:seats])]
    return Roster((replace(held[0], **first), *held[1:]), byzantine_max, 1.0)


def after(bans: Sequence[Ban], *, sweeps: Sequence[Sweep] = (), round: int = 9, at: Roster | None = None) -> Any:
    return sweeps_after(sweeps, RUN, round, RANDOMNESS, bans, at or roster(), 16)


def ban(deed: str, round: int) -> Ban:
    return Ban(sha256(b"banned"), deed, round, ())


def test_b_plus_one_others_audit_every_gradient_and_every_part() -> None:
    sweep, _ = after([ban("wrong_gradient", 7)])
    assert sweep.auditors == 4
    for worker in PEERS:
        drawn = sweep.auditors_of(worker)
        assert len(set(drawn)) == 4 and worker not in drawn
        assert worker not in sweep.reducers_of(0, worker)
    assert sweep.reducers_of(0, PEERS[0]) != sweep.reducers_of(1, PEERS[0])
    other = replace(sweep, randomness=sha256(b"another"))
    assert any(other.auditors_of(worker) != sweep.auditors_of(worker) for worker in PEERS)


def test_everybody_audits_what_he_is_drawn_for_the_most_urgent_first() -> None:
    sweep, _ = after([ban("wrong_gradient", 7)])
    first = [sweep.gradients_for(me, PEERS) for me in PEERS]
    assert sum(len(mine) for mine in first) == 4 * len(PEERS)
    for me, mine in zip(PEERS, first, strict=True):
        urgency = [sweep.auditors_of(worker).index(me) for worker in mine]
        assert urgency == sorted(urgency)


@pytest.mark.parametrize("deed", ["equivocation", "false_charge", "false_accusation"])
def test_a_deed_that_says_nothing_of_the_round_opens_no_sweep(deed: str) -> None:
    assert deed not in CHEATS
    assert after([ban(deed, 7)]) == ()


@pytest.mark.parametrize(("of", "at"), [(0, 9), (10, 9), (7, 24)])
def test_neither_round_nought_nor_the_future_nor_what_is_out_of_custody_is_swept(of: int, at: int) -> None:
    assert after([ban("wrong_gradient", of)], round=at) == ()


def test_a_round_is_swept_once() -> None:
    opened = after([ban("wrong_gradient", 7), ban("wrong_reduction", 7), ban("illegal_encoding", 8)])
    assert [(s.round, s.opened, s.closes) for s in opened] == [(of, 9, 9 + SWEEP_ROUNDS) for of in (7, 8, 9)]
    assert after([ban("wrong_gradient", 7)], sweeps=opened, round=11) == opened
    assert after([ban("wrong_gradient", 8)], sweeps=opened, round=11) == opened
    assert after([], sweeps=opened, round=26) == ()


def test_the_next_round_is_swept_for_those_who_validated_unless_it_is_still_open() -> None:
    assert [s.round for s in after([ban("wrong_gradient", 7)])] == [7, 8]
    assert [s.round for s in after([ban("illegal_encoding", 9)])] == [9]
    first = after([ban("wrong_gradient", 7)])
    assert [s.round for s in after([ban("wrong_gradient", 9)], sweeps=first, round=11)] == [7, 8, 9, 10]


@pytest.mark.parametrize("first", [{"absent": True}, {"barred": True}, {"present_since": 8}])
def test_who_cannot_know_or_is_not_to_be_trusted_is_not_drawn(first: dict[str, Any]) -> None:
    seats = roster(**first)
    sweep, _ = after([ban("wrong_gradient", 7)], at=seats)
    assert sweep.members == seats.members[1:]


# --- the whole protocol ---


class Reversed(Behaviour):
    """Commits to its gradient, reversed and a thousand times as long, until somebody is banned."""

    def gradient(self, own: Tensor, round: Round, replay: Replay) -> Tensor:
        return own if round.round < 2 or round.roster.banned else -1000 * own


@dataclass
class Flipped(Behaviour):
    """As Reversed, and sends no accusation: its verdict stands in its Commits alone."""

    def effects(self, effects: list[Effect], round: int, now: int) -> list[Effect]:
        return [effect for effect in effects if not (isinstance(effect, Send) and "accusation" in kinds(effect))]


def kinds(send: Send) -> set[str]:
    packet = decode_packet(send.packet)
    envelopes = packet.envelopes if isinstance(packet, Envelopes) else ()
    opened = [decode(Envelope, data, ENVELOPE_BYTES_MAX) for data in envelopes]
    return {decode(Statement, envelope.statement, ENVELOPE_BYTES_MAX).kind for envelope in opened}


def until_all_banned(run: Run, world: World, rounds: int) -> dict[bytes, tuple[str, int, int]]:
    """Run on until the attackers are gone or so many rounds are over; every invariant holds on the way."""
    attackers = {world.keys[index].public_key for index in world.byzantine}
    bans: dict[bytes, tuple[str, int, int]] = {}
    for target in range(2, rounds + 1):
        world.run(target, 400 * SECOND)
        bans = run.bans(world)
        if attackers <= set(bans):
            break
    assert set(bans) <= attackers
    return bans


def coalition(run: Run, name: str, peers: int, members: range, seed: int, start: int = 5) -> dict[int, Behaviour]:
    keys = run.world(peers, 4, seed=seed).keys
    together = frozenset(keys[index].public_key for index in members)
    return {i: get_adversary(name, coalition=together, attack_from=start, seed=seed) for i in members}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["sign_flip", "alie", "ipm", "label_flip"])
def test_seven_of_sixteen_are_banned_within_a_few_rounds_of_the_first_proof(run: Run, name: str, seed: int) -> None:
    world = run.world(16, 60, seed=seed, byzantine=coalition(run, name, 16, range(4, 11), seed))
    bans = until_all_banned(run, world, 60)
    banned = sorted(at for _, _, at in bans.values())
    assert len(banned) == 7
    assert banned[-1] - banned[0] <= 8


def proven_round(run: Run, sweep: bool) -> tuple[set[bytes], set[bytes]]:
    """Who cheated in the round of the first proof or in the next one, and who is banned 12 rounds later."""
    attackers = (1, 3, 6)
    world = run.world(8, 16, seed=2, byzantine={i: Reversed() for i in attackers}, sweep=sweep)
    world.run(16, 400 * SECOND)
    bans, blocks = run.bans(world), world.blocks(world.honest[0])
    of = min(of for _, of, _ in bans.values())
    worked = {*blocks[of].contributors, *blocks[of + 1].contributors}
    return worked & {world.keys[i].public_key for i in attackers}, set(bans)


def test_whoever_cheated_in_the_round_is_proven_though_he_is_honest_ever_since(run: Run) -> None:
    cheats, banned = proven_round(run, sweep=True)
    assert len(cheats) > 1
    assert banned == cheats


@pytest.mark.slow
def test_without_the_sweep_the_dormant_are_not_found(run: Run) -> None:
    cheats, banned = proven_round(run, sweep=False)
    assert banned < cheats


@pytest.mark.parametrize(
    "peers", [4, 5, pytest.param(6, marks=pytest.mark.slow), pytest.param(7, marks=pytest.mark.slow)]
)
def test_small_groups_sweep_too(run: Run, peers: int) -> None:
    b = run.charter(peers, 1).byzantine_max
    world = run.world(peers, 50, seed=peers, byzantine=dict.fromkeys(range(b), Reversed()))
    assert len(until_all_banned(run, world, 50)) == b


def test_every_part_of_the_round_is_reduced_again(run: Run) -> None:
    members = coalition(run, "wrong_reduce", 8, range(3), 3)
    world = run.world(8, 60, seed=3, byzantine=members, numel=9000)
    bans = until_all_banned(run, world, 60)
    assert {deed for deed, _, _ in bans.values()} == {"wrong_reduction"}
    found = [at for _, _, at in bans.values()]
    assert len(found) == 3 and max(found) - min(found) <= 6


def test_an_accusation_that_stands_in_a_commit_alone_is_judged(run: Run) -> None:
    world = run.world(8, 40, seed=4, byzantine={2: Reversed(), 5: Reversed()})
    for peer in world.honest:
        world.identities[peer].behaviour = Flipped()
    assert len(until_all_banned(run, world, 40)) == 2


def test_false_accusations_in_a_sweep_ban_their_signers(run: Run) -> None:
    keys = run.world(8, 4, seed=5).keys
    friends = frozenset(keys[index].public_key for index in (2, 4))
    liars = {i: FalseAccuse(coalition=friends, attack_from=2) for i in (2, 4)}
    world = run.world(8, 60, seed=5, byzantine={0: Reversed(), **liars})
    bans = until_all_banned(run, world, 60)
    assert {bans[peer][0] for peer in friends} == {"false_accusation"}
    recomputed = [fields for _, name, fields in world.identities[world.honest[0]].events if name == "checked"]
    asked = [(fields["peer"], fields["round"]) for fields in recomputed]
    assert len(asked) == len(set(asked))  # once each, whoever accuses


def test_who_clears_a_friend_against_a_quorum_validates_no_longer(run: Run) -> None:
    members = coalition(run, "rubber_stamp", 8, range(2), 6, start=2)
    world = run.world(8, 18, seed=6, byzantine={**members, 4: Reversed()})
    run.to_the_end(world)
    node = world.node(world.honest[0])
    assert node is not None
    seats = {seat.peer: seat.barred for seat in node.member.state.roster.seats}
    liars = {world.keys[index].public_key for index in range(2)}
    barred = {peer for peer, is_barred in seats.items() if is_barred}
    assert barred  # whoever voted in time
    assert barred <= liars
    assert run.bans(world)[world.keys[4].public_key][0] == "wrong_gradient"
    assert not barred & set(node.member.state.roles().validators)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_crashes_during_a_sweep_ban_nobody_else(run: Run, seed: int) -> None:
    faults = rolling_outages(run.random(seed), 8, 1, 4, SECOND // 2, 3 * SECOND, 2 * SECOND)
    world = run.world(8, 24, seed=seed, faults=faults, byzantine={2: Reversed(), 5: Reversed()})
    run.to_the_end(world, faults)
    assert run.bans(world).keys() <= {world.keys[2].public_key, world.keys[5].public_key}


def test_who_is_killed_in_a_sweep_returns_and_the_sweep_ends_without_him(run: Run) -> None:
    keys = run.world(8, 4, seed=1).keys
    faults = Faults((Outage(0, "crash", 2_200_000, 6_000_000),))
    world = run.world(8, 20, seed=1, faults=faults, byzantine={1: Reversed(), 3: Reversed()})
    run.to_the_end(world, faults)
    assert set(run.bans(world)) == {keys[1].public_key, keys[3].public_key}


def test_who_takes_many_blocks_at_once_begins_the_sweep_that_any_of_them_opened_and_once(run: Run) -> None:
    world = run.world(4, 6, seed=1)
    run.to_the_end(world, Faults())
    court = world.node(world.honest[0]).member.court
    state = court.state
    sweep = Sweep(state.run, 4, state.round, state.round + SWEEP_ROUNDS, RANDOMNESS, state.roster.members, 4)
    court.desk.take()
    for blocks in (3, 4):
        court.stand_at(replace(state, round=state.round + blocks, sweeps=(sweep,)))
    begun = [effect for effect in court.desk.take() if isinstance(effect, Event) and effect.name == "sweep"]
    assert [event.fields["round"] for event in begun] == [4]


def test_a_flood_of_accusations_bans_its_signers_and_makes_nobody_recompute_twice(run: Run) -> None:
    members = coalition(run, "accuse_flood", 8, range(2), 7, start=2)
    world = run.world(8, 40, seed=7, byzantine={**members, 4: Reversed()})
    bans = until_all_banned(run, world, 40)
    assert {bans[world.keys[i].public_key][0] for i in range(2)} == {"false_accusation"}
    events = [fields for _, name, fields in world.identities[world.honest[0]].events if name == "checked"]
    asked = [(fields["peer"], fields["round"]) for fields in events]
    assert len(asked) == len(set(asked))
    assert len(asked) < 8 * len(world.blocks(world.honest[0]))


def test_one_part_of_a_forged_gradient_is_enough(run: Run) -> None:
    keys = run.world(8, 4, seed=8).keys
    friends = frozenset(keys[index].public_key for index in range(2))
    members = {i: CustodyLoss(coalition=friends, attack_from=2, everything=True) for i in range(2)}
    world = run.world(8, 60, seed=8, byzantine=members, numel=9000)
    assert {deed for deed, _, _ in until_all_banned(run, world, 60).values()} == {"wrong_gradient"}


def test_who_keeps_losing_what_would_convict_him_loses_his_seat_and_nobody_else_does(run: Run) -> None:
    members = coalition(run, "custody_loss", 8, range(3), 9, start=2)
    world = run.world(8, 14, seed=9, byzantine=members, numel=9000)
    run.to_the_end(world)
    gone = {peer for block in world.blocks(world.honest[0]) for peer in block.absences}
    assert gone
    assert gone <= {key.public_key for key in world.keys[:3]}
    assert run.bans(world) == {}
