"""Attacks on the Tables: rows that hide a shift, Tables and rows left out, disputes about nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from btrain.adversary.adversary import Adversary
from btrain.adversary.aggregator import WrongReduce, inputs, opened
from btrain.adversary.sender import Withholding
from btrain.aggregation.ordered import F64
from btrain.kernels import QuantizedBlocks
from btrain.protocol.encoding import PeerId
from btrain.protocol.messages import Message, Table
from btrain.protocol.reduction import ReducedPart, reduce_committed
from btrain.protocol.tables import masked, packed, read_row, row_of, sketch_of, sketch_seed, table_randomness

if TYPE_CHECKING:
    from btrain.protocol.desk import Desk
    from btrain.protocol.round import Round


@dataclass
class Forging(WrongReduce):
    """Base: shifts the part and forges the rows of some contributors so that all sketches fit the shifted part."""

    _right: dict[int, ReducedPart] = field(default_factory=dict, init=False, repr=False)

    def reduced(self, reduced: ReducedPart, part: int, round: Round) -> ReducedPart:
        """The shifted reduction; the right one is remembered."""
        self._right[part] = reduced
        return super().reduced(reduced, part, round)

    def forges(self, contributor: PeerId) -> bool:
        """Whether to forge the row of this contributor."""
        raise NotImplementedError

    def table(self, table: Table, part: int, round: Round) -> Table:
        """The Table with forged rows."""
        right = self._right.get(part)
        workers = list(inputs(round, part))
        if right is None or not self.attacks(round.round) or len(workers) != len(right.coefficients):
            return table
        seed = sketch_seed(self._randomness(table, round), part)
        reduced = opened(right, part, round)
        shift_S = self._sketch_of_shift(reduced, part, round, seed)
        share = sum(a for worker, a in zip(workers, right.coefficients, strict=True) if self.forges(worker))
        if share == 0:
            return table
        rows = [
            self._forged_row(row, shift_S / share) if row and self.forges(worker) else row
            for worker, row in zip(workers, table.rows, strict=True)
        ]
        return msgspec.structs.replace(table, rows=tuple(rows))

    def _randomness(self, table: Table, round: Round) -> bytes:
        named = masked(sorted(round.expected_links), table.links) or ()
        links = {peer: round.statements.links[peer].body.link for peer in named}  # type: ignore[union-attr]
        return table_randomness(round.state.randomness[1], round.round, links)

    def _sketch_of_shift(self, right: QuantizedBlocks, part: int, round: Round, seed: bytes) -> F64:
        wrong = opened(super().reduced(self._right[part], part, round), part, round)
        return sketch_of(wrong, seed) - sketch_of(right, seed)

    def _forged_row(self, row: bytes, by_S: F64) -> bytes:
        said = read_row(row)
        return packed(said.norm, said.buckets + by_S)


@dataclass
class LieTable(Forging):
    """Shifts its part and forges every row so that the Table fits it; the senders know their own rows better."""

    name = "lie_table"

    def forges(self, contributor: PeerId) -> bool:
        """Everybody's."""
        return True

    def table(self, table: Table, part: int, round: Round) -> Table:
        """Rows as if everybody had sent what it sent, shifted: norms are those of the right part."""
        forged = super().table(table, part, round)
        if forged is table:
            return table
        right = opened(self._right[part], part, round)
        seed = sketch_seed(self._randomness(table, round), part)
        sent = zip(inputs(round, part).values(), forged.rows, strict=True)
        rows = tuple(
            row and row_of(QuantizedBlocks.from_bytes(data, right.numel), right, seed)[:4] + row[4:]
            for data, row in sent  # an illegal encoding has no row
        )
        return msgspec.structs.replace(forged, rows=rows)


@dataclass
class ColludeTable(Forging):
    """Shifts its part and forges the rows of the coalition alone, about which nobody complains."""

    name = "collude_table"
    shift: float = 0.3

    def forges(self, contributor: PeerId) -> bool:
        """Its friends' and its own."""
        return contributor in self.coalition


@dataclass
class DenyRow(Adversary):
    """Reduces without one honest contributor, and says that its encoding was illegal."""

    name = "deny_row"
    outcome = "banned"
    _dropped: dict[int, PeerId] = field(default_factory=dict, init=False, repr=False)

    def reduced(self, reduced: ReducedPart, part: int, round: Round) -> ReducedPart:
        """The reduction of the others."""
        parts = inputs(round, part)
        victims = [worker for worker in parts if worker not in self.coalition]
        self._dropped.pop(part, None)
        if not self.attacks(round.round) or len(victims) < 2:
            return reduced
        victim = self._dropped[part] = victims[0]
        rest = {worker: data for worker, data in parts.items() if worker != victim}
        return reduce_committed(rest, round.roles.layout.part_numel(part), round.exchange.rule)

    def table(self, table: Table, part: int, round: Round) -> Table:
        """No row for the victim; an attack beside this one may have left nothing to put rows to."""
        victim, workers = self._dropped.get(part), inputs(round, part)
        if len(workers) != len(table.rows):
            return table
        rows = zip(workers, table.rows, strict=True)
        return msgspec.structs.replace(table, rows=tuple(b"" if worker == victim else row for worker, row in rows))


@dataclass
class WithholdTable(Withholding):
    """Never publishes a Table: its part cannot be checked, so it does not count. Or it never approves one.

    kind: table or approval.
    """

    name = "withhold_table"
    kind: str = field(default="table", metadata={"choices": ("table", "approval")})

    def broadcast(self, desk: Desk, message: Message, round: Round) -> None:
        """Send a statement unless it is of the kind."""
        if self.attacks(round.round) and message.statement.kind == self.kind:
            self.withhold(message)
        else:
            desk.broadcast(message)


@dataclass
class FalseDispute(Adversary):
    """Says of every honest aggregator that its row is wrong."""

    name = "false_dispute"
    outcome = "banned"

    def approves(self, table: Message, right: bool, round: Round) -> bool:
        """Approve those of friends alone."""
        return table.sender in self.coalition if self.attacks(round.round) else right
