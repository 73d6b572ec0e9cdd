"""Peers in processes of their own: killed, frozen, thawed, told to stop, and sending something large."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from btrain.identity import SigningKey

SCRIPT = Path(__file__).parent / "peer_process.py"
LARGE_BYTES = 64 << 20


@contextmanager
def process(key: SigningKey, member: bytes, address: str) -> Iterator[subprocess.Popen[bytes]]:
    """A peer process; killed at the end if it still runs."""
    command = [sys.executable, str(SCRIPT), key.seed.hex(), member.hex(), address]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as running:
        try:
            yield running
        finally:
            running.kill()


def test_kill_minus_nine_is_noticed_at_once_and_a_restarted_peer_is_back(lab: Any) -> None:
    async def test() -> None:
        key = SigningKey.generate()
        async with lab.network(limits=replace(lab.limits, heartbeat_s=1000.0)) as (a, heard):
            a.set_members([key.public_key])
            with process(key, a.peer, a.addresses[0]) as running:
                await heard.until("connected")
                running.kill()
                assert "silent" not in await heard.until("disconnected")
            with process(key, a.peer, a.addresses[0]):
                await heard.until("connected", 2)
                a.send_control(key.public_key, b"echo")
                assert await heard.until("control") == b"echo"
            assert not heard.all("misbehaved")

    lab.run(test)


def test_a_frozen_peer_is_noticed_and_returns_when_it_thaws(lab: Any) -> None:
    async def test() -> None:
        key = SigningKey.generate()
        async with lab.network(limits=replace(lab.limits, heartbeat_s=0.5)) as (a, heard):
            a.set_members([key.public_key])
            with process(key, a.peer, a.addresses[0]) as running:
                await heard.until("connected")
                a.send_control(key.public_key, b"blob 1")
                await heard.until("blob")
                running.send_signal(signal.SIGSTOP)
                assert "silent" in await heard.until("disconnected")
                running.send_signal(signal.SIGCONT)
                await heard.until("connected", 2)
                a.send_control(key.public_key, b"awake")
                assert await heard.until("control") == b"awake"
            assert not heard.all("misbehaved")

    lab.run(test)


def test_a_large_blob_crosses_both_ways_and_the_peer_leaves_in_order(lab: Any) -> None:
    async def test() -> None:
        key = SigningKey.generate()
        async with lab.network() as (a, heard):
            a.set_members([key.public_key])
            with process(key, a.peer, a.addresses[0]) as running:
                await heard.until("connected")
                a.send_control(key.public_key, b"blob %d" % LARGE_BYTES)
                blob_hash = heard.hold(bytes(LARGE_BYTES))
                a.send_blob(key.public_key, blob_hash, bytes(LARGE_BYTES))
                assert len(await heard.until("blob")) == LARGE_BYTES
                assert await heard.until("control") == b"%d" % LARGE_BYTES
                assert running.stdin is not None
                running.stdin.close()
                assert await heard.until("disconnected") == "it left: it was stopped"
                assert await trio.to_thread.run_sync(running.wait, 5) == 0

    lab.run(test)
