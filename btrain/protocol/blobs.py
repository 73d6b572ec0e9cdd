"""Blobs in memory while a round is open: what was fetched, and a bounded number that came before it was asked for."""

from __future__ import annotations

from collections import OrderedDict

from btrain.protocol.encoding import PeerId

EARLY_MAX = 8  # unasked blobs kept for each member: parts and a result, of this round and of the next


class Blobs:
    """Bytes by hash. The network has checked the hash before."""

    def __init__(self) -> None:
        self._held: dict[bytes, bytes] = {}
        self._early: dict[PeerId, OrderedDict[bytes, bytes]] = {}

    def get(self, hash: bytes) -> bytes | None:
        """The bytes, if they are here."""
        if hash in self._held:
            return self._held[hash]
        return next((blobs[hash] for blobs in self._early.values() if hash in blobs), None)

    def keep(self, hash: bytes, data: bytes) -> None:
        """Hold until `drop`."""
        self._held[hash] = data

    def early(self, sender: PeerId, hash: bytes, data: bytes) -> None:
        """Hold what a member pushed; its oldest push goes when there are too many."""
        blobs = self._early.setdefault(sender, OrderedDict())
        blobs[hash] = data
        while len(blobs) > EARLY_MAX:
            blobs.popitem(last=False)

    def drop(self, hashes: set[bytes]) -> None:
        """Forget blobs whose round is over."""
        for hash in hashes:
            self._held.pop(hash, None)
            for blobs in self._early.values():
                blobs.pop(hash, None)

    def forget_sender(self, sender: PeerId) -> None:
        """Forget what a peer without a seat pushed."""
        self._early.pop(sender, None)
