"""How many members decide, and how many may be faulty (the table of docs/protocol.md, "Quorums")."""

from __future__ import annotations

import math


def validators_max(members: int, audits_per_round: float) -> int:
    """Most validators a round can draw; below four members nobody audits."""
    return math.ceil(audits_per_round) if members >= 4 else 0


def byzantine_limit(members: int, validators: int) -> int:
    """Largest b with members - validators > 2 b: validators send no gradient, so the others need an honest majority."""
    return max(0, (members - validators - 1) // 2)


def quorum(members: int) -> int:
    """Votes of one attempt that make a certificate, and Finals that make a block's certificate."""
    return members // 2 + 1


def fast_quorum(members: int, byzantine_max: int) -> int:
    """Votes that are final in attempt 0: two such sets share an honest member, whatever the delays."""
    return (members + byzantine_max) // 2 + 1
