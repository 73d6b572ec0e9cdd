"""Withheld parts, which no signature proves: attested by members, never banned for, it costs the seat for a while.

In its Commit a member lists whose part never came to it in the round before. Whom more than b + 1 members reproach
within a few rounds loses its seat as if it had been silent. At most b of them lie and one may sit behind a broken link,
so nobody is struck who works; and no member is struck for what it says. An aggregator whose part had to be
reduced by another is relieved of that work for a while, which costs nobody anything, whoever is to blame.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from btrain.protocol.blocks import Block, Reproach
from btrain.protocol.encoding import PeerId
from btrain.protocol.messages import Commit
from btrain.protocol.roles import Roles
from btrain.protocol.roster import Roster, Seat

REPROACHES_MAX = 112  # in one block, so that it fits a packet; 16 members can say all they may
REPROACH_ROUNDS = 16  # how long a reproach counts: no more than b members are faulty within so many rounds
RELIEFS_MAX = 6


def listed_reproaches(bodies: Mapping[PeerId, Commit]) -> tuple[Reproach, ...]:
    """Who reproaches whom, in member order; of many members the first few of each: liars shall not fill a block."""
    share = max(1, REPROACHES_MAX // max(1, len(bodies)))
    return tuple(Reproach(member, of) for member, body in sorted(bodies.items()) for of in body.reproaches[:share])


def struck(roster: Roster, round: int, reproaches: Iterable[Reproach]) -> tuple[PeerId, ...]:
    """Present members that more than b + 1 members reproach. More than b such at a time: it is the network's fault."""
    fresh: dict[PeerId, set[PeerId]] = {}
    for reproach in reproaches:
        fresh.setdefault(reproach.of, set()).add(reproach.member)
    found = [
        seat.peer
        for seat in roster.seats
        if not seat.absent
        and len(fresh.get(seat.peer, set()) | {by for _, by in _recent(seat, round)}) > roster.faulty_max + 1
    ]
    return tuple(found) if len(found) <= roster.faulty_max else ()


def _recent(seat: Seat, round: int) -> tuple[tuple[int, PeerId], ...]:
    return tuple((of, by) for of, by in seat.reproaches if of + REPROACH_ROUNDS > round)


def relieved(block: Block, roles: Roles) -> set[PeerId]:
    """Aggregators whose part somebody else had to reduce, or that lacked a part to the end."""
    failed = {roles.owners[entry.part] for entry in block.results if entry.attempt > 0}
    return failed | {complaint.aggregator for complaint in block.missing}


def with_reproaches(roster: Roster, block: Block, roles: Roles) -> Roster:
    """The roster with what the block says of its members' failures; a seat that is lost begins anew."""
    failed = relieved(block, roles)
    fresh: dict[PeerId, list[tuple[int, PeerId]]] = {}
    for reproach in block.reproaches:
        fresh.setdefault(reproach.of, []).append((block.round, reproach.member))
    return replace(roster, seats=tuple(_noted(seat, block.round, fresh, seat.peer in failed) for seat in roster.seats))


def _noted(seat: Seat, round: int, fresh: Mapping[PeerId, list[tuple[int, PeerId]]], failed: bool) -> Seat:
    reproaches = () if seat.absent else (*_recent(seat, round), *fresh.get(seat.peer, ()))
    if reproaches != seat.reproaches:
        seat = replace(seat, reproaches=reproaches)
    if not failed:
        return seat
    reliefs = min(seat.reliefs + 1, RELIEFS_MAX)
    return replace(seat, reliefs=reliefs, relieved_until=round + 1 + 2**reliefs)
