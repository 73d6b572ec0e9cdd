"""Control packets between connected peers: signed envelopes, and unsigned requests whose answers verify themselves."""

from __future__ import annotations

from typing import Annotated, get_args

import msgspec

from btrain.protocol.agreement_messages import ItemKey
from btrain.protocol.encoding import MEMBERS_MAX, U16, U32, Hash
from btrain.protocol.errors import MalformedMessage, NonCanonicalMessage, OversizedMessage
from btrain.protocol.holdings import Holdings
from btrain.protocol.messages import ENVELOPE_BYTES_MAX

PACKET_BYTES_MAX = 64 * 1024
BLOCKS_MAX = 32

Bytes = Annotated[bytes, msgspec.Meta(max_length=ENVELOPE_BYTES_MAX)]
Signed = Annotated[tuple[Bytes, ...], msgspec.Meta(max_length=MEMBERS_MAX)]
Item = tuple[Annotated[ItemKey, msgspec.Meta(max_length=200)], Hash]


class Packet(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base: a tagged array."""


class Envelopes(Packet, frozen=True, tag="e"):
    """Signed statements, the sender's own or handed on."""

    envelopes: Annotated[tuple[Bytes, ...], msgspec.Meta(max_length=256)]


class Where(Packet, frozen=True, tag="w"):
    """'My next round and last block are these': sent on connecting and when nothing moves. A peer ahead answers with
    blocks, a peer in the same round with what is not in `held`, if that is there."""

    round: U32
    head: Hash
    held: Holdings | None = None


class CertifiedBlock(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A block and its q Finals."""

    block: Bytes
    certificate: Signed


class Blocks(Packet, frozen=True, tag="b"):
    """Consecutive certified blocks."""

    blocks: Annotated[tuple[CertifiedBlock, ...], msgspec.Meta(max_length=BLOCKS_MAX)]


class ValueRequest(Packet, frozen=True, tag="q"):
    """'Which items stand behind this digest?'"""

    round: U32
    decision: U16
    digest: Hash


class Value(Packet, frozen=True, tag="v"):
    """The items of a digest; the bodies are asked for by hash."""

    round: U32
    decision: U16
    items: Annotated[tuple[Item, ...], msgspec.Meta(max_length=4 * MEMBERS_MAX)]


class BodyRequest(Packet, frozen=True, tag="r"):
    """'Hand me the statements with these hashes.'"""

    round: U32
    hashes: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=4 * MEMBERS_MAX)]


class HandOn(Packet, frozen=True, tag="h"):
    """'Hand on to me what these members say to you in this round: I do not hear them.'"""

    round: U32
    members: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=MEMBERS_MAX)]


class Offer(Packet, frozen=True, tag="o"):
    """'This is the contract I train under': the first packet on every connection, so that a difference can be named."""

    contract: Annotated[bytes, msgspec.Meta(max_length=32 * 1024)]


class Founding(Packet, frozen=True, tag="g"):
    """A genesis, the founders' signatures collected so far, and the Joins, which say where the founders are reached."""

    genesis: Bytes
    signatures: Signed
    joins: Signed


class Refusal(Packet, frozen=True, tag="x"):
    """'I do not accept you, because ...' The text is shown to the user, never acted on."""

    reason: Annotated[str, msgspec.Meta(max_length=1024)]


AnyPacket = Envelopes | Where | Blocks | ValueRequest | Value | BodyRequest | HandOn | Offer | Founding | Refusal
_decoder = msgspec.msgpack.Decoder(AnyPacket, strict=True)
_TAGS = {kind: msgspec.msgpack.encode(kind.__struct_config__.tag) for kind in get_args(AnyPacket)}


def encode_packet(packet: AnyPacket) -> bytes:
    """The canonical bytes of a packet."""
    return msgspec.msgpack.encode(packet)


def decode_packet(data: bytes) -> AnyPacket:
    """Parse a packet.

    Raises:
        OversizedMessage, MalformedMessage, NonCanonicalMessage
    """
    if len(data) > PACKET_BYTES_MAX:
        raise OversizedMessage(f"packet of {len(data)} bytes, at most {PACKET_BYTES_MAX}")
    try:
        packet: AnyPacket = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedMessage(f"packet: {error}") from error
    if encode_packet(packet) != data:
        raise NonCanonicalMessage("packet is not in canonical form")
    return packet


def says_it_is(data: bytes, *kinds: type[AnyPacket]) -> bool:
    """Whether bytes begin as packets of these kinds do, whatever follows: nothing is decoded or checked."""
    return any(data.startswith(_TAGS[kind], 1) for kind in kinds)
