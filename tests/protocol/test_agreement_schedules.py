"""Schedules that fork or hang the engine as soon as one of its rules is missing, and do nothing to the whole engine.

Each schedule runs twice: with the engine, which must decide one value, and with a subclass that lacks one rule, which
must show the violation: a schedule that no longer does proves nothing about its rule.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from btrain.protocol.agreement import Agreement, Decided, Final, Payload, Proposal, Quit, Vote
from btrain.protocol.agreement_messages import Certificate
from btrain.protocol.agreement_state import NONE, Suggestion, most
from btrain.protocol.encoding import PeerId
from btrain.simulation.schedule import DELTA as D
from btrain.simulation.schedule import Schedule

SIZES = [(5, 2), (9, 4), (16, 7)]
ENTRY = 5 * D + 1  # of attempt 1: deadline 3 Delta, one microsecond for the Quits, 2 Delta
Script = Callable[[int, int, type[Agreement]], Schedule]


def liars_first(members: int, faulty_max: int) -> list[int]:
    """The Byzantine members propose first."""
    return [*range(members - faulty_max, members), *range(members - faulty_max)]


def quorums(members: int, faulty_max: int) -> tuple[int, int]:
    """q and the fast quorum."""
    return members // 2 + 1, (members + faulty_max) // 2 + 1


# --- no vote and no finality after leaving ---


class FinalAtOnce(Agreement):
    """Enough votes of attempt 0 are final whenever they come."""

    def _take(self, sender: PeerId, payload: Payload, envelope: bytes) -> None:
        super()._take(sender, payload, envelope)
        if isinstance(payload, Vote) and payload.attempt == 0:
            late = self.__dict__.setdefault("late", {})
            late[sender] = payload.digest
            digest = most(late.values(), self.electorate.fast_quorum)
            if digest is not None and self.state.final is None:
                self.state.final = digest
                self.out.sign(Final(digest))


def withheld_votes_of_attempt_0(members: int, faulty_max: int, engine: type[Agreement]) -> Schedule:
    s = Schedule(members, faulty_max, engine=engine, proposers=liars_first(members, faulty_max))
    _, fast = quorums(members, faulty_max)
    liar, voters, others = s.coalition[0], s.honest[: fast - faulty_max], s.honest[fast - faulty_max :]
    s.withhold_item(liar, others)
    poorer = s.items(without=[liar])
    s.propose(others, 1, poorer, ENTRY + 1)
    s.vote(others, 1, poorer, ENTRY + 2)
    s.vote(voters[:1], 0, s.items(), 8 * D)
    s.complete_finals(8 * D + 10)
    return s


class SettlesAfterLeaving(Agreement):
    """The 2 Delta after a vote go on when the attempt is left."""

    def _leave(self) -> None:
        due = self.out.due("settle")
        super()._leave()
        if due is not None and self.out.due("settle") is None:
            self.out.set_timer("settle", due - self.out.now)

    def _finalise(self) -> None:
        left, self.state.left = self.state.left, False
        super()._finalise()
        self.state.left = left


def proposal_just_before_leaving(members: int, faulty_max: int, engine: type[Agreement]) -> Schedule:
    s = Schedule(members, faulty_max, engine=engine, proposers=liars_first(members, faulty_max))
    q, _ = quorums(members, faulty_max)
    liar, voters, others = s.coalition[0], s.honest[: q - faulty_max], s.honest[q - faulty_max :]
    target = voters[0]
    s.withhold_item(liar, voters)
    poorer, quitting = s.items(without=[liar]), ENTRY + 7 * D
    s.delay(D, src=voters, dst=others, since_us=quitting - 1)
    s.delay(D, src=[target], since_us=quitting - 1)
    s.propose(voters, 1, poorer, quitting - 1)
    for peer in s.coalition:
        s.say(peer, s.honest, Quit(1, None), quitting + 1)
    s.vote([target], 1, poorer, quitting - 1 + 2 * D - 1)
    s.propose(s.honest[1:], 2, s.items(), quitting + 2 * D + 4)
    s.vote(s.honest[1:], 2, s.items(), quitting + 2 * D + 5)
    s.complete_finals(quitting + 4 * D - 10)
    s.complete_finals(quitting + 4 * D + 10)
    return s


# --- no vote once two proposals are known ---


class VotesForTheFirstValid(Agreement):
    """A second proposal is no reason to abstain or to quit."""

    def _only_suggestion(self) -> Suggestion | None:
        suggestions = self.state.proposals.get(self.state.attempt, [])
        voted = self._voted(self.state.attempt)
        for suggestion in suggestions:
            if suggestion.digest == voted or (voted is None and self._supports(suggestion.proposal)):
                return suggestion
        return None

    def _answer_conflicts(self) -> None:
        pass


def second_proposal_for_refusers(members: int, faulty_max: int, engine: type[Agreement]) -> Schedule:
    s = Schedule(members, faulty_max, engine=engine, proposers=liars_first(members, faulty_max))
    q, _ = quorums(members, faulty_max)
    liar, first, refusers = s.coalition[0], s.honest[: q - faulty_max], s.honest[q - faulty_max :]
    s.withhold_item(liar, first)
    s.propose(first, 1, s.items(without=[liar]), ENTRY + 1)
    s.vote(first, 1, s.items(without=[liar]), ENTRY + 2)
    s.propose(refusers, 1, s.items(), ENTRY + 2 * D + 2)
    s.vote(refusers, 1, s.items(), ENTRY + 2 * D + 3)
    entry_2 = ENTRY + 9 * D + 1
    s.at(entry_2 + 1, lambda: s.propose(refusers, 2, s.items(), entry_2 + 1))
    s.vote(refusers, 2, s.items(), entry_2 + 2)
    s.complete_finals(entry_2 + 2 * D + 10)
    return s


# --- leave only on b+1 Quits ---


class LeavesAlone(Agreement):
    """A member's own deadline ends its attempt."""

    def _attempt_to_leave(self) -> int:
        return self.state.quit


