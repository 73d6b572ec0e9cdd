from __future__ import annotations

from typing import Any

import pytest
import torch

from btrain.adversary.numeric import (
    DenormalScale,
    Encoding,
    ForgedScale,
    Huge,
    InfiniteScale,
    MinusOneTwentyEight,
    NanScale,
)
from btrain.kernels import IllegalEncoding, QuantizedBlocks, dequantize_blockwise
from btrain.kernels.errors import CodeMinus128, NonFiniteScale, SubnormalScale
from btrain.protocol.reduction import encode_gradient


def parts(scene: Any) -> list[bytes]:
    encoded = encode_gradient(scene.own, scene.layout)
    assert encoded is not None
    return encoded


@pytest.mark.parametrize(
    ("attacker", "error"),
    [
        (NanScale(), NonFiniteScale),
        (InfiniteScale(), NonFiniteScale),
        (MinusOneTwentyEight(), CodeMinus128),
        (DenormalScale(), SubnormalScale),
    ],
)
def test_hostile_numbers_are_named_by_the_decoder(scene: Any, attacker: Encoding, error: type[IllegalEncoding]) -> None:
    for index, part in enumerate(attacker.parts(parts(scene), scene.round())):
        with pytest.raises(error):
            QuantizedBlocks.from_bytes(part, scene.layout.part_numel(index))


def test_forged_scales_are_legal_and_wrong(scene: Any) -> None:
    for index, (part, forged) in enumerate(
        zip(parts(scene), ForgedScale().parts(parts(scene), scene.round()), strict=True)
    ):
        numel = scene.layout.part_numel(index)
        right = dequantize_blockwise(QuantizedBlocks.from_bytes(part, numel))
        assert torch.allclose(dequantize_blockwise(QuantizedBlocks.from_bytes(forged, numel)), right * 1000)


def test_an_attack_that_has_not_begun_changes_no_byte(scene: Any) -> None:
    assert NanScale(attack_from=50).parts(parts(scene), scene.round()) == parts(scene)


def test_huge_numbers_are_a_legal_encoding(scene: Any) -> None:
    encoded = encode_gradient(Huge().gradient(scene.own, scene.round(), scene.gradient), scene.layout)
    assert encoded is not None
    decoded = dequantize_blockwise(QuantizedBlocks.from_bytes(encoded[0], scene.layout.part_numel(0)))
    assert torch.isfinite(decoded).all()
    assert float(decoded.abs().max()) == pytest.approx(1e38, rel=1e-2)
