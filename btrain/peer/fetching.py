"""Blobs that the protocol waits for, asked of one peer after the other; a slow one does not hold up the next.

Who has let its time go by is asked after the others until it gives something again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from btrain.protocol.encoding import PeerId

PREFIX = "fetch:"


@dataclass
class _Fetch:
    sources: list[PeerId]
    asked: set[PeerId] = field(default_factory=set)  # who has not answered yet


class Fetching:
    """`request(peer, hash)` asks the network; `give(hash, data)` answers the protocol, None when nobody has it.

    `set_timer(name)` lets `timer` be called when a source has had its time: then the next one is asked as well.
    """

    def __init__(
        self,
        request: Callable[[PeerId, bytes], None],
        give: Callable[[bytes, bytes | None], None],
        set_timer: Callable[[str], None],
    ) -> None:
        self._request, self._give, self._set_timer = request, give, set_timer
        self._open: dict[bytes, _Fetch] = {}
        self._slow: set[PeerId] = set()

    def fetch(self, hash: bytes, sources: tuple[PeerId, ...]) -> None:
        """Ask the sources in order; more sources are added to a fetch that is under way."""
        known = self._open.get(hash)
        if known is not None:
            known.sources += [peer for peer in sources if peer not in known.sources and peer not in known.asked]
            return
        self._open[hash] = _Fetch(list(sources))
        self._next(hash)

    def arrived(self, peer: PeerId, hash: bytes, data: bytes) -> bool:
        """Bytes came from a peer; whether they were asked for."""
        if hash in self._open:
            self._slow.discard(peer)
        if self._open.pop(hash, None) is None:
            return False
        self._give(hash, data)
        return True

    def gone(self, peer: PeerId) -> None:
        """A peer's connection has ended."""
        self._slow.discard(peer)

    def missing(self, peer: PeerId, hash: bytes) -> None:
        """A peer that was asked has it not, or is gone."""
        fetch = self._open.get(hash)
        if fetch is not None and peer in fetch.asked:
            fetch.asked.discard(peer)
            if not fetch.asked:
                self._next(hash)

    def timer(self, name: str) -> None:
        """A source has had its time."""
        hash = bytes.fromhex(name.removeprefix(PREFIX))
        if hash in self._open and self._open[hash].sources:
            self._slow |= self._open[hash].asked
            self._next(hash)

    def _next(self, hash: bytes) -> None:
        fetch = self._open[hash]
        if not fetch.sources:
            del self._open[hash]
            self._give(hash, None)
            return
        peer = next((source for source in fetch.sources if source not in self._slow), fetch.sources[0])
        fetch.sources.remove(peer)
        fetch.asked.add(peer)
        self._request(peer, hash)
        if fetch.sources:
            self._set_timer(PREFIX + hash.hex())
