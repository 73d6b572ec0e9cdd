"""A peer in a process of its own: `peer_process.py SEED MEMBER ADDRESS` links to ADDRESS and does as it is told.

It answers the message `blob N` with a blob of N bytes and any other with itself, until its standard input is closed.
"""

from __future__ import annotations

import hashlib
import sys

import trio

from btrain.identity import SigningKey
from btrain.p2p import Network, open_network


class Obedient:
    """The handler."""

    network: Network

    def control(self, peer: bytes, data: bytes) -> None:
        words = data.split()
        if words[:1] == [b"blob"]:
            blob = bytes(int(words[1]))
            self.network.send_blob(peer, hashlib.sha256(blob).digest(), blob)
        else:
            self.network.send_control(peer, data)

    def blob(self, peer: bytes, blob_hash: bytes, data: bytes) -> None:
        self.network.send_control(peer, b"%d" % len(data))

    def blob_missing(self, peer: bytes, blob_hash: bytes) -> None:
        pass

    def blob_wanted(self, peer: bytes, blob_hash: bytes) -> bytes | None:
        return None

    def connected(self, peer: bytes) -> None:
        pass

    def disconnected(self, peer: bytes, reason: str) -> None:
        pass

    def misbehaved(self, peer: bytes, reason: str) -> None:
        pass


async def main(seed: str, member: str, address: str) -> None:
    handler = Obedient()
    async with open_network(
        SigningKey.from_seed(bytes.fromhex(seed)), handler=handler, run_tag=b"a run of the tests"
    ) as network:
        handler.network = network
        network.set_members([bytes.fromhex(member)])
        network.learn(bytes.fromhex(member), [address])
        await trio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
