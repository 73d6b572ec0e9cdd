"""Peers of other runs and contracts, and everything that keeps a peer from starting: one message, then it is gone."""

from __future__ import annotations

import shutil
import socket
import time
from typing import Any

from btrain.identity import KeyFile, SigningKey, peer_id_text
from tests.peer.conftest import Resident, Town

IN_TIME_S = 20.0


def fails(town: Town, name: str, error: str, code: int, **options: Any) -> str:
    """Start a peer that must end by itself with this error, soon; its message."""
    begin = time.monotonic()
    peer = town.start(name, **options)
    town.gone(name)
    assert [event["name"] for event in peer.all("error")] == [error], town.story()
    assert peer.exit_code == code
    launched = max(i for i, event in enumerate(peer.events) if event["event"] == "launched")
    assert any(event["event"] == "ended" and event["threads"] == [] for event in peer.events[launched:])
    assert time.monotonic() - begin < 2 * IN_TIME_S  # the machine may be busy
    text: str = peer.all("error")[0]["text"]
    assert len(text.splitlines()) <= 4
    return text


def founded(town: Town) -> list[Resident]:
    town.config(1)
    peers = town.found("a")
    town.until(lambda: peers[0].height >= 2)
    return peers


def test_another_contract_is_refused_on_both_sides_by_its_field(town: Town) -> None:
    peers = founded(town)
    text = town.config(1, optimizer__lr=0.3)
    message = fails(town, "b", "ContractError", 5, join=peers[0].address, text=text)
    assert "optimizer.lr" in message and "0.2" in message and "0.3" in message
    town.until(lambda: bool(peers[0].all("refused")))
    assert "optimizer.lr" in peers[0].all("refused")[0]["reason"]
    town.goes_on("a")


def test_another_contract_before_the_run_is_founded(town: Town) -> None:
    town.config(2)
    first = town.start("a")
    town.until(lambda: bool(first.all("started")))
    message = fails(town, "b", "ContractError", 5, join=first.address, text=town.config(2, batch_size=17))
    assert "batch_size" in message
    assert first.exit_code is None


def test_another_run(town: Town) -> None:
    peers = founded(town)
    message = fails(town, "b", "WrongRun", 4, join=peers[0].address, text=town.config(1, run="village"))
    assert "another run" in message


def test_nobody_at_the_address(town: Town) -> None:
    town.config(2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: nobody else gets the port
        port = taken.getsockname()[1]
        address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer_id_text(SigningKey.generate().public_key)}"
        message = fails(town, "a", "PeerUnreachable", 4, join=address)
    assert address in message


def test_somebody_else_at_the_address(town: Town) -> None:
    peers = founded(town)
    other = peer_id_text(SigningKey.generate().public_key)
    wrong = peers[0].address.rpartition("/")[0] + "/" + other
    assert peers[0].peer_id in fails(town, "b", "WrongPeer", 4, join=wrong)


def test_a_port_in_use(town: Town) -> None:
    town.config(1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        assert listen in fails(town, "a", "AddressInUse", 4, listen=listen)


def test_a_busy_key_and_a_busy_directory(town: Town) -> None:
    peers = founded(town)
    key = peers[0].run_dir / "identity.key"
    assert str(peers[0].process.pid) in fails(town, "b", "KeyFileBusy", 6, identity=key)
    other = town.directory / "other.key"
    with KeyFile.open_or_create(other):
        pass
    message = fails(town, "c", "RunDirectoryBusy", 2, identity=other, run_dir=peers[0].run_dir)
    assert str(peers[0].run_dir) in message
    copy = shutil.copy2(key, town.directory / "copy.key")
    fails(town, "d", "IdentityBusy", 6, identity=copy, run_dir=peers[0].run_dir)
    assert peers[0].peer_id in fails(town, "e", "OwnIdentity", 6, identity=copy, join=peers[0].address)


def test_a_key_that_is_none(town: Town) -> None:
    town.config(1)
    key = town.directory / "my.key"
    key.write_text("nothing")
    key.chmod(0o600)
    assert str(key) in fails(town, "a", "KeyFileUnreadable", 6, identity=key)


def test_a_directory_of_another_contract(town: Town) -> None:
    founded(town)
    town.kill("a")
    assert str(town.directory / "a") in fails(town, "a", "OtherContract", 5, text=town.config(1, seed=1))
