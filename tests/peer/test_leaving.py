"""Ctrl-C: leaves in order, leaves nothing behind."""

from __future__ import annotations

import signal
import socket

import pytest

from btrain.identity import KeyFile
from btrain.p2p.addresses import parse_peer_address
from tests.peer.conftest import Resident, Town


def left_nothing(peer: Resident) -> None:
    """The key's lock, the port and all threads are free again."""
    assert [event["threads"] for event in peer.all("ended")[-1:]] in ([], [[]])
    with KeyFile.open_or_create(peer.run_dir / "identity.key"):
        pass
    address = parse_peer_address(peer.address)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address.host, address.port), timeout=5).close()


@pytest.mark.parametrize(
    ("count", "number"),
    [
        (4, signal.SIGINT),
        pytest.param(3, signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(5, signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(4, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(4, signal.SIGHUP, marks=pytest.mark.slow),  # the terminal is closed
    ],
)
def test_one_leaves_in_order_and_the_others_go_on(town: Town, count: int, number: int) -> None:
    town.config(count, group__byzantine_max=1)
    names = "abcde"[:count]
    peers = town.found(*names)
    town.until(lambda: all(peer.height >= 3 for peer in peers))
    town.signal(number, "a")
    town.gone("a")
    assert peers[0].exit_code == 0
    assert peers[0].all("finished")[0]["reason"] == "left"
    left_nothing(peers[0])
    town.goes_on(*names[1:])
    town.kill(*names[1:])
    town.check()
    assert any(peers[0].peer_id in event["left"] for event in peers[0].all("block"))  # it was told, and did not wait
    if count > 3:  # three seats are as few as one fault needs: there the seat stays, absent
        assert [peer for block in town.blocks("b") for peer in block.departures] != []


def test_who_leaves_stays_until_a_block_says_so_though_another_is_killed(town: Town) -> None:
    """The round in which somebody fails is a long one. Who went meanwhile would be one more failure."""
    town.config(4, deadlines__compute="8s")
    peers = town.found("a", "b", "c", "d")
    town.until(lambda: all(peer.height >= 3 for peer in peers))
    town.kill("d")
    town.signal(signal.SIGINT, "a")
    town.gone("a")
    assert any(peers[0].peer_id in event["left"] for event in peers[0].all("block"))
    town.kill("b", "c")
    town.check()


def test_all_leave_at_once(town: Town) -> None:
    town.config(3)
    peers = town.found("a", "b", "c")
    town.until(lambda: all(peer.height >= 3 for peer in peers))
    town.signal(signal.SIGINT, "a", "b", "c")
    town.gone("a", "b", "c")
    assert [peer.exit_code for peer in peers] == [0, 0, 0]
    for peer in peers:
        left_nothing(peer)
    town.check()


def test_leaving_while_waiting_for_founders(town: Town) -> None:
    town.config(3)
    peer = town.start("a")
    town.until(lambda: bool(peer.all("waiting")))
    town.signal(signal.SIGINT, "a")
    town.gone("a")
    assert peer.exit_code == 0
    left_nothing(peer)


def test_the_second_signal_stops_at_once(town: Town) -> None:
    """Nobody is there to put the departure into a block: the first signal alone would wait for its deadline."""
    town.config(3, deadlines__message="20s")
    peers = town.found("a", "b", "c")
    town.until(lambda: all(peer.height >= 2 for peer in peers))
    town.kill("b", "c")
    town.signal(signal.SIGINT, "a")
    town.until(lambda: bool(peers[0].all("leaving")))  # the first signal is handled: two at once would count as one
    town.signal(signal.SIGINT, "a")
    town.gone("a")
    assert peers[0].exit_code not in {None, 0}
    left_nothing(peers[0])
