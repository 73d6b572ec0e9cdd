"""The network of one peer: a port, links to others, messages and blobs. It knows bytes, members and strangers."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import trio

from btrain.errors import NetworkError
from btrain.identity import SigningKey, peer_id_text
from btrain.p2p.addresses import Address, interface_hosts, parse_address, parse_peer_address, reachable_addresses
from btrain.p2p.bulk_plane import BulkPlane
from btrain.p2p.channel import Channel, LibP2PKeys, open_channel
from btrain.p2p.errors import (
    ConnectionRefused,
    LinkLost,
    MalformedAddress,
    PeerUnreachable,
    PeerViolation,
    WrongPeer,
    WrongRun,
)
from btrain.p2p.frames import HASH_BYTES, PROTOCOL_VERSION, Hello, Kind, decode_reason, frame
from btrain.p2p.greeting import Crossed, Greeted, Greeter
from btrain.p2p.limits import Limits, Traffic
from btrain.p2p.link import Link
from btrain.p2p.outgoing import BlobSource
from btrain.p2p.peers import PeerBook
from btrain.p2p.port import OnePort, bind

logger = logging.getLogger(__name__)

_HELLO_ADDRESSES_MAX = 16
_LARGER_WAITS_S = 0.5  # the larger identity of a pair lets the smaller one dial first
_SWEEP_S = 1.0
_FAREWELL_SHARE = 0.75


class Handler(Protocol):
    """What happens on the network. Called in the trio thread; must return quickly and may call the network.

    An exception that leaves a method ends the link it concerns and nothing else.
    """

    def control(self, peer: bytes, data: bytes) -> None:
        """A message; of a stranger if `peer` is no member."""

    def blob(self, peer: bytes, blob_hash: bytes, data: bytes) -> None:
        """A blob, requested or pushed; it has the hash."""

    def blob_missing(self, peer: bytes, blob_hash: bytes) -> None:
        """A requested blob will not come: the peer lacks it, is gone, or has taken too long."""

    def blob_wanted(self, peer: bytes, blob_hash: bytes) -> BlobSource | None:
        """The blob a member asks for: its bytes, the file that holds it, or None."""

    def connected(self, peer: bytes) -> None:
        """Messages and blobs can be sent."""

    def disconnected(self, peer: bytes, reason: str) -> None:
        """The link is gone; what was queued may or may not have arrived."""

    def misbehaved(self, peer: bytes, reason: str) -> None:
        """The peer sent what no honest peer sends; `disconnected` follows."""


class Network:
    """Made by `open_network`. Every method is to be called in the trio thread; none but `connect` waits."""

    def __init__(
        self, key: SigningKey, bound: Address, announce: Sequence[str], limits: Limits, handler: Handler, run_tag: bytes
    ) -> None:
        self.peer = key.public_key
        self._limits = limits
        self._handler = handler
        self._run_tag = run_tag
        self._keys = LibP2PKeys(key)
        self._addresses = [str(address) for address in _announced(key.public_key, bound, announce)]
        self._greeter = Greeter(self.peer, run_tag, self._hello, self._objection, self._is_linked)
        self._links: dict[bytes, Link] = {}
        self._bulk = BulkPlane(key, run_tag, limits, self._links, self._deliver_blob, self._lack_blob, self._end)
        self._book = PeerBook()
        self._members: dict[bytes, trio.CancelScope] = {}  # with the scope of the task that keeps it connected
        self._dials: dict[bytes, trio.Lock] = {}
        self._linked_somebody = trio.Event()
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
        """Bytes exchanged so far, per peer and plane; the counters go on counting."""
        return self._book.all_traffic()

    def set_members(self, peers: Collection[bytes]) -> None:
        """Who gets a member's limits, blobs, and is dialled again whenever the link is lost; everybody else is a
        stranger. Who is no longer a member loses its link and may come back as a stranger."""
        members = frozenset(peers) - {self.peer}
        for peer in [peer for peer in self._members if peer not in members]:
            self._members.pop(peer).cancel()
            if peer in self._links:
                self._end(self._links[peer], LinkLost("no longer a member"))
        for peer in members.difference(self._members):
            self._members[peer] = trio.CancelScope()
            self._nursery.start_soon(self._keep_connected, peer, self._members[peer])
            if peer in self._links:
                self._grant(self._links[peer])

    def learn(self, peer: bytes, addresses: Iterable[str]) -> None:
        """Remember where a peer may be reached; malformed addresses and those of others are ignored."""
        self._book.learn(peer, addresses)

    def known_addresses(self, peer: bytes) -> list[str]:
        """Where a peer may be reached: as it said itself, or as `learn` and `connect` were told."""
        return [str(address) for address in self._book.addresses(peer)]

    async def connect(self, target: str | tuple[bytes, Sequence[str]]) -> bytes:
        """Link to the peer at a multiaddr, or to (peer, addresses); returns its id, at once if it is linked already.

        One attempt of at most `dial_timeout_s`. Raises MalformedAddress, PeerUnreachable, WrongPeer, WrongRun or
        ConnectionRefused.
        """
        if isinstance(target, str):
            address = parse_peer_address(target)
            peer, texts = address.peer, [target]
        else:
            peer, texts = target[0], list(target[1])
        if peer is None or peer == self.peer:
            raise MalformedAddress(f"{texts} is this peer's own address: does another process use the same identity?")
        self._book.learn(peer, texts)
        await self._dial(peer)
        return peer

    def send_control(self, peer: bytes, data: bytes) -> bool:
        """Queue a message; False if the peer is not connected. An overflow of its queue ends the link."""
        if len(data) > self._limits.control_message_bytes_max:
            raise ValueError(f"a message of {len(data)} bytes, the limit is {self._limits.control_message_bytes_max}")
        link = self._links.get(peer)
        return link is not None and self._sent(link, frame(Kind.MESSAGE, data))

    def send_blob(self, peer: bytes, blob_hash: bytes, data: BlobSource) -> bool:
        """Queue a blob (bytes or a file), whose SHA-256 the caller vouches for; False if no member is connected."""
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

    def _is_linked(self, peer: bytes) -> bool:
        return peer in self._links

    def _hello(self) -> Hello:
        return Hello(
            PROTOCOL_VERSION,
            self._run_tag,
            tuple(self._addresses[:_HELLO_ADDRESSES_MAX]),
            self._bulk.certificate,
            self._bulk.signature,
        )

    def _objection(self, peer: bytes) -> str | None:
        if peer == self.peer:
            logger.error("another process uses this peer's identity")
            return "this identity is in use by the peer that was dialled"
        if self._closing or self._book.is_kept_away(peer, trio.current_time()):
            return "not welcome now"
        if len(self._links) >= self._limits.connections_max:
            return "too many connections"
        if peer not in self._members:
            strangers = sum(1 for link in self._links.values() if not link.is_member)
            if strangers >= self._limits.strangers_max:
                return "too many strangers"
        return None

    def _establish(self, channel: Channel, greeted: Greeted) -> None:
        peer, hello = channel.peer, greeted.hello
        if self._closing:
            raise LinkLost("this peer is leaving")
        if peer in self._links:
            self._end(self._links[peer], LinkLost("replaced by a newer connection"))
        traffic = self._book.traffic(peer)
        channel.count_into(traffic)
        link = Link(channel, greeted.parser, hello, self._limits, traffic)
        self._links[peer] = link
        self._linked_somebody.set()
        self._linked_somebody = trio.Event()
        self._book.learn(peer, hello.addresses)
        self._nursery.start_soon(self._run_link, link)
        self._tell(link, self._handler.connected, peer)
        if peer in self._members and link.error is None:
            self._grant(link)

    def _grant(self, link: Link) -> None:
        try:
            self._bulk.admit(link)
        except PeerViolation as error:
            self._end(link, error)
            return
        link.set_member(True)

    async def _run_link(self, link: Link) -> None:
        async with trio.open_nursery() as nursery:
            if link.channel.dialled:
                nursery.start_soon(self._guarded, self._bulk.dial, link)
            nursery.start_soon(self._sweep_requests, link)
            error = await link.run(lambda kind, payload: self._receive(link, kind, payload))
            self._end(link, error)
            nursery.cancel_scope.cancel()

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
            self._book.keep_away(link.peer, trio.current_time() + self._limits.quarantine_s)
            self._tell(None, self._handler.misbehaved, link.peer, str(error))
        for blob_hash in list(link.requests):
            self._tell(None, self._handler.blob_missing, link.peer, blob_hash)
        link.requests.clear()
        self._tell(None, self._handler.disconnected, link.peer, str(error))

    def _tell(self, link: Link | None, event: Callable[..., None], *arguments: object) -> None:
        try:
            event(*arguments)
        except Exception:
            logger.exception("the handler failed")
            if link is not None:
                self._end(link, LinkLost("our handler failed on what it sent"))

    def _sent(self, link: Link, data: bytes) -> bool:
        if link.send(data):
            return True
        self._token.run_sync_soon(self._end, link, link.error)  # never within the caller's own event
        return False

    async def _guarded(self, task: Callable[[Link], Awaitable[None]], link: Link) -> None:
        try:
            await task(link)
        except NetworkError as error:
            self._end(link, error)
        except Exception as error:
            logger.exception("a link failed by an error of our own")
            self._end(link, LinkLost(f"internal error: {type(error).__name__}"))

    # Dialling and being dialled.

    async def _keep_connected(self, peer: bytes, scope: trio.CancelScope) -> None:
        pause_s = self._limits.redial_first_s
        with scope:
            if self.peer > peer:
                await trio.sleep(_LARGER_WAITS_S)
            while True:
                if peer in self._links:
                    await self._links[peer].ended.wait()
                    pause_s = self._limits.redial_first_s + (_LARGER_WAITS_S if self.peer > peer else 0.0)
                await trio.sleep(pause_s * random.uniform(0.8, 1.2))
                pause_s = min(2 * pause_s, self._limits.redial_max_s)
                if self._book.addresses(peer) and not self._book.is_kept_away(peer, trio.current_time()):
                    try:
                        await self._dial(peer)
                    except NetworkError as error:
                        logger.debug("redial: %s", error)

    async def _dial(self, peer: bytes) -> None:
        """Try the known addresses of a peer in turn until one leads to a link."""
        async with self._dials.setdefault(peer, trio.Lock()):
            begin = trio.current_time()
            addresses = self._book.addresses(peer)
            error: NetworkError = LinkLost("no address of it is known")
            for address in addresses:
                try:
                    with trio.fail_after(max(0.1, begin + self._limits.dial_timeout_s - trio.current_time())):
                        await self._dial_address(peer, address)
                    return
                except trio.TooSlowError:
                    error = LinkLost("no answer")
                except (WrongPeer, WrongRun, ConnectionRefused) as refusal:
                    if len(addresses) == 1:
                        raise
                    error = refusal
                except NetworkError as failure:
                    error = failure
            where = ", ".join(str(address) for address in addresses) or peer_id_text(peer)
            raise PeerUnreachable(f"cannot reach {where} (tried for {trio.current_time() - begin:.1f} s): {error}")

    async def _dial_address(self, peer: bytes, address: Address) -> None:
        if peer in self._links:
            return
        try:
            stream = await trio.open_tcp_stream(address.host, address.port)
        except OSError as error:
            raise LinkLost(_said(error)) from None
        channel = await open_channel(self._keys, stream, True, self._nursery)
        try:
            if channel.peer != peer:
                self._book.forget(peer, address)
                raise WrongPeer(f"at {address} answers another peer: {peer_id_text(channel.peer)}")
            try:
                greeted = await self._greeter.dial(channel)
            except (WrongRun, ConnectionRefused) as error:
                raise type(error)(f"{address}: {error}") from None
            self._establish(channel, greeted)
        except Crossed:
            channel.close()
            while peer not in self._links:
                await self._linked_somebody.wait()
        except BaseException:
            channel.close()
            raise

    async def _welcome_control(self, stream: trio.SocketStream) -> None:
        channel = await open_channel(self._keys, stream, False, self._nursery)
        try:
            greeted = await self._greeter.answer(channel)
            if greeted is None:
                channel.close()
            else:
                self._establish(channel, greeted)
        except PeerViolation as error:
            channel.close()
            self._book.keep_away(channel.peer, trio.current_time() + self._limits.quarantine_s)
            self._tell(None, self._handler.misbehaved, channel.peer, str(error))
        except BaseException:
            channel.close()
            raise

    # Messages.

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
            self._sent(link, frame(Kind.MISSING, blob_hash))

    def _queue_blob(self, link: Link, blob_hash: bytes, source: BlobSource) -> bool:
        try:
            size = source.stat().st_size if isinstance(source, Path) else memoryview(source).nbytes
        except OSError:
            return False
        if size > self._limits.blob_bytes_max:
            raise ValueError(f"a blob of {size} bytes, the limit is {self._limits.blob_bytes_max}")
        if link.outbox.put(blob_hash, source, size):
            return True
        link.fail(LinkLost("the queue of blobs to it overflowed"))
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

    async def _serve(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._bulk.start(nursery)
        nursery.start_soon(OnePort(listener, self._limits, self._welcome_control, self._bulk.welcome).serve)

    async def _leave(self) -> None:
        """Say goodbye to everybody, at once, and close what is left after most of `close_s`."""
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
    others are told. Raises MalformedAddress, AddressInUse or AddressUnusable before anything has been started.
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
            await network._serve(listener, nursery)
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


def _said(error: OSError) -> str:
    causes = getattr(error, "exceptions", None) or getattr(error.__cause__, "exceptions", None) or [error]
    return str(getattr(causes[0], "strerror", None) or causes[0]).lower()
