"""The engine by itself: latencies, values, what it refuses, what it hands on, what it keeps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from btrain.protocol import agreement
from btrain.protocol.agreement import (
    VOID,
    Agreement,
    CancelTimer,
    Certificate,
    Decided,
    Effect,
    Electorate,
    Final,
    Forward,
    Items,
    Lock,
    NeedValue,
    Persist,
    Proposal,
    Quit,
    SetTimer,
    Sign,
    Timing,
    Vote,
    item_pairs,
)
from btrain.protocol.agreement_state import ATTEMPTS_AHEAD_MAX
from btrain.protocol.encoding import PeerId, decode, encode
from btrain.protocol.errors import (
    InconsistentMessage,
    InvalidCertificate,
    MalformedMessage,
    NotAMember,
    RemoteProtocolError,
)
from btrain.simulation.decision import Authority, Item, Signed, Value, item_hash, item_key, items_digest, peer_ids
from btrain.simulation.heap import NodeId
from btrain.simulation.schedule import DELTA as D
from btrain.simulation.schedule import Schedule

SIZES = [(5, 2), (9, 4), (16, 7)]
ENTRY = 5 * D + 1


def liars_first(members: int, faulty_max: int) -> list[int]:
    return [*range(members - faulty_max, members), *range(members - faulty_max)]


class Desk:
    """Rules for one member that holds every body, and its signing."""

    def __init__(self, members: int = 5, faulty_max: int = 2, me: int = 0) -> None:
        self.peers = peer_ids(members)
        self.me = self.peers[me]
        self.authority = Authority()
        self.electorate = Electorate(self.peers, frozenset(self.peers), faulty_max, self.peers)
        self.engine = Agreement(self.me, self.electorate, Timing(D, 3 * D, 7 * D), self, 0)
        self.timers: dict[str, int] = {}

    def complete(self, held: Items) -> bool:
        return len(held) == len(self.peers)

    def acceptable(self, items: Items, attempt: int) -> bool:
        return True

    def digest(self, items: Items) -> bytes:
        return items_digest(items)

    def void_allowed(self, attempt: int, held: Items) -> bool:
        return False

    def verify_vote(self, envelope: bytes) -> tuple[PeerId, Vote] | None:
        return self.authority.verify_vote(envelope)

    def start(self) -> list[Effect]:
        return self.loop(self.engine.start(0), 0)

    def say(self, sender: int, payload: agreement.Payload, now: int = 0) -> list[Effect]:
        """A message arrives; the effects."""
        peer = self.peers[sender]
        return self.loop(self.engine.receive(peer, payload, self.authority.sign(peer, payload), now), now)

    def loop(self, effects: Iterable[Effect], now: int) -> list[Effect]:
        """Set the timers and give back what the engine has signed; all effects, the later ones included."""
        done: list[Effect] = []
        for effect in effects:
            done.append(effect)
            if isinstance(effect, SetTimer):
                self.timers[effect.name] = effect.at_us
            elif isinstance(effect, CancelTimer):
                del self.timers[effect.name]
            elif isinstance(effect, Sign):
                envelope = self.authority.sign(self.me, effect.payload)
                done += self.loop(self.engine.receive(self.me, effect.payload, envelope, now), now)
        return done

    def run(self, until: int) -> list[Effect]:
        """Ring the timers up to a time; the effects."""
        done: list[Effect] = []
        while self.timers:
            name, now = min(self.timers.items(), key=lambda timer: timer[1])
            if now > until:
                break
            del self.timers[name]
            done += self.loop(self.engine.timer(name, now), now)
        return done

    def certificate(self, items: Items, voters: Iterable[int], attempt: int = 1) -> Certificate:
        vote = Vote(attempt, items_digest(items))
        votes = tuple(self.authority.sign(self.peers[voter], vote) for voter in voters)
        return Certificate(attempt, item_pairs(items), votes)


def signed(effects: Iterable[Effect]) -> list[agreement.Payload]:
    return [effect.payload for effect in effects if isinstance(effect, Sign)]


SOME: Items = {"a": bytes(32), "b": b"\1" * 32}


# --- the clean path and silence ---


@pytest.mark.parametrize(("members", "faulty_max"), [(1, 0), (2, 0), (3, 1), (4, 1), *SIZES])
def test_without_faults_two_messages_decide(members: int, faulty_max: int) -> None:
    """Votes, then Finals: each at most Delta after the last item."""
    s = Schedule(members, faulty_max, byzantine=0)
    s.delay(D // 2)
    s.run_to_the_end()
    assert s.finished
    messages = {1: 0, 2: 2}.get(members, 3)  # its own Final decides for a member of a group without faults
    expected = messages * D // 2
    assert {now for now, _ in s.world.decided.values()} == {expected}
    assert all(items == s.items() for _, items in s.world.decided.values())
    s.run(s.heap.now + D)
    assert set(s.world.certified) == set(s.honest)


@pytest.mark.parametrize(("members", "faulty_max"), [(3, 1), *SIZES])
def test_with_b_silent_members_an_honest_proposer_decides_in_11_delta(members: int, faulty_max: int) -> None:
    s = Schedule(members, faulty_max)
    for liar in s.coalition:
        s.withhold_item(liar, s.honest)
    s.delay(D // 2)
    s.run_to_the_end()
    assert s.finished
    assert max(now for now, _ in s.world.decided.values()) <= 11 * D
    assert all(items == s.items(without=s.coalition) for _, items in s.world.decided.values())


@pytest.mark.parametrize(("members", "faulty_max"), [(3, 1), *SIZES])
def test_each_silent_proposer_costs_about_ten_delta(members: int, faulty_max: int) -> None:
    s = Schedule(members, faulty_max, proposers=liars_first(members, faulty_max))
    for liar in s.coalition:
        s.withhold_item(liar, s.honest)
    s.delay(D // 2)
    s.run_to_the_end()
    assert s.finished
    assert max(now for now, _ in s.world.decided.values()) <= (11 + 10 * faulty_max) * D


def test_a_decision_about_nothing_is_decided_at_once() -> None:
    desk = Desk(1, 0)
    desk.complete = lambda held: True  # type: ignore[method-assign]
    done = desk.start()
    assert Decided({}) in done
    assert desk.engine.decided == {}
    assert len(desk.engine.final_certificate or ()) == 1


# --- values: double bodies, void ---


class LocksOnQuorumInAttempt0(Agreement):
    """q votes of attempt 0 are a certificate too, though not a final one."""

    def _threshold(self, attempt: int) -> int:
        return self.electorate.quorum

    def _finalise(self) -> None:
        ballots = self.state.votes.get(0, {}).values()
        fast = [digest for digest, _ in ballots if self.state.highest and digest == self._highest_digest()]
        if self.state.attempt > 0 or len(fast) >= self.electorate.fast_quorum:
            super()._finalise()

    def _highest_digest(self) -> bytes:
        assert self.state.highest is not None
        return self.rules.digest(dict(self.state.highest.items))


def two_bodies_in_attempt_0(members: int, faulty_max: int, engine: type[Agreement]) -> Schedule:
    """An item in two versions splits the votes of attempt 0; one member is final, the double voters serve the rest."""
    s = Schedule(members, faulty_max, engine=engine, proposers=liars_first(members, faulty_max))
    fast = (members + faulty_max) // 2 + 1
    liar, voters, others = s.coalition[0], s.honest[: fast - faulty_max], s.honest[fast - faulty_max :]
    s.withhold_item(liar, others)
    s.say(liar, others, Item(item_key(liar), item_hash(liar, 1)), 1)
    second = s.items(variants={liar: 1})
    s.vote(others, 0, second, 2 * D)
    s.vote(voters[:1], 0, s.items(), 3 * D - 3)
    s.delay(D, src=voters[:1], since_us=3 * D - 3)
    for peer in s.coalition:
        s.say(peer, s.honest, Quit(0, None), 3 * D + 1)

    def propose() -> None:
        digest = items_digest(second)
        votes = s.world.authority.envelopes(lambda _, payload: payload == Vote(0, digest))
        certificate = Certificate(0, item_pairs(second), votes)
        s.say(liar, s.honest[1:], Proposal(1, item_pairs(second), certificate), ENTRY + 5)

    s.at(ENTRY + 4, propose)
    s.vote(s.honest[1:], 1, second, ENTRY + 6)
    s.complete_finals(ENTRY + 2 * D - 10)
    s.complete_finals(ENTRY + 2 * D + 20)
    return s


@pytest.mark.parametrize(("members", "faulty_max"), SIZES)
def test_attempt_0_locks_only_on_its_own_quorum(members: int, faulty_max: int) -> None:
    s = two_bodies_in_attempt_0(members, faulty_max, Agreement)
    s.run_to_the_end()
    assert s.finished
    assert not s.forked
    assert any(isinstance(error, InvalidCertificate) for error in s.world.refused)
    s = two_bodies_in_attempt_0(members, faulty_max, LocksOnQuorumInAttempt0)
    s.run_to_the_end()
    assert s.forked


class VotesForVoid(Agreement):
    """Nothing may always be decided."""

    def _supports(self, proposal: Proposal) -> bool:
        return dict(proposal.items) == VOID or super()._supports(proposal)


@pytest.mark.parametrize(("members", "faulty_max"), SIZES)
@pytest.mark.parametrize(("engine", "void"), [(Agreement, False), (VotesForVoid, True)])
def test_a_liar_cannot_choose_void(members: int, faulty_max: int, engine: type[Agreement], void: bool) -> None:
    s = Schedule(members, faulty_max, engine=engine, proposers=liars_first(members, faulty_max))
    s.propose(s.honest, 1, VOID, ENTRY + 1)
    s.vote(s.honest, 1, VOID, ENTRY + 2)
    s.run_to_the_end()
    assert s.finished
    assert all((items == VOID) is void for _, items in s.world.decided.values())


def test_void_is_decided_where_it_is_allowed_and_nothing_else_can_be() -> None:
    """From attempt b+2 on, as the bodies of one item are nowhere to be had."""
    s = Schedule(5, 2, void=lambda attempt, held: attempt >= 4)
    s.run(0)
    for peer in s.honest:
        member = s.world.member(peer)
        assert member is not None
        member.acceptable = lambda items, attempt: False  # type: ignore[method-assign]
    s.run_to_the_end()
    assert s.finished
    assert {s.world.attempts[peer] for peer in s.honest} == {6}  # attempts 4 and 5 belong to the silent members
    assert all(items == VOID for _, items in s.world.decided.values())


def test_a_certified_void_binds_who_would_not_have_voted_for_it() -> None:
    """Without this a single member that holds more than the others blocks every attempt."""
    desk = Desk()
    desk.start()
    certificate = desk.certificate(VOID, range(2, 5))
    desk.run(3 * D)
    for sender in range(1, 4):
        desk.say(sender, Quit(1, certificate), 3 * D)
    desk.run(5 * D)
    assert desk.engine.attempt == 2
    desk.run(7 * D - 1)
    effects = desk.say(1, Proposal(2, item_pairs(VOID), certificate), 7 * D)
    assert Vote(2, items_digest(VOID)) in signed(effects)


def test_an_item_with_two_bodies_counts_as_never_sent() -> None:
    desk = Desk()
    desk.start()
    desk.engine.hold("a", bytes(32), 1)
    desk.engine.hold("b", bytes(32), 1)
    desk.engine.hold("a", b"\1" * 32, 2)
    desk.engine.hold("a", bytes(32), 3)
    assert desk.engine.state.held == {"b": bytes(32)}


# --- handing on ---


def test_the_clean_path_hands_nothing_on() -> None:
    s = Schedule(16, 7, byzantine=0)
    s.delay(D // 4)
    handed_on: list[bytes] = []
    send = s.heap.send

    def watching(src: NodeId, dst: NodeId, payload: object, size_bytes: int) -> None:
        if isinstance(payload, Signed):
            handed_on.extend(e for e in payload.envelopes if (s.world.authority.open(e) or [src])[0] != src)
        send(src, dst, payload, size_bytes)

    s.run(0)  # members that have just started send what they have once more
    s.heap.send = watching  # type: ignore[method-assign]
    s.run(20 * D)
    assert s.finished
    assert not handed_on


def test_a_value_that_nobody_has_told_is_asked_for() -> None:
    desk = Desk()
    desk.start()
    effects = [effect for sender in (1, 2, 3) for effect in desk.say(sender, Final(items_digest(SOME)), 1)]
    asked = [effect for effect in effects if isinstance(effect, NeedValue)]
    assert asked == [NeedValue(items_digest(SOME), (desk.peers[1], desk.peers[2], desk.peers[3]))]
    assert not desk.engine.decided
    assert desk.engine.value(desk.peers[4], {"c": bytes(32)}, 2) == []
    assert Decided(dict(SOME)) in desk.engine.value(desk.peers[2], SOME, 3)
    assert desk.engine.known_value(items_digest(SOME)) == SOME


def test_a_vote_follows_the_proposal_it_is_for() -> None:
    """On one connection nobody gets the vote of a member before the proposal that it has seen."""
    desk = Desk()
    desk.start()
    desk.run(3 * D)
    for sender in (1, 2, 3):
        desk.say(sender, Quit(0, None), 3 * D)
    desk.run(6 * D)
    effects = desk.say(0, Proposal(1, item_pairs(SOME), None), 6 * D)
    kinds = [type(effect) for effect in effects]
    assert kinds.index(Persist) < kinds.index(Forward) < kinds.index(Sign)


def test_who_lost_everything_is_brought_back() -> None:
    """A peer that restarts with an empty disk decides with the others, or after them."""
    s = Schedule(5, 2, byzantine=1)
    s.withhold_item(s.coalition[0], s.honest)
    lost = s.honest[2]
    for at in (6 * D, 30 * D):
        s.heap.crash(lost, at)
        s.at(at, s.world.disks[lost].bodies.clear)
        s.at(at, lambda: setattr(s.world.disks[lost], "snapshot", None))
        s.at(at, lambda: s.world.decided.pop(lost, None) and None)
        s.heap.restart(lost, at + 1)
    s.run(40 * D)
    assert s.finished
    assert not s.forked


# --- what is refused, what is bounded ---


def test_messages_of_strangers_and_wrong_proposers_are_refused() -> None:
    desk = Desk()
    desk.start()
    with pytest.raises(NotAMember, match="no seat"):
        desk.engine.receive(b"\xff" * 32, Vote(0, bytes(32)), b"", 0)
    with pytest.raises(NotAMember, match="not the proposer of attempt 1"):
        desk.say(1, Proposal(1, item_pairs(SOME), None))
    with pytest.raises(NotAMember, match="not the proposer of attempt 0"):
        desk.say(0, Proposal(0, item_pairs(SOME), None))
    with pytest.raises(InconsistentMessage, match="order"):
        desk.say(0, Proposal(1, item_pairs(SOME)[::-1], None))


@pytest.mark.parametrize(
    ("attempt", "items", "voters", "error"),
    [
        (1, SOME, (0, 1), InvalidCertificate),  # too few
        (1, SOME, (0, 1, 1), InvalidCertificate),  # repeated
        (0, SOME, (0, 1, 2), InvalidCertificate),  # too few for attempt 0
        (2, SOME, (0, 1, 2), InconsistentMessage),  # of the proposal's own attempt
        (1, {"a": bytes(32)}, (0, 1, 2), InconsistentMessage),  # of another value
    ],
)
def test_certificates_that_prove_nothing_are_refused(
    attempt: int, items: Items, voters: tuple[int, ...], error: type[Exception]
) -> None:
    desk = Desk()
    desk.start()
    certificate = desk.certificate(items, voters, attempt)
    with pytest.raises(error):
        desk.say(1, Proposal(2, item_pairs(SOME), certificate))
    assert desk.engine.state.highest is None


def test_a_certificate_of_forged_or_foreign_votes_is_refused() -> None:
    desk = Desk()
    desk.start()
    good = desk.certificate(SOME, range(3))
    forged = Certificate(1, good.items, (*good.votes[:2], b"forged"))
    foreign = Certificate(1, item_pairs({"a": bytes(32)}), good.votes)
    for certificate in (forged, foreign):
        with pytest.raises(InvalidCertificate):
            desk.say(1, Lock(2, certificate))
    desk.say(1, Lock(2, good))
    assert desk.engine.state.highest == good


@given(st.binary(max_size=200))
def test_payloads_are_bounded_and_canonical(data: bytes) -> None:
    for kind in (Vote, Quit, Lock, Proposal, Final):
        with contextlib.suppress(RemoteProtocolError):
            assert encode(decode(kind, data, 1 << 16)) == data


def test_payloads_refuse_what_is_out_of_bounds() -> None:
    for body in ((2**16, bytes(32)), (-1, bytes(32)), (0, bytes(31)), (0, bytes(32), 1), ("0", bytes(32))):
        with pytest.raises(MalformedMessage):
            decode(Vote, msgspec.msgpack.encode(body), 1 << 16)
    too_many = tuple((f"{index:05}", bytes(32)) for index in range(1025))
    with pytest.raises(MalformedMessage):
        decode(Proposal, msgspec.msgpack.encode((1, too_many, None)), 1 << 20)


def test_memory_is_bounded_whatever_a_coalition_says() -> None:
    desk = Desk()
    desk.start()
    for attempt in range(1, 400):
        for sender in (3, 4):
            desk.say(sender, Vote(attempt, items_digest({str(attempt): bytes(32)})), 1)
            desk.say(sender, Quit(attempt, None), 1)
            desk.say(sender, Lock(attempt, None), 1)
            desk.say(sender, Final(items_digest({str(attempt): bytes(32)})), 1)
            desk.engine.value(desk.peers[sender], {str(attempt): bytes(32)}, 1)
        proposer = (attempt - 1) % 5
        for version in range(4):
            desk.say(proposer, Proposal(attempt, item_pairs({str(version): bytes(32)}), None), 1)
    state = desk.engine.state
    assert len(state.votes) <= ATTEMPTS_AHEAD_MAX + 1
    assert len(state.proposals) <= ATTEMPTS_AHEAD_MAX + 1
    assert all(len(known) == 2 for known in state.proposals.values())
    assert len(state.quits) == len(state.first_finals) == len(state.values) == 2
    assert len(state.finals) == 1


def test_quits_of_the_future_bring_a_laggard_along_but_not_a_coalition_alone() -> None:
    desk = Desk()
    desk.start()
    for sender in (3, 4):
        desk.say(sender, Quit(1_000, None), 1)
    assert desk.engine.attempt == 0
    assert not desk.engine.state.left
    effects = desk.say(2, Quit(7, None), 2)
    assert desk.engine.attempt == 7
    assert desk.engine.state.left
    forwarded = [effect for effect in effects if isinstance(effect, Forward)]
    assert len(forwarded[-1].envelopes) == 3


def test_a_snapshot_restores_the_state_and_the_same_slots_are_signed() -> None:
    desk = Desk()
    for key, body_hash in SOME.items():
        desk.engine.hold(key, body_hash, 0)
    desk.start()
    desk.run(3 * D)
    for sender in (1, 2):
        desk.say(sender, Quit(0, desk.certificate(SOME, range(5), 0)), 3 * D)
    desk.run(5 * D)
    restored = Agreement.restore(
        desk.engine.snapshot(), desk.me, desk.electorate, desk.engine.timing, desk, desk.engine.started_us
    )
    assert restored.state == desk.engine.state
    assert restored.attempt == 1
    effects = restored.start(100 * D)
    assert Lock(1, restored.state.highest) in signed(effects)
    assert [e.at_us for e in effects if isinstance(e, agreement.SetTimer) and e.name == "propose"] == [102 * D]


def test_the_value_packet_of_a_stranger_is_ignored() -> None:
    desk = Desk()
    desk.start()
    desk.engine.value(b"\xff" * 32, SOME, 1)
    desk.engine.value(desk.me, SOME, 1)
    assert not desk.engine.state.values
    assert Value(SOME).items == SOME
