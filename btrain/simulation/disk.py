"""What a simulated peer has on disk: all that survives its crash."""

from __future__ import annotations

from dataclasses import dataclass, field

from btrain.protocol.encoding import PeerId
from btrain.protocol.ledger import open_block
from btrain.protocol.packets import CertifiedBlock
from btrain.protocol.pieces import assemble

PRUNED_EVERY = 16  # rounds: going through everything each round would cost more than it frees


@dataclass
class Disk:
    """Durable state of one peer. A crash never loses a write: every write is fsynced before the next effect."""

    signed: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)  # slot -> (round, envelope)
    journal: list[tuple[int, str, bytes]] = field(default_factory=list)
    blocks: list[CertifiedBlock] = field(default_factory=list)
    blobs: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)  # hash -> (round, data)
    evidence: list[tuple[PeerId, int, str, bytes]] = field(default_factory=list)

    def read(self, round: int) -> CertifiedBlock | None:
        """The certified block of a round."""
        return self.blocks[round] if 0 <= round < len(self.blocks) else None

    def blob(self, hash: bytes) -> bytes | None:
        """Bytes in custody."""
        kept = self.blobs.get(hash)
        return None if kept is None else kept[1]

    def newest_state(self) -> tuple[int, bytes] | None:
        """The newest state here that the ledger certifies: (round, state)."""
        for certified in reversed(self.blocks):
            for known in open_block(certified.block).state:
                state = assemble(known.digest, self.blob)
                if state is not None:
                    return known.round, state
        return None

    def prune(self, before_round: int, blobs_before_round: int) -> None:
        """Forget what no open round and no custody needs."""
        if before_round % PRUNED_EVERY:
            return
        self.blobs = {hash: kept for hash, kept in self.blobs.items() if kept[0] >= blobs_before_round}
        self.signed = {slot: kept for slot, kept in self.signed.items() if kept[0] >= before_round}
        self.journal = [entry for entry in self.journal if entry[0] >= before_round]
