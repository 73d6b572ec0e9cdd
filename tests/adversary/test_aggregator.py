from __future__ import annotations

from typing import Any

import pytest
import torch

from btrain.adversary.aggregator import WrongReduce
from btrain.kernels import QuantizedBlocks, dequantize_blockwise, quantize_blockwise
from btrain.protocol.reduction import ReducedPart


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
