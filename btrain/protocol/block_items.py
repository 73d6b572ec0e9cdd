"""The items of the decision `block`: opened links, judged Tables, disputes. A value's meaning follows from its items
alone, so that its digest can be computed by who has none of the bodies.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from btrain.protocol.agreement_messages import Items
from btrain.protocol.encoding import PeerId
from btrain.protocol.ledger import DisputeEntry, TableEntry
from btrain.protocol.table_limits import UNSOUND

if TYPE_CHECKING:
    from btrain.protocol.round import Round


def link_key(peer: PeerId) -> str:
    """Key of an opened link; its item is the link itself, which the chain authenticates."""
    return f"link:{peer.hex()}"


def table_key(part: int, verdict: int) -> str:
    """Key of a Table that was judged so; its item is the hash of the statement."""
    return f"table:{part:05}:{verdict}"


def dispute_key(part: int, peer: PeerId) -> str:
    """Key of a Dispute about a part; its item is the hash of the statement."""
    return f"dispute:{part:05}:{peer.hex()}"


@dataclass
class BlockItems:
    """What the items of a block say."""

    links: dict[PeerId, bytes] = field(default_factory=dict)
    tables: dict[int, TableEntry] = field(default_factory=dict)
    disputes: dict[tuple[int, PeerId], bytes] = field(default_factory=dict)

    @classmethod
    def read(cls, items: Items) -> BlockItems | None:
        """None if a key is none of a block, or a part has two Tables."""
        found = cls()
        for key, hash in items.items():
            if not found._take(key, hash):
                return None
        return found

    def _take(self, key: str, hash: bytes) -> bool:
        kind, *fields = key.split(":")
        try:
            if kind == "link":
                peer = bytes.fromhex(fields[0])
                self.links[peer] = hash
                return key == link_key(peer) and len(peer) == len(hash)
            part, what = int(fields[0]), fields[1]
            if part < 0:
                return False
            if kind == "table":
                fresh = part not in self.tables
                self.tables[part] = TableEntry(part, int(what), hash)
                return fresh and key == table_key(part, int(what))
            peer = bytes.fromhex(what)
            self.disputes[part, peer] = hash
            return key == dispute_key(part, peer)
        except (ValueError, IndexError):
            return False

    def fits(self, round: Round) -> bool:
        """Whether everything is of members and parts of this round, and every link on its chain."""
        expected, opens = round.expected_links, round.statements.opens
        parts = {entry.part for entry in round.decided_results}
        contributors = () if round.contribution is None else round.contribution.workers
        return (
            all(peer in expected and opens(peer, link) for peer, link in self.links.items())
            and all(part in parts and 0 <= entry.verdict <= UNSOUND for part, entry in self.tables.items())
            and all(part in parts and peer in contributors for part, peer in self.disputes)
        )

    @property
    def dispute_entries(self) -> tuple[DisputeEntry, ...]:
        """Disputes of parts that have a Table, in order."""
        return tuple(DisputeEntry(part, peer) for part, peer in sorted(self.disputes) if part in self.tables)

    @property
    def table_entries(self) -> tuple[TableEntry, ...]:
        """Tables in the order of the parts."""
        return tuple(self.tables[part] for part in sorted(self.tables))
