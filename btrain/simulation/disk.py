"""What a simulated peer has on disk: all that survives its crash, and what was being written when it came."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import get_args

from btrain.protocol.effects import AppendBlock, Effect, Journal, PersistSigned, PutBlob, RollBack, SaveEvidence
from btrain.protocol.encoding import PeerId
from btrain.protocol.forks import FORK_ROUNDS_MAX
from btrain.protocol.ledger import open_block
from btrain.protocol.packets import CertifiedBlock
from btrain.protocol.pieces import assemble

Durable = PutBlob | PersistSigned | Journal | AppendBlock | RollBack | SaveEvidence
DURABLE = get_args(Durable)  # isinstance is several times faster on a tuple than on a union
RANKS: dict[type, int] = {  # what comes first
    RollBack: 0, PutBlob: 0, PersistSigned: 1, Journal: 2, AppendBlock: 3, SaveEvidence: 4,
}  # fmt: skip
PRUNED_EVERY = 16  # rounds: going through everything each round would cost more than it frees


@dataclass
class Disk:
    """Durable state of one peer. `unsynced` is the batch on its way: readable, and lost in part by a crash.

    Like a real peer's store it makes blobs durable first, then what was signed, the journal, blocks and evidence; what
    belongs to a chain that is given up before its end.
    """

    signed: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)  # slot -> (round, envelope)
    journal: list[tuple[int, str, bytes]] = field(default_factory=list)
    blocks: list[CertifiedBlock] = field(default_factory=list)
    blobs: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)  # hash -> (round, data)
    evidence: list[tuple[PeerId, int, str, bytes]] = field(default_factory=list)
    unsynced: list[Durable] = field(default_factory=list)
    lost: int = 0  # writes that crashes took

    def begin(self, batch: Iterable[Effect]) -> None:
        """Take a batch of writes that is not durable yet."""
        durable = [effect for effect in batch if isinstance(effect, DURABLE)]
        if not durable:
            return
        chains = accumulate(isinstance(effect, RollBack) for effect in durable)
        ranked = sorted(zip(chains, durable, strict=True), key=lambda known: (known[0], RANKS[type(known[1])]))
        self.unsynced = [effect for _, effect in ranked]

    def sync(self, keep_rounds: int) -> None:
        """The batch is durable; what no open round and no custody needs is forgotten."""
        batch, self.unsynced = self.unsynced, []
        for effect in batch:
            self.write(effect, keep_rounds)

    def recover(self, random: random.Random, keep_rounds: int) -> None:
        """The peer was killed: of a batch on its way some first part is on the disk, nobody knows how much."""
        written = random.randint(0, len(self.unsynced))
        self.lost += len(self.unsynced) - written
        del self.unsynced[written:]
        self.sync(keep_rounds)

    def write(self, effect: Durable, keep_rounds: int) -> None:
        """Make one effect durable."""
        match effect:
            case PersistSigned(slot, round, envelope):
                self.signed[slot] = (round, envelope)
            case Journal(kind, round, data):
                self.journal.append((round, kind, data))
            case PutBlob(hash, data, round):
                before = self.blobs.get(hash)
                self.blobs[hash] = (round if before is None else max(round, before[0]), data)
            case AppendBlock(round, block, certificate, keep_from):
                assert round == len(self.blocks), "blocks are appended in order"
                self.blocks.append(CertifiedBlock(block, certificate))
                self.prune(round - keep_rounds, keep_from)
            case RollBack(round):
                self.roll_back(round)
            case SaveEvidence(accused, round, deed, data):
                self.evidence.append((accused, round, deed, data))

    def read(self, round: int) -> CertifiedBlock | None:
        """The certified block of a round."""
        if 0 <= round < len(self.blocks):
            return self.blocks[round]
        appended = (e for e in self.unsynced if isinstance(e, AppendBlock) and e.round == round)
        return next((CertifiedBlock(e.block, e.certificate) for e in appended), None)

    def blob(self, hash: bytes) -> bytes | None:
        """Bytes in custody."""
        kept = self.blobs.get(hash)
        if kept is None:
            return next((e.data for e in self.unsynced if isinstance(e, PutBlob) and e.hash == hash), None)
        return kept[1]

    def newest_state(self) -> tuple[int, bytes] | None:
        """The newest state here that the ledger certifies: (round, state)."""
        for certified in reversed(self.blocks):
            for known in open_block(certified.block).state:
                state = assemble(known.digest, self.blob)
                if state is not None:
                    return known.round, state
        return None

    def roll_back(self, round: int) -> None:
        """Cut the ledger; what was open in the blocks that go is gone too."""
        del self.blocks[round:]
        self.journal.clear()

    def prune(self, before_round: int, blobs_before_round: int) -> None:
        """Forget what no open round and no custody needs."""
        if before_round % PRUNED_EVERY:
            return
        self.blobs = {hash: kept for hash, kept in self.blobs.items() if kept[0] >= blobs_before_round}
        self.signed = {
            slot: kept for slot, kept in self.signed.items() if kept[0] >= len(self.blocks) - 2 - FORK_ROUNDS_MAX
        }
        self.journal = [entry for entry in self.journal if entry[0] >= before_round]
