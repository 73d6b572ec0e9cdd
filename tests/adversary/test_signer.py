from __future__ import annotations

from typing import Any

import pytest

from btrain.adversary.adversary import Adversary
from btrain.adversary.signer import BadProposal, DoubleVote, Equivocate
from btrain.identity import SigningKey
from btrain.protocol.agreement_messages import Certificate, Final, Lock, Proposal, Quit, Vote
from btrain.protocol.desk import Desk
from btrain.protocol.effects import Send
from btrain.protocol.encoding import ZERO
from btrain.protocol.messages import Approval, Commit, Message, Result, Reveal, Table, Verifier
from btrain.protocol.packets import Envelopes, decode_packet, encode_packet

RUN = b"r" * 32
COMMIT = Commit((b"l" * 32,), (), (), (), (), (), 5, 0)
ITEMS = (("commit:aa", b"a" * 32), ("commit:bb", b"b" * 32))
BODIES: dict[str, Any] = {
    "commit": COMMIT,
    "result": Result(0, b"h" * 32, (1.0,)),
    "reveal": Reveal(b"k" * 32),
    "vote": Vote(0, b"v" * 32),
    "final": Final(b"f" * 32),
    "quit": Quit(0, None),
    "lock": Lock(1, None),
    "proposal": Proposal(1, ITEMS, None),
    "table": Table(b"t" * 32, b"\x01", 1.0, ()),
    "approval": Approval(),
}
CERTIFICATE = Certificate(0, ITEMS, (b"vote",))


@pytest.fixture
def desk() -> Desk:
    return Desk(SigningKey.from_seed(b"7" * 32), RUN, Verifier())


def spoken(desk: Desk, adversary: Adversary, body: Any, round: Any) -> tuple[Message, dict[bytes, set[bytes | None]]]:
    """The honest statement, and what leaves the peer instead: envelope -> to whom it is sent."""
    message = desk.sign(desk.statement(body, prev=b"p" * 32, round=9, attempt=getattr(body, "attempt", 0)))
    desk.take()
    adversary.broadcast(desk, message, round)
    found: dict[bytes, set[bytes | None]] = {}
    for effect in adversary.effects(desk.take(), round.round, 0):
        if isinstance(effect, Send):
            packet = decode_packet(effect.packet)
            assert isinstance(packet, Envelopes)
            for envelope in packet.envelopes:
                found.setdefault(envelope, set()).add(effect.to)
    return message, found


def check_two_faces(found: dict[bytes, set[bytes | None]], everybody: set[bytes]) -> tuple[Message, Message]:
    """Two statements of one slot, each shown to half of the members."""
    one, other = (Verifier().open(data, RUN) for data in found)
    assert one.slot == other.slot and one.statement != other.statement
    halves = list(found.values())
    assert halves[0] | halves[1] == everybody
    assert not halves[0] & halves[1]
    return one, other


@pytest.mark.parametrize("kind", BODIES)
def test_an_equivocator_shows_two_statements_of_one_slot(scene: Any, desk: Desk, kind: str) -> None:
    message, found = spoken(desk, Equivocate(kind=kind), BODIES[kind], scene.round(attempt=1))
    check_two_faces(found, set(scene.workers[:-1]))
    assert message.data in found


@pytest.mark.parametrize("kind", ["missing", "charge"])
def test_what_an_honest_peer_seldom_says_is_said_with_the_commit(scene: Any, desk: Desk, kind: str) -> None:
    attacker = Equivocate(kind=kind, coalition=scene.coalition)
    message, found = spoken(desk, attacker, COMMIT, scene.round())
    assert found.pop(message.data) == {None}
    one, other = check_two_faces(found, set(scene.workers[:-1]))
    assert one.statement.kind == other.statement.kind == kind


def test_a_validator_accuses_two_of_the_round_before_in_one_slot(scene: Any, desk: Desk) -> None:
    attacker = Equivocate(kind="accusation", coalition=scene.coalition)
    before = scene.round(8)
    strangers = [Desk(SigningKey.from_seed(bytes([i]) * 32), RUN, Verifier()) for i in range(2)]
    commits = [d.sign(d.statement(COMMIT, prev=b"p" * 32, round=8)) for d in strangers]
    before.statements.commits.update({message.sender: message for message in commits})
    _, found = spoken(desk, attacker, COMMIT, before)
    assert len(found) == 1
    desk.signed.clear()
    message, found = spoken(desk, attacker, COMMIT, scene.round(9))
    del found[message.data]
    one, other = check_two_faces(found, set(scene.workers[:-1]))
    assert {one.body.commit, other.body.commit} == {m.hash for m in commits}  # type: ignore[union-attr]


