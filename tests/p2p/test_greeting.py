"""Whoever dials first, at once, or twice: both sides keep the same channel, and none is thrown away for another."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio
import trio.testing

from btrain.identity import SigningKey
from btrain.p2p.certificates import BulkIdentity, sign_certificate
from btrain.p2p.errors import LinkLost
from btrain.p2p.frames import PROTOCOL_VERSION, Hello
from btrain.p2p.greeting import Crossed, Greeter

RUN_TAG = b"run"
KEYS = sorted((SigningKey.from_seed(bytes(31) + bytes([i])) for i in range(2)), key=lambda key: key.public_key)
BULK = [BulkIdentity(key).certificate for key in KEYS]


class SlowChannel:
    """One end of a pair; what is written takes a random time to arrive, in order."""

    def __init__(self, name: str, peer: bytes, dialled: bool, rng: random.Random) -> None:
        self.name = name
        self.peer = peer
        self.dialled = dialled
        self._rng = rng
        self._sends, self._receives = trio.open_memory_channel[tuple[float, bytes]](100)
        self.other: SlowChannel

    async def read(self) -> bytes:
        try:
            at, data = await self._receives.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise LinkLost("closed") from None
        await trio.sleep_until(at)
        return data

    async def write(self, data: bytes) -> None:
        try:
            await self.other._sends.send((trio.current_time() + self._rng.random(), data))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise LinkLost("closed") from None

    async def violation(self) -> Any:
        await trio.sleep_forever()

    def close(self) -> None:
        self.other._sends.close()

    def remote_address(self) -> tuple[str, int]:
        return ("127.0.0.1", 1)


class Side:
    """One of the two peers: its greeter and the channel it uses."""

    def __init__(self, key: SigningKey, certificate: bytes) -> None:
        self.links: dict[bytes, str] = {}
        self.used: list[str] = []
        hello = Hello(PROTOCOL_VERSION, RUN_TAG, (), certificate, sign_certificate(key, RUN_TAG, certificate))
        self.greeter = Greeter(key.public_key, RUN_TAG, lambda: hello, lambda _: None, self.links)

    def use(self, channel: Any) -> None:
        self.links[channel.peer] = channel.name
        self.used.append(channel.name)

    async def dial(self, channel: SlowChannel) -> None:
        try:
            self.use((await self.greeter.dial(channel)).channel)
        except (Crossed, LinkLost):
            channel.close()

    async def answer(self, channel: SlowChannel) -> None:
        try:
            greeted = await self.greeter.answer(channel)
        except LinkLost:
            channel.close()
            return
        if greeted is None:
            channel.close()
        else:
            self.use(greeted.channel)


async def crossing(rng: random.Random) -> tuple[Side, Side]:
    """Both dial each other at random moments."""
    sides = [Side(key, certificate) for key, certificate in zip(KEYS, BULK, strict=True)]
    async with trio.open_nursery() as nursery:
        for dialler in range(2):
            near = SlowChannel(f"dialled by {dialler}", KEYS[1 - dialler].public_key, True, rng)
            far = SlowChannel(f"dialled by {dialler}", KEYS[dialler].public_key, False, rng)
            near.other, far.other = far, near

            async def run(near: SlowChannel = near, far: SlowChannel = far, dialler: int = dialler) -> None:
                await trio.sleep(rng.choice([0.0, 0.5, 1.0, 2.0, 5.0]) * rng.random())
                async with trio.open_nursery() as pair:
                    pair.start_soon(sides[dialler].dial, near)
                    pair.start_soon(sides[1 - dialler].answer, far)

            nursery.start_soon(run)
    return sides[0], sides[1]


@pytest.mark.parametrize("block", range(4))
def test_crossing_dials_leave_one_channel_on_both_sides_and_replace_none(block: int) -> None:
    for seed in range(block * 250, (block + 1) * 250):
        clock = trio.testing.MockClock(autojump_threshold=0.0)
        small, large = trio.run(crossing, random.Random(seed), clock=clock)
        assert small.used == large.used, f"seed {seed}"
        assert len(small.used) == 1, f"seed {seed}"