def late_beginner(members: int, faulty_max: int, engine: type[Agreement]) -> Schedule:
    skew = D + D // 100
    s = Schedule(members, faulty_max, engine=engine, proposers=liars_first(members, faulty_max), begins_us={0: skew})
    _, fast = quorums(members, faulty_max)
    liar, others = s.coalition[0], s.honest[fast - faulty_max :]
    s.withhold_item(liar, others)
    s.delay(D, src=s.honest[:1])
    s.vote(s.honest[:1], 0, s.items(), 3 * D + skew - 2)
    poorer = s.items(without=[liar])
    s.propose(others, 1, poorer, ENTRY + 1)
    s.vote(others, 1, poorer, ENTRY + 2)
    s.complete_finals(8 * D)
    return s


FORKS: list[tuple[Script, type[Agreement]]] = [
    (withheld_votes_of_attempt_0, FinalAtOnce),
    (proposal_just_before_leaving, SettlesAfterLeaving),
    (second_proposal_for_refusers, VotesForTheFirstValid),
    (late_beginner, LeavesAlone),
]


@pytest.mark.parametrize(("members", "faulty_max"), SIZES)
@pytest.mark.parametrize("script", [script for script, _ in FORKS])
def test_no_fork(script: Script, members: int, faulty_max: int) -> None:
    s = script(members, faulty_max, Agreement)
    s.run_to_the_end()
    assert not s.forked
    assert s.finished
    assert not s.honest_doubles


@pytest.mark.parametrize(("members", "faulty_max"), SIZES)
@pytest.mark.parametrize(("script", "ablated"), FORKS)
def test_fork_without_the_rule(script: Script, ablated: type[Agreement], members: int, faulty_max: int) -> None:
    s = script(members, faulty_max, ablated)
    s.run_to_the_end()
    assert s.forked


# --- a certified proposal may omit what was frozen ---


class OmissionAlways(Agreement):
    """A certificate does not excuse an omission."""

    def _supports(self, proposal: Proposal) -> bool:
        items = dict(proposal.items)
        complete = all(items.get(key) == body_hash for key, body_hash in self.state.frozen.items())
        return complete and super()._supports(proposal)


