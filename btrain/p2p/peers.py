"""What is known of peers beyond their links: addresses, bans for a while, bytes exchanged. All tables are bounded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from btrain.p2p.addresses import Address, parse_peer_address
from btrain.p2p.errors import MalformedAddress
from btrain.p2p.limits import Traffic

_ADDRESSES_PER_PEER_MAX = 16
_PEERS_MAX = 4096


class PeerBook:
    """Addresses, quarantine and traffic per peer; the longest untouched peer is forgotten first."""

    def __init__(self) -> None:
        self._addresses: dict[bytes, list[Address]] = {}
        self._kept_away: dict[bytes, float] = {}
        self._traffic: dict[bytes, Traffic] = {}

    def learn(self, peer: bytes, texts: Iterable[str]) -> None:
        """Remember addresses of `peer`, the newest first; those that are malformed or name another are skipped."""
        fresh: list[Address] = []
        for text in texts:
            try:
                address = parse_peer_address(text)
            except MalformedAddress:
                continue
            if address.peer == peer and address not in fresh:
                fresh.append(address)
        old = [address for address in self._addresses.pop(peer, []) if address not in fresh]
        _bounded(self._addresses)
        if fresh or old:
            self._addresses[peer] = (fresh + old)[:_ADDRESSES_PER_PEER_MAX]

    def addresses(self, peer: bytes) -> list[Address]:
        """Known addresses of `peer`, the most promising first."""
        return list(self._addresses.get(peer, ()))

    def forget(self, peer: bytes, address: Address) -> None:
        """Somebody else answers there."""
        if address in self._addresses.get(peer, ()):
            self._addresses[peer].remove(address)

    def keep_away(self, peer: bytes, until: float) -> None:
        """Let `peer` in again not before `until`."""
        self._kept_away.pop(peer, None)
        _bounded(self._kept_away)
        self._kept_away[peer] = until

    def is_kept_away(self, peer: bytes, now: float) -> bool:
        """Whether `peer` misbehaved a short while ago, or is blocked."""
        return self._kept_away.get(peer, now) > now

    def traffic(self, peer: bytes) -> Traffic:
        """The counters of `peer`, kept over reconnections."""
        counters = self._traffic.pop(peer, None) or Traffic()
        _bounded(self._traffic)
        self._traffic[peer] = counters
        return counters

    def all_traffic(self) -> dict[bytes, Traffic]:
        """The counters of all peers."""
        return dict(self._traffic)


def _bounded(table: dict[bytes, Any]) -> None:
    while len(table) >= _PEERS_MAX:
        del table[next(iter(table))]
