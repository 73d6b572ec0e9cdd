"""Peers and strangers that do what no honest peer does: each costs them their connection, and nobody else anything."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import random
import ssl
import struct
from dataclasses import replace
from typing import Any

import pytest
import trio
from libp2p.stream_muxer.exceptions import MuxedStreamError

from btrain.identity import SigningKey
from btrain.p2p.addresses import parse_peer_address
from btrain.p2p.bulk import tls_handshake
from btrain.p2p.bulk_frames import CHUNK_BYTES, DATA, HEADER
from btrain.p2p.bulk_plane import _detached
from btrain.p2p.certificates import BulkIdentity
from btrain.p2p.errors import LinkLost, PeerUnreachable
from btrain.p2p.frames import Kind, frame

MULTISTREAM = b"\x13/multistream/1.0.0\n"
CLIENT_HELLO_START = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
NOISE = random.Random(0).randbytes(70_000)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


async def until_closed(stream: trio.SocketStream) -> None:
    """Read until the other end closes or resets."""
    with contextlib.suppress(trio.BrokenResourceError):
        while await stream.receive_some():
            pass


@pytest.mark.parametrize(
    "junk",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00" * 100,
        CLIENT_HELLO_START + NOISE[:600],
        b"\x16" * 1000,
        MULTISTREAM + b"\x03\xff\xfe\n",
        MULTISTREAM + b"\x07/noise\n" + b"\xff\xff" + NOISE,
        MULTISTREAM + b"\x07/noise\n" + b"\x00\x20" + NOISE[:32] + b"\x00\x40" + NOISE[:64],
        MULTISTREAM + b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        MULTISTREAM + b"\x04xyz\n" * 20_000,
        b"\x13" + NOISE[:200],
    ],
    ids=[
        "http",
        "zeros",
        "tls",
        "tls-bytes",
        "utf8",
        "noise",
        "noise-handshake",
        "giant-length",
        "endless",
        "multistream",
    ],
)
def test_junk_on_the_port_closes_that_connection_only(lab: Any, junk: bytes) -> None:
    async def test() -> None:
        limits = replace(lab.limits, handshake_s=3.0)  # some junk could still become something
        async with lab.pair(limits=limits) as ((a, heard_a), (b, _)):
            stream = await lab.raw(a)
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(junk)
            await until_closed(stream)
            await stream.aclose()
            b.send_control(a.peer, b"still linked")
            assert await heard_a.until("control") == b"still linked"
            await lab.works(a)

    lab.run(test)


@pytest.mark.parametrize("opening", [b"", MULTISTREAM, CLIENT_HELLO_START], ids=["nothing", "libp2p", "tls"])
def test_a_connection_that_falls_silent_is_closed_at_the_deadline(lab: Any, opening: bytes) -> None:
    async def test() -> None:
        async with lab.network(limits=lab.hasty) as (a, _):
            stream = await lab.raw(a)
            await stream.send_all(opening)
            await until_closed(stream)
            await stream.aclose()

    lab.run(test)


def test_dripping_bytes_do_not_extend_the_deadline(lab: Any) -> None:
    async def test() -> None:
        async with lab.network(limits=lab.hasty) as (a, _):
            stream = await lab.raw(a)
            with contextlib.suppress(trio.BrokenResourceError):  # it is closed: else this would go on for ever
                for byte in itertools.cycle(MULTISTREAM):
                    await stream.send_all(bytes([byte]))
                    await trio.sleep(0.1)
            await stream.aclose()

    lab.run(test)


def test_idle_connections_do_not_keep_peers_out(lab: Any) -> None:
    async def test() -> None:
        limits = replace(lab.limits, handshakes_max=8, handshake_s=10.0)
        async with lab.network(limits=limits) as (a, _):
            idle = [await lab.raw(a) for _ in range(20)]
            await lab.works(a)
            for stream in idle[:10]:
                await until_closed(stream)
            for stream in idle:
                await stream.aclose()

    lab.run(test)


def test_a_host_that_connects_without_end_is_refused(lab: Any) -> None:
    async def test() -> None:
        limits = replace(lab.limits, handshakes_per_s_max=0.001, handshakes_burst=10.0)
        async with lab.network(limits=limits) as (a, _):
            for _ in range(20):
                stream = await lab.raw(a)
                with contextlib.suppress(trio.BrokenResourceError):
                    await stream.send_all(b"junk")
                    await until_closed(stream)
                await stream.aclose()
            async with lab.network() as (fresh, _):
                with pytest.raises(PeerUnreachable):
                    await fresh.connect(a.addresses[0])

    lab.run(test)


def test_strangers_are_bounded_and_make_room_after_a_while(lab: Any) -> None:
    async def test() -> None:
        limits = replace(lab.limits, strangers_max=2, stranger_s=0.5)
        async with (
            lab.network(limits=limits) as (a, heard),
            lab.impostor(a) as one,
            lab.impostor(a) as two,
            lab.impostor(a) as three,
            lab.impostor(a) as four,
        ):
            assert await one.greet() == Kind.HELLO
            assert await two.greet() == Kind.HELLO
            await heard.until("connected", 2)
            assert await three.greet() == Kind.REFUSE
            await trio.sleep(limits.stranger_s)
            assert await four.greet() == Kind.HELLO
            assert await heard.until("disconnected") == "made room for another stranger"
            await heard.until("connected", 3)
            assert set(a.peers) == {two.key.public_key, four.key.public_key}

    lab.run(test)


def test_a_member_finds_room_among_strangers(lab: Any) -> None:
    async def test() -> None:
        key = SigningKey.generate()
        async with lab.network(limits=replace(lab.limits, strangers_max=0)) as (a, heard):
            a.set_members([key.public_key])
            async with lab.impostor(a, key) as member, lab.impostor(a) as stranger:
                assert await stranger.greet() == Kind.REFUSE
                assert await member.greet() == Kind.HELLO
                await heard.until("connected")

    lab.run(test)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"\xff\x00\x00\x00", "unknown frame type"),
        (b"\x00\x00\x00\x00", "unknown frame type"),
        (bytes([Kind.MESSAGE]) + b"\xff\xff\xff", "oversized frame"),
        (frame(Kind.HELLO, b"again"), "out of place"),
        (frame(Kind.CONFIRM), "out of place"),
        (frame(Kind.WANT, b"short"), "a hash of 5 bytes"),
        (frame(Kind.MISSING, b""), "a hash of 0 bytes"),
    ],
)
def test_an_illegal_frame_is_told_and_keeps_its_sender_away_for_a_while(lab: Any, sent: bytes, reason: str) -> None:
    async def test() -> None:
        key = SigningKey.generate()
        async with lab.pair(limits=replace(lab.limits, quarantine_s=1000.0)) as ((a, heard), (b, _)):
            async with lab.impostor(a, key) as impostor:
                await impostor.greet()
                await impostor.channel.write(sent)
                assert reason in await heard.until("misbehaved")
                await heard.until("disconnected")
            async with lab.impostor(a, key) as impostor:
                assert await impostor.greet() == Kind.REFUSE
            assert a.peers == [b.peer]

    lab.run(test)


def test_who_was_kept_away_may_return_after_a_while(lab: Any) -> None:
    async def test() -> None:
        key = SigningKey.generate()
        async with lab.network() as (a, heard):
            async with lab.impostor(a, key) as impostor:
                await impostor.greet()
                await impostor.channel.write(b"\xff\x00\x00\x00")
                await heard.until("misbehaved")
                await heard.until("disconnected")
            await trio.sleep(lab.limits.quarantine_s)
            async with lab.impostor(a, key) as impostor:
                assert await impostor.greet() == Kind.HELLO

    lab.run(test)


def test_illegal_greetings_are_refused(lab: Any) -> None:
    async def test() -> None:
        async with lab.network() as (a, heard):
            other = BulkIdentity(SigningKey.generate()).certificate
            for count, change in enumerate(
                ({"bulk_certificate": other}, {"bulk_signature": bytes(64)}, {"addresses": ("/" * 401,)}), start=1
            ):
                async with lab.impostor(a) as impostor:
                    with pytest.raises(LinkLost):
                        await impostor.greet(**change)
                await heard.until("misbehaved", count)
            async with lab.impostor(a) as impostor:
                await impostor.channel.write(frame(Kind.MESSAGE, b"no greeting"))
                assert "expected a greeting" in await heard.until("misbehaved", 4)
            async with lab.impostor(a) as impostor:
                with pytest.raises(LinkLost):
                    await impostor.greet(version=2)
            assert not heard.all("connected")

    lab.run(test)


def test_a_certificate_that_is_none_ends_a_members_link(lab: Any) -> None:
    async def test() -> None:
        key = SigningKey.generate()
        async with lab.network() as (a, heard):
            a.set_members([key.public_key])
            async with lab.impostor(a, key) as impostor:
                impostor.bulk.certificate = b"no certificate"
                await impostor.greet()
                assert "cannot be read" in await heard.until("misbehaved")

    lab.run(test)


def test_a_flood_of_messages_is_slowed_down_and_then_ends(lab: Any) -> None:
    async def test() -> None:
        limits = replace(lab.limits, stranger_messages_per_s_max=100.0, burst_s=0.5, flood_s=1.0)
        async with lab.network(limits=limits) as (a, heard), lab.impostor(a) as flooder:
            await flooder.greet()
            begin = trio.current_time()
            with contextlib.suppress(LinkLost):
                while not heard.all("misbehaved"):
                    await flooder.channel.write(frame(Kind.MESSAGE, b"x" * 100) * 100)
            assert "flood" in await heard.until("misbehaved")
            took_s = trio.current_time() - begin
            assert took_s >= limits.flood_s
            assert len(heard.all("control")) <= 100.0 * (took_s + limits.burst_s) + 1

    lab.run(test)


def test_data_beyond_the_window_is_not_buffered(lab: Any) -> None:
    async def test() -> None:
        limits = replace(lab.limits, stranger_messages_per_s_max=1.0, burst_s=1.0, flood_s=60.0)
        async with lab.network(limits=limits) as (a, heard), lab.impostor(a) as greedy:
            await greedy.greet()
            await heard.until("connected")
            stream = greedy.channel._open_stream()._stream
            data = frame(Kind.MESSAGE, bytes(10_000)) * 6
            with contextlib.suppress(LinkLost):
                for _ in range(100):
                    stream.send_window = 1 << 30
                    await greedy.channel.write(data)
            assert "flow control" in await heard.until("misbehaved")

    lab.run(test)


def test_a_peer_that_opens_many_streams_loses_its_connection(lab: Any) -> None:
    async def test() -> None:
        async with lab.network() as (a, heard), lab.impostor(a) as impostor:
            await impostor.greet()
            await heard.until("connected")
            with contextlib.suppress(MuxedStreamError):
                for _ in range(1000):
                    await impostor.channel._muxer.open_stream()
            assert "streams" in await heard.until("misbehaved")

    lab.run(test)


def test_a_peer_that_reads_nothing_is_dropped(lab: Any) -> None:
    async def test() -> None:
        key = SigningKey.generate()
        limits = replace(lab.limits, write_s=0.5, heartbeat_s=100.0)
        async with lab.network(limits=limits) as (a, heard), lab.impostor(a, key) as impostor:
            await impostor.greet()
            await heard.until("connected")
            for _ in range(400):
                a.send_control(key.public_key, bytes(60_000))
            assert "taken no data" in await heard.until("disconnected")

    lab.run(test)


def test_a_silent_peer_is_dropped_and_not_accused(lab: Any) -> None:
    async def test() -> None:
        limits = replace(lab.limits, heartbeat_s=0.2)
        async with lab.network(limits=limits) as (a, heard), lab.impostor(a) as impostor:
            await impostor.greet()
            assert "silent" in await heard.until("disconnected")
            assert not heard.all("misbehaved")

    lab.run(test)


async def bulk_connection(lab: Any, network: Any, impostor: Any, bulk: BulkIdentity | None = None) -> ssl.SSLSocket:
    """Dial the bulk plane of a network the impostor is a member of."""
    await impostor.channel.write(frame(Kind.BULK_READY))
    hello = network._hello()
    bulk = bulk or impostor.bulk
    bulk.pin(hello.bulk_certificate, [])
    address = parse_peer_address(network.addresses[0])
    stream = await trio.open_tcp_stream(address.host, address.port)
    return await tls_handshake(_detached(stream), bulk.client_context, server_side=False)


async def send(tls: ssl.SSLSocket, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[tls.send(view) :]
        except ssl.SSLWantWriteError:
            await trio.lowlevel.wait_writable(tls.fileno())


def header(kind: int, length: int, size: int, blob_hash: bytes = bytes(32)) -> bytes:
    return HEADER.pack(kind, length, size, blob_hash)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (header(DATA, 5, 5, b"h" * 32) + b"wrong", "does not hash"),
        (header(DATA, 1, 2, b"h" * 32) + b"x" + header(DATA, 1, 2, b"h" * 32) + b"y", "does not hash"),
        (header(DATA, 5, 1 << 40), "oversized blob"),
        (header(DATA, CHUNK_BYTES + 1, CHUNK_BYTES + 1), "a bulk frame of"),
        (header(DATA, 0, 5), "a bulk frame of"),
        (header(DATA, 6, 5), "a bulk frame of"),
        (header(DATA, 1, 9, b"h" * 32) + b"x" + header(DATA, 1, 9, b"i" * 32), "does not continue"),
        (header(DATA, 1, 9, b"h" * 32) + b"x" + header(DATA, 1, 8, b"h" * 32), "does not continue"),
        (header(DATA, 5, 9, b"h" * 32) + b"xxxxx" + header(DATA, 5, 9, b"h" * 32), "does not continue"),
        (header(9, 0, 0), "unknown frame type"),
        (struct.pack("!B", 9) * HEADER.size, "unknown frame type"),
    ],
)
def test_illegal_bulk_frames_and_blobs_that_do_not_hash_are_told(lab: Any, sent: bytes, reason: str) -> None:
    async def test() -> None:
        key = SigningKey.generate()
        async with lab.network() as (a, heard):
            a.set_members([key.public_key])
            async with lab.impostor(a, key) as impostor:
                await impostor.greet()
                await heard.until("connected")
                tls = await bulk_connection(lab, a, impostor)
                await send(tls, sent)
                assert reason in await heard.until("misbehaved")
                tls.close()
            assert not heard.all("blob")

    lab.run(test)


def test_a_blob_that_crawls_ends_the_link_without_blame(lab: Any) -> None:
    async def test() -> None:
        key = SigningKey.generate()
        async with lab.network(limits=replace(lab.limits, stall_s=0.3, heartbeat_s=100.0)) as (a, heard):
            a.set_members([key.public_key])
            async with lab.impostor(a, key) as impostor:
                await impostor.greet()
                await heard.until("connected")
                tls = await bulk_connection(lab, a, impostor)
                await send(tls, header(DATA, 100, 100))
                while not heard.all("disconnected"):
                    await send(tls, b"x")
                    await trio.sleep(0.05)
                    if len(heard.events) > 1:
                        break
                assert "stands still while receiving" in await heard.until("disconnected")
                assert not heard.all("misbehaved")
                tls.close()

    lab.run(test)


async def closes(tls: ssl.SSLSocket) -> None:
    """Wait until the other end closes or sends an alert."""
    while True:
        try:
            if not tls.recv(100):
                return
        except ssl.SSLWantReadError:
            await trio.lowlevel.wait_readable(tls.fileno())
        except OSError:
            return


def test_a_bulk_connection_under_another_certificate_is_refused(lab: Any) -> None:
    async def test() -> None:
        key, other = SigningKey.generate(), SigningKey.generate()
        async with lab.network() as (a, heard):
            a.set_members([key.public_key, other.public_key])
            async with lab.impostor(a, key) as impostor, lab.impostor(a, other) as second:
                await impostor.greet()
                await second.greet()
                await heard.until("connected", 2)
                unknown = await bulk_connection(lab, a, impostor, BulkIdentity(key))
                await closes(unknown)
                unknown.close()
                good = await bulk_connection(lab, a, impostor)
                await send(good, header(DATA, 4, 4, hashlib.sha256(b"mine").digest()) + b"mine")
                await heard.until("blob")
                assert heard.events[-1] == ("blob", key.public_key, b"mine")
                twice = await bulk_connection(lab, a, impostor)
                await closes(twice)
                twice.close()
                good.close()

    lab.run(test)


def test_a_bulk_connection_without_a_certificate_or_of_a_stranger_is_refused(lab: Any) -> None:
    async def test() -> None:
        async with lab.network() as (a, heard), lab.impostor(a) as stranger:
            await stranger.greet()
            await heard.until("connected")
            tls = await bulk_connection(lab, a, stranger)
            await closes(tls)
            tls.close()
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            tls = await tls_handshake(_detached(await lab.raw(a)), context, server_side=False)
            assert tls.version() == "TLSv1.3"
            await closes(tls)
            tls.close()

    lab.run(test)


def test_a_handler_that_fails_on_a_request_answers_that_the_blob_is_missing(lab: Any) -> None:
    async def test() -> None:
        async with lab.pair() as ((a, heard_a), (b, heard_b)):
            heard_b.fail_on = "blob_wanted"
            a.request_blob(b.peer, b"h" * 32)
            assert await heard_a.until("blob_missing") == b"h" * 32
            assert a.peers == [b.peer]

    lab.run(test)
