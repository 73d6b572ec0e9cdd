from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from btrain.adversary.adversary import GUILTY, INNOCENT, Adversary
from btrain.adversary.gradient import SignFlip
from btrain.adversary.validator import FalseAccuse, Lie, RubberStamp
from btrain.identity import SigningKey
from btrain.protocol.audit import GradientCheck
from btrain.protocol.desk import Desk
from btrain.protocol.effects import PutBlob, Send
from btrain.protocol.encoding import digest
from btrain.protocol.messages import Charge, Commit, Verifier
from btrain.protocol.packets import Envelopes, decode_packet

T = 1e-4


def check_of(sender: bytes, excess: float) -> GradientCheck:
    commit: Any = SimpleNamespace(sender=sender)
    roles: Any = SimpleNamespace(round=9)
    check = GradientCheck("court:audit:10", commit, roles, bytes(32), 1e-4)
    check.outcome, check.excess = "measured", excess
    return check


@pytest.mark.parametrize("attacker", [SignFlip, FalseAccuse, RubberStamp, Lie])
def test_nobody_convicts_a_friend(scene: Any, attacker: type[Adversary]) -> None:
    friend, member = scene.workers[5], attacker(coalition=scene.coalition)
    assert not member.accuses(check_of(friend, 1.0), T)
    assert member.vote(check_of(friend, 1.0), T) == INNOCENT
    assert not member.charges(friend, "illegal_encoding")
    assert member.charges(scene.workers[0], "illegal_encoding")


@pytest.mark.parametrize(
    ("attacker", "accuses", "votes"),
    [(SignFlip, (False, True), (0, 1)), (FalseAccuse, (True, True), (0, 1)), (RubberStamp, (False, False), (0, 0)),
     (Lie, (False, True), (1, 1))],
)  # fmt: skip
def test_what_they_say_of_the_honest_and_of_a_guilty_stranger(
    scene: Any, attacker: type[Adversary], accuses: tuple[bool, bool], votes: tuple[int, int]
) -> None:
    member, stranger = attacker(coalition=scene.coalition), scene.workers[0]
    for excess, accused, vote in zip((0.0, 1.0), accuses, votes, strict=True):
        assert member.accuses(check_of(stranger, excess), T) is accused
        assert member.vote(check_of(stranger, excess), T) == vote


def test_before_the_attack_a_false_accuser_accuses_nobody_honest(scene: Any) -> None:
    member = FalseAccuse(coalition=scene.coalition, attack_from=20)
    assert not member.accuses(check_of(scene.workers[0], 0.0), T)
    assert Lie(attack_from=20).vote(check_of(scene.workers[0], 1.0), T) == GUILTY


def test_a_false_charge_names_an_honest_worker_and_its_evidence_is_kept(scene: Any) -> None:
    desk = Desk(SigningKey.from_seed(b"7" * 32), b"r" * 32, Verifier())
    commit = desk.sign(desk.statement(Commit((), (), (), (), (), (), 1, 0), prev=b"p" * 32, round=9))
    desk.take()
    FalseAccuse(charge=True, coalition=scene.coalition).broadcast(desk, commit, scene.round())
    effects = desk.take()
    kept = [e for e in effects if isinstance(e, PutBlob)]
    packets = [decode_packet(e.packet) for e in effects if isinstance(e, Send)]
    bodies = [Verifier().open(p.envelopes[0], b"r" * 32).body for p in packets if isinstance(p, Envelopes)]
    charges = [body for body in bodies if isinstance(body, Charge)]
    assert len(charges) == len(kept) == 1
    assert charges[0].accused in scene.workers[:4]
    assert charges[0].evidence == kept[0].hash == digest(kept[0].data)
