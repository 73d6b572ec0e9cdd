"""One inbound port for both planes: the first byte tells a TLS handshake (bulk) from a libp2p one (control)."""

from __future__ import annotations

import errno
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable

import trio

from btrain.p2p.addresses import Address
from btrain.p2p.channel import FIRST_BYTE as LIBP2P_FIRST_BYTE
from btrain.p2p.errors import AddressInUse, AddressUnusable, LinkLost, PeerViolation
from btrain.p2p.limits import Limits, Rate

logger = logging.getLogger(__name__)

TLS_FIRST_BYTE = 0x16  # RFC 8446 section 5.1: a handshake record
_BACKLOG = 256
_ACCEPT_PAUSE_S = 0.1
_HOSTS_MAX = 1024

Welcome = Callable[[trio.SocketStream], Awaitable[None]]


def bind(address: Address) -> trio.SocketListener:
    """A listening socket; raises AddressInUse or AddressUnusable at once, naming the address."""
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise AddressUnusable(f"cannot listen on {address}: {error.strerror or error}") from None
    try:
        # Only so that a port in TIME_WAIT can be taken again after a restart; two live sockets never share one.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(target)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(f"{address} is in use by another process: choose another port, or 0") from None
        raise AddressUnusable(f"cannot listen on {address}: {error.strerror}") from None
    return trio.SocketListener(trio.socket.from_stdlib_socket(listening))


class OnePort:
    """Accepts connections and hands each, by its first byte, to the plane it belongs to.

    A connection that has not authenticated itself within `handshake_s` is closed. At most `handshakes_max` are under
    way; beyond that the oldest one of the host with the most makes room, so that idle connections cannot keep peers
    out. A host that makes more than `handshakes_per_s_max` is refused for a while.
    """

    def __init__(self, listener: trio.SocketListener, limits: Limits, control: Welcome, bulk: Welcome) -> None:
        self._listener = listener
        self._limits = limits
        self._welcome = {LIBP2P_FIRST_BYTE: control, TLS_FIRST_BYTE: bulk}
        self._pending: dict[trio.CancelScope, str] = {}  # in order of arrival, with the remote host
        self._rates: dict[str, Rate] = {}

    async def serve(self) -> None:
        """Accept until cancelled; the listening socket is closed then."""
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    try:
                        stream = await self._listener.accept()
                    except OSError as error:  # out of descriptors: wait until some are free again
                        logger.warning("cannot accept a connection: %s", error)
                        await trio.sleep(_ACCEPT_PAUSE_S)
                        continue
                    nursery.start_soon(self._admit, stream)
        finally:
            self._listener.socket.close()

    async def _admit(self, stream: trio.SocketStream) -> None:
        scope = trio.CancelScope(deadline=trio.current_time() + self._limits.handshake_s)
        try:
            with scope:
                self._make_room(scope, str(stream.socket.getpeername()[0]))
                first = await stream.socket.recv(1, socket.MSG_PEEK)
                welcome = self._welcome.get(first[0]) if first else None
                if welcome is not None:
                    await welcome(stream)
                    return
            stream.socket.close()
        except (OSError, LinkLost, PeerViolation) as error:
            logger.debug("connection refused: %s", error)
            stream.socket.close()
        except Exception:
            logger.exception("an inbound connection failed")
            stream.socket.close()
        except BaseException:  # this peer ends
            stream.socket.close()
            raise
        finally:
            self._pending.pop(scope, None)

    def _make_room(self, scope: trio.CancelScope, host: str) -> None:
        """Note a connection under way, at the expense of another if need be; raises LinkLost for a busy host."""
        now = trio.current_time()
        rate = self._rates.pop(host, None) or Rate(
            self._limits.handshakes_per_s_max, self._limits.handshakes_burst, now
        )
        while len(self._rates) >= _HOSTS_MAX:
            del self._rates[next(iter(self._rates))]
        self._rates[host] = rate
        if not rate.try_take(now):
            raise LinkLost(f"too many connections from {host}")
        if len(self._pending) >= self._limits.handshakes_max:
            busiest = Counter(self._pending.values()).most_common(1)[0][0]
            oldest = next(scope for scope, owner in self._pending.items() if owner == busiest)
            del self._pending[oldest]
            oldest.cancel()
        self._pending[scope] = host
