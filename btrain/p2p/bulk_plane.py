"""The bulk connections of all links: who dials, who may connect, and the threads that serve them."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable, Mapping

import trio

from btrain.errors import NetworkError
from btrain.identity import SigningKey
from btrain.p2p.bulk import BulkConnection, tls_handshake
from btrain.p2p.certificates import BulkIdentity, sign_certificate
from btrain.p2p.errors import LinkLost, PeerViolation
from btrain.p2p.limits import Budget, Limits
from btrain.p2p.link import Link

logger = logging.getLogger(__name__)

_DIALS_MAX = 5


class BulkPlane:
    """Gives each link between members one bulk connection, dialled by the side that dialled the link.

    `deliver(link, hash, data)`, `missing(link, hash)` and `end(link, error)` are called in the trio thread.
    A bulk connection that ends takes its link with it: while a peer is connected nothing queued for it gets lost.
    """

    def __init__(
        self,
        key: SigningKey,
        run_tag: bytes,
        limits: Limits,
        links: Mapping[bytes, Link],
        deliver: Callable[[Link, bytes, bytes], None],
        missing: Callable[[Link, bytes], None],
        end: Callable[[Link, NetworkError], None],
    ) -> None:
        self._identity = BulkIdentity(key)
        self.certificate = self._identity.certificate
        self.signature = sign_certificate(key, run_tag, self.certificate)
        self._limits = limits
        self._links = links
        self._deliver = deliver
        self._missing = missing
        self._end = end
        self._budget = Budget(limits.bytes_in_flight_total_max)
        self._threads = trio.CapacityLimiter(limits.connections_max)
        self._token = trio.lowlevel.current_trio_token()
        self._nursery: trio.Nursery

    def start(self, nursery: trio.Nursery) -> None:
        """Run the threads of inbound connections in `nursery`."""
        self._nursery = nursery

    def admit(self, link: Link) -> None:
        """Let the peer's certificate through the handshake; raises PeerViolation if it cannot be read."""
        self._identity.pin(
            link.hello.bulk_certificate, [other.hello.bulk_certificate for other in self._links.values()]
        )

    async def dial(self, link: Link) -> None:
        """Wait until both sides are members of each other, connect, and serve; raises LinkLost or PeerViolation."""
        await link.both_members.wait()
        for attempt in range(_DIALS_MAX):
            try:
                with trio.fail_after(self._limits.handshake_s):
                    stream = await trio.open_tcp_stream(*link.channel.remote_address())
                    tls = await tls_handshake(_detached(stream), self._identity.client_context, server_side=False)
            except (OSError, LinkLost, trio.TooSlowError) as error:
                logger.debug("bulk dial: %s", error)
                await trio.sleep(self._limits.redial_first_s * 2**attempt)
                continue
            if tls.getpeercert(binary_form=True) != link.hello.bulk_certificate:
                tls.close()
                raise LinkLost("another certificate on the bulk connection")
            await self._serve(link, tls)
            return
        raise LinkLost("no bulk connection could be made")

    async def welcome(self, stream: trio.SocketStream) -> None:
        """Authenticate an inbound connection, under the caller's deadline; raises LinkLost."""
        tls = await tls_handshake(_detached(stream), self._identity.server_context, server_side=True)
        certificate = tls.getpeercert(binary_form=True)
        for link in self._links.values():
            expected = link.is_member and not link.channel.dialled and link.bulk is None
            if expected and link.hello.bulk_certificate == certificate:
                self._nursery.start_soon(self._serve_inbound, link, tls)
                return
        tls.close()
        raise LinkLost("a bulk connection nobody waits for")

    async def _serve_inbound(self, link: Link, tls: ssl.SSLSocket) -> None:
        try:
            await self._serve(link, tls)
        except NetworkError as error:
            self._end(link, error)

    async def _serve(self, link: Link, tls: ssl.SSLSocket) -> None:
        if link.bulk is not None or link.ended.is_set():
            tls.close()
            return

        def deliver(blob_hash: bytes, data: bytes) -> None:
            self._token.run_sync_soon(self._delivered, link, connection, blob_hash, data)

        def missing(blob_hash: bytes) -> None:
            self._token.run_sync_soon(self._missing, link, blob_hash)

        connection = BulkConnection(tls, link.outbox, self._limits, self._budget, link.traffic, deliver, missing)
        link.bulk = connection
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_close_when_cancelled, connection)
                error = await trio.to_thread.run_sync(_error_of, connection.run, limiter=self._threads)
                nursery.cancel_scope.cancel()
        finally:
            connection.release()  # cancelled before there was a thread
            link.bulk_ended.set()
        if error is None:  # a farewell: what else was sent on the control stream is still to arrive
            await trio.sleep(self._limits.close_s)
        raise error or LinkLost("the bulk connection was closed")

    def _delivered(self, link: Link, connection: BulkConnection, blob_hash: bytes, data: bytes) -> None:
        try:
            if not link.ended.is_set():
                self._deliver(link, blob_hash, data)
        finally:
            connection.handled(len(data))


def _error_of(run: Callable[[], None]) -> NetworkError | None:
    try:
        run()
    except (LinkLost, PeerViolation) as error:
        return error
    return None


async def _close_when_cancelled(connection: BulkConnection) -> None:
    """A thread cannot be cancelled; it can be asked to end."""
    try:
        await trio.sleep_forever()
    finally:
        connection.close()


def _detached(stream: trio.SocketStream) -> socket.socket:
    return socket.socket(fileno=stream.socket.detach())
