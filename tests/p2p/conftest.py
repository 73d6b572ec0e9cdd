"""Real networks on loopback, what they tell recorded, and a peer that says whatever a test wants it to say."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from btrain.identity import SigningKey
from btrain.p2p import Limits, Network, open_network
from btrain.p2p.addresses import parse_peer_address
from btrain.p2p.bulk import THREAD_NAME
from btrain.p2p.certificates import BulkIdentity, sign_certificate
from btrain.p2p.channel import Channel, LibP2PKeys, open_channel
from btrain.p2p.frames import PROTOCOL_VERSION, FrameParser, Hello, Kind, encode_hello, frame

RUN_TAG = b"a run of the tests"
PATIENCE_S = 100.0  # a watchdog: how long a test that hangs may hang on a busy machine


class Recorder:
    """A handler that keeps what it is told and serves the blobs it holds."""

    def __init__(self) -> None:
        self.events: list[tuple[str, bytes, Any]] = []
        self.held: dict[bytes, bytes | Path] = {}
        self.fail_on: str | None = None
        self._changed = trio.Event()

    def _note(self, name: str, peer: bytes, what: Any = None) -> None:
        self.events.append((name, peer, what))
        self._changed.set()
        self._changed = trio.Event()
        if name == self.fail_on:
            raise RuntimeError("the handler fails on purpose")

    def control(self, peer: bytes, data: bytes) -> None:
        self._note("control", peer, data)

    def blob(self, peer: bytes, blob_hash: bytes, data: bytes) -> None:
        assert hashlib.sha256(data).digest() == blob_hash
        self._note("blob", peer, data)

    def blob_missing(self, peer: bytes, blob_hash: bytes) -> None:
        self._note("blob_missing", peer, blob_hash)

    def blob_wanted(self, peer: bytes, blob_hash: bytes) -> bytes | Path | None:
        self._note("blob_wanted", peer, blob_hash)
        return self.held.get(blob_hash)

    def connected(self, peer: bytes) -> None:
        self._note("connected", peer)

    def disconnected(self, peer: bytes, reason: str) -> None:
        self._note("disconnected", peer, reason)

    def misbehaved(self, peer: bytes, reason: str) -> None:
        self._note("misbehaved", peer, reason)

    def all(self, name: str) -> list[Any]:
        """What came with every event of that name."""
        return [what for event, _, what in self.events if event == name]

    async def until(self, name: str, count: int = 1) -> Any:
        """Wait for the count-th event of that name; what came with it."""
        while len(self.all(name)) < count:
            await self._changed.wait()
        return self.all(name)[count - 1]

    def hold(self, data: bytes) -> bytes:
        """Serve `data`; its hash."""
        blob_hash = hashlib.sha256(data).digest()
        self.held[blob_hash] = data
        return blob_hash


class Impostor:
    """The other end of an authenticated channel, greeted by the rules or not; after that everything is allowed."""

    def __init__(self, key: SigningKey, channel: Channel, bulk: BulkIdentity) -> None:
        self.key = key
        self.channel = channel
        self.bulk = bulk
        self.parser = FrameParser(1 << 24)

    def hello(self, **changes: Any) -> Hello:
        signature = sign_certificate(self.key, RUN_TAG, self.bulk.certificate)
        return replace_struct(Hello(PROTOCOL_VERSION, RUN_TAG, (), self.bulk.certificate, signature), **changes)

    async def greet(self, **changes: Any) -> Kind:
        """Send a Hello, with changes, and confirm consent; what the answer was."""
        await self.channel.write(encode_hello(self.hello(**changes)))
        kind, _ = await self.next_frame()
        if kind == Kind.HELLO:
            await self.channel.write(frame(Kind.CONFIRM))
        return kind

    async def next_frame(self) -> tuple[Kind, bytes]:
        while (item := self.parser.next_frame()) is None:
            self.parser.feed(await self.channel.read())
        return item


def replace_struct(hello: Hello, **changes: Any) -> Hello:
    fields = {name: getattr(hello, name) for name in Hello.__struct_fields__}
    return Hello(**(fields | changes))


class Lab:
    """Everything a test of the network needs."""

    run_tag = RUN_TAG
    # Pauses are short; deadlines for what the other side must do are those of real peers: the machine may be busy.
    limits = replace(Limits(), patience_s=0.2, redial_max_s=0.5, quarantine_s=0.5)
    hasty = replace(limits, heartbeat_s=0.2, handshake_s=1.0)  # where the test waits for such a deadline

    def run(self, test: Callable[[], Awaitable[None]]) -> None:
        """Run an async test under a deadline; fail if it leaves a descriptor or a bulk thread behind."""

        async def bounded() -> None:
            with trio.fail_after(PATIENCE_S):
                await test()

        trio.run(_warm_up)
        before = _descriptors()
        trio.run(bounded)
        assert _descriptors() == before
        assert THREAD_NAME not in [thread.name for thread in threading.enumerate()]

    @asynccontextmanager
    async def network(self, key: SigningKey | None = None, **options: Any) -> AsyncIterator[tuple[Network, Recorder]]:
        """A network and the recorder of what it tells."""
        recorder = Recorder()
        options = {"limits": self.limits, "run_tag": RUN_TAG, **options}
        async with open_network(key or SigningKey.generate(), handler=recorder, **options) as network:
            yield network, recorder

    def pair(
        self, **options: Any
    ) -> AbstractAsyncContextManager[tuple[tuple[Network, Recorder], tuple[Network, Recorder]]]:
        """Two networks, linked, each a member of the other; `first` and `second` are options of one of them."""
        return self._pair(options.pop("first", {}), options.pop("second", {}), options)

    @asynccontextmanager
    async def _pair(
        self, first: dict[str, Any], second: dict[str, Any], both: dict[str, Any]
    ) -> AsyncIterator[tuple[tuple[Network, Recorder], tuple[Network, Recorder]]]:
        async with self.network(**(both | first)) as a, self.network(**(both | second)) as b:
            a[0].set_members([b[0].peer])
            b[0].set_members([a[0].peer])
            await b[0].connect(a[0].addresses[0])
            await a[1].until("connected")
            yield a, b

    @asynccontextmanager
    async def impostor(self, network: Network, key: SigningKey | None = None) -> AsyncIterator[Impostor]:
        """An authenticated channel to `network` whose other end the test plays."""
        key = key or SigningKey.generate()
        address = parse_peer_address(network.addresses[0])
        async with trio.open_nursery() as nursery:
            stream = await trio.open_tcp_stream(address.host, address.port)
            channel = await open_channel(LibP2PKeys(key), stream, True, nursery)
            try:
                yield Impostor(key, channel, BulkIdentity(key))
            finally:
                channel.close()
                nursery.cancel_scope.cancel()

    async def raw(self, network: Network) -> trio.SocketStream:
        """A TCP connection to `network`."""
        address = parse_peer_address(network.addresses[0])
        return await trio.open_tcp_stream(address.host, address.port)

    async def works(self, network: Network) -> None:
        """Fail unless a fresh peer can link to `network`."""
        async with self.network() as (fresh, _):
            await fresh.connect(network.addresses[0])
            assert network.peer in fresh.peers


async def _warm_up() -> None:
    """What trio opens once and keeps."""
    await trio.to_thread.run_sync(int)


def _descriptors() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}").split(":")[0])
        except FileNotFoundError:
            continue
    return sorted(found)


@pytest.fixture
def lab() -> Lab:
    return Lab()