def test_two_disputes_of_one_slot_name_a_table_and_none(scene: Any, desk: Desk) -> None:
    attacker = Equivocate(kind="dispute", coalition=scene.coalition)
    round, honest = scene.round(), Desk(SigningKey.from_seed(b"5" * 32), RUN, Verifier())
    table = honest.sign(honest.statement(BODIES["table"], prev=b"h" * 32, round=9, index=2))
    round.statements.bodies[table.hash] = table
    _, found = spoken(desk, attacker, Approval(), round)
    one, other = check_two_faces(found, set(scene.workers[:-1]))
    assert one.statement.index == other.statement.index == 2
    assert table.hash in {one.statement.ctx, other.statement.ctx}


@pytest.mark.parametrize("kind", ["quit", "lock", "proposal"])
def test_for_later_attempts_the_first_must_fail(scene: Any, desk: Desk, kind: str) -> None:
    assert spoken(desk, Equivocate(kind=kind), Vote(0, b"v" * 32), scene.round())[1] == {}
    assert spoken(desk, Equivocate(kind=kind), Final(b"v" * 32), scene.round())[1] == {}
    assert len(spoken(desk, Equivocate(kind=kind), Vote(1, b"v" * 32), scene.round(attempt=1))[1]) == 1


def test_who_stalls_tells_nobody_the_certificate_of_attempt_0(scene: Any, desk: Desk) -> None:
    attacker = BadProposal()
    message, found = spoken(desk, attacker, Quit(0, CERTIFICATE), scene.round())
    (data,) = found
    assert Verifier().open(data, RUN).body == Quit(0, None)
    packet = encode_packet(Envelopes((message.data,)))
    assert attacker.effects([Send(packet)], 9, 0) == []


def test_a_lone_face_is_shown_to_its_half_alone(scene: Any, desk: Desk) -> None:
    attacker = Equivocate()
    message, found = spoken(desk, attacker, COMMIT, scene.round())
    packet = encode_packet(Envelopes((message.data,)))
    told = {send.to for peer in scene.workers[:-1] for send in attacker.effects([Send(packet, peer)], 9, 0)}
    assert told == found[message.data]


@pytest.mark.parametrize(("kind", "outcome"), [("commit", "banned"), ("charge", "bounded"), ("lock", "bounded")])
def test_an_equivocator_declares_what_becomes_of_it(kind: str, outcome: str) -> None:
    assert Equivocate(kind=kind).outcome == outcome


def test_an_equivocator_of_one_kind_is_honest_in_the_others(scene: Any, desk: Desk) -> None:
    for attacker in (Equivocate(), Equivocate(attack_from=50, kind="vote"), Equivocate(kind="final")):
        message, found = spoken(desk, attacker, BODIES["vote"], scene.round())
        assert found == {message.data: {None}}


def test_double_vote_is_the_equivocation_of_votes(scene: Any, desk: Desk) -> None:
    _, found = spoken(desk, DoubleVote(), BODIES["vote"], scene.round())
    assert len(found) == 2


def test_a_bad_proposer_leaves_out_an_honest_commit(scene: Any, desk: Desk) -> None:
    friend = scene.workers[-1].hex()
    items = ((f"commit:{friend}", b"f" * 32), *ITEMS)
    attacker = BadProposal(coalition=scene.coalition)
    assert spoken(desk, attacker, Vote(0, b"v" * 32), scene.round())[1] == {}
    _, found = spoken(desk, attacker, Proposal(1, items, None), scene.round())
    (data,) = found
    assert Verifier().open(data, RUN).body == Proposal(1, (items[0], items[2]), None)


def test_a_bad_proposer_proposes_void_or_two_things(scene: Any, desk: Desk) -> None:
    _, found = spoken(desk, BadProposal(kind="void"), BODIES["proposal"], scene.round())
    (data,) = found
    assert Verifier().open(data, RUN).body == Proposal(1, (("void", ZERO),), None)
    _, found = spoken(desk, BadProposal(kind="two"), BODIES["proposal"], scene.round())
    check_two_faces(found, set(scene.workers[:-1]))
