"""Crashes, standstills, early and late members: what must be stored, what must be waited for, what must be frozen."""

from __future__ import annotations

import pytest

from btrain.protocol.agreement import Agreement, Electorate, Quit, Rules, Timing, Vote
from btrain.protocol.encoding import PeerId
from btrain.simulation.decision import Item, Value, item_hash, item_key, items_digest
from btrain.simulation.schedule import DELTA as D
from btrain.simulation.schedule import Schedule

SIZES = [(5, 2), (9, 4), (16, 7)]
ENTRY = 5 * D + 1


def liars_first(members: int, faulty_max: int) -> list[int]:
    return [*range(members - faulty_max, members), *range(members - faulty_max)]


# --- what is stored ---


class Forgetful(Agreement):
    """A restarted member knows only what it signed."""

    @classmethod
    def restore(
        cls, snapshot: bytes, me: PeerId, electorate: Electorate, timing: Timing, rules: Rules, started_us: int
    ) -> Agreement:
        return cls(me, electorate, timing, rules, started_us)


class ForgetfulAndSilent(Forgetful):
    """Nor has it signed the certificates that it held."""

    def _tell_certificate(self) -> None:
        pass


def power_cut_after_a_final_vote(members: int, faulty_max: int, engine: type[Agreement]) -> Schedule:
    """One member has decided in attempt 1, all hold its certificate, all lose power at once; it comes back late."""
    s = Schedule(members, faulty_max, engine=engine, proposers=liars_first(members, faulty_max))
    liar, voters = s.coalition[0], s.honest[: members // 2 + 1 - faulty_max]
    s.withhold_item(liar, voters)
    poorer = s.items(without=[liar])
    s.delay(D, src=voters[:1])
    s.propose(voters, 1, poorer, ENTRY + 1)
    s.vote(voters[:1], 1, poorer, ENTRY + 2)
    s.complete_finals(7 * D + 5)
    for peer in s.honest:
        s.heap.crash(peer, 7 * D + 10)
        s.heap.restart(peer, 40 * D if peer == voters[0] else 7 * D + 20)
    for peer in s.coalition:
        s.say(peer, s.honest[1:], Quit(0, None), 8 * D)
        s.say(peer, s.honest[1:], Quit(1, None), 8 * D)
    s.propose(s.honest[1:], 2, s.items(), 20 * D)
    s.vote(s.honest[1:], 2, s.items(), 20 * D + 1)
    s.complete_finals(22 * D + 10)
    return s


@pytest.mark.parametrize(("members", "faulty_max"), SIZES)
@pytest.mark.parametrize("engine", [Agreement, Forgetful])
def test_a_power_cut_of_all_does_not_fork(members: int, faulty_max: int, engine: type[Agreement]) -> None:
    """Certificates are in the snapshot, and once more in what was signed."""
    s = power_cut_after_a_final_vote(members, faulty_max, engine)
    s.run(7 * D + 5)
    assert len(set(s.finals().values())) == 1
    s.run_to_the_end()
    assert s.finished
    assert not s.forked
    assert not s.honest_doubles


@pytest.mark.parametrize(("members", "faulty_max"), SIZES)
def test_a_power_cut_of_all_forks_if_certificates_are_lost(members: int, faulty_max: int) -> None:
    s = power_cut_after_a_final_vote(members, faulty_max, ForgetfulAndSilent)
    s.run_to_the_end()
    assert s.forked


@pytest.mark.parametrize(
    ("cut_at_us", "kept"),
    [(at, True) for at in (1, D, 3 * D - 1, 3 * D + 1, 4 * D, 5 * D + 2, 8 * D, 12 * D + 1)]
    + [(at, False) for at in (D, 3 * D - 1, 3 * D + 1, 4 * D)],
)
def test_an_item_that_came_in_time_survives_a_power_cut_if_it_is_stored(cut_at_us: int, kept: bool) -> None:
    """All lose power, the item's sender never comes back, and the coalition is silent."""
    s = Schedule(9, 4, byzantine=3)
    for peer in s.honest:
        s.heap.crash(peer, cut_at_us + 1)
        if peer != s.honest[0]:
            s.heap.restart(peer, cut_at_us + 2)
    s.gone.add(s.honest[0])
    if not kept:
        for peer in s.honest:
            s.at(cut_at_us + 1, s.world.disks[peer].bodies.clear)
            s.at(cut_at_us + 1, lambda disk=s.world.disks[peer]: setattr(disk, "snapshot", None))  # type: ignore[misc]
    s.run_to_the_end()
    assert s.finished
    assert not s.forked
    assert all((item_key(s.honest[0]) in items) is kept for _, items in s.world.decided.values())


@pytest.mark.parametrize("moment", [1, D // 2, 3 * D, 3 * D + 2, 5 * D, 7 * D + 3, 9 * D, 9 * D + 5])
@pytest.mark.parametrize("victim", range(3))
def test_kill_and_restart_of_one_member_at_any_moment(moment: int, victim: int) -> None:
    s = Schedule(5, 2, byzantine=1, proposers=[4, 0, 1, 2, 3])
    s.heap.crash(s.honest[victim], moment)
    s.heap.restart(s.honest[victim], moment + D)
    s.run_to_the_end()
    assert s.finished
    assert not s.forked
    assert not s.honest_doubles


# --- what is waited for ---


class Trusting(Agreement):
    """A restarted member votes and is final at once."""

    def _distrust(self, duration_us: int) -> None:
        pass


def two_restarts_around_the_leaving(engine: type[Agreement]) -> Schedule:
    """Two members, down one after the other, miss the Quits and are shown enough votes of attempt 0 on their return."""
    s = Schedule(5, 2, engine=engine, byzantine=1, proposers=[4, 0, 1, 2, 3])
    first, second, voter, other = s.honest
    liar = s.coalition[0]
    s.withhold_item(liar, [other])
    s.say(liar, [other], Item(item_key(liar), item_hash(liar, 1)), 2)
    s.heap.crash(first, 5 * D // 2)
    s.delay(D, src=[voter, other], dst=[first, second], since_us=3 * D)
    s.say(liar, [voter, other], Quit(0, None), 3 * D + 1)
    s.say(liar, [voter], Item(item_key(liar), item_hash(liar, 1)), 3 * D + 3)
    s.heap.crash(second, 4 * D - 1)
    s.heap.restart(first, 4 * D - 1)
    s.delay(D, src=[first, second], since_us=4 * D - 1)
    s.heap.restart(second, 9 * D // 2)
    for member, at in ((first, 4 * D + 10), (second, 9 * D // 2 + 10)):
        s.vote([member], 0, s.items(), at)
        s.at(at, lambda member=member, at=at: s.hand_on([member], is_first_vote, at))  # type: ignore[misc]
    poorer = s.items(without=[liar])
    s.propose([voter, other], 1, poorer, 5 * D + 4)
    s.vote([voter, other], 1, poorer, 5 * D + 5)
    s.complete_finals(7 * D + 20)
    return s


def is_first_vote(sender: PeerId, payload: object) -> bool:
    return isinstance(payload, Vote) and payload.attempt == 0


def test_restarts_around_the_leaving_do_not_fork() -> None:
    s = two_restarts_around_the_leaving(Agreement)
    s.run_to_the_end()
    assert s.finished
    assert not s.forked
    assert len(set(s.finals().values())) == 1


def test_restarts_around_the_leaving_fork_if_nothing_is_waited_for() -> None:
    s = two_restarts_around_the_leaving(Trusting)
    s.run_to_the_end()
    assert s.forked


class Unaware(Agreement):
    """A member does not notice that it was stopped."""

    def _notice_standstill(self) -> None:
        pass


def frozen_through_the_leaving(engine: type[Agreement]) -> Schedule:
    """A member is stopped; the votes of attempt 0 that wait for it came before the Quits that wait behind them."""
    s = Schedule(5, 2, engine=engine, byzantine=1, proposers=[4, 0, 1, 2, 3])
    liar, frozen, other = s.coalition[0], s.honest[0], s.honest[3]
    s.withhold_item(liar, [other])
    s.say(liar, [other], Item(item_key(liar), item_hash(liar, 1)), 2)
    s.heap.freeze(frozen, 5 * D // 2, 8 * D)
    s.vote([frozen], 0, s.items(), 5 * D // 2 + 1)
    s.say(liar, s.honest, Quit(0, None), 3 * D + 1)
    s.say(liar, s.honest[1:], Item(item_key(liar), item_hash(liar, 1)), 3 * D + 3)
    s.propose(s.honest[1:], 1, s.items(without=[liar]), ENTRY + 2)
    s.vote(s.honest[1:], 1, s.items(without=[liar]), ENTRY + 3)
    return s


def test_a_member_that_stood_still_is_not_final_on_old_votes() -> None:
    s = frozen_through_the_leaving(Agreement)
    s.run_to_the_end()
    assert s.finished
    assert not s.forked
    assert len(set(s.finals().values())) == 1


def test_a_member_that_does_not_notice_its_standstill_is_final_on_old_votes() -> None:
    s = frozen_through_the_leaving(Unaware)
    s.run_to_the_end()
    assert len(set(s.finals().values())) == 2


class FinalBeforeQuits(Agreement):
    """Of what was collected before the start, the votes are looked at first."""

    def _advance(self) -> None:
        if self.state.decided is None:
            self._count_votes()
            self._finalise()
        super()._advance()


@pytest.mark.parametrize(("engine", "final"), [(Agreement, False), (FinalBeforeQuits, True)])
def test_a_late_beginner_leaves_before_it_looks_at_votes(engine: type[Agreement], final: bool) -> None:
    """Quits and votes have been collected; attempt 0 is over for everybody else."""
    s = Schedule(5, 2, engine=engine, begins_us={0: 30 * D})
    late = s.honest[0]
    s.heap.crash(s.honest[1], 29 * D)
    s.heap.crash(s.honest[2], 29 * D)
    digest = items_digest(s.items())
    s.say(s.coalition[0], [late], Value(s.items()), 2)
    for index, peer in enumerate((*s.honest[1:], *s.coalition)):
        s.at(1, lambda peer=peer, at=1 + index: s.world.say(peer, late, Vote(0, digest), at))  # type: ignore[misc]
    for peer in s.coalition:
        s.say(peer, [late], Quit(0, None), 4 * D)
    s.run(30 * D + 5)
    assert (late in s.finals()) is final


# --- what is frozen, and where attempt 0 is skipped ---


class FreezesOnlyWhenItAsks(Agreement):
    """Who leaves early has frozen nothing."""

    def _freeze(self) -> None:
        if self.state.quit >= self.state.attempt:
            super()._freeze()


def leaving_before_the_own_deadline(members: int, faulty_max: int, engine: type[Agreement]) -> Schedule:
    """One member begins early; the coalition's Quits and its own make all leave, and an honest item is left out."""
    begins = dict.fromkeys(range(1, members - faulty_max), 2 * D)
    s = Schedule(members, faulty_max, engine=engine, proposers=liars_first(members, faulty_max), begins_us=begins)
    for peer in s.coalition:
        s.say(peer, s.honest, Quit(0, None), 3 * D + 1)
    poorer = s.items(without=[s.honest[1]])
    s.propose(s.honest, 1, poorer, ENTRY + 3)
    s.vote(s.honest, 1, poorer, ENTRY + 4)
    return s


@pytest.mark.parametrize(("members", "faulty_max"), SIZES)
@pytest.mark.parametrize(("engine", "kept"), [(Agreement, True), (FreezesOnlyWhenItAsks, False)])
def test_who_leaves_early_freezes_too(members: int, faulty_max: int, engine: type[Agreement], kept: bool) -> None:
    s = leaving_before_the_own_deadline(members, faulty_max, engine)
    s.run_to_the_end()
    assert s.finished
    assert all((item_key(s.honest[1]) in items) is kept for _, items in s.world.decided.values())


def test_where_attempt_0_cannot_succeed_nobody_waits_for_its_deadline() -> None:
    """Of nine members three are absent: six cannot make a fast certificate."""
    s = Schedule(9, 4, byzantine=1, absent=[5, 6, 7], proposers=[8, 0, 1, 2, 3, 4, 5, 6, 7])
    s.run_to_the_end()
    assert s.finished
    assert not s.forked
    assert {len(items) for _, items in s.world.decided.values()} == {6}
    attempt_1_fails = 2 * D + 7 * D
    assert max(now for now, _ in s.world.decided.values()) < attempt_1_fails + 7 * D
    assert not any(isinstance(payload, Vote) and payload.attempt == 0 for _, payload in s.world.authority.payloads())
