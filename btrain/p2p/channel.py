"""One libp2p connection: TCP, Noise, Yamux, and on it the one stream of btrain's control protocol.

The library's own host is not used, only its protocols. Measured with 0.8.1: three bytes that are no UTF-8, sent by any
stranger as a protocol name, end the whole host, whatever guards its handlers have; a failed dial locks the peer out for
60 s; every dial waits 250 ms; it listens with SO_REUSEPORT, so that a port in use goes unnoticed; each connection takes
0.1 s to close, one after the other. Here a connection's tasks live and die by themselves. Any libp2p peer can still
dial, authenticate and open the stream.
"""

from __future__ import annotations

import logging

import trio
from libp2p.abc import IRawConnection, ISecureConn
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream

from btrain.errors import BtrainError
from btrain.identity import SigningKey, peer_id_bytes
from btrain.p2p.errors import LinkLost, PeerViolation
from btrain.p2p.limits import KIB, Traffic
from btrain.p2p.tcp import TcpStream

logger = logging.getLogger(__name__)
# The library logs what strangers do as errors; without a handler these would be printed on the terminal.
logging.getLogger("libp2p").addHandler(logging.NullHandler())

CONTROL_PROTOCOL = "/btrain/control/1"
FIRST_BYTE = 0x13  # the length of "/multistream/1.0.0\n", with which every libp2p connection over TCP begins

_READ_BYTES = 64 * KIB
_WINDOW_BYTES = 256 * KIB  # Yamux's initial window; it is kept at that, so that a peer can make us buffer no more
_BUFFERED_BYTES_MAX = 2 * _WINDOW_BYTES  # the library itself buffers whatever comes, window or not
_STREAMS_MAX = 8


class LibP2PKeys:
    """The identity in the library's own types."""

    def __init__(self, key: SigningKey) -> None:
        self.noise = NoiseTransport(create_new_key_pair(key.seed), create_noise_key_pair().private_key)


class ControlStream:
    """A Yamux stream with a window of constant size: the library's own reading widens it to as much as 16 MiB."""

    def __init__(self, muxer: Yamux, stream: YamuxStream) -> None:
        self._muxer = muxer
        self._stream = stream
        self._unacknowledged = 0

    async def read(self, n: int | None = None) -> bytes:
        """Up to n bytes, at least one; raises what the library raises at the end."""
        data = await self._muxer.read_stream(self._stream.stream_id, n or _READ_BYTES)
        self._unacknowledged += len(data)
        if self._unacknowledged >= _WINDOW_BYTES // 2:
            self._stream.recv_window += self._unacknowledged
            await self._stream.send_window_update(self._unacknowledged)
            self._unacknowledged = 0
        return data

    async def write(self, data: bytes) -> None:
        """Send all; raises what the library raises."""
        await self._stream.write(data)

    async def close(self) -> None:
        """Close at once."""
        await self._stream.reset()


