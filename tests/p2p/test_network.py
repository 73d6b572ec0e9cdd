"""Networks that behave: linking, messages, blobs, membership, errors, endings."""

from __future__ import annotations

import gc
import hashlib
import logging
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from btrain.identity import SigningKey, peer_id_text
from btrain.p2p import Limits
from btrain.p2p.errors import (
    AddressInUse,
    AddressUnusable,
    ConnectionRefused,
    MalformedAddress,
    OwnIdentity,
    PeerUnreachable,
    WrongPeer,
    WrongRun,
)

MIB = 1 << 20


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def test_messages_arrive_in_order_both_ways(lab: Any) -> None:
    async def test() -> None:
        async with lab.pair() as ((a, heard_a), (b, heard_b)):
            messages = [bytes([i]) * (i * 251) for i in range(255)] + [b"", b"x" * 65536]
            for message in messages:
                assert a.send_control(b.peer, message)
                assert b.send_control(a.peer, message[::-1])
            await heard_a.until("control", len(messages))
            await heard_b.until("control", len(messages))
            assert heard_b.all("control") == messages
            assert heard_a.all("control") == [message[::-1] for message in messages]

    lab.run(test)


@pytest.mark.parametrize("size", [0, 1, 256 * 1024, 256 * 1024 + 1, 3 * MIB + 17])
def test_blobs_of_every_size_class_arrive_both_ways(lab: Any, size: int) -> None:
    async def test() -> None:
        async with lab.pair() as ((a, heard_a), (b, heard_b)):
            data = bytes(range(256)) * (size // 256 + 1)
            data = data[:size]
            assert a.send_blob(b.peer, sha256(data), data)
            assert b.send_blob(a.peer, sha256(data), memoryview(data))
            assert await heard_a.until("blob") == data
            assert await heard_b.until("blob") == data

    lab.run(test)


def test_a_requested_blob_comes_from_memory_or_file_and_a_lacking_one_is_reported(lab: Any, tmp_path: Path) -> None:
    async def test() -> None:
        async with lab.pair() as ((a, heard_a), (b, heard_b)):
            memory, file = heard_b.hold(b"from memory"), sha256(b"from a file" * 100_000)
            (tmp_path / "blob").write_bytes(b"from a file" * 100_000)
            heard_b.held[file] = tmp_path / "blob"
            heard_b.held[b"g" * 32] = tmp_path / "gone"
            for wanted in (memory, file, b"n" * 32, b"g" * 32):
                a.request_blob(b.peer, wanted)
            await heard_a.until("blob", 2)
            await heard_a.until("blob_missing", 2)
            assert set(heard_a.all("blob")) == {b"from memory", b"from a file" * 100_000}
            assert set(heard_a.all("blob_missing")) == {b"n" * 32, b"g" * 32}

    lab.run(test)


def test_a_request_is_answered_even_if_the_peer_is_unknown_goes_away_or_never_answers(lab: Any) -> None:
    async def test() -> None:
        impatient = {"limits": replace(lab.limits, blob_request_s=0.5)}
        async with lab.pair(first=impatient) as ((a, heard_a), (b, _)):
            a.request_blob(b"u" * 32, b"1" * 32)
            assert not heard_a.all("blob_missing")
            assert await heard_a.until("blob_missing") == b"1" * 32

            silent = SigningKey.generate()
            a.set_members([b.peer, silent.public_key])
            async with lab.impostor(a, silent) as impostor:
                await impostor.greet()
                await heard_a.until("connected", 2)
                a.request_blob(silent.public_key, b"2" * 32)
                assert await heard_a.until("blob_missing", 2) == b"2" * 32

                a.request_blob(silent.public_key, b"3" * 32)
            assert await heard_a.until("blob_missing", 3) == b"3" * 32

    lab.run(test)


def test_a_small_blob_does_not_wait_for_a_large_one(lab: Any) -> None:
    async def test() -> None:
        async with lab.pair() as ((a, _), (b, heard_b)):
            large, small = bytes(64 * MIB), b"small"
            a.send_blob(b.peer, sha256(large), large)
            a.send_blob(b.peer, sha256(small), small)
            assert await heard_b.until("blob") == small
            assert await heard_b.until("blob", 2) == large

    lab.run(test)


def test_both_may_dial_at_once_and_one_link_remains(lab: Any) -> None:
    async def test() -> None:
        async with lab.network() as (a, heard_a), lab.network() as (b, heard_b):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(a.connect, b.addresses[0])
                nursery.start_soon(b.connect, a.addresses[0])
            await heard_a.until("connected")
            await heard_b.until("connected")
            a.send_control(b.peer, b"ping")
            b.send_control(a.peer, b"pong")
            assert await heard_b.until("control") == b"ping"
            assert await heard_a.until("control") == b"pong"
            for heard in (heard_a, heard_b):
                assert len(heard.all("connected")) == 1 + len(heard.all("disconnected"))

    for _ in range(5):
        lab.run(test)


def test_members_that_know_an_address_link_by_themselves_and_again_after_a_loss(lab: Any) -> None:
    async def test() -> None:
        async with lab.network() as (a, heard_a), lab.network() as (b, heard_b):
            a.set_members([b.peer])
            b.set_members([a.peer])
            a.learn(b.peer, b.addresses)
            await heard_b.until("connected")
            assert a.known_addresses(b.peer) == b.addresses
            assert b.known_addresses(a.peer) == a.addresses
            await heard_a.until("connected")
            a.disconnect(b.peer, "on purpose")
            assert await heard_a.until("disconnected") == "on purpose"
            await heard_a.until("connected", 2)
            await heard_b.until("connected", 2)
            blob = b"still here"
            a.send_blob(b.peer, sha256(blob), blob)
            assert await heard_b.until("blob") == blob

    lab.run(test)


def test_a_peer_that_restarts_on_its_port_is_linked_again(lab: Any) -> None:
    async def test() -> None:
        key = SigningKey.generate()
        async with lab.network() as (a, heard_a):
            a.set_members([key.public_key])
            async with lab.network(key) as (b, _):
                listen = b.addresses[0].rsplit("/p2p/", 1)[0]
                b.set_members([a.peer])
                await b.connect(a.addresses[0])
                await heard_a.until("connected")
            assert await heard_a.until("disconnected") == "it left: it was stopped"
            async with lab.network(key, listen=listen) as (b, heard_b):
                b.set_members([a.peer])
                await heard_b.until("connected")
                a.send_control(b.peer, b"welcome back")
                assert await heard_b.until("control") == b"welcome back"

    lab.run(test)


def test_a_member_that_drops_its_link_at_once_is_dialled_ever_more_slowly(
    lab: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)

    async def test() -> None:
        limits = replace(lab.limits, redial_max_s=5.0)  # only a link that lasts longer starts the pauses anew
        async with lab.network(limits=limits) as (a, heard_a), lab.network() as (b, heard_b):
            heard_b.fail_on = "connected"
            a.set_members([b.peer])
            a.learn(b.peer, b.addresses)
            await heard_b.until("connected")
            begin = trio.current_time()
            await heard_b.until("connected", 5)
            assert trio.current_time() - begin >= 0.8 * (0.1 + 0.2 + 0.4 + 0.8)  # four pauses, each a fifth off at most
            assert not heard_a.all("misbehaved")

    lab.run(test)


def test_a_newer_connection_of_a_peer_replaces_the_old_one(lab: Any) -> None:
    async def test() -> None:
        key = SigningKey.generate()
        async with lab.network() as (a, heard), lab.impostor(a, key) as old:
            await old.greet()
            await heard.until("connected")
            async with lab.impostor(a, key) as new:
                await new.greet()
                assert await heard.until("disconnected") == "replaced by a newer connection"
                await heard.until("connected", 2)
                assert a.peers == [key.public_key]

    lab.run(test)


def test_what_was_sent_before_leaving_arrives(lab: Any) -> None:
    async def test() -> None:
        async with lab.network() as (a, heard_a):
            key = SigningKey.generate()
            a.set_members([key.public_key])
            data = bytes(8 * MIB)
            async with lab.network(key) as (b, _):
                b.set_members([a.peer])
                await b.connect(a.addresses[0])
                await heard_a.until("connected")
                a.request_blob(b.peer, b"0" * 32)
                await heard_a.until("blob_missing")  # the bulk connection may be dialled now
                b.send_blob(a.peer, sha256(b"first"), b"first")
                await heard_a.until("blob")
                b.send_blob(a.peer, sha256(data), data)
                for i in range(100):
                    b.send_control(a.peer, bytes([i]))
            await heard_a.until("disconnected")
            assert heard_a.all("blob")[1:] == [data]
            assert heard_a.all("control") == [bytes([i]) for i in range(100)]

    lab.run(test)


def test_closing_takes_no_longer_than_its_deadline_though_nobody_answers(lab: Any) -> None:
    async def test() -> None:
        key, limits = SigningKey.generate(), replace(lab.limits, close_s=4.0)
        async with trio.open_nursery() as nursery:
            async with lab.network(limits=limits) as (a, heard):

                async def greet_and_say_nothing_more() -> None:
                    async with lab.impostor(a, key) as impostor:
                        await impostor.greet()
                        await trio.sleep_forever()

                nursery.start_soon(greet_and_say_nothing_more)
                await heard.until("connected")
                begin = trio.current_time()
            assert trio.current_time() - begin < limits.close_s
            nursery.cancel_scope.cancel()

    lab.run(test)


def test_the_blocks_own_exception_comes_out_as_it_is(lab: Any) -> None:
    async def test() -> None:
        with pytest.raises(ZeroDivisionError):
            async with lab.network():
                raise ZeroDivisionError

    lab.run(test)


def test_a_handler_that_fails_loses_that_link_and_nothing_else(lab: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with lab.pair() as ((a, heard_a), (b, _)), lab.network() as (c, heard_c):
            await c.connect(a.addresses[0])
            await heard_a.until("connected", 2)
            heard_a.fail_on = "control"
            b.send_control(a.peer, b"boom")
            assert await heard_a.until("disconnected") == "our handler failed on what it sent"
            heard_a.fail_on = None
            a.send_control(c.peer, b"alive")
            assert await heard_c.until("control") == b"alive"
            assert not heard_a.all("misbehaved")
            await heard_a.until("connected", 3)

    with caplog.at_level(logging.CRITICAL):
        lab.run(test)


def test_strangers_have_no_blobs_and_no_longer_messages_than_members(lab: Any) -> None:
    async def test() -> None:
        async with lab.network() as (a, heard_a), lab.network() as (b, heard_b):
            await b.connect(a.addresses[0])
            await heard_a.until("connected")
            b.send_control(a.peer, b"join")
            assert await heard_a.until("control") == b"join"
            held = heard_a.hold(b"for members")
            assert not b.send_blob(a.peer, held, b"for members")
            b.set_members([a.peer])
            b.request_blob(a.peer, held)
            assert await heard_b.until("blob_missing") == held
            assert not heard_a.all("blob_wanted")
            b.send_control(a.peer, bytes(lab.limits.control_message_bytes_max))  # a newcomer's first blocks are as long
            assert len(await heard_a.until("control", 2)) == lab.limits.control_message_bytes_max

    lab.run(test)


def test_who_is_no_member_any_more_loses_its_link_and_may_return_as_a_stranger(lab: Any) -> None:
    async def test() -> None:
        async with lab.pair() as ((a, heard_a), (b, heard_b)):
            a.set_members([])
            assert await heard_a.until("disconnected") == "no longer a member"
            await heard_b.until("disconnected")
            await heard_b.until("connected", 2)
            await heard_a.until("connected", 2)
            assert not a.send_blob(b.peer, sha256(b""), b"")

    lab.run(test)


def test_a_blocked_peer_is_refused(lab: Any) -> None:
    async def test() -> None:
        async with lab.pair() as ((a, heard_a), (b, heard_b)):
            a.block(b.peer, "banned")
            assert await heard_a.until("disconnected") == "banned"
            await heard_b.until("disconnected")
            with pytest.raises(ConnectionRefused, match="not welcome"):
                await b.connect(a.addresses[0])
            with pytest.raises(ConnectionRefused, match="kept away"):
                await a.connect(b.addresses[0])
            assert len(heard_a.all("connected")) == 1

    lab.run(test)


def test_a_full_queue_of_messages_ends_the_link_and_never_blocks(lab: Any) -> None:
    async def test() -> None:
        tight = {"limits": replace(lab.limits, queue_bytes_max=1 << 20)}
        async with lab.pair(first=tight) as ((a, heard_a), (b, _)):
            sent = 0
            while a.send_control(b.peer, bytes(60_000)):
                sent += 1
            assert sent == (1 << 20) // 60_004
            assert not heard_a.all("disconnected")
            assert "overflowed" in await heard_a.until("disconnected")
            assert not heard_a.all("misbehaved")

    lab.run(test)


def test_a_full_queue_of_blobs_ends_the_link(lab: Any) -> None:
    async def test() -> None:
        tight = replace(lab.limits, blob_bytes_max=MIB, bytes_in_flight_max=4 * MIB, bytes_in_flight_total_max=4 * MIB)
        async with lab.pair(first={"limits": tight}) as ((a, heard_a), (b, _)):
            data = bytes(MIB)
            assert [a.send_blob(b.peer, sha256(data), data) for _ in range(6)] == [True] * 4 + [False] * 2
            assert "overflowed" in await heard_a.until("disconnected")

    lab.run(test)


def test_traffic_counts_bytes_per_peer_and_plane_over_reconnections(lab: Any) -> None:
    async def test() -> None:
        async with lab.pair() as ((a, heard_a), (b, heard_b)):
            for i in range(2):
                data = bytes(MIB)
                a.send_control(b.peer, bytes(10_000))
                a.send_blob(b.peer, sha256(data), data)
                await heard_b.until("control", i + 1)
                await heard_b.until("blob", i + 1)
                a.disconnect(b.peer, "again")
                await heard_a.until("connected", i + 2)
                await heard_b.until("connected", i + 2)
            sent, received = a.traffic()[b.peer], b.traffic()[a.peer]
            assert 20_000 < sent.control_sent < 30_000
            assert 2 * MIB < sent.bulk_sent < 2.01 * MIB
            assert received.bulk_received == sent.bulk_sent
            assert sent.bulk_received == 0

    lab.run(test)


def test_unreachable_wrong_and_malformed_addresses_are_named(lab: Any) -> None:
    async def test() -> None:
        async with lab.network() as (a, _), lab.network() as (b, _):
            nobody = peer_id_text(SigningKey.generate().public_key)
            with socket.socket() as taken:
                taken.bind(("127.0.0.1", 0))
                unused = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}/p2p/{nobody}"
                with pytest.raises(PeerUnreachable, match=unused) as unreachable:
                    await a.connect(unused)
                assert "connection refused" in str(unreachable.value)
            misnamed = b.addresses[0].rsplit("/", 1)[0] + "/" + nobody
            with pytest.raises(WrongPeer, match=b.addresses[0].rsplit("/", 1)[1]):
                await a.connect(misnamed)
            with pytest.raises(OwnIdentity, match="itself"):
                await a.connect(a.addresses[0])
            with pytest.raises(MalformedAddress, match="different peers"):
                await a.connect((a.peer, b.addresses))
            with pytest.raises(MalformedAddress, match="who listens"):
                await a.connect("/ip4/127.0.0.1/tcp/1")
            with pytest.raises(PeerUnreachable, match="no address is known"):
                await a.connect((b.peer, []))
            await a.connect((b.peer, [unused.rsplit("/", 1)[0] + "/" + peer_id_text(b.peer), *b.addresses]))

    lab.run(test)


def test_a_peer_that_does_not_answer_is_unreachable_in_time(lab: Any) -> None:
    async def test() -> None:
        with socket.socket() as mute:
            mute.bind(("127.0.0.1", 0))
            mute.listen()
            async with lab.network(limits=replace(lab.limits, dial_timeout_s=0.3)) as (a, _):
                peer = peer_id_text(SigningKey.generate().public_key)
                with pytest.raises(PeerUnreachable, match=r"no answer in 0\.\d s"):
                    await a.connect(f"/ip4/127.0.0.1/tcp/{mute.getsockname()[1]}/p2p/{peer}")

    lab.run(test)


def test_another_run_is_refused_by_name(lab: Any) -> None:
    async def test() -> None:
        async with lab.network() as (a, heard), lab.network(run_tag=b"another") as (b, _):
            with pytest.raises(WrongRun, match="another run"):
                await b.connect(a.addresses[0])
            assert not heard.events

    lab.run(test)


def test_a_port_in_use_and_a_foreign_address_are_reported_at_once(lab: Any) -> None:
    async def test() -> None:
        async with lab.network() as (a, _):
            listen = a.addresses[0].rsplit("/p2p/", 1)[0]
            with pytest.raises(AddressInUse, match=listen):
                async with lab.network(listen=listen):
                    pass
        with pytest.raises(AddressUnusable, match=r"192\.0\.2\.1"):
            async with lab.network(listen="/ip4/192.0.2.1/tcp/0"):
                pass
        with pytest.raises(MalformedAddress, match="names a peer"):
            async with lab.network(listen=a.addresses[0]):
                pass

    lab.run(test)


def test_announced_addresses_replace_the_bound_one(lab: Any) -> None:
    async def test() -> None:
        async with lab.network(announce=["/dns4/peer.example.org/tcp/0", "/ip4/192.0.2.7/tcp/9"]) as (a, _):
            port = int(a.addresses[0].split("/")[4])
            assert port > 0
            assert a.addresses == [
                f"/dns4/peer.example.org/tcp/{port}/p2p/{peer_id_text(a.peer)}",
                f"/ip4/192.0.2.7/tcp/9/p2p/{peer_id_text(a.peer)}",
            ]

    lab.run(test)


def test_messages_and_blobs_above_the_limit_are_refused_here(lab: Any) -> None:
    async def test() -> None:
        async with lab.pair(limits=replace(lab.limits, blob_bytes_max=10)) as ((a, _), (b, _)):
            with pytest.raises(ValueError, match="65537"):
                a.send_control(b.peer, bytes(65537))
            with pytest.raises(ValueError, match="11"):
                a.send_blob(b.peer, sha256(bytes(11)), bytes(11))

    lab.run(test)


def test_limits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="blob_bytes_max"):
        Limits(blob_bytes_max=2, bytes_in_flight_max=1)


@pytest.mark.parametrize("opening", [b"", b"\x13", b"\x16"], ids=["nothing", "libp2p", "tls"])
def test_connections_under_way_are_closed_at_the_end(lab: Any, opening: bytes) -> None:
    """An unclosed socket is a ResourceWarning, which is an error in these tests."""

    async def test() -> None:
        async with lab.network() as (a, _):
            stream = await lab.raw(a)
            await stream.send_all(opening)
            await lab.works(a)  # accepted after that one
        async with stream:
            while await stream.receive_some():
                pass

    lab.run(test)
    gc.collect()
