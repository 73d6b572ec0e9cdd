from __future__ import annotations

from typing import Any

import pytest

from btrain.adversary.adversary import Adversary
from btrain.adversary.sender import (
    AbortDraw,
    AbortLink,
    EdgeLate,
    Flood,
    Freeze,
    Garbage,
    Oversize,
    Replay,
    SelectiveSend,
    WithholdPart,
)
from btrain.identity import SigningKey
from btrain.protocol.agreement_interface import Timing
from btrain.protocol.agreement_messages import Final, Vote
from btrain.protocol.desk import Desk
from btrain.protocol.effects import Effect, PushBlob, PutBlob, Send, SetTimer
from btrain.protocol.encoding import digest
from btrain.protocol.errors import RemoteProtocolError
from btrain.protocol.messages import Commit, Message, Result, Reveal, Verifier
from btrain.protocol.packets import Envelopes, decode_packet, encode_packet

RUN = b"r" * 32
COMMIT = Commit((b"l" * 32,), (), (), (), (), (), 5, 0)
BODIES: dict[str, Any] = {
    "commit": COMMIT,
    "result": Result(0, b"h" * 32, (1.0,)),
    "reveal": Reveal(b"k" * 32),
    "vote": Vote(0, b"v" * 32),
    "final": Final(b"f" * 32),
}


@pytest.fixture
def desk() -> Desk:
    return Desk(SigningKey.from_seed(b"7" * 32), RUN, Verifier())


def signed(desk: Desk, body: Any) -> Message:
    return desk.sign(desk.statement(body, prev=b"p" * 32, round=9))


def spoken(desk: Desk, adversary: Adversary, body: Any, round: Any) -> tuple[Message, list[Effect]]:
    """What leaves the peer when it has a statement to make."""
    message = signed(desk, body)
    desk.take()
    adversary.broadcast(desk, message, round)
    return message, adversary.effects(desk.take(), round.round, 0)


def shown(effects: list[Effect]) -> dict[bytes, set[bytes | None]]:
    """Envelope -> to whom it is sent."""
    found: dict[bytes, set[bytes | None]] = {}
    for effect in effects:
        assert isinstance(effect, Send)
        packet = decode_packet(effect.packet)
        assert isinstance(packet, Envelopes)
        for envelope in packet.envelopes:
            found.setdefault(envelope, set()).add(effect.to)
    return found


def test_edge_late_speaks_to_a_few_and_late(scene: Any, desk: Desk) -> None:
    round, attacker = scene.round(), EdgeLate(coalition=scene.coalition, few=2, late=3.0)
    round.clock, round.compute_ms = _Clock(), 50
    message, effects = spoken(desk, attacker, COMMIT, round)
    assert shown(effects) == {message.data: set(scene.workers[:2])}
    for effect in effects:
        assert isinstance(effect, Send)
        assert 5_000_000 - 50_000 - 50_000 <= effect.delay_us <= 5_000_000 + 3_000_000


class _Clock:
    def timing(self, decision: int) -> Timing:
        return Timing(1_000_000, 5_000_000, 7_000_000)


@pytest.mark.parametrize(("attacker", "kind"), [(EdgeLate(few=0), "commit"), (AbortLink(), "reveal")])
def test_what_is_withheld_is_not_handed_on_either(scene: Any, desk: Desk, attacker: Adversary, kind: str) -> None:
    round = scene.round()
    round.clock, round.compute_ms = _Clock(), 0
    message, effects = spoken(desk, attacker, BODIES[kind], round)
    assert effects == []
    other = signed(desk, BODIES["vote"])
    mixed = Send(encode_packet(Envelopes((message.data, other.data))), scene.workers[0])
    alone = Send(encode_packet(Envelopes((message.data,))))
    left = attacker.effects([mixed, alone, SetTimer("x", 3)], 9, 0)
    assert shown(left[:1]) == {other.data: {scene.workers[0]}}
    assert left[1:] == [SetTimer("x", 3)]


def test_selective_send_keeps_every_other_member_in_the_dark(scene: Any, desk: Desk) -> None:
    attacker = SelectiveSend()
    message, effects = spoken(desk, attacker, COMMIT, scene.round())
    assert shown(effects) == {message.data: set(scene.workers[:-1:2])}
    packet = encode_packet(Envelopes((message.data,)))
    assert attacker.effects([Send(packet, scene.workers[1])], 9, 0) == []
    assert len(attacker.effects([Send(packet, scene.workers[0])], 9, 0)) == 1


def test_withheld_parts_are_neither_kept_nor_sent(scene: Any) -> None:
    attacker = WithholdPart(coalition=frozenset({scene.workers[2]}))
    parts = [b"one", b"two", b"three"]
    assert attacker.parts(parts, scene.round()) == parts
    effects: list[Effect] = [PutBlob(digest(p), p, 9) for p in parts]
    effects += [PushBlob(scene.workers[i], digest(p)) for i, p in enumerate(parts)]
    assert attacker.effects(effects, 9, 0) == [effects[2], effects[5]]


def test_a_frozen_peer_says_nothing() -> None:
    effects: list[Effect] = [Send(b"x"), PushBlob(b"p" * 32, b"h" * 32), SetTimer("x", 1)]
    assert Freeze(attack_from=4).effects(effects, 4, 0) == [SetTimer("x", 1)]
    assert Freeze(attack_from=4).effects(effects, 3, 0) == effects


@pytest.mark.parametrize(("attacker", "packets"), [(Garbage(), 2), (Oversize(), 3), (Flood(packets=30), 30)])
def test_garbage_and_floods_come_once_a_round_and_are_refused(attacker: Adversary, packets: int) -> None:
    more = attacker.effects([SetTimer("x", 1)], 3, 0)[1:]
    assert len(more) == packets
    assert attacker.effects([], 3, 0) == []
    assert len(attacker.effects([], 4, 0)) == packets
    for effect in more:
        assert isinstance(effect, Send)
        with pytest.raises(RemoteProtocolError):
            _open_all(effect.packet)


def _open_all(data: bytes) -> None:
    packet = decode_packet(data)
    assert isinstance(packet, Envelopes)
    for envelope in packet.envelopes:
        Verifier().open(envelope, RUN)


def test_replay_sends_old_packets_again_to_everybody(scene: Any) -> None:
    attacker = Replay()
    first = Send(b"first", scene.workers[0])
    assert attacker.effects([first], 1, 0) == [first]
    assert attacker.effects([Send(b"second")], 2, 0) == [Send(b"second"), Send(b"first")]
    assert attacker.effects([Send(b"third")], 2, 0) == [Send(b"third")]


def test_a_link_is_held_until_both_draws_are_known(scene: Any, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    friends = {frozenset({b"x" * 32}): True}
    me = desk.me
    attacker = AbortDraw(coalition=frozenset({me, b"z" * 32}))
    monkeypatch.setattr(attacker, "_draws_friends", lambda links, round: friends.get(frozenset(links), False))
    round = scene.round()
    round.me, round.expected_links, round.block = me, {me, b"x" * 32}, None
    round.statements.links = {}
    message, effects = spoken(desk, attacker, Reveal(b"k" * 32), round)
    assert effects == []
    other = Desk(SigningKey.from_seed(b"5" * 32), RUN, Verifier())
    round.statements.links[b"x" * 32] = signed(other, Reveal(b"l" * 32))
    assert attacker.effects([], 9, 0) == []
    assert attacker.effects([Send(encode_packet(Envelopes((message.data,))))], 9, 0) == []
    friends.clear()
    _, effects = spoken(desk, attacker, Reveal(b"k" * 32), round)
    assert shown(effects) == {message.data: {None}}
