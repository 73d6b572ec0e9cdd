from __future__ import annotations

from typing import Any

import pytest
import torch

from btrain.adversary.adversary import Adversary
from btrain.adversary.gradient import Delayed, FreeRider, LabelFlip, RandomDirection, SignFlip


def test_sign_flip_turns_and_stretches(scene: Any) -> None:
    assert torch.equal(SignFlip().gradient(scene.own, scene.round(), scene.gradient), scene.own * -1000)
    assert torch.equal(SignFlip(scale=2.0).gradient(scene.own, scene.round(), scene.gradient), scene.own * -2)


def test_colluders_push_in_one_direction_that_lasts(scene: Any) -> None:
    one, other = RandomDirection(seed=4), RandomDirection(seed=4)
    a = one.gradient(scene.own, scene.round(9, 5), scene.gradient)
    b = other.gradient(scene.own * 2, scene.round(30, 6), scene.gradient)
    assert torch.allclose(2 * a, b)
    assert a.norm() == pytest.approx(1000 * float(scene.own.norm()), rel=1e-4)
    assert not torch.allclose(a, RandomDirection(seed=5).gradient(scene.own, scene.round(), scene.gradient))


def test_label_flip_recomputes_the_own_batch(scene: Any) -> None:
    flipped = LabelFlip().gradient(scene.own, scene.round(), scene.gradient)
    assert torch.equal(flipped, scene.gradient(scene.seed(scene.workers[-1]), flip_labels=True))


def test_free_rider_commits_to_nothing(scene: Any) -> None:
    assert not FreeRider().gradient(scene.own, scene.round(), scene.gradient).any()


def test_delayed_sends_what_it_computed_long_ago(scene: Any) -> None:
    attacker = Delayed(delay=3)
    sent = [attacker.gradient(scene.own * i, scene.round(number=i), scene.gradient) for i in range(1, 9)]
    assert torch.equal(sent[0], -scene.own)
    assert all(torch.equal(sent[i], scene.own * max(1, i + 1 - 3)) for i in range(1, 8))


@pytest.mark.parametrize("attacker", [SignFlip(attack_from=10), Delayed(attack_from=10), LabelFlip(attack_from=10)])
def test_before_the_attack_everybody_is_honest(scene: Any, attacker: Adversary) -> None:
    assert torch.equal(attacker.gradient(scene.own, scene.round(number=9), scene.gradient), scene.own)
    later = 2 * scene.own
    assert not torch.equal(attacker.gradient(later, scene.round(number=10), scene.gradient), later)


def test_honest_gradients_are_those_of_the_public_seeds(scene: Any) -> None:
    found = SignFlip(coalition=scene.coalition).honest_gradients(scene.round(), scene.gradient)
    assert torch.equal(found, scene.honest)
