"""Canonical encoding: MessagePack arrays in field order, strict and bounded, one byte string for one record."""

from __future__ import annotations

import functools
import hashlib
from typing import Annotated, TypeVar

import msgspec

from btrain.protocol.errors import MalformedMessage, NonCanonicalMessage, OversizedMessage

PeerId = bytes  # 32 bytes: the Ed25519 public key
Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
U8 = Annotated[int, msgspec.Meta(ge=0, le=2**8 - 1)]
U16 = Annotated[int, msgspec.Meta(ge=0, le=2**16 - 1)]
U32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
U64 = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]

ZERO = bytes(32)
MEMBERS_MAX = 256  # seats of a group; every list keyed by members is bounded by it


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of everything that is signed or stored: an array of its fields in order."""


T = TypeVar("T", bound=msgspec.Struct)


@functools.cache
def _decoder(record: type[T]) -> msgspec.msgpack.Decoder[T]:
    return msgspec.msgpack.Decoder(record, strict=True)


def encode(record: msgspec.Struct) -> bytes:
    """The canonical bytes of a record."""
    return msgspec.msgpack.encode(record)


def decode(record: type[T], data: bytes, bytes_max: int) -> T:
    """Parse `data`, refusing what is too long, malformed or not canonical.

    Raises:
        OversizedMessage, MalformedMessage, NonCanonicalMessage: the text names the record and the rule.
    """
    if len(data) > bytes_max:
        raise OversizedMessage(f"{record.__name__} of {len(data)} bytes, at most {bytes_max}")
    try:
        value: T = _decoder(record).decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedMessage(f"{record.__name__}: {error}") from error
    if encode(value) != data:
        raise NonCanonicalMessage(f"{record.__name__} is not in canonical form")
    return value


def sha256(*parts: bytes) -> bytes:
    """SHA-256 of the length-prefixed parts, so that no two different lists collide."""
    pieces = [piece for part in parts for piece in (len(part).to_bytes(8, "little"), part)]
    return hashlib.sha256(b"".join(pieces)).digest()


def digest(data: bytes) -> bytes:
    """Plain SHA-256: the address of a blob."""
    return hashlib.sha256(data).digest()