def lock_without_a_frozen_item(members: int, faulty_max: int, engine: type[Agreement]) -> Schedule:
    s = Schedule(members, faulty_max, engine=engine, proposers=liars_first(members, faulty_max))
    liar = s.coalition[0]
    s.withhold_item(liar, s.honest[1:])
    poorer = s.items(without=[liar])
    s.propose(s.honest[1:], 1, poorer, ENTRY + 6 * D)
    s.vote(s.honest, 1, poorer, ENTRY + 6 * D + 1)
    return s


# --- the lock is frozen at the entry, the proposer waits 2 Delta ---


class LivelyLock(Agreement):
    """The lock is the highest certificate of the moment, and the proposer proposes at its entry."""

    def _enter(self) -> None:
        super()._enter()
        self._may_propose = True

    def _supports(self, proposal: Proposal) -> bool:
        self.state.lock = self.state.rank
        return super()._supports(proposal)


def withheld_certificates(members: int, faulty_max: int, engine: type[Agreement]) -> Schedule:
    """One honest member at a time is shown a higher certificate just before the honest proposal reaches it."""
    order = [members - 1, *range(members - 1)]
    s = Schedule(members, faulty_max, engine=engine, proposers=order)
    s.delay(10, kind=Proposal)
    s.delay(1, dst=s.coalition)
    s.delay(D // 2, src=s.honest, dst=s.honest, kind=Quit)
    s.propose(s.honest[1:], 1, s.items(), 12 * D + D // 4)
    s.delay(D, dst=s.honest[:1], kind=Proposal, until_us=14 * D)
    answered: set[int] = set()

    def answer(sender: PeerId, payload: Payload, now: int) -> None:
        if not isinstance(payload, Proposal) or sender not in s.honest or payload.attempt in answered:
            return
        answered.add(payload.attempt)
        certificate = s.certificate(payload.attempt, dict(payload.items))
        held = NONE if payload.certificate is None else payload.certificate.attempt
        if certificate is not None and certificate.attempt > held:
            s.say(s.coalition[0], [next(peer for peer in s.honest if peer != sender)], carrier(certificate), now + 1)

    s.overheard = answer
    return s


def carrier(certificate: Certificate) -> Quit:
    return Quit(certificate.attempt, certificate)


# --- Finals ---


class StopsWhenFinal(Agreement):
    """Who is final has decided and takes no further part; Finals of others mean nothing."""

    def _finalise(self) -> None:
        super()._finalise()
        if self.state.final is not None and self.state.decided is None:
            self.state.decided = dict(self.known_value(self.state.final) or {})
            self.out.cancel()
            self.out.emit(Decided(self.state.decided))

    def _decided_digest(self) -> bytes | None:
        return None


def one_final_member(members: int, faulty_max: int, engine: type[Agreement]) -> Schedule:
    s = Schedule(members, faulty_max, engine=engine, proposers=liars_first(members, faulty_max))
    liar = s.coalition[0]
    s.delay(D, dst=s.honest[:1])
    s.propose(s.honest, 1, s.items(), ENTRY + D)
    s.vote(s.honest, 1, s.items(), ENTRY + D + 1)
    s.propose(s.honest[1:], 1, s.items(without=[liar]), ENTRY + 3 * D - 2)
    return s


HANGS: list[tuple[Script, type[Agreement]]] = [
    (lock_without_a_frozen_item, OmissionAlways),
    (withheld_certificates, LivelyLock),
    (one_final_member, StopsWhenFinal),
]


@pytest.mark.parametrize(("members", "faulty_max"), SIZES)
@pytest.mark.parametrize("script", [script for script, _ in HANGS])
def test_no_hang(script: Script, members: int, faulty_max: int) -> None:
    s = script(members, faulty_max, Agreement)
    s.run_to_the_end()
    assert s.finished
    assert not s.forked
    assert not s.honest_doubles


@pytest.mark.parametrize(("members", "faulty_max"), SIZES)
@pytest.mark.parametrize(("script", "ablated"), HANGS)
def test_hang_without_the_rule(script: Script, ablated: type[Agreement], members: int, faulty_max: int) -> None:
    s = script(members, faulty_max, ablated)
    s.run_to_the_end(150 * D)
    assert not s.finished