class Channel:
    """An authenticated, encrypted, ordered stream of bytes to one peer."""

    def __init__(self, tcp: TcpStream, peer: bytes, muxer: Yamux, dialled: bool) -> None:
        self.peer = peer
        self.dialled = dialled
        self._tcp = tcp
        self._muxer = muxer
        self._stream: ControlStream | None = None
        self._opened = trio.Event()
        self._scope = trio.CancelScope()
        self._violation: PeerViolation | None = None
        self._violated = trio.Event()

    async def read(self) -> bytes:
        """Some bytes; raises LinkLost at the end of the stream."""
        try:
            data = await self._open_stream().read()
        except BtrainError:
            raise
        except Exception as error:  # noqa: BLE001 - the library has no common base for what reading raises
            logger.debug("reading ended by %s", _said(error))
            raise LinkLost("the connection was closed") from None
        if not data:
            raise LinkLost("the connection was closed")
        return data

    async def write(self, data: bytes) -> None:
        """Send all; raises LinkLost. To be called under a deadline and by one task."""
        try:
            await self._open_stream().write(data)
        except BtrainError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            logger.debug("writing ended by %s", _said(error))
            raise LinkLost("the connection was closed") from None

    async def violation(self) -> PeerViolation:
        """Wait for what the peer does against the rules of the muxer."""
        await self._violated.wait()
        return self._violation or PeerViolation("unknown")

    def close(self) -> None:
        """Close at once and end the tasks underneath."""
        self._tcp.abort()
        self._scope.cancel()

    def remote_address(self) -> tuple[str, int]:
        """Host and port of the other end; for a channel that was dialled, where the peer listens."""
        return self._tcp.get_remote_address()

    def count_into(self, traffic: Traffic) -> None:
        """Add what was sent and received so far, and from now on, to `traffic`."""
        traffic.control_sent += self._tcp.traffic.control_sent
        traffic.control_received += self._tcp.traffic.control_received
        self._tcp.traffic = traffic

    def _open_stream(self) -> ControlStream:
        if self._stream is None:
            raise LinkLost("the control stream is not open")
        return self._stream

    def _admit(self) -> None:
        buffered = sum(len(buffer) for buffer in self._muxer.stream_buffers.values())
        if buffered > _BUFFERED_BYTES_MAX:
            raise self._accused(f"flow control ignored: {buffered} bytes sent beyond the window")

    def _accused(self, of: str) -> PeerViolation:
        self._violation = self._violation or PeerViolation(of)
        self._violated.set()
        return self._violation

    async def _run(self) -> None:
        """Pump the muxer until the connection ends; an exception in it ends this connection and nothing else."""
        self._tcp.admit = self._admit
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._accept_streams, nursery)
                    await self._muxer.start()
                    nursery.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001 - whatever it is, it concerns this connection
            logger.debug("connection ended by %s", _said(error))
        except BaseExceptionGroup as group:  # the same while we are being cancelled: only the cancellation goes on
            _, cancelled = group.split(Exception)
            if cancelled is not None:
                raise cancelled from None
        finally:
            self._tcp.abort()

    async def _accept_streams(self, nursery: trio.Nursery) -> None:
        for _ in range(_STREAMS_MAX):
            nursery.start_soon(self._negotiate, await self._muxer.accept_stream())
        await self._muxer.accept_stream()
        self._accused(f"more than {_STREAMS_MAX} streams opened")
        self._tcp.abort()

    async def _negotiate(self, stream: YamuxStream) -> None:
        if self.dialled or self._stream is not None:
            await stream.reset()
            return
        control = ControlStream(self._muxer, stream)
        try:
            await Multiselect({TProtocol(CONTROL_PROTOCOL): None}).negotiate(_communicator(control))
        except Exception as error:  # noqa: BLE001 - a stream for another protocol, or junk: this stream only
            logger.debug("stream refused: %s", _said(error))
            await stream.reset()
            return
        if self._stream is None:
            self._stream = control
            self._opened.set()

    async def _open(self) -> None:
        await self._muxer.event_started.wait()
        if not self.dialled:
            await self._opened.wait()
            return
        control = ControlStream(self._muxer, await self._muxer.open_stream())
        await MultiselectClient().select_one_of([TProtocol(CONTROL_PROTOCOL)], _communicator(control))
        self._stream = control


def _communicator(stream: ControlStream) -> MultiselectCommunicator:
    return MultiselectCommunicator(stream)  # type: ignore[arg-type]


async def open_channel(keys: LibP2PKeys, stream: trio.SocketStream, dialled: bool, nursery: trio.Nursery) -> Channel:
    """Upgrade a TCP connection; its tasks run in `nursery`. To be called under a deadline.

    Raises LinkLost or PeerViolation, and closes the TCP connection then and when cancelled.
    """
    tcp = TcpStream(stream, Traffic())
    channel: Channel | None = None
    try:
        session = await _authenticate(keys, tcp, dialled)
        peer_id = session.get_remote_peer()
        channel = Channel(tcp, _public_key(str(peer_id)), await _muxer(session, dialled), dialled)
        nursery.start_soon(channel._run)
        await channel._open()
    except BaseException as error:
        tcp.abort()
        if channel is not None:
            channel.close()
        if isinstance(error, Exception) and not isinstance(error, BtrainError):
            raise LinkLost(f"the handshake failed: {_said(error)}") from None
        raise
    return channel


async def _authenticate(keys: LibP2PKeys, tcp: TcpStream, dialled: bool) -> ISecureConn:
    raw: IRawConnection = RawConnection(tcp, dialled)  # type: ignore[arg-type]
    await _select(raw, NOISE, dialled)
    pattern = keys.noise.get_pattern()
    return await (pattern.handshake_outbound(raw, None) if dialled else pattern.handshake_inbound(raw))


async def _muxer(session: ISecureConn, dialled: bool) -> Yamux:
    await _select(session, YAMUX, dialled)
    return Yamux(session, session.get_remote_peer(), is_initiator=dialled)


async def _select(connection: IRawConnection | ISecureConn, protocol: str, dialled: bool) -> None:
    """Agree on the one protocol that is offered, by multistream-select."""
    communicator = MultiselectCommunicator(connection)
    if dialled:
        await MultiselectClient().select_one_of([TProtocol(protocol)], communicator)
    else:
        await Multiselect({TProtocol(protocol): None}).negotiate(communicator)


def _public_key(peer_id: str) -> bytes:
    try:
        return peer_id_bytes(peer_id)
    except BtrainError as error:
        raise PeerViolation(f"the identity is no Ed25519 key: {error}") from None


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
