"""The network of one peer: a port, links to others, messages and blobs. It knows bytes, members and strangers."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from btrain.errors import NetworkError
from btrain.identity import SigningKey
from btrain.p2p.addresses import Address, interface_hosts, parse_address, parse_peer_address, reachable_addresses
from btrain.p2p.bulk_plane import BulkPlane
from btrain.p2p.channel import Channel, LibP2PKeys
from btrain.p2p.dialler import Dialler
from btrain.p2p.errors import LinkLost, MalformedAddress, OwnIdentity, PeerViolation
from btrain.p2p.frames import HASH_BYTES, PROTOCOL_VERSION, Hello, Kind, decode_reason, frame
from btrain.p2p.greeting import Greeted, Greeter
from btrain.p2p.handler import Handler
from btrain.p2p.limits import Limits, Traffic
from btrain.p2p.link import Link
from btrain.p2p.outgoing import BlobSource
from btrain.p2p.peers import PeerBook
from btrain.p2p.port import OnePort, bind

logger = logging.getLogger(__name__)

_HELLO_ADDRESSES_MAX = 16
_SWEEP_S = 1.0
_FAREWELL_SHARE = 0.75  # of `close_s`; the rest is for what does not answer


class Network:
    """Made by `open_network`. Every method is to be called in the trio thread; none but `connect` waits."""

    def __init__(
        self, key: SigningKey, bound: Address, announce: Sequence[str], limits: Limits, handler: Handler, run_tag: bytes
    ) -> None:
        self.peer = key.public_key
        self._limits = limits
        self._handler = handler
        self._run_tag = run_tag
        self._addresses = [str(address) for address in _announced(key.public_key, bound, announce)]
        self._links: dict[bytes, Link] = {}
        self._members: dict[bytes, trio.CancelScope] = {}  # with the scope of the task that keeps it connected
        self._book = PeerBook()
        self._bulk = BulkPlane(key, run_tag, limits, self._links, self._deliver_blob, self._lack_blob, self._end)
        greeter = Greeter(self.peer, run_tag, self._hello, self._objection, self._links)
        self._dialler = Dialler(
            self.peer, LibP2PKeys(key), greeter, self._book, limits, self._links, self._establish, self._accuse
        )
        self._token = trio.lowlevel.current_trio_token()
        self._closing = False
        self._nursery: trio.Nursery

    # What the layer above calls.

    @property
    def addresses(self) -> list[str]:
        """Where others reach this peer, with its id."""
        return list(self._addresses)

    @property
    def peers(self) -> list[bytes]:
        """Who is connected."""
        return list(self._links)

    def traffic(self) -> dict[bytes, Traffic]:
        """Bytes exchanged so far, per peer and plane, over all of a peer's connections; the counters go on counting."""
        return self._book.all_traffic()

    def set_members(self, peers: Collection[bytes]) -> None:
        """Who gets a member's limits and blobs, and is dialled again whenever its link is lost.

        Everybody else is a stranger. Who is no longer a member loses its link and may come back as a stranger.
        """
        members = frozenset(peers) - {self.peer}
        for peer in [peer for peer in self._members if peer not in members]:
            self._members.pop(peer).cancel()
            if peer in self._links:
                self._end(self._links[peer], LinkLost("no longer a member"))
        for peer in members.difference(self._members):
            self._members[peer] = trio.CancelScope()
            self._nursery.start_soon(self._dialler.keep_connected, peer, self._members[peer])
            if peer in self._links:
                self._grant(self._links[peer])

    def learn(self, peer: bytes, addresses: Iterable[str]) -> None:
        """Remember where a peer may be reached; malformed addresses and those of others are ignored."""
        self._book.learn(peer, addresses)

    def known_addresses(self, peer: bytes) -> list[str]:
        """Where a peer may be reached: as it said itself, or as `learn` and `connect` were told."""
        return [str(address) for address in self._book.addresses(peer)]

    async def connect(self, target: str | tuple[bytes, Sequence[str]]) -> bytes:
        """Link to the peer at a multiaddr, or to (peer, its addresses); returns its id, at once if it is linked.

        One attempt of at most `dial_timeout_s`. Raises MalformedAddress, OwnIdentity, PeerUnreachable, WrongPeer,
        WrongRun or ConnectionRefused.
        """
        texts = [target] if isinstance(target, str) else list(target[1])
        addresses = [parse_peer_address(text) for text in texts]
        peers = {address.peer for address in addresses} | ({target[0]} if isinstance(target, tuple) else set())
        peer = peers.pop()
        if peers or peer is None:
            raise MalformedAddress(f"addresses of different peers: {', '.join(texts)}")
        if peer == self.peer:
            raise OwnIdentity(
                f"{texts[0]} is of this peer's own identity: a copy of its key is in use, or it is to join itself"
            )
        self._book.learn(peer, texts)
        await self._dialler.dial(peer)
        return peer

    def send_control(self, peer: bytes, data: bytes) -> bool:
        """Queue a message; False if the peer is not connected. An overflow of its queue ends the link."""
        if len(data) > self._limits.control_message_bytes_max:
            raise ValueError(f"a message of {len(data)} bytes, the limit is {self._limits.control_message_bytes_max}")
        link = self._links.get(peer)
        return link is not None and self._sent(link, frame(Kind.MESSAGE, data))

    def send_blob(self, peer: bytes, blob_hash: bytes, data: BlobSource) -> bool:
        """Queue a blob (bytes or a file), whose SHA-256 the caller vouches for; False if the peer is no connected
        member. An overflow of its queue ends the link."""
        link = self._links.get(peer)
        return link is not None and link.is_member and self._queue_blob(link, blob_hash, data)

    def request_blob(self, peer: bytes, blob_hash: bytes) -> None:
        """Ask a member for a blob; `blob` or `blob_missing` answers, never before this returns."""
        link = self._links.get(peer)
        if link is not None and blob_hash in link.requests:
            return
        if link is None or not link.is_member or len(link.requests) >= self._limits.blob_requests_max:
            self._token.run_sync_soon(self._tell, None, self._handler.blob_missing, peer, blob_hash)
            return
        link.requests[blob_hash] = trio.current_time() + self._limits.blob_request_s
        self._sent(link, frame(Kind.WANT, blob_hash))

    def disconnect(self, peer: bytes, reason: str) -> None:
        """End the link to a peer; a member is dialled again."""
        if peer in self._links:
            self._end(self._links[peer], LinkLost(reason))

    def block(self, peer: bytes, reason: str) -> None:
        """End the link to a peer and refuse it from now on."""
        self._book.keep_away(peer, math.inf)
        self.disconnect(peer, reason)

    # Links.

    def _hello(self) -> Hello:
        return Hello(
            PROTOCOL_VERSION,
            self._run_tag,
            tuple(self._addresses[:_HELLO_ADDRESSES_MAX]),
            self._bulk.certificate,
            self._bulk.signature,
        )

    def _objection(self, peer: bytes) -> str | None:
        """Why a peer that greets us is not let in."""
        if peer == self.peer:
            logger.error("another process uses this peer's identity")
            return "this identity is in use by the peer that was dialled"
        if self._closing or self._book.is_kept_away(peer, trio.current_time()):
            return "not welcome now"
        if len(self._links) >= self._limits.connections_max:
            return "too many connections"
        if peer not in self._members and not self._has_room_for_stranger():
            return "too many strangers"
        return None

    def _has_room_for_stranger(self) -> bool:
        oldest = self._overdue_stranger()
        return self._limits.strangers_max > 0 and (
            oldest is None or trio.current_time() - oldest.since > self._limits.stranger_s
        )

    def _overdue_stranger(self) -> Link | None:
        """The stranger that must go before another can come; None while there is room."""
        strangers = [link for link in self._links.values() if not link.is_member]
        if len(strangers) < self._limits.strangers_max:
            return None
        return min(strangers, key=lambda link: link.since, default=None)

    def _establish(self, channel: Channel, greeted: Greeted) -> None:
        peer = channel.peer
        if self._closing:
            raise LinkLost("this peer is leaving")
        if peer in self._links:
            self._end(self._links[peer], LinkLost("replaced by a newer connection"))
        oldest = None if peer in self._members else self._overdue_stranger()
        if oldest is not None:
            self._end(oldest, LinkLost("made room for another stranger"))
        traffic = self._book.traffic(peer)
        channel.count_into(traffic)
        link = Link(channel, greeted.parser, greeted.hello, self._limits, traffic)
        self._links[peer] = link
        self._book.learn(peer, greeted.hello.addresses)
        self._nursery.start_soon(self._run_link, link)
        self._dialler.note_linked()
        self._tell(link, self._handler.connected, peer)
        if peer in self._members and link.error is None:
            self._grant(link)

    def _grant(self, link: Link) -> None:
        """Give a linked peer what members get."""
        try:
            self._bulk.admit(link)
        except PeerViolation as error:
            self._end(link, error)
        else:
            link.set_member(True)

    async def _run_link(self, link: Link) -> None:
        async with trio.open_nursery() as nursery:
            if link.channel.dialled:
                nursery.start_soon(self._guarded, self._bulk.dial, link)
            nursery.start_soon(self._sweep_requests, link)
            self._end(link, await link.run(lambda kind, payload: self._receive(link, kind, payload)))
            nursery.cancel_scope.cancel()

    async def _guarded(self, task: Callable[[Link], Awaitable[None]], link: Link) -> None:
        try:
            await task(link)
        except NetworkError as error:
            self._end(link, error)
        except Exception as error:
            logger.exception("a link failed by an error of our own")
            self._end(link, LinkLost(f"internal error: {type(error).__name__}"))

    def _end(self, link: Link, error: NetworkError) -> None:
        """End a link and tell the layer above, once."""
        link.fail(error)
        if link.ended.is_set():
            return
        link.ended.set()
        error = link.error or error
        link.channel.close()
        if link.bulk is not None:
            link.bulk.close()
        if self._links.get(link.peer) is link:
            del self._links[link.peer]
        if isinstance(error, PeerViolation):
            self._accuse(link.peer, error)
        for blob_hash in list(link.requests):
            self._tell(None, self._handler.blob_missing, link.peer, blob_hash)
        link.requests.clear()
        self._tell(None, self._handler.disconnected, link.peer, str(error))

    def _accuse(self, peer: bytes, error: PeerViolation) -> None:
        self._book.keep_away(peer, trio.current_time() + self._limits.quarantine_s)
        self._tell(None, self._handler.misbehaved, peer, str(error))

    def _tell(self, link: Link | None, event: Callable[..., None], *arguments: object) -> None:
        try:
            event(*arguments)
        except Exception:
            logger.exception("the handler failed")
            if link is not None:
                self._end(link, LinkLost("our handler failed on what it sent"))

    # Messages.

    def _sent(self, link: Link, data: bytes) -> bool:
        if link.send(data):
            return True
        if link.error is not None:  # the queue overflowed; told later, never within the caller's own event
            self._token.run_sync_soon(self._end, link, link.error)
        return False

    def _receive(self, link: Link, kind: Kind, payload: bytes) -> None:
        if link.error is not None:
            return
        if kind == Kind.MESSAGE:
            self._tell(link, self._handler.control, link.peer, payload)
        elif kind == Kind.BULK_READY:
            link.note_ready(peer_is_ready=True)
        elif kind in (Kind.WANT, Kind.MISSING):
            if len(payload) != HASH_BYTES:
                raise PeerViolation(f"a hash of {len(payload)} bytes")
            if kind == Kind.WANT:
                self._serve_blob(link, payload)
            else:
                self._miss_blob(link, payload)
        elif kind == Kind.BYE:
            raise LinkLost(f"it left: {decode_reason(payload)}")
        elif kind != Kind.BEAT:
            raise PeerViolation(f"frame type {kind} out of place")

    # Blobs.

    def _serve_blob(self, link: Link, blob_hash: bytes) -> None:
        source: BlobSource | None = None
        if link.is_member:
            try:
                source = self._handler.blob_wanted(link.peer, blob_hash)
            except Exception:
                logger.exception("the handler failed")
        if source is None or not self._queue_blob(link, blob_hash, source):
            self._lack_blob(link, blob_hash)

    def _queue_blob(self, link: Link, blob_hash: bytes, source: BlobSource) -> bool:
        try:
            size = source.stat().st_size if isinstance(source, Path) else memoryview(source).nbytes
        except OSError:
            return False
        if size > self._limits.blob_bytes_max:
            raise ValueError(f"a blob of {size} bytes, the limit is {self._limits.blob_bytes_max}")
        if link.error is None and link.outbox.put(blob_hash, source, size):
            return True
        link.fail(LinkLost("the queue of blobs to it overflowed"))
        if link.error is not None:
            self._token.run_sync_soon(self._end, link, link.error)
        return False

    def _deliver_blob(self, link: Link, blob_hash: bytes, data: bytes) -> None:
        link.requests.pop(blob_hash, None)
        self._tell(link, self._handler.blob, link.peer, blob_hash, data)

    def _lack_blob(self, link: Link, blob_hash: bytes) -> None:
        self._sent(link, frame(Kind.MISSING, blob_hash))

    def _miss_blob(self, link: Link, blob_hash: bytes) -> None:
        if link.requests.pop(blob_hash, None) is not None:
            self._tell(link, self._handler.blob_missing, link.peer, blob_hash)

    async def _sweep_requests(self, link: Link) -> None:
        while True:
            await trio.sleep(_SWEEP_S)
            now = trio.current_time()
            for blob_hash in [blob_hash for blob_hash, until in link.requests.items() if until < now]:
                self._miss_blob(link, blob_hash)

    # Beginning and end.

    def _start(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._bulk.start(nursery)
        self._dialler.start(nursery)
        nursery.start_soon(OnePort(listener, self._limits, self._dialler.answer, self._bulk.welcome).serve)

    async def _leave(self) -> None:
        """Say goodbye to everybody at once; close what has not answered after most of `close_s`."""
        self._closing = True
        for scope in self._members.values():
            scope.cancel()
        with trio.move_on_after(self._limits.close_s * _FAREWELL_SHARE):
            async with trio.open_nursery() as nursery:
                for link in list(self._links.values()):
                    nursery.start_soon(self._take_leave, link)
        for link in list(self._links.values()):
            self._end(link, LinkLost("this peer leaves"))

    async def _take_leave(self, link: Link) -> None:
        if link.bulk is not None:
            link.bulk.finish()
            await link.bulk_ended.wait()
        link.send(frame(Kind.BYE, b"it was stopped"))
        await link.ended.wait()


@asynccontextmanager
async def open_network(
    key: SigningKey,
    *,
    handler: Handler,
    run_tag: bytes,
    listen: str = "/ip4/127.0.0.1/tcp/0",
    announce: Sequence[str] = (),
    limits: Limits | None = None,
) -> AsyncIterator[Network]:
    """Listen and serve until the block is left; then everything is closed within `close_s`, threads included.

    `run_tag` (at most 64 bytes) keeps runs apart: peers of another one are refused. `announce` replaces the addresses
    that others are told (port 0 stands for the one in use). Raises MalformedAddress, AddressInUse or AddressUnusable
    before anything has been started.
    """
    limits = limits or Limits()
    address = parse_address(listen)
    if address.peer is not None:
        raise MalformedAddress(f"{listen!r} names a peer; an address to listen on ends with its port")
    listener = bind(address)
    try:
        bound = Address(address.kind, address.host, listener.socket.getsockname()[1])
        network = Network(key, bound, announce, limits, handler, run_tag)
    except BaseException:
        listener.socket.close()
        raise
    try:
        async with trio.open_nursery() as nursery:
            network._start(listener, nursery)
            try:
                yield network
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + limits.close_s):
                    await network._leave()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) != 1:
            raise
        raise group.exceptions[0] from group.exceptions[0].__cause__  # the block's own exception, as it was raised


def _announced(peer: bytes, bound: Address, announce: Sequence[str]) -> list[Address]:
    addresses = [parse_address(text) for text in announce] or reachable_addresses(bound, interface_hosts())
    for address in addresses:
        if address.peer not in (None, peer):
            raise MalformedAddress(f"{address} announces another peer's address")
    return [Address(address.kind, address.host, address.port or bound.port, peer) for address in addresses]
