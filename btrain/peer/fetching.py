"""Blobs that the protocol waits for: from the own store, else from one peer after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from btrain.protocol.encoding import PeerId


@dataclass
class _Fetch:
    sources: list[PeerId]
    asked: PeerId | None = None


class Fetching:
    """`request(peer, hash)` asks the network; `give(hash, data)` answers the protocol, None when nobody has it."""

    def __init__(self, request: Callable[[PeerId, bytes], None], give: Callable[[bytes, bytes | None], None]) -> None:
        self._request, self._give = request, give
        self._open: dict[bytes, _Fetch] = {}

    def fetch(self, hash: bytes, sources: tuple[PeerId, ...]) -> None:
        """Ask the sources in order; more sources are added to a fetch that is under way."""
        known = self._open.get(hash)
        if known is not None:
            known.sources += [peer for peer in sources if peer not in known.sources]
            return
        self._open[hash] = _Fetch(list(sources))
        self._next(hash)

    def arrived(self, hash: bytes, data: bytes) -> bool:
        """Bytes came; whether they were asked for."""
        if self._open.pop(hash, None) is None:
            return False
        self._give(hash, data)
        return True

    def missing(self, peer: PeerId, hash: bytes) -> None:
        """The peer that was asked has it not."""
        fetch = self._open.get(hash)
        if fetch is not None and fetch.asked == peer:
            self._next(hash)

    def _next(self, hash: bytes) -> None:
        fetch = self._open[hash]
        if not fetch.sources:
            del self._open[hash]
            self._give(hash, None)
            return
        fetch.asked = fetch.sources.pop(0)
        self._request(fetch.asked, hash)
