"""Bulk connections without a network: two threads, a TLS socket pair, and what is sent over it."""

from __future__ import annotations

import hashlib
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from btrain.identity import SigningKey
from btrain.p2p.bulk import BulkConnection
from btrain.p2p.bulk_frames import CHUNK_BYTES
from btrain.p2p.certificates import BulkIdentity
from btrain.p2p.errors import LinkLost, PeerViolation
from btrain.p2p.limits import Budget, Limits, Traffic
from btrain.p2p.outgoing import Outbox

MIB = 1 << 20
LIMITS = replace(Limits(), blob_bytes_max=16 * MIB, bytes_in_flight_max=32 * MIB, stall_s=5.0)
IDENTITIES = [BulkIdentity(SigningKey.generate()) for _ in range(2)]
IDENTITIES[0].pin(IDENTITIES[1].certificate, [])
IDENTITIES[1].pin(IDENTITIES[0].certificate, [])


class End:
    """One end of a bulk connection in a thread of its own."""

    def __init__(self, tls: ssl.SSLSocket, limits: Limits, total: Budget) -> None:
        self.outbox = Outbox(limits.bytes_in_flight_max)
        self.got: queue.Queue[tuple[bytes, bytes]] = queue.Queue()
        self.missing: queue.Queue[bytes] = queue.Queue()
        self.traffic = Traffic()
        self.error: Exception | None = None
        self.auto = True
        self.connection = BulkConnection(tls, self.outbox, limits, total, self.traffic, self._deliver, self.missing.put)
        self.thread = threading.Thread(target=self._run)

    def _deliver(self, blob_hash: bytes, data: bytes) -> None:
        self.got.put((blob_hash, data))
        if self.auto:
            self.connection.handled(len(data))

    def _run(self) -> None:
        try:
            self.connection.run()
        except (LinkLost, PeerViolation) as error:
            self.error = error

    def send(self, data: bytes) -> bytes:
        blob_hash = hashlib.sha256(data).digest()
        assert self.outbox.put(blob_hash, data, len(data))
        return blob_hash


def tls_pair() -> list[ssl.SSLSocket]:
    """Two connected TLS sockets, each authenticated by the other's certificate, non-blocking."""
    raw = socket.socketpair()
    result: list[ssl.SSLSocket] = []

    def serve() -> None:
        result.append(IDENTITIES[1].server_context.wrap_socket(raw[1], server_side=True))

    thread = threading.Thread(target=serve)
    thread.start()
    client = IDENTITIES[0].client_context.wrap_socket(raw[0])
    thread.join()
    pair = [client, *result]
    for tls in pair:
        tls.setblocking(False)
    return pair


@contextmanager
def connected(receiving: Limits = LIMITS, total: Budget | None = None) -> Iterator[tuple[End, End]]:
    """Two ends, running, the second with the limits `receiving`; both are closed at the end and must have ended."""
    total = total or Budget(LIMITS.bytes_in_flight_total_max)
    ends = [End(tls, limits, total) for tls, limits in zip(tls_pair(), (LIMITS, receiving), strict=True)]
    for end in ends:
        end.thread.start()
    try:
        yield ends[0], ends[1]
    finally:
        for end in ends:
            end.connection.close()
        for end in ends:
            end.thread.join(5)
            assert not end.thread.is_alive()


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 5 * MIB + 3])
def test_blobs_arrive_whole_both_ways_at_once(size: int) -> None:
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    with connected() as ends:
        for end in ends:
            for _ in range(3):
                end.send(data)
        for end in ends:
            for _ in range(3):
                assert end.got.get(timeout=5) == (hashlib.sha256(data).digest(), data)
    assert ends[0].traffic.bulk_sent == ends[1].traffic.bulk_received == ends[0].traffic.bulk_received > 3 * size


def test_small_blobs_pass_between_the_chunks_of_a_large_one() -> None:
    with connected() as (a, b):
        large = a.send(bytes(16 * MIB))
        small = [a.send(bytes([i])) for i in range(5)]
        assert [b.got.get(timeout=5)[0] for _ in range(6)] == [*small, large]


def test_a_file_is_read_when_its_turn_comes_and_one_that_is_gone_is_reported(tmp_path: Path) -> None:
    with connected() as (a, b):
        path = tmp_path / "blob"
        path.write_bytes(b"kept in a file")
        a.outbox.put(b"g" * 32, tmp_path / "gone", 5)
        a.outbox.put(b"s" * 32, path, 5)  # another size than the file has
        a.outbox.put(hashlib.sha256(b"kept in a file").digest(), path, 14)
        assert b.got.get(timeout=5)[1] == b"kept in a file"
        assert {a.missing.get(timeout=5), a.missing.get(timeout=5)} == {b"g" * 32, b"s" * 32}
        a.connection.finish()
        a.thread.join(5)
        assert a.outbox.put(b"", b"", LIMITS.bytes_in_flight_max)  # all room has been given back


def test_finishing_delivers_everything_before_either_side_closes() -> None:
    for _ in range(5):
        with connected() as (a, b):
            blobs = [bytes([i]) * (700_000 * (i % 2) + 1) for i in range(8)]
            hashes = {a.send(data) for data in blobs}
            a.connection.finish()
            a.thread.join(10)
            b.thread.join(10)
            assert (a.error, b.error) == (None, None)
            assert {b.got.get_nowait()[0] for _ in blobs} == hashes


def test_both_may_finish_at_once_and_what_is_queued_for_who_leaves_is_void() -> None:
    for _ in range(10):
        with connected() as ends:
            for end in ends:
                end.send(b"last words")
                end.connection.finish()
            for end in ends:
                end.thread.join(10)
                assert not end.thread.is_alive()
            assert sum(end.got.qsize() for end in ends) >= 1


def test_reading_waits_while_the_budget_is_used_up() -> None:
    limits = replace(LIMITS, blob_bytes_max=MIB, bytes_in_flight_max=MIB, stall_s=0.2)
    with connected(limits) as (a, b):
        b.auto = False
        first, second = a.send(b"1" * (MIB // 2 + 1)), a.send(b"2" * (MIB // 2 + 1))
        assert b.got.get(timeout=5)[0] == first
        with pytest.raises(queue.Empty):
            b.got.get(timeout=3 * limits.stall_s)
        assert b.error is None
        b.connection.handled(MIB // 2 + 1)
        assert b.got.get(timeout=5)[0] == second


def test_a_shared_budget_is_whole_again_after_an_unfinished_blob() -> None:
    total = Budget(32 * MIB)
    with connected(LIMITS, total) as (a, b):
        a.send(bytes(16 * MIB))
        deadline = time.monotonic() + 5
        while b.traffic.bulk_received < CHUNK_BYTES:
            assert time.monotonic() < deadline
        a.connection.close()
        b.thread.join(5)
    while not b.got.empty():
        b.got.get()
    assert total.take(32 * MIB)


def test_a_peer_that_takes_nothing_stalls_the_sender_without_blame() -> None:
    limits = replace(LIMITS, stall_s=0.3)
    client, server = tls_pair()
    a = End(client, limits, Budget(limits.bytes_in_flight_total_max))
    a.send(bytes(16 * MIB))
    a.thread.start()
    a.thread.join(5)
    server.close()
    assert isinstance(a.error, LinkLost)
    assert "while sending" in str(a.error)


def test_an_abrupt_end_is_a_lost_link() -> None:
    with connected() as (a, b):
        a.connection.close()
        b.thread.join(5)
        assert isinstance(b.error, LinkLost)
        assert a.error is None
