"""The frames of the control plane: one byte of type, three of length, payload; and the records of the greeting."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

import msgspec

from btrain.p2p.errors import PeerViolation

PROTOCOL_VERSION = 1
HEADER_BYTES = 4
GREETING_BYTES_MAX = 16 * 1024
REASON_BYTES_MAX = 256
HASH_BYTES = 32

_Address = Annotated[str, msgspec.Meta(max_length=400)]


class Kind(IntEnum):
    """What a frame carries."""

    HELLO = 1  # a Hello: the dialler's opening, and the listener's consent
    REFUSE = 2  # a reason, UTF-8
    CONFIRM = 3  # empty: the dialler takes the connection into use
    MESSAGE = 4  # bytes for the layer above
    BEAT = 5  # empty: I am alive
    BULK_READY = 6  # empty: you are a member for me; the bulk connection may be dialled
    WANT = 7  # the hash of a blob
    MISSING = 8  # the hash of a blob I do not have
    BYE = 9  # a reason; the receiver closes


class Hello(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How two peers introduce themselves over the authenticated channel."""

    version: int
    run_tag: Annotated[bytes, msgspec.Meta(max_length=64)]
    addresses: Annotated[tuple[_Address, ...], msgspec.Meta(max_length=16)]
    bulk_certificate: Annotated[bytes, msgspec.Meta(max_length=2048)]
    bulk_signature: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


_hello_decoder = msgspec.msgpack.Decoder(Hello, strict=True)


def frame(kind: Kind, payload: bytes = b"") -> bytes:
    """One frame on the wire."""
    return (kind << 24 | len(payload)).to_bytes(HEADER_BYTES, "big") + payload


def encode_hello(hello: Hello) -> bytes:
    """The frame of a greeting."""
    return frame(Kind.HELLO, msgspec.msgpack.encode(hello))


def decode_hello(payload: bytes) -> Hello:
    """Read a greeting; raises PeerViolation."""
    try:
        return _hello_decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerViolation(f"malformed greeting: {error}") from None


def decode_reason(payload: bytes) -> str:
    """A peer's reason, made safe to print."""
    text = payload[:REASON_BYTES_MAX].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in text)


class FrameParser:
    """Bytes in, frames out; the limit on the payload may change between frames."""

    def __init__(self, payload_bytes_max: int) -> None:
        self.payload_bytes_max = payload_bytes_max
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Append received bytes."""
        self._buffer += data

    def next_frame(self) -> tuple[Kind, bytes] | None:
        """The next whole frame, or None; raises PeerViolation on an unknown type or an oversized frame.

        The length is judged before the payload is there, so that no more than one legal frame is ever buffered.
        """
        if len(self._buffer) < HEADER_BYTES:
            return None
        kind, length = self._buffer[0], int.from_bytes(self._buffer[1:HEADER_BYTES], "big")
        if not Kind.HELLO <= kind <= Kind.BYE:
            raise PeerViolation(f"unknown frame type {kind}")
        if length > self.payload_bytes_max:
            raise PeerViolation(f"oversized frame: {length} bytes, the limit is {self.payload_bytes_max}")
        end = HEADER_BYTES + length
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[HEADER_BYTES:end])
        del self._buffer[:end]
        return Kind(kind), payload
