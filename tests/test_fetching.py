"""Fetching blobs of several peers: the order in which they are asked, and what the slow and the lacking cost."""

from __future__ import annotations

import pytest

from btrain.peer.fetching import PREFIX, Fetching

A, B, C = (bytes([i]) * 32 for i in range(3))
X, Y = (bytes([i]) * 32 for i in (7, 8))


class Network:
    """Writes down what is asked and given."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, bytes]] = []
        self.given: list[tuple[bytes, bytes | None]] = []
        self.timers: list[str] = []
        self.fetching = Fetching(
            lambda peer, hash: self.asked.append((peer, hash)),
            lambda hash, data: self.given.append((hash, data)),
            self.timers.append,
        )

    def late(self, hash: bytes) -> None:
        self.fetching.timer(PREFIX + hash.hex())


@pytest.fixture
def network() -> Network:
    return Network()


def test_one_after_the_other_until_one_has_it(network: Network) -> None:
    network.fetching.fetch(X, (A, B, C))
    network.fetching.missing(A, X)
    assert network.asked == [(A, X), (B, X)]
    assert network.fetching.arrived(B, X, b"x")
    assert network.given == [(X, b"x")]
    assert not network.fetching.arrived(C, X, b"x")


def test_nobody_has_it(network: Network) -> None:
    network.fetching.fetch(X, (A,))
    network.fetching.missing(A, X)
    assert network.given == [(X, None)]


def test_a_slow_peer_may_still_answer_and_is_asked_last_the_next_time(network: Network) -> None:
    network.fetching.fetch(X, (A, B))
    network.late(X)
    assert network.asked == [(A, X), (B, X)]
    network.fetching.fetch(Y, (A, B, C))
    assert network.asked[-1] == (B, Y)
    assert network.fetching.arrived(A, X, b"x")
    network.fetching.missing(B, Y)
    assert network.asked[-1] == (A, Y)


def test_who_comes_back_begins_anew(network: Network) -> None:
    network.fetching.fetch(X, (A, B))
    network.late(X)
    network.fetching.gone(A)
    network.fetching.fetch(Y, (A, B))
    assert network.asked[-1] == (A, Y)


def test_only_slow_ones_are_asked_all_the_same(network: Network) -> None:
    network.fetching.fetch(X, (A, B, C))
    network.late(X)
    network.late(X)
    network.fetching.fetch(Y, (A, B))
    assert network.asked[-1] == (A, Y)
