"""Records, statements, envelopes and packets: one encoding each, and a name for everything else."""

from __future__ import annotations

import typing
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btrain.identity import SigningKey
from btrain.protocol import blocks, evidence
from btrain.protocol.encoding import ZERO, decode, digest, encode, sha256
from btrain.protocol.errors import (
    ForeignMessage,
    MalformedMessage,
    NonCanonicalMessage,
    OversizedMessage,
    RemoteProtocolError,
    WrongSignature,
)
from btrain.protocol.messages import (
    BODIES,
    DOMAIN,
    ENVELOPE_BYTES_MAX,
    Charge,
    Commit,
    Envelope,
    Reveal,
    Statement,
    Verifier,
    sign,
    slot_key,
)
from btrain.protocol.packets import PACKET_BYTES_MAX, AnyPacket, Envelopes, Where, decode_packet, encode_packet

KEY = SigningKey.from_seed(bytes(32))
RUN = sha256(b"run")
PACKETS = typing.get_args(AnyPacket)


def statement(**changes: Any) -> Statement:
    fields: dict[str, Any] = {
        "version": 1, "run": RUN, "group": 0, "prev": ZERO, "round": 3, "attempt": 0, "kind": "reveal", "index": 0,
        "sender": KEY.public_key, "ctx": ZERO, "body": encode(Reveal(sha256(b"link"))),
    }  # fmt: skip
    return Statement(**{**fields, **changes})


def test_what_is_signed_is_opened_again() -> None:
    message = sign(KEY, statement())
    opened = Verifier().open(message.data, RUN)
    assert opened == message
    assert (opened.sender, opened.body) == (KEY.public_key, Reveal(sha256(b"link")))
    assert opened.hash == digest(encode(statement()))


def test_the_hash_and_slot_do_not_depend_on_the_signature_and_the_slot_not_on_the_body() -> None:
    one, other = sign(KEY, statement()), sign(KEY, statement(body=encode(Reveal(ZERO))))
    assert one.hash != other.hash
    assert one.slot == other.slot


@pytest.mark.parametrize(("field", "value"), [
    ("run", ZERO), ("group", 1), ("prev", RUN), ("round", 4), ("attempt", 1), ("index", 1), ("sender", ZERO),
])  # fmt: skip
def test_every_field_of_the_slot_makes_another_slot(field: str, value: object) -> None:
    assert slot_key(statement()) != slot_key(statement(**{field: value}))


def test_only_results_of_other_inputs_have_slots_of_their_own() -> None:
    assert slot_key(statement()) == slot_key(statement(ctx=RUN))
    assert slot_key(statement(kind="result")) != slot_key(statement(kind="result", ctx=RUN))


def envelope(data: bytes, key: SigningKey = KEY) -> bytes:
    return encode(Envelope(data, key.sign(DOMAIN + data)))


def unpacked() -> list[Any]:
    return list(msgspec.msgpack.decode(encode(statement())))


@pytest.mark.parametrize(("index", "value"), [
    (0, 2), (0, 0), (1, b"short"), (1, bytes(33)), (2, -1), (2, 2**16), (4, 2**32), (4, "3"), (4, 3.0), (5, 2**16),
    (6, "coffee"), (6, 7), (7, None), (8, bytes(31)), (10, "text"), (10, bytes(ENVELOPE_BYTES_MAX + 1)),
])  # fmt: skip
def test_a_field_of_the_wrong_type_or_out_of_bounds_is_malformed(index: int, value: object) -> None:
    fields = unpacked()
    fields[index] = value
    with pytest.raises((MalformedMessage, OversizedMessage)):
        Verifier().open(envelope(msgspec.msgpack.encode(fields)), RUN)


def test_a_field_too_many_or_too_few_is_malformed() -> None:
    for fields in ([*unpacked(), 0], unpacked()[:-1], []):
        with pytest.raises(MalformedMessage):
            Verifier().open(envelope(msgspec.msgpack.encode(fields)), RUN)


def test_another_encoding_of_the_same_content_is_not_canonical() -> None:
    data = encode(statement())
    assert data[1:2] == b"\x01"
    long_integer = data[:1] + b"\xcc\x01" + data[2:]
    with pytest.raises(NonCanonicalMessage, match="Statement"):
        Verifier().open(envelope(long_integer), RUN)
    wide_array = b"\xdc\x00" + bytes([data[0] & 0xF]) + data[1:]
    with pytest.raises(NonCanonicalMessage):
        Verifier().open(envelope(wide_array), RUN)


def test_bytes_after_the_end_are_malformed() -> None:
    with pytest.raises(MalformedMessage):
        Verifier().open(sign(KEY, statement()).data + b"\x00", RUN)


def test_text_that_is_no_utf8_is_malformed() -> None:
    with pytest.raises(MalformedMessage):
        decode(Charge, encode(Charge(ZERO, 1, "ab", ZERO)).replace(b"ab", b"\x91\xff"), 1000)


def test_too_long_is_oversized_before_anything_is_parsed() -> None:
    with pytest.raises(OversizedMessage, match="at most"):
        Verifier().open(bytes(ENVELOPE_BYTES_MAX + 1), RUN)
    with pytest.raises(OversizedMessage):
        decode_packet(bytes(PACKET_BYTES_MAX + 1))


@pytest.mark.parametrize("tamper", ["signature", "statement", "signer", "domain"])
def test_a_signature_that_does_not_fit(tamper: str) -> None:
    data = encode(statement())
    signature = KEY.sign(DOMAIN + data)
    match tamper:
        case "signature":
            signature = bytes(64)
        case "statement":
            data = encode(statement(round=4))
        case "signer":
            signature = SigningKey.generate().sign(DOMAIN + data)
        case _:
            signature = KEY.sign(data)
    with pytest.raises(WrongSignature, match="reveal of round"):
        Verifier().open(encode(Envelope(data, signature)), RUN)


