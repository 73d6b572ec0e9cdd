"""What became of a run: the JSON document of `btrain simulate` and `btrain swarm`, built from the ledger."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from btrain.identity import peer_id_text
from btrain.protocol.encoding import PeerId
from btrain.protocol.ledger import Ban, Block, LedgerState

Status = Literal["active", "banned", "absent", "left"]
EvidenceKey = tuple[PeerId, int, str]  # accused, round, deed


@dataclass(frozen=True)
class Part:
    """What a peer was cast as. `attack`: as given, None for an ordinary peer; `attack_from`: its first round."""

    peer: PeerId
    byzantine: bool = False
    attack: str | None = None
    attack_from: int = 0


@dataclass(frozen=True)
class PeerReport:
    """A peer's row. `reason`: the deed it was banned for, or how often it was absent; `evidence`: where it is found."""

    peer_id: str
    byzantine: bool
    attack: str | None
    status: Status
    banned_round: int | None
    reason: str | None
    evidence: list[str]


@dataclass(frozen=True)
class Final:
    """The last evaluation. `metric` is the accuracy, or the loss where there is none."""

    loss: float
    metric: float


@dataclass(frozen=True)
class Report:
    """The document. Times and folders of real runs are None in simulated ones; None of them means: left out."""

    run_id: str
    rounds: int
    final: Final
    peers: list[PeerReport]
    false_bans: int
    digests_equal: bool
    rounds_to_first_ban: int | None
    rounds_to_all_banned: int | None
    loss_ratio: float | None
    bytes_sent_per_parameter: float
    run_dir: str | None = None
    wall_s: float | None = None
    seconds_by_phase: Mapping[str, float] | None = None

    def document(self) -> dict[str, Any]:
        """Plain data for json.dumps; what is not finite becomes null."""
        left_out = {name for name in ("wall_s", "seconds_by_phase") if getattr(self, name) is None}
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name not in left_out}


def _plain(value: Any) -> Any:
    match value:
        case PeerReport() | Final():
            return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
        case list():
            return [_plain(item) for item in value]
        case Mapping():
            return {key: _plain(item) for key, item in value.items()}
        case float() if not math.isfinite(value):
            return None
    return value


def bans_of(blocks: Iterable[Block]) -> dict[PeerId, tuple[int, Ban]]:
    """The block's round and the ban of every peer that was banned."""
    return {ban.peer: (block.round, ban) for block in blocks for ban in block.bans}


def peer_reports(
    cast: Sequence[Part],
    blocks: Sequence[Block],
    state: LedgerState,
    evidence: Mapping[EvidenceKey, Sequence[str]] | None = None,
) -> list[PeerReport]:
    """A row for every peer of the cast, in its order.

    blocks: of an honest peer's ledger, from the first on; state: after them. evidence: where the bundle of
    (accused, round, deed) lies; without an entry the hashes in the block are named.
    """
    banned = bans_of(blocks)
    left = {peer for block in blocks for peer in block.departures}
    rows = []
    for part in cast:
        round, ban = banned.get(part.peer, (None, None))
        found: Sequence[str] = ()
        if ban is not None:
            named = [hash.hex() for hash in ban.evidence]
            found = (evidence or {}).get((ban.peer, ban.round, ban.deed), named)
        status = _status(part.peer, state, banned.keys(), left)
        failures = sum(part.peer in block.absences for block in blocks)
        silent = f"absent {failures} times" if failures else None
        rows.append(
            PeerReport(
                peer_id_text(part.peer), part.byzantine, part.attack, status, round,
                silent if ban is None else ban.deed, list(found),
            )
        )  # fmt: skip
    return rows


def _status(peer: PeerId, state: LedgerState, banned: Iterable[PeerId], left: Iterable[PeerId]) -> Status:
    seat = state.roster.seat(peer)
    if peer in banned:
        return "banned"
    if seat is None and peer in left:
        return "left"
    return "absent" if seat is None or seat.absent else "active"


def false_bans(rows: Iterable[PeerReport]) -> int:
    """How many honest peers were banned."""
    return sum(row.status == "banned" and not row.byzantine for row in rows)


def rounds_to_bans(cast: Iterable[Part], blocks: Iterable[Block]) -> tuple[int | None, int | None]:
    """Rounds from the first round of the attack to the block of the first ban, and to that of the last attacker's.

    1 is the next block. None where nobody, or not everybody, was banned. Round 0 computes nothing, so no attack on it
    counts.
    """
    attackers = {part.peer: max(1, part.attack_from) for part in cast if part.byzantine}
    banned = {peer: round for peer, (round, _) in bans_of(blocks).items() if peer in attackers}
    if not banned:
        return None, None
    start = min(attackers.values())
    complete = len(banned) == len(attackers)
    return min(banned.values()) - start, max(banned.values()) - start if complete else None


def loss_ratio(loss: float, baseline: float) -> float:
    """Final loss over that of the same run without attackers."""
    return loss / baseline if baseline > 0 else math.nan
