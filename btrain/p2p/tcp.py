"""The TCP connection under a libp2p channel."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from btrain.p2p.errors import LinkLost, PeerViolation
from btrain.p2p.limits import KIB, Traffic

logger = logging.getLogger(__name__)

_READ_BYTES = 64 * KIB
_HANDSHAKE_BYTES_MAX = 64 * KIB


class TcpStream:
    """A TCP connection as the library wants it: counted, buffered, and with a say over how much may come in."""

    def __init__(self, stream: trio.SocketStream, traffic: Traffic) -> None:
        self._stream = stream
        self._received = b""
        self._offset = 0
        self.traffic = traffic
        self.admit: Callable[[], None] = self._admit_handshake
        peername = stream.socket.getpeername()
        self._remote = (str(peername[0]), int(peername[1]))

    def _admit_handshake(self) -> None:
        if self.traffic.control_received > _HANDSHAKE_BYTES_MAX:
            raise PeerViolation("an endless handshake")

    async def read(self, n: int | None = None) -> bytes:
        """Up to n bytes; empty at the end. The library reads in bits of 2 and 12 bytes, hence the buffer."""
        if self._offset == len(self._received):
            try:
                self._received = await self._stream.receive_some(_READ_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return b""
            self._offset = 0
            self.traffic.control_received += len(self._received)
            self.admit()
        end = len(self._received) if n is None else min(self._offset + n, len(self._received))
        data = self._received[self._offset : end]
        self._offset = end
        return data

    async def write(self, data: bytes) -> None:
        """Send all; raises LinkLost."""
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            logger.debug("sending failed: %s", error)
            raise LinkLost("the connection broke") from None
        self.traffic.control_sent += len(data)

    async def close(self) -> None:
        """Close at once."""
        self.abort()

    def abort(self) -> None:
        """Close at once."""
        self._stream.socket.close()

    def get_remote_address(self) -> tuple[str, int]:
        """Host and port of the other end."""
        return self._remote
