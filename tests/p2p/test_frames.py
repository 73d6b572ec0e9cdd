"""Frames: whatever the cuts, the same frames come out; nothing beyond the limit is waited for."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btrain.p2p.errors import PeerViolation
from btrain.p2p.frames import FrameParser, Hello, Kind, decode_hello, decode_reason, encode_hello, frame

LIMIT = 300
frames = st.lists(st.tuples(st.sampled_from(Kind), st.binary(max_size=LIMIT)), max_size=8)


def parse_all(parser: FrameParser) -> list[tuple[Kind, bytes]]:
    found = []
    while (item := parser.next_frame()) is not None:
        found.append(item)
    return found


@given(frames, st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_frames_survive_any_cut(sent: list[tuple[Kind, bytes]], cuts: list[int]) -> None:
    wire = b"".join(frame(kind, payload) for kind, payload in sent)
    parser = FrameParser(LIMIT)
    found = []
    position = 0
    for cut in cuts * (len(wire) // sum(cuts) + 1):
        parser.feed(wire[position : position + cut])
        position += cut
        found += parse_all(parser)
    assert found == sent


@given(st.binary(max_size=600))
def test_any_bytes_are_frames_or_a_violation(data: bytes) -> None:
    parser = FrameParser(LIMIT)
    parser.feed(data)
    with contextlib.suppress(PeerViolation):
        for _, payload in parse_all(parser):
            assert len(payload) <= LIMIT


def test_an_oversized_frame_is_refused_by_its_header() -> None:
    parser = FrameParser(LIMIT)
    parser.feed(frame(Kind.MESSAGE, bytes(LIMIT)) + bytes([Kind.MESSAGE]) + (LIMIT + 1).to_bytes(3, "big"))
    assert parser.next_frame() == (Kind.MESSAGE, bytes(LIMIT))
    with pytest.raises(PeerViolation, match="301 bytes, the limit is 300"):
        parser.next_frame()


hellos = st.builds(
    Hello,
    version=st.integers(0, 2**31),
    run_tag=st.binary(max_size=64),
    addresses=st.lists(st.text(max_size=400), max_size=16).map(tuple),
    bulk_certificate=st.binary(max_size=2048),
    bulk_signature=st.binary(min_size=64, max_size=64),
)


@given(hellos)
def test_a_greeting_survives_the_wire(hello: Hello) -> None:
    wire = encode_hello(hello)
    assert wire[0] == Kind.HELLO
    assert decode_hello(wire[4:]) == hello


@given(hellos, st.integers(0, 4000), st.integers(0, 255))
def test_a_damaged_greeting_is_read_or_refused(hello: Hello, position: int, value: int) -> None:
    wire = bytearray(encode_hello(hello)[4:])
    wire[position % len(wire)] = value
    with contextlib.suppress(PeerViolation):
        assert len(decode_hello(bytes(wire)).bulk_signature) == 64


@given(st.binary(max_size=200))
def test_any_bytes_are_a_greeting_or_refused(data: bytes) -> None:
    with pytest.raises(PeerViolation, match="malformed greeting"):
        decode_hello(data)


@pytest.mark.parametrize(
    "change",
    [
        {"run_tag": bytes(65)},
        {"addresses": ("x",) * 17},
        {"addresses": ("x" * 401,)},
        {"bulk_certificate": bytes(2049)},
        {"bulk_signature": bytes(63)},
    ],
)
def test_every_field_of_a_greeting_has_a_limit(change: dict[str, object]) -> None:
    fields = {"version": 1, "run_tag": b"", "addresses": (), "bulk_certificate": b"", "bulk_signature": bytes(64)}
    with pytest.raises(PeerViolation, match="malformed greeting"):
        decode_hello(encode_hello(Hello(**(fields | change)))[4:])  # type: ignore[arg-type]


def test_a_reason_is_short_and_printable() -> None:
    assert decode_reason(b"\x1b[31mred\xff" + b"x" * 1000).startswith("?[31mred\ufffd")
    assert len(decode_reason(b"x" * 1000)) == 256
