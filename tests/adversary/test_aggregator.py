from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from btrain.adversary.aggregator import DropContributor, WrongReduce
from btrain.aggregation import get_rule
from btrain.kernels import QuantizedBlocks, dequantize_blockwise, quantize_blockwise
from btrain.protocol.encoding import digest
from btrain.protocol.messages import Commit
from btrain.protocol.reduction import ReducedPart, reduce_committed


@pytest.mark.parametrize("shift", [0.5, 30.0])
def test_the_shift_is_as_large_as_asked_for_and_the_encoding_legal(scene: Any, shift: float) -> None:
    numel = scene.layout.part_numel(1)
    right = torch.linspace(-2, 2, numel)
    reduced = ReducedPart(quantize_blockwise(right).to_bytes(), (0.5, 0.5), 0.0)
    forged = WrongReduce(shift=shift).reduced(reduced, 1, scene.round())
    wrong = dequantize_blockwise(QuantizedBlocks.from_bytes(forged.data, numel))
    assert float((wrong - right).norm() / right.norm()) == pytest.approx(shift, rel=0.05)
    assert forged.coefficients == reduced.coefficients


def test_zeros_are_shifted_too(scene: Any) -> None:
    zeros = ReducedPart(quantize_blockwise(torch.zeros(scene.layout.part_numel(0))).to_bytes(), (), 0.0)
    assert WrongReduce().reduced(zeros, 0, scene.round()).data != zeros.data


def test_before_the_attack_the_reduction_is_right(scene: Any) -> None:
    reduced = ReducedPart(b"bytes", (), 0.0)
    assert WrongReduce(attack_from=10).reduced(reduced, 0, scene.round()) is reduced


def test_a_dropped_contributor_is_said_to_weigh_nothing(scene: Any) -> None:
    round, part = scene.round(), 1
    numel = scene.layout.part_numel(part)
    parts = {
        peer: quantize_blockwise(torch.full((numel,), float(i + 1))).to_bytes() for i, peer in enumerate(scene.workers)
    }
    commits = {
        peer: SimpleNamespace(body=Commit((digest(b""), digest(data), digest(b"")), (), (), (), (), (), 5, 0))
        for peer, data in parts.items()
    }
    round.statements, round.contribution = SimpleNamespace(commits=commits), None
    round.exchange = SimpleNamespace(committed=lambda *_: parts, rule=get_rule("mean"))
    right = reduce_committed(parts, numel, get_rule("mean"))
    forged = DropContributor(coalition=scene.coalition).reduced(right, part, round)
    assert forged.coefficients.count(0.0) == 1 and forged.coefficients.index(0.0) < 4
    assert len(forged.coefficients) == len(right.coefficients)
    assert forged.data != right.data
    assert DropContributor(attack_from=50).reduced(right, part, round) is right
