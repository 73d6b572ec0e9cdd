"""How two peers take a channel into use: Hello, Hello or Refuse, Confirm; and which of two crossing channels survives.

Both may dial at once; then the smaller identity decides. It never has both its own Hello under way and a consent to the
other's: while it waits for the answer to its own it refuses the other's, and once it has consented it waits for the
outcome before it greets. The larger one gives up its own dial once it has consented to the smaller's. A channel is in
use for the listener only when the dialler has confirmed it.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import NamedTuple

import trio

from btrain.errors import NetworkError
from btrain.p2p.certificates import check_certificate
from btrain.p2p.errors import ConnectionRefused, LinkLost, PeerViolation, WrongRun
from btrain.p2p.frames import (
    GREETING_BYTES_MAX,
    PROTOCOL_VERSION,
    FrameParser,
    Hello,
    Kind,
    decode_hello,
    decode_reason,
    encode_hello,
    frame,
)
from btrain.p2p.link import ByteStream

_LINGER_S = 1.0
_CROSSED = "crossed"
_OTHER_RUN = "another run"


class Greeted(NamedTuple):
    """A channel in use, what was read beyond the greeting, and how the peer introduced itself."""

    channel: ByteStream
    parser: FrameParser
    hello: Hello


class Crossed(NetworkError):
    """The peer's own dial is on its way; the link will come from there."""


class Greeter:
    """Greets for one identity.

    `objection(peer)` says why a peer is not let in; `links` contains who is linked already.
    """

    def __init__(
        self,
        identity: bytes,
        run_tag: bytes,
        hello: Callable[[], Hello],
        objection: Callable[[bytes], str | None],
        links: Container[bytes],
    ) -> None:
        self._identity = identity
        self._run_tag = run_tag
        self._hello = hello
        self._objection = objection
        self._links = links
        self._dialling: set[bytes] = set()  # authenticated, own Hello sent or about to be
        self._consented: dict[bytes, trio.Event] = {}  # waiting for the dialler's Confirm; set at the outcome

    async def dial(self, channel: ByteStream) -> Greeted:
        """Greet first; raises Crossed, WrongRun, ConnectionRefused, LinkLost or PeerViolation."""
        peer = channel.peer
        while peer in self._consented and self._identity < peer:
            await self._consented[peer].wait()
        if self._gives_way(peer):
            raise Crossed("the peer dialled first")
        self._dialling.add(peer)
        try:
            parser = FrameParser(GREETING_BYTES_MAX)
            await channel.write(encode_hello(self._hello()))
            kind, payload = await _next_frame(channel, parser)
            if kind == Kind.REFUSE:
                raise _refused(decode_reason(payload))
            hello = self._check(peer, kind, payload)
            if self._gives_way(peer):
                raise Crossed("the peer dialled first")
            await channel.write(frame(Kind.CONFIRM))
            return Greeted(channel, parser, hello)
        finally:
            self._dialling.discard(peer)

    async def answer(self, channel: ByteStream) -> Greeted | None:
        """Be greeted; None if the channel was refused. Raises LinkLost or PeerViolation."""
        peer = channel.peer
        parser = FrameParser(GREETING_BYTES_MAX)
        kind, payload = await _next_frame(channel, parser)
        reason = self._objection(peer)
        if reason is None and kind == Kind.HELLO and decode_hello(payload).run_tag != self._run_tag:
            reason = _OTHER_RUN
        if reason is None and peer in self._dialling and self._identity < peer:
            reason = _CROSSED
        if reason is not None:
            await channel.write(frame(Kind.REFUSE, reason.encode()))
            await _linger(channel)
            return None
        hello = self._check(peer, kind, payload)
        outcome = self._consented[peer] = trio.Event()
        try:
            await channel.write(encode_hello(self._hello()))
            kind, _ = await _next_frame(channel, parser)
            if kind != Kind.CONFIRM:
                raise PeerViolation(f"expected a confirmation, got frame type {kind}")
            return Greeted(channel, parser, hello)
        finally:
            outcome.set()
            if self._consented.get(peer) is outcome:
                del self._consented[peer]

    def _gives_way(self, peer: bytes) -> bool:
        return peer in self._links or (peer in self._consented and self._identity > peer)

    def _check(self, peer: bytes, kind: Kind, payload: bytes) -> Hello:
        if kind != Kind.HELLO:
            raise PeerViolation(f"expected a greeting, got frame type {kind}")
        hello = decode_hello(payload)
        if hello.version != PROTOCOL_VERSION:
            raise ConnectionRefused(f"it speaks version {hello.version} of the protocol, we speak {PROTOCOL_VERSION}")
        if hello.run_tag != self._run_tag:
            raise WrongRun("it takes part in another run")
        check_certificate(peer, self._run_tag, hello.bulk_certificate, hello.bulk_signature)
        return hello


def _refused(reason: str) -> NetworkError:
    if reason == _CROSSED:
        return Crossed("the peer's own dial is on its way")
    if reason == _OTHER_RUN:
        return WrongRun("it takes part in another run")
    return ConnectionRefused(f"it refuses: {reason}")


async def _next_frame(channel: ByteStream, parser: FrameParser) -> tuple[Kind, bytes]:
    while (item := parser.next_frame()) is None:
        parser.feed(await channel.read())
    return item


async def _linger(channel: ByteStream) -> None:
    """Let the peer close first: what it has not read when the connection ends is lost to it."""
    with trio.move_on_after(_LINGER_S):
        try:
            while True:
                await channel.read()
        except LinkLost:
            pass
