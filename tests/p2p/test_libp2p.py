"""We stay a libp2p peer: the stock host can authenticate to us, we to it, and ids agree."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr

from btrain.identity import SigningKey, peer_id_text
from btrain.p2p.certificates import BulkIdentity, sign_certificate
from btrain.p2p.channel import CONTROL_PROTOCOL, LibP2PKeys, open_channel
from btrain.p2p.frames import PROTOCOL_VERSION, FrameParser, Hello, Kind, encode_hello, frame

# The stock host leaves sockets to the garbage collector and uses deprecated parts of trio.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    yield
    gc.collect()


def stock_host(key: SigningKey) -> Any:
    pair = create_new_key_pair(key.seed)
    noise = Transport(pair, create_noise_key_pair().private_key)
    return new_host(key_pair=pair, sec_opt={NOISE: noise}, muxer_opt={TProtocol(YAMUX): Yamux})


def test_a_stock_host_opens_the_control_stream_and_is_a_peer(lab: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)

    async def test() -> None:
        key = SigningKey.generate()
        host, bulk = stock_host(key), BulkIdentity(key)
        assert str(host.get_id()) == peer_id_text(key.public_key)
        async with lab.network() as (a, heard), host.run([]):
            await host.connect(info_from_p2p_addr(Multiaddr(a.addresses[0])))
            stream = await host.new_stream(host.get_live_peers()[0], [TProtocol(CONTROL_PROTOCOL)])
            signature = sign_certificate(key, lab.run_tag, bulk.certificate)
            await stream.write(encode_hello(Hello(PROTOCOL_VERSION, lab.run_tag, (), bulk.certificate, signature)))
            parser = FrameParser(1 << 20)
            while (item := parser.next_frame()) is None:
                parser.feed(await stream.read(1 << 16))
            assert item[0] == Kind.HELLO
            await stream.write(frame(Kind.CONFIRM) + frame(Kind.MESSAGE, b"from a stock host"))
            assert await heard.until("control") == b"from a stock host"
            assert a.peers == [key.public_key]

    trio.run(test)


def test_we_authenticate_a_stock_host_and_open_a_stream_on_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)

    async def test() -> None:
        key = SigningKey.generate()
        host = stock_host(key)

        async def echo(stream: Any) -> None:
            await stream.write(await stream.read(100))

        host.set_stream_handler(TProtocol(CONTROL_PROTOCOL), echo)
        async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]), trio.open_nursery() as nursery:
            port = int(host.get_transport_addrs()[0].value_for_protocol("tcp"))
            tcp = await trio.open_tcp_stream("127.0.0.1", port)
            with trio.fail_after(10):
                channel = await open_channel(LibP2PKeys(SigningKey.generate()), tcp, True, nursery)
                assert channel.peer == key.public_key
                await channel.write(b"hello")
                assert await channel.read() == b"hello"
            channel.close()

    trio.run(test)
