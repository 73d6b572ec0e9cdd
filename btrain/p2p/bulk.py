"""The bulk plane: blobs over one TLS connection per pair, both ways, in one thread.

One thread, because an OpenSSL connection must not be used by two: a key update sent by the peer makes the reading side
write. The socket is non-blocking and the thread waits in poll(); OpenSSL releases the interpreter while it works.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable

import trio

from btrain.p2p.errors import LinkLost
from btrain.p2p.incoming import Receiver
from btrain.p2p.limits import KIB, Budget, Limits, Traffic
from btrain.p2p.outgoing import Outbox, Sender

THREAD_NAME = "btrain bulk connection"

_TURN_BYTES = 1024 * KIB  # how much is read or written before the other direction has its turn
_RETRY_S = 0.02  # how often reading is tried again while the budget is used up


async def tls_handshake(sock: socket.socket, context: ssl.SSLContext, server_side: bool) -> ssl.SSLSocket:
    """Upgrade a connected socket without a thread: unknown peers must not occupy one. To be called under a deadline.

    Raises LinkLost, and closes the socket then and when cancelled.
    """
    tls: ssl.SSLSocket | socket.socket = sock
    try:
        sock.setblocking(False)
        tls = shaking = context.wrap_socket(sock, server_side=server_side, do_handshake_on_connect=False)
        while True:
            try:
                shaking.do_handshake()
                return shaking
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(tls.fileno())
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(tls.fileno())
    except OSError as error:
        tls.close()
        raise LinkLost(f"the TLS handshake failed: {error.strerror or error}") from None
    except BaseException:
        tls.close()
        raise


class BulkConnection:
    """One TLS connection. `run` is the thread; everything else may be called from any thread.

    `deliver(hash, data)` is called in the thread for every blob received whole and intact; the caller returns its bytes
    with `handled`. `missing(hash)` is called for a blob to be sent whose file is gone.
    """

    def __init__(
        self,
        tls: ssl.SSLSocket,
        outbox: Outbox,
        limits: Limits,
        total: Budget,
        traffic: Traffic,
        deliver: Callable[[bytes, bytes], None],
        missing: Callable[[bytes], None],
    ) -> None:
        self._tls = tls
        self._limits = limits
        self._traffic = traffic
        self._wakers = socket.socketpair()
        for end in self._wakers:
            end.setblocking(False)
        self._closing = False
        self._finishing = False
        self._sender = Sender(outbox, missing)
        self._receiver = Receiver(limits, total, deliver)
        outbox.wake = self.wake

    def wake(self) -> None:
        """Let the thread look at its outbox and flags."""
        with contextlib.suppress(OSError):  # full: it will wake anyway; or closed: it has ended
            self._wakers[1].send(b"\0")

    def handled(self, size: int) -> None:
        """Return the budget of a delivered blob."""
        self._receiver.give(size)

    def close(self) -> None:
        """End the thread at once."""
        self._closing = True
        self.wake()

    def finish(self) -> None:
        """Send what is queued, have the peer acknowledge it, then end the thread."""
        self._finishing = True
        self.wake()

    def release(self) -> None:
        """Close the sockets, if the thread has not run or has ended; more than once is harmless."""
        self._tls.close()
        for end in self._wakers:
            end.close()

    def run(self) -> None:
        """Serve until closed by `close`, or in order by either side; raises LinkLost or PeerViolation."""
        thread = threading.current_thread()
        borrowed, thread.name = thread.name, THREAD_NAME
        try:
            self._serve()
        except ssl.SSLError as error:
            raise LinkLost(f"the bulk connection failed: {error.reason or error}") from None
        except OSError as error:
            raise LinkLost(f"the bulk connection broke: {error.strerror or error}") from None
        finally:
            thread.name = borrowed
            self._receiver.release()
            self.release()

    def _serve(self) -> None:
        clock = _Progress(self._limits, time.monotonic())
        while not self._closing:
            finishing = self._finishing  # looked at before the outbox: what was put into it by then is sent
            written, write_wants = self._write()
            read, read_wants = self._read()
            if self._receiver.bye_received and not self._sender.bye_answered:
                self._sender.answer_bye()
                continue
            if (self._sender.bye_answered or self._receiver.bye_acknowledged) and not self._sender.busy:
                return
            if finishing and not self._sender.busy and not self._sender.bye_sent:
                self._sender.say_bye()
                continue
            now = time.monotonic()
            clock.check(now, written, read, self._sender.busy, self._receiver.waits_for_peer)
            if written or (read and not self._receiver.blocked):
                continue
            self._wait(read_wants | write_wants)

    def _write(self) -> tuple[int, int]:
        """Write up to a turn; bytes written and what poll() should wait for."""
        total = 0
        while total < _TURN_BYTES and self._sender.advance():
            try:
                sent = self._tls.send(self._sender.pending)
            except ssl.SSLWantWriteError:
                return total, select.POLLOUT
            except ssl.SSLWantReadError:
                return total, select.POLLIN
            self._sender.consumed(sent)
            self._traffic.bulk_sent += sent
            total += sent
        return total, 0

    def _read(self) -> tuple[int, int]:
        """Read up to a turn; bytes read and what poll() should wait for."""
        total = 0
        while total < _TURN_BYTES and not self._receiver.blocked_now() and not self._receiver.heard_bye:
            try:
                received = self._tls.recv_into(self._receiver.target)
            except ssl.SSLWantReadError:
                return total, select.POLLIN
            except ssl.SSLWantWriteError:
                return total, select.POLLOUT
            if not received:
                raise LinkLost("the peer closed the bulk connection")
            self._traffic.bulk_received += received
            total += received
            self._receiver.received(received)
        return total, 0

    def _wait(self, events: int) -> None:
        poll = select.poll()
        poll.register(self._wakers[0], select.POLLIN)
        if events:
            poll.register(self._tls, events)
        timeout_s = _RETRY_S if self._receiver.blocked else self._limits.stall_s
        poll.poll(timeout_s * 1000)
        try:
            while self._wakers[0].recv(4096):
                pass
        except BlockingIOError:
            pass


class _Progress:
    """Tells a connection that stands still, or crawls, from one that has nothing to do."""

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self._since = [now, now]
        self._moved = [0, 0]

    def check(self, now: float, written: int, read: int, sending: bool, receiving: bool) -> None:
        """Raise LinkLost when a transfer under way moved less than `stall_bytes_min` in `stall_s`."""
        for way, (count, under_way) in enumerate(((written, sending), (read, receiving))):
            self._moved[way] += count
            if not under_way or self._moved[way] >= self._limits.stall_bytes_min:
                self._since[way], self._moved[way] = now, 0
            elif now - self._since[way] > self._limits.stall_s:
                raise LinkLost(f"the bulk connection stands still while {('sending', 'receiving')[way]}")
