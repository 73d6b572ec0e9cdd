from __future__ import annotations

from typing import Any

import pytest
import torch

from btrain.adversary import Adversary, attack_name, get_adversary
from btrain.adversary.mixed import Mixed, steps
from btrain.errors import ConfigError
from btrain.identity import SigningKey
from btrain.protocol.desk import Desk
from btrain.protocol.effects import Send
from btrain.protocol.messages import Commit, Reveal, Verifier

COMMIT = Commit((b"l" * 32,), (), (), (), (), (), 5, 0)


def mixed(spec: str, scene: Any) -> Adversary:
    found = get_adversary(spec, coalition=scene.coalition)
    assert isinstance(found, Mixed)
    return found


def test_every_part_acts_in_its_own_rounds(scene: Any) -> None:
    attacker = mixed("sign_flip:scale=2,every=2+free_rider:from=1,every=2", scene)
    even, odd = (attacker.gradient(scene.own, scene.round(number), scene.gradient) for number in (8, 9))
    assert torch.equal(even, scene.own * -2)
    assert not odd.any()
    assert [attacker.attacks(number) for number in (0, 1)] == [True, True]


def test_each_part_goes_on_from_what_the_one_before_it_made(scene: Any) -> None:
    attacker = mixed("sign_flip:scale=1e+1+sign_flip:scale=3", scene)
    assert torch.allclose(attacker.gradient(scene.own, scene.round(), scene.gradient), scene.own * 30)
    assert attacker.name == "sign_flip+sign_flip"


def test_statements_pass_through_every_part(scene: Any) -> None:
    desk = Desk(SigningKey.from_seed(b"7" * 32), b"r" * 32, Verifier())
    attacker = mixed("equivocate+abort_link+equivocate:kind=vote", scene)
    commit, reveal = (desk.sign(desk.statement(b, prev=b"p" * 32, round=9)) for b in (COMMIT, Reveal(b"k" * 32)))
    desk.take()
    attacker.broadcast(desk, commit, scene.round())
    assert len([e for e in attacker.effects(desk.take(), 9, 0) if isinstance(e, Send)]) == 6
    attacker.broadcast(desk, reveal, scene.round())
    assert attacker.effects(desk.take(), 9, 0) == []


def test_decisions_are_those_of_the_part_that_makes_them(scene: Any) -> None:
    attacker = mixed("alie+rubber_stamp+lie", scene)
    assert attacker.vote.__self__ is attacker.parts_of_it[1]  # type: ignore[attr-defined]
    assert attacker.accuses.__self__ is attacker.parts_of_it[1]  # type: ignore[attr-defined]
    assert attacker.charges.__self__ is attacker.parts_of_it[0]  # type: ignore[attr-defined]


def test_no_step_of_a_peer_is_left_out(scene: Any) -> None:
    attacker = mixed("alie+nan", scene)
    assert len(steps()) >= 8
    for step in steps():
        assert step in vars(Mixed) or step in vars(attacker), step


@pytest.mark.parametrize("spec", ["sign_flip+kill", "nan+nonsense", "nan+sign_flip:sclae=3"])
def test_wrong_mixtures_are_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match="attack"):
        get_adversary(spec)


def test_names_of_mixtures() -> None:
    assert attack_name("sign_flip:scale=1e+5 + nan:from=3") == "sign_flip+nan"
