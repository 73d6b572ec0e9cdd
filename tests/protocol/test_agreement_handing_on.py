"""Certificates and Finals must reach everybody, also where liars have used their slots for something else."""

from __future__ import annotations

import pytest

from btrain.protocol import agreement
from btrain.protocol.agreement import Agreement, Final, Forward, PushValue, Quit, Vote
from btrain.protocol.encoding import PeerId
from btrain.simulation.decision import Item, item_hash, item_key, items_digest
from btrain.simulation.schedule import DELTA as D
from btrain.simulation.schedule import Schedule

SIZES = [(5, 2), (9, 4), (16, 7)]
ENTRY = 5 * D + 1


def liars_first(members: int, faulty_max: int) -> list[int]:
    return [*range(members - faulty_max, members), *range(members - faulty_max)]


class KeepsTheFirstCertificate(Agreement):
    """A certificate of attempt 0 is not handed on."""

    def _tell_certificate(self) -> None:
        if self.state.attempt > 0:
            super()._tell_certificate()


class HandsOnSingleVotes(Agreement):
    """A certificate is handed on vote by vote, and the value with it."""

    def _tell_certificate(self) -> None:
        if self.state.highest is not None and "told" not in self.__dict__:
            self.__dict__["told"] = True
            self.out.emit(Forward(self.state.highest.votes))
            self.out.emit(PushValue(dict(self.state.highest.items)))


def final_just_before_leaving(members: int, faulty_max: int, engine: type[Agreement]) -> Schedule:
    """One member is final in attempt 0 while the others, which do not know the value, are about to enter attempt 1."""
    s = Schedule(members, faulty_max, engine=engine, proposers=liars_first(members, faulty_max))
    fast = (members + faulty_max) // 2 + 1
    liar, voters, others = s.coalition[0], s.honest[: fast - faulty_max], s.honest[fast - faulty_max :]
    s.withhold_item(liar, others)
    s.say(liar, others, Item(item_key(liar), item_hash(liar, 1)), 1)
    for peer in s.coalition:
        s.say(peer, others, Vote(0, bytes(32)), 1)
    s.delay(D, dst=voters[:1], kind=Quit)
    s.delay(D, src=voters[:1], since_us=3 * D + 1)
    s.vote(voters[:1], 0, s.items(), 4 * D - 2)
    poorer = s.items(without=[liar])
    s.propose(others, 1, poorer, ENTRY + 1)
    s.vote(others, 1, poorer, ENTRY + 2)
    s.complete_finals(ENTRY + 2 * D - 10)
    s.complete_finals(ENTRY + 2 * D + 20)
    return s


class HandsOnCarriers(Agreement):
    """Who was told a certificate hands on the liar's message that told it."""

    def _take(self, sender: PeerId, payload: agreement.Payload, envelope: bytes) -> None:
        rank = self.state.rank
        super()._take(sender, payload, envelope)
        if self.state.rank > rank:
            self.out.emit(Forward((envelope,)))

    def _tell_certificate(self) -> None:
        pass


def told_in_a_third_message(members: int, faulty_max: int, engine: type[Agreement]) -> Schedule:
    """A member that has asked to leave is final by a certificate in a liar's Quit, his third for the others."""
    s = Schedule(members, faulty_max, engine=engine, proposers=liars_first(members, faulty_max))
    liar, voters = s.coalition[0], s.honest[: members // 2 + 1 - faulty_max]
    s.withhold_item(liar, voters)
    poorer, quitting = s.items(without=[liar]), ENTRY + 7 * D
    s.propose(voters, 1, poorer, quitting - 3 * D // 2)

    def tell() -> None:
        nothing, certificate = s.certificate(1, s.items(), 0), s.certificate(2, poorer, 1)
        for told in (None, nothing):
            s.say(liar, s.honest[1:], Quit(1, told), quitting + 2)
        s.say(liar, s.honest[:1], Quit(1, certificate), quitting + 2)

    s.at(quitting + 2, tell)
    s.delay(D, dst=s.honest[:1], kind=Quit, since_us=quitting)
    s.delay(D, src=s.honest[:1], since_us=quitting + 2)
    entry_2 = quitting + 2 * D + 3
    s.at(entry_2 + 10, lambda: s.propose(s.honest[1:], 2, s.items(), entry_2 + 10))
    s.vote(s.honest[1:], 2, s.items(), entry_2 + 11)
    s.complete_finals(entry_2 + 2 * D - 10)
    s.complete_finals(entry_2 + 2 * D + 30)
    return s


@pytest.mark.parametrize(("members", "faulty_max"), SIZES)
@pytest.mark.parametrize(("engine", "forked"), [(Agreement, False), (HandsOnCarriers, True)])
def test_who_is_final_told_the_certificate(
    members: int, faulty_max: int, engine: type[Agreement], forked: bool
) -> None:
    s = told_in_a_third_message(members, faulty_max, engine)
    s.run_to_the_end()
    assert s.finished
    assert s.forked is forked


@pytest.mark.parametrize(("members", "faulty_max"), SIZES)
def test_the_certificate_of_attempt_0_is_handed_on_when_somebody_quits(members: int, faulty_max: int) -> None:
    s = final_just_before_leaving(members, faulty_max, Agreement)
    s.run_to_the_end()
    assert s.finished
    assert not s.forked


@pytest.mark.parametrize(("members", "faulty_max"), SIZES)
@pytest.mark.parametrize("engine", [KeepsTheFirstCertificate, HandsOnSingleVotes])
def test_attempt_0_forks_without_its_whole_certificate(members: int, faulty_max: int, engine: type[Agreement]) -> None:
    s = final_just_before_leaving(members, faulty_max, engine)
    s.run_to_the_end()
    assert s.forked


class CountsFirstFinals(Agreement):
    """A liar's Final counts only if it is his first."""

    def _take(self, sender: PeerId, payload: agreement.Payload, envelope: bytes) -> None:
        if not isinstance(payload, Final) or sender not in self.state.first_finals:
            super()._take(sender, payload, envelope)


def finals_for_one_member(members: int, faulty_max: int, engine: type[Agreement]) -> Schedule:
    """It decides and takes no further part; all others were given other Finals of the liars first."""
    s = Schedule(members, faulty_max, engine=engine, proposers=liars_first(members, faulty_max))
    target = s.honest[:1]
    for peer in s.coalition:
        s.say(peer, s.honest[1:], Final(bytes(32)), 1)
    s.vote(target, 0, s.items(), 2 * D)
    for peer in s.coalition:
        s.say(peer, target, Final(items_digest(s.items())), 2 * D + 6)
    s.run(2 * D + 10)
    assert set(s.world.decided) == set(target)
    return s


@pytest.mark.parametrize(("members", "faulty_max"), SIZES)
def test_finals_shown_to_one_member_alone_are_handed_on(members: int, faulty_max: int) -> None:
    s = finals_for_one_member(members, faulty_max, Agreement)
    s.run_to_the_end()
    assert s.finished
    assert max(now for now, _ in s.world.decided.values()) <= 2 * D + 6 + 3 * D // 2


@pytest.mark.parametrize(("members", "faulty_max"), SIZES)
def test_handed_on_finals_are_worth_nothing_if_only_first_ones_count(members: int, faulty_max: int) -> None:
    s = finals_for_one_member(members, faulty_max, CountsFirstFinals)
    s.run_to_the_end(100 * D)
    assert not s.finished
