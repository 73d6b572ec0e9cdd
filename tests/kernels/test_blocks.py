"""The wire format: what it looks like, and that every illegal encoding is refused by its own name."""

import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from btrain.errors import BtrainError
from btrain.kernels import QuantizedBlocks, encoded_bytes, errors, quantize_blockwise
from btrain.kernels.blocks import SCALE_MAX_BITS

NUMEL = 2 * 1024 + 700


def legal() -> bytearray:
    generator = torch.Generator().manual_seed(3)
    return bytearray(quantize_blockwise(torch.randn(NUMEL, generator=generator)).to_bytes())


def with_scale(block: int, bits: int) -> bytes:
    data = legal()
    struct.pack_into("<I", data, 3 * 1024 + 4 * block, bits)
    return bytes(data)


def with_code(place: int, code: int) -> bytes:
    data = legal()
    struct.pack_into("<b", data, place, code)
    return bytes(data)


def without_extremes(block: int) -> bytes:
    data = legal()
    for place in range(block * 1024, block * 1024 + 1024):
        if abs(struct.unpack_from("<b", data, place)[0]) == 127:
            struct.pack_into("<b", data, place, 126)
    return bytes(data)


ILLEGAL = {
    "infinite": (with_scale(1, 0x7F800000), errors.NonFiniteScale, 1),
    "nan": (with_scale(2, 0x7FC00000), errors.NonFiniteScale, 2),
    "negative nan": (with_scale(0, 0xFFC00000), errors.NonFiniteScale, 0),
    "negative": (with_scale(0, 0xBF800000), errors.NegativeScale, 0),
    "negative subnormal": (with_scale(0, 0x80000001), errors.NegativeScale, 0),
    "negative zero": (with_scale(1, 0x80000000), errors.NegativeZeroScale, 1),
    "smallest subnormal": (with_scale(0, 1), errors.SubnormalScale, 0),
    "largest subnormal": (with_scale(0, 0x007FFFFF), errors.SubnormalScale, 0),
    "just too large": (with_scale(2, SCALE_MAX_BITS + 1), errors.ScaleTooLarge, 2),
    "largest float": (with_scale(2, 0x7F7FFFFF), errors.ScaleTooLarge, 2),
    "minus 128": (with_code(1024 + 17, -128), errors.CodeMinus128, 1),
    "codes under zero": (with_scale(1, 0), errors.NonzeroCodesUnderZeroScale, 1),
    "no extreme": (without_extremes(2), errors.BlockWithoutExtreme, 2),
    "padding": (with_code(NUMEL, 1), errors.NonzeroPadding, 2),
    "last padding": (with_code(3 * 1024 - 1, -3), errors.NonzeroPadding, 2),
    "short": (bytes(legal()[:-1]), errors.WrongLength, None),
    "long": (bytes(legal() + b"\0"), errors.WrongLength, None),
    "empty": (b"", errors.WrongLength, None),
}


@pytest.mark.parametrize("case", ILLEGAL)
def test_illegal_encoding_is_refused_by_name(case: str) -> None:
    data, error, block = ILLEGAL[case]
    with pytest.raises(errors.IllegalEncoding) as caught:
        QuantizedBlocks.from_bytes(data, NUMEL)
    assert type(caught.value) is error
    assert caught.value.block == block
    assert isinstance(caught.value, BtrainError)
    assert error.rule in str(caught.value)
    assert block is None or f"block {block}" in str(caught.value)


def test_every_named_error_has_a_case() -> None:
    assert {error for _, error, _ in ILLEGAL.values()} == set(errors.IllegalEncoding.__subclasses__())


@pytest.mark.parametrize("bits", [0x00800000, SCALE_MAX_BITS])
def test_the_borders_of_the_scale_are_legal_and_decode_to_finite_numbers(bits: int) -> None:
    q = QuantizedBlocks.from_bytes(with_scale(0, bits), NUMEL)
    assert torch.isfinite(q.codes * q.scales[:, None]).all()


def test_wire_layout_is_codes_then_little_endian_scales() -> None:
    x = torch.zeros(1025)
    x[0], x[1], x[1024] = 127.0, -63.5, 254.0
    data = quantize_blockwise(x).to_bytes()
    assert data == b"\x7f\xc0" + bytes(1022) + b"\x7f" + bytes(1023) + struct.pack("<ff", 1.0, 2.0)
    assert len(data) == encoded_bytes(1025)


def test_no_elements_are_no_bytes() -> None:
    empty = QuantizedBlocks.from_bytes(b"", 0)
    assert empty.to_bytes() == b""
    assert empty.numel == 0


@given(st.integers(1, 3000), st.integers(0, 2**32 - 1), st.sampled_from([1e-36, 1e-30, 1.0, 1e30]))
def test_round_trip(numel: int, seed: int, size: float) -> None:
    x = torch.randn(numel, generator=torch.Generator().manual_seed(seed)) * size
    data = quantize_blockwise(x).to_bytes()
    for view in (data, bytearray(data), memoryview(data)):
        q = QuantizedBlocks.from_bytes(view, numel)
        assert q.to_bytes() == data


@given(st.data())
def test_any_bytes_are_refused_by_name_or_are_canonical(data: st.DataObject) -> None:
    raw = legal()
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(raw) - 1) | st.integers(3 * 1024, len(raw) - 1))
        raw[place] = data.draw(st.integers(0, 255))
    try:
        q = QuantizedBlocks.from_bytes(bytes(raw), NUMEL)
    except errors.IllegalEncoding:
        return
    assert q.to_bytes() == bytes(raw)
    assert torch.isfinite(q.codes * q.scales[:, None]).all()


def test_a_decoded_value_does_not_share_memory_with_the_message() -> None:
    data = legal()
    q = QuantizedBlocks.from_bytes(data, NUMEL)
    before = q.to_bytes()
    data[:] = bytes(len(data))
    assert q.to_bytes() == before


@pytest.mark.parametrize(
    ("codes", "scales", "numel"),
    [
        (torch.zeros(2, 1024, dtype=torch.int8), torch.zeros(2), 1024),
        (torch.zeros(1, 1024, dtype=torch.uint8), torch.zeros(1), 1024),
        (torch.zeros(1, 512, dtype=torch.int8), torch.zeros(1), 512),
        (torch.zeros(1, 1024, dtype=torch.int8), torch.zeros(1, dtype=torch.float64), 1024),
        (torch.zeros(1, 1024, dtype=torch.int8), torch.zeros(2), 1024),
        (torch.zeros(1024, 2, dtype=torch.int8).t(), torch.zeros(2), 2048),
    ],
)
def test_shapes_are_checked(codes: torch.Tensor, scales: torch.Tensor, numel: int) -> None:
    with pytest.raises(errors.KernelUsageError):
        QuantizedBlocks(codes, scales, numel)


def test_a_negative_length_is_our_own_mistake() -> None:
    with pytest.raises(errors.KernelUsageError):
        QuantizedBlocks.from_bytes(b"", -1)
