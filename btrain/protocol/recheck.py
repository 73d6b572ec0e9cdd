"""After the block: parts whose Table was disputed or did not fit are reduced again from the committed bytes.

An alarm bans nobody. b+1 members drawn by r[t], one of them honest at least, reduce again; one bit of difference is
the proof, whether it lies in the reduction, in the Table, or in the dispute.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from btrain.protocol.audit import PartCheck
from btrain.protocol.checking import Checked
from btrain.protocol.effects import Effect, Work
from btrain.protocol.encoding import PeerId, digest
from btrain.protocol.ledger import Block
from btrain.protocol.messages import Message, Result, Table
from btrain.protocol.reduction import ReducedPart, open_part, reduce_committed
from btrain.protocol.table_limits import UNSOUND
from btrain.protocol.tables import rows_of, sketch_seed


def parts_without_table(block: Block) -> list[int]:
    """Decided parts whose aggregator published no Table: the next validators look at these first."""
    tabled = {entry.part for entry in block.tables}
    return [entry.part for entry in block.results if entry.part not in tabled]


def parts_to_check(checked: Checked, block: Block, me: PeerId, charged: Collection[PeerId]) -> list[int]:
    """The parts of a block that `me` reduces again.

    Every unsound and every disputed one: each costs somebody the seat for ever. Of those that contributors can bring
    about, so that they could keep everybody busy, only the one that is farthest off.
    """
    certain = {entry.part for entry in block.tables if entry.verdict == UNSOUND}
    disputed = {entry.part for entry in block.disputes}
    void = set(block.void_parts) - certain - disputed
    others = sorted(
        {part for part in void if not _explained(checked.tables.get(part), block, charged)}
        | (set(checked.alarms) - certain - disputed)
    )
    worst = sorted(others, key=lambda part: -checked.alarms.get(part, 0.0))[:1]
    aggregators = {entry.part: entry.aggregator for entry in block.results}
    return [
        part
        for part in sorted({*certain, *disputed, *worst} & set(checked.tables))
        if me in checked.checkers[part] or (part in disputed and me == aggregators[part])
    ]


def _explained(table: Message | None, block: Block, charged: Collection[PeerId]) -> bool:
    """Whether a part is void because contributors sent illegal encodings, for which they are charged already."""
    if table is None or not isinstance(table.body, Table) or len(table.body.rows) != len(block.contributors):
        return False
    illegal = [peer for peer, row in zip(block.contributors, table.body.rows, strict=True) if not row]
    return bool(illegal) and all(peer in charged for peer in illegal)


@dataclass
class TableCheck(PartCheck):
    """Reduce a part again and make its Table again. Outcome: 'equal', 'lost', 'wrong' or 'wrong_table'."""

    table: Message
    disputes: list[Message]
    _rows: tuple[bytes, ...] = field(default=(), init=False)
    _reduced: bytes = field(default=b"", init=False)

    def _reduce(self) -> list[Effect]:
        """Reduce again, and sketch the parts again under the Table's own seed."""
        inputs = {worker: self.blobs[leaf] for worker, leaf in self.leaves.items()}
        numel, rule, seed = self.numel, self.rule, sketch_seed(self.table.statement.ctx, self.part)

        def again() -> tuple[ReducedPart, tuple[bytes, ...]]:
            right = reduce_committed(inputs, numel, rule)
            reduced = open_part(right.data, numel)
            assert reduced is not None, "what was encoded here is legal"
            return right, rows_of([open_part(data, numel) for data in inputs.values()], reduced, seed)

        return [Work(self.token, again)]

    def work_done(self, result: object) -> list[Effect]:
        """Compare with what the aggregator signed."""
        assert isinstance(result, tuple)
        right, self._rows = result
        super().work_done(right)
        body = self.table.body
        assert isinstance(body, Table)
        if self.outcome == "equal":
            self._reduced = right.data
            if body.rows != self._rows or body.tau != right.tau:
                self.outcome = "wrong_table"
        return []

    def proofs(self, decision: list[Message]) -> Iterator[tuple[str, list[Message], list[bytes]]]:
        """What follows for the Table's signer and for those who disputed it: deed, statements, blobs."""
        if self.outcome not in {"equal", "wrong_table"}:
            return
        body, result = self.table.body, self.result.body
        assert isinstance(body, Table) and isinstance(result, Result)
        about = [self.table, self.result, *decision]
        if self.outcome == "wrong_table" and body.result == self.result.hash:
            yield "wrong_table", about, [self._reduced, *self._parts(self.leaves)]
        if len(body.rows) != len(self._rows):
            return
        wrong = {w for w, row, mine in zip(self.leaves, body.rows, self._rows, strict=True) if row != mine}
        right = set(self.leaves) - wrong
        for dispute in self.disputes:
            if dispute.sender in right and dispute.statement.ctx == self.table.hash:
                yield "false_dispute", [dispute, *about], [self._reduced, *self._parts([dispute.sender])]

    def _parts(self, workers: Collection[PeerId]) -> list[bytes]:
        """The committed bytes of these contributors, each once."""
        hashes = dict.fromkeys(self.leaves[worker] for worker in workers)
        return [self.blobs[hash] for hash in hashes if digest(self.blobs[hash]) == hash]
