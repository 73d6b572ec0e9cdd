"""A link under a clock that the test turns: heartbeat, silence, and a process that itself stood still."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from btrain.errors import NetworkError
from btrain.p2p.errors import LinkLost, PeerViolation
from btrain.p2p.frames import FrameParser, Hello, Kind, frame
from btrain.p2p.limits import Limits, Traffic
from btrain.p2p.link import Link

LIMITS = replace(Limits(), heartbeat_s=2.0, heartbeats_missed_max=3)


class Wire:
    """A channel that hands over what the test puts in and keeps what is written."""

    peer = b"p" * 32
    dialled = True

    def __init__(self) -> None:
        self.put, self._get = trio.open_memory_channel[bytes](1000)
        self.written: list[tuple[float, bytes]] = []
        self.accused = trio.Event()
        self.stuck = False

    async def read(self) -> bytes:
        try:
            return await self._get.receive()
        except trio.EndOfChannel:
            raise LinkLost("the connection was closed") from None

    async def write(self, data: bytes) -> None:
        if self.stuck:
            await trio.sleep_forever()
        self.written.append((trio.current_time(), data))

    async def violation(self) -> PeerViolation:
        await self.accused.wait()
        return PeerViolation("flow control ignored")

    def close(self) -> None:
        pass

    def remote_address(self) -> tuple[str, int]:
        return ("127.0.0.1", 1)


def run(test: Callable[[Wire, Link, Any], Awaitable[None]], limits: Limits = LIMITS) -> tuple[NetworkError, Wire]:
    """Run a link beside a test; why it ended, and its wire."""
    clock = trio.testing.MockClock(autojump_threshold=0.0)
    ended: list[NetworkError] = []

    async def main() -> Wire:
        wire = Wire()
        link = Link(wire, FrameParser(100), Hello(1, b"", (), b"", bytes(64)), limits, Traffic())
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                ended.append(await link.run(lambda *_: None))
                nursery.cancel_scope.cancel()

            nursery.start_soon(serve)
            nursery.start_soon(test, wire, link, clock)
        return wire

    wire = trio.run(main, clock=clock)
    return ended[0], wire


async def nothing(wire: Wire, link: Link, clock: Any) -> None:
    pass


def test_silence_beyond_three_beats_ends_the_link_and_blames_nobody() -> None:
    error, wire = run(nothing)
    assert str(error).startswith("silent for ")
    assert not isinstance(error, PeerViolation)
    beats = [at - wire.written[0][0] for at, data in wire.written if data == frame(Kind.BEAT)]
    assert len(beats) >= 3
    assert max(later - earlier for earlier, later in itertools.pairwise(beats)) <= LIMITS.heartbeat_s


def test_a_beat_now_and_then_keeps_the_link() -> None:
    async def test(wire: Wire, link: Link, clock: Any) -> None:
        for _ in range(20):
            await wire.put.send(frame(Kind.BEAT))
            await trio.sleep(5.0)
            assert link.error is None
        link.fail(LinkLost("enough"))

    assert str(run(test)[0]) == "enough"


def test_what_came_in_while_this_process_stood_still_still_counts() -> None:
    async def test(wire: Wire, link: Link, clock: Any) -> None:
        await wire.put.send(frame(Kind.BEAT))
        await trio.sleep(1.5)
        clock.jump(100.0)
        await trio.sleep(1.5)
        assert link.error is None
        await wire.put.send(frame(Kind.BEAT))
        await trio.sleep(5.5)
        assert link.error is None

    assert str(run(test)[0]).startswith("silent for ")


def test_a_peer_that_takes_no_data_is_given_up() -> None:
    async def test(wire: Wire, link: Link, clock: Any) -> None:
        wire.stuck = True
        link.send(frame(Kind.MESSAGE, b"x"))
        for _ in range(10):
            await wire.put.send(frame(Kind.BEAT))
            await trio.sleep(1.0)

    assert "taken no data for 5 s" in str(run(test)[0])


def test_messages_are_written_together() -> None:
    async def test(wire: Wire, link: Link, clock: Any) -> None:
        for i in range(50):
            link.send(frame(Kind.MESSAGE, bytes([i])))
        await trio.sleep(0.1)
        link.fail(LinkLost("enough"))

    _, wire = run(test)
    assert [data for _, data in wire.written] == [b"".join(frame(Kind.MESSAGE, bytes([i])) for i in range(50))]


@pytest.mark.parametrize(("pause_s", "dropped"), [(0.012, False), (0.0, True)])
def test_a_sender_at_its_rate_stays_and_one_above_it_goes(pause_s: float, dropped: bool) -> None:
    limits = replace(LIMITS, stranger_messages_per_s_max=100.0, burst_s=1.0, flood_s=3.0)

    async def test(wire: Wire, link: Link, clock: Any) -> None:
        for _ in range(2000):
            await wire.put.send(frame(Kind.MESSAGE, b"x"))
            await trio.sleep(pause_s)
        link.fail(LinkLost("enough"))

    error, _ = run(test, limits)
    assert isinstance(error, PeerViolation) == dropped


@pytest.mark.parametrize(("pause_s", "dropped"), [(0.042, False), (0.035, True)])
def test_a_long_message_of_a_stranger_counts_as_several(pause_s: float, dropped: bool) -> None:
    limits = replace(LIMITS, stranger_messages_per_s_max=100.0, stranger_message_bytes=10, burst_s=1.0, flood_s=3.0)

    async def test(wire: Wire, link: Link, clock: Any) -> None:
        for _ in range(2000):
            await wire.put.send(frame(Kind.MESSAGE, bytes(31)))
            await trio.sleep(pause_s)
        link.fail(LinkLost("enough"))

    error, _ = run(test, limits)
    assert isinstance(error, PeerViolation) == dropped


def test_a_flood_is_one_though_this_process_wakes_up_late() -> None:
    """Every wait of 10 ms takes 30 ms, so that two messages pass without any."""
    limits = replace(LIMITS, stranger_messages_per_s_max=100.0, burst_s=1.0, flood_s=3.0)

    async def test(wire: Wire, link: Link, clock: Any) -> None:
        await wire.put.send(frame(Kind.MESSAGE, b"x") * 1000)
        for _ in range(200):
            await trio.sleep(0.01)
            clock.jump(0.02)
        link.fail(LinkLost("enough"))

    assert isinstance(run(test, limits)[0], PeerViolation)


def test_who_pauses_after_a_burst_is_no_flood() -> None:
    limits = replace(LIMITS, stranger_messages_per_s_max=100.0, burst_s=1.0, flood_s=3.0)

    async def test(wire: Wire, link: Link, clock: Any) -> None:
        for _ in range(20):
            await wire.put.send(frame(Kind.MESSAGE, b"x") * 60)
            await trio.sleep(0.6)
        for _ in range(10):
            await wire.put.send(frame(Kind.MESSAGE, b"x") * 120)
            await trio.sleep(1.4)
        link.fail(LinkLost("enough"))

    assert str(run(test, limits)[0]) == "enough"


def test_a_violation_of_the_channel_is_one_of_the_link() -> None:
    async def test(wire: Wire, link: Link, clock: Any) -> None:
        wire.accused.set()

    assert isinstance(run(test)[0], PeerViolation)


def test_an_ended_link_takes_nothing_more() -> None:
    async def test(wire: Wire, link: Link, clock: Any) -> None:
        link.fail(LinkLost("first"))
        link.fail(PeerViolation("second"))
        assert not link.send(b"x")

    assert str(run(test)[0]) == "first"