def test_another_run_or_group_is_foreign() -> None:
    verifier, message = Verifier(), sign(KEY, statement())
    for _ in range(2):  # a remembered message is no less foreign
        with pytest.raises(ForeignMessage):
            verifier.open(message.data, ZERO)
    with pytest.raises(ForeignMessage):
        verifier.open(message.data, RUN, group=1)
    assert verifier.open(message.data, RUN)


def test_a_body_of_another_kind_is_malformed() -> None:
    data = encode(statement(kind="commit"))
    with pytest.raises(MalformedMessage, match="Commit"):
        Verifier().open(envelope(data), RUN)


def test_lists_in_a_commit_are_bounded() -> None:
    body = Commit((), (), (), (), (ZERO,) * 65, (), 0, 0)
    with pytest.raises(MalformedMessage):
        decode(Commit, encode(body), ENVELOPE_BYTES_MAX)


def test_the_verifier_remembers_a_bounded_number_of_messages_and_bytes() -> None:
    messages = [sign(KEY, statement(round=i)) for i in range(12)]
    verifier = Verifier(cached_max=5)
    for message in messages:
        verifier.open(message.data, RUN)
    assert len(verifier._passed) == 5
    verifier = Verifier(cached_bytes_max=3 * len(messages[0].data))
    for message in messages:
        verifier.open(message.data, RUN)
    assert len(verifier._passed) == 3
    assert verifier.open(messages[0].data, RUN) == messages[0]


def records() -> list[type[msgspec.Struct]]:
    found = {*BODIES.values(), Statement, Envelope, blocks.Block, blocks.Genesis, evidence.Evidence}
    return sorted(found, key=lambda record: record.__name__)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """What fits an annotation; hypothesis knows nothing of msgspec's bounds."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        meta = arguments[1]
        if arguments[0] is int:
            return st.integers(meta.ge, meta.le)
        if arguments[0] is bytes:
            low = meta.min_length or 0
            return st.binary(min_size=low, max_size=min(meta.max_length or 64, low + 64))
        if arguments[0] is str:
            return st.text(max_size=20)
        low, high = meta.min_length or 0, min(3, meta.max_length or 3)
        return st.lists(values_of(typing.get_args(arguments[0])[0]), min_size=low, max_size=high).map(tuple)
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values_of, arguments))
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is typing.Union or type(hint).__name__ == "UnionType":
        return st.one_of(*map(values_of, arguments))
    if hint is type(None):
        return st.none()
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return record_of(hint)
    simple: dict[Any, st.SearchStrategy[Any]] = {
        bytes: st.binary(max_size=64), str: st.text(max_size=20), int: st.integers(0, 2**20),
        float: st.floats(allow_nan=False), bool: st.booleans(),
    }  # fmt: skip
    return simple[hint]


def record_of(record: type[msgspec.Struct]) -> st.SearchStrategy[msgspec.Struct]:
    hints = typing.get_type_hints(record, include_extras=True)
    return st.tuples(*(values_of(hints[name]) for name in record.__struct_fields__)).map(lambda values: record(*values))


@pytest.mark.parametrize("record", records(), ids=lambda record: record.__name__)
@settings(max_examples=25)
@given(data=st.data())
def test_every_record_comes_back_as_it_went(record: type[msgspec.Struct], data: st.DataObject) -> None:
    value = data.draw(record_of(record))
    encoded = encode(value)
    assert decode(record, encoded, 2**20) == value
    assert encode(decode(record, encoded, 2**20)) == encoded


@pytest.mark.parametrize("packet", PACKETS, ids=lambda packet: packet.__name__)
@settings(max_examples=25)
@given(data=st.data())
def test_every_packet_comes_back_as_it_went(packet: type[msgspec.Struct], data: st.DataObject) -> None:
    value = data.draw(record_of(packet))
    assert decode_packet(encode_packet(value)) == value  # type: ignore[arg-type]


@pytest.mark.parametrize("record", records(), ids=lambda record: record.__name__)
@settings(max_examples=25)
@given(data=st.data())
def test_a_decoder_gives_a_canonical_record_or_a_named_error(record: type[msgspec.Struct], data: st.DataObject) -> None:
    encoded = bytearray(encode(data.draw(record_of(record))))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(encoded) - 1))
        encoded[at] = data.draw(st.integers(0, 255))
    with suppress(RemoteProtocolError):
        assert encode(decode(record, bytes(encoded), 2**20)) == bytes(encoded)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_packet_or_a_named_error(data: bytes) -> None:
    with suppress(RemoteProtocolError):
        assert encode_packet(decode_packet(data)) == data


@given(st.binary(max_size=300))
def test_any_bytes_are_no_message(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Verifier().open(data, RUN)


def test_a_packet_in_another_form_is_not_canonical() -> None:
    data = encode_packet(Where(3, ZERO))
    with pytest.raises(NonCanonicalMessage, match="packet"):
        decode_packet(data.replace(b"\x03", b"\xcc\x03", 1))
    with pytest.raises(MalformedMessage):
        decode_packet(encode_packet(Envelopes((b"",) * 257)))


def test_lists_of_bytes_do_not_collide() -> None:
    assert sha256(b"ab", b"c") != sha256(b"a", b"bc") != sha256(b"abc")
    assert sha256() != sha256(b"")
