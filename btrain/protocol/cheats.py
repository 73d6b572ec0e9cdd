"""Rounds whose work somebody is proven to have spoiled: they are swept, whatever deed he is banned for.

One proof is enough for a ban, and a coalition chooses which one it lets be known first: whoever is found to have
cheated could show two Finals of the accused at once, a deed that says nothing of any round, and spare its friends the
sweep. So what a quorum lists or finds of a member counts beside its ban, and for a while after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from btrain.protocol.blocks import ListedCharge, ListedVerdict
from btrain.protocol.encoding import PeerId
from btrain.protocol.messages import Charge
from btrain.protocol.verdicts import GUILTY

CHEATS = frozenset({"wrong_gradient", "wrong_reduction", "wrong_table", "illegal_encoding", "illegal_result"})
"""Deeds that spoil what a round computes. Breaches of the agreement's or the courts' rules say nothing of others."""

ROUNDS_MAX = 4  # rounds swept for what one member did, each with its successor


@dataclass(frozen=True)
class Cheat:
    """A deed that spoiled the work of a round."""

    peer: PeerId
    deed: str
    round: int


@dataclass(frozen=True)
class Expelled:
    """A member that was banned lately, by the block of round `banned`; `opened`: rounds that were swept for it."""

    peer: PeerId
    banned: int
    opened: frozenset[int] = frozenset()


def proven(quorum: int, charges: Iterable[ListedCharge], verdicts: Iterable[ListedVerdict]) -> list[Cheat]:
    """The cheats that a quorum charges under one key, or finds guilty, in order."""
    by: dict[Cheat, set[PeerId]] = {}
    for entry in charges:
        charge = entry.charge
        if charge.deed in CHEATS:
            by.setdefault(Cheat(charge.accused, charge.deed, charge.round), set()).add(entry.member)
    for found in verdicts:
        if found.verdict.vote == GUILTY:
            cheat = Cheat(found.verdict.accused, "wrong_gradient", found.verdict.round)
            by.setdefault(cheat, set()).add(found.member)
    return sorted((cheat for cheat, members in by.items() if len(members) >= quorum), key=_order)


def _order(cheat: Cheat) -> tuple[PeerId, int, str]:
    return cheat.peer, cheat.round, cheat.deed


def opening(cheats: Iterable[Cheat], expelled: Iterable[Expelled], opens: Callable[[PeerId, int], bool]) -> list[Cheat]:
    """Those of the cheats that have a round swept, of each member only so many."""
    rounds = {entry.peer: set(entry.opened) for entry in expelled}
    found = []
    for cheat in cheats:
        opened = rounds.setdefault(cheat.peer, set())
        if opens(cheat.peer, cheat.round) and len(opened | {cheat.round}) <= ROUNDS_MAX:
            opened.add(cheat.round)
            found.append(cheat)
    return found


def expelled_after(
    expelled: Iterable[Expelled], round: int, banned: Iterable[PeerId], opened: Iterable[Cheat], custody: int
) -> tuple[Expelled, ...]:
    """Who was banned lately, once the block of `round` has banned members and opened sweeps."""
    rounds: dict[PeerId, set[int]] = {}
    for cheat in opened:
        rounds.setdefault(cheat.peer, set()).add(cheat.round)
    known = (*(entry for entry in expelled if round <= entry.banned + custody), *(Expelled(p, round) for p in banned))
    return tuple(replace(entry, opened=entry.opened | rounds.get(entry.peer, set())) for entry in known)


def first_key(
    listed: Mapping[PeerId, Sequence[Charge]], quorum: int, opens: Callable[[PeerId, int], bool]
) -> dict[PeerId, Charge]:
    """The charges under the first key that a quorum lists and that has a round swept, by who lists them; or none.

    The keys that are left over come into later blocks.
    """
    by: dict[tuple[int, str], dict[PeerId, Charge]] = {}
    for member, charges in listed.items():
        for charge in charges:
            if charge.deed in CHEATS and opens(charge.accused, charge.round):
                by.setdefault((charge.round, charge.deed), {}).setdefault(member, charge)
    keys = sorted(key for key, members in by.items() if len(members) >= quorum)
    return by[keys[0]] if keys else {}
