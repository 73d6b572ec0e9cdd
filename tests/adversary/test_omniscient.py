from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from btrain.adversary.adversary import Adversary
from btrain.adversary.omniscient import (
    InnerProduct,
    JustInsideTolerance,
    LittleIsEnough,
    Mimic,
    MinMax,
    RelocatedOrthogonal,
    z_max,
)
from btrain.kernels import QuantizedBlocks
from btrain.protocol.audit import excess
from btrain.protocol.reduction import encode_gradient


def attack(scene: Any, adversary: Adversary) -> Tensor:
    return adversary.gradient(scene.own, scene.round(), scene.gradient)


def test_inner_product_points_against_the_honest_mean(scene: Any) -> None:
    forged = attack(scene, InnerProduct(epsilon=0.1, coalition=scene.coalition))
    assert torch.allclose(forged, scene.honest.mean(0) * -0.1)


def test_a_little_is_enough(scene: Any) -> None:
    sigma = scene.honest.std(0, unbiased=False)
    assert torch.allclose(
        attack(scene, LittleIsEnough(z=1.5, coalition=scene.coalition)), scene.honest.mean(0) - 1.5 * sigma
    )
    paper = attack(scene, LittleIsEnough(coalition=scene.coalition))
    assert torch.allclose(paper, scene.honest.mean(0) - z_max(7, 3) * sigma)


@pytest.mark.parametrize(("workers", "attackers", "z"), [(16, 7, 0.765), (25, 5, 0.253)])
def test_z_max_is_the_papers(workers: int, attackers: int, z: float) -> None:
    assert z_max(workers, attackers) == pytest.approx(z, abs=1e-3)


def test_min_max_stays_within_the_honest_spread_and_uses_it_up(scene: Any) -> None:
    forged = attack(scene, MinMax(coalition=scene.coalition))
    widest = float(torch.cdist(scene.honest, scene.honest).max())
    furthest = float((scene.honest - forged).norm(dim=1).max())
    assert 0.999 * widest < furthest <= widest * 1.0001


def test_rop_is_orthogonal_to_what_it_starts_from(scene: Any) -> None:
    forged, mean = attack(scene, RelocatedOrthogonal(coalition=scene.coalition)), scene.honest.mean(0)
    push = forged - mean
    assert abs(float(push @ mean)) < 1e-3 * float(push.norm() * mean.norm())
    assert float(push.norm()) == pytest.approx(float(scene.honest.std(0, unbiased=False).norm()), rel=1e-3)


def test_mimics_all_send_the_same_honest_gradient(scene: Any) -> None:
    assert torch.equal(attack(scene, Mimic(coalition=scene.coalition)), scene.honest[0])


def test_just_inside_tolerance_passes_the_audit_and_hurts(scene: Any) -> None:
    forged, round = attack(scene, JustInsideTolerance(coalition=scene.coalition)), scene.round()
    encoded = encode_gradient(forged, round.roles.layout)
    assert encoded is not None
    parts = [QuantizedBlocks.from_bytes(part, round.roles.layout.part_numel(i)) for i, part in enumerate(encoded)]
    assert 0.5e-4 < excess(parts, scene.own, round.roles.layout) <= 0.9e-4
    assert float((forged - scene.own) @ scene.honest.mean(0)) < 0
