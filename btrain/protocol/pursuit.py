"""Whom a member that is far behind asks for the next blocks: one peer at a time, so that what comes is new."""

from __future__ import annotations

from collections.abc import Sequence

from btrain.protocol.encoding import PeerId
from btrain.protocol.packets import BLOCKS_MAX, PACKET_BYTES_MAX, CertifiedBlock

ROOM_BYTES = 1024  # of a packet, for what is no block
BLOCK_BYTES = 64  # and of each block, for the framing of what is counted below


def size_of(certified: CertifiedBlock) -> int:
    """Bytes of a packet that a block takes, and some more."""
    return len(certified.block) + sum(len(final) + 8 for final in certified.certificate) + BLOCK_BYTES


def fills_packet(blocks: Sequence[CertifiedBlock]) -> bool:
    """Whether who sent these blocks may have more: one like the longest of them would not have fitted."""
    sizes = [size_of(certified) for certified in blocks]
    return len(blocks) == BLOCKS_MAX or sum(sizes) + max(sizes, default=0) > PACKET_BYTES_MAX - ROOM_BYTES


class Pursuit:
    """Peers that have shown blocks. Who was asked and gave nothing new is asked again when it has helped by itself."""

    def __init__(self) -> None:
        self.under_way = False  # somebody was asked, and nothing has come of it yet
        self._sources: list[PeerId] = []
        self._silent: set[PeerId] = set()

    def came(self, sender: PeerId, helped: bool) -> None:
        """A peer has sent blocks; `helped`: some were new."""
        if helped:
            self.under_way = False
            self._silent.discard(sender)
        if sender not in self._silent and sender not in self._sources:
            self._sources.append(sender)

    def next(self) -> PeerId | None:
        """Whom to ask now."""
        self.under_way = bool(self._sources)
        if not self._sources:
            return None
        source = self._sources.pop(0)
        self._silent.add(source)
        return source

    def forget(self, peer: PeerId) -> None:
        """A peer is gone."""
        self._silent.discard(peer)
        if peer in self._sources:
            self._sources.remove(peer)
