"""Who comes and who goes by a block: what q decided Commits list, within what the ledger allows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from btrain.protocol.blocks import Ban, Block, ListedJudgement
from btrain.protocol.encoding import MEMBERS_MAX, PeerId
from btrain.protocol.messages import Admission, Commit
from btrain.protocol.probation import failures, lot
from btrain.protocol.randomness import ANCHOR_ROUNDS

if TYPE_CHECKING:
    from btrain.protocol.ledger import LedgerState


def dismissed(state: LedgerState, judgements: Sequence[ListedJudgement], bans: Sequence[Ban]) -> tuple[PeerId, ...]:
    """Trainees whose trial is not clean, and who are not banned."""
    failed = failures(state.probation.peers, state.roster, judgements)
    return tuple(sorted(failed - {ban.peer for ban in bans}))


def admissible(entry: Admission, state: LedgerState) -> bool:
    """Whether a peer may have its seat back, get one at once, or begin its probation: whichever is its way in."""
    seat, past, round = state.roster.seat(entry.peer), state.roster.former.get(entry.peer), state.round
    if entry.peer in state.roster.banned or not round - 2 * ANCHOR_ROUNDS < entry.anchored <= round:
        return False
    if seat is not None:
        return seat.absent and round + 1 >= seat.returns_at
    waits = past is not None and round + 1 < past.returns_at
    return state.charter.admits(entry.peer) and not waits and len(state.roster.seats) < MEMBERS_MAX


def _asked_for(state: LedgerState, bodies: Mapping[PeerId, Commit]) -> list[Admission]:
    """Requests of peers that may come, or come back, which a quorum lists; one of each."""
    counts = Counter(admission for body in bodies.values() for admission in set(body.admissions))
    asked: dict[PeerId, Admission] = {}
    for entry, count in sorted(counts.items(), key=lambda item: (item[0].peer, item[0].chain_end, item[0].anchored)):
        if count >= state.roster.quorum and admissible(entry, state):
            asked.setdefault(entry.peer, entry)
    return list(asked.values())


def admissions(
    state: LedgerState, bodies: Mapping[PeerId, Commit], excluded: Collection[PeerId]
) -> tuple[Admission, ...]:
    """Seats for absent members that may return, for whom a list or invitations admit, for who has passed probation."""
    probation = state.charter.admission == "open"
    seats = [entry for entry in _asked_for(state, bodies) if not probation or state.roster.seat(entry.peer)]
    return tuple(sorted((*seats, *_graduates(state, excluded)), key=lambda entry: entry.peer))


def _graduates(state: LedgerState, excluded: Collection[PeerId]) -> list[Admission]:
    trainee = state.probation.graduate(state.round)
    if trainee is None or trainee.peer in excluded or len(state.roster.seats) >= MEMBERS_MAX:
        return []
    link, link_round = trainee.anchor
    return [Admission(trainee.peer, link, link_round + 1)]


def trainees(state: LedgerState, bodies: Mapping[PeerId, Commit]) -> tuple[Admission, ...]:
    """Who begins probation: in an open run, as many newcomers as there are places, by lot."""
    if state.charter.admission != "open":
        return ()
    fresh = [entry for entry in _asked_for(state, bodies) if not state.answers(entry.peer)]
    fresh.sort(key=lambda entry: lot(state.randomness[1], entry.peer))
    chosen = fresh[: state.probation.places_left(len(state.roster.seats))]
    return tuple(sorted(chosen, key=lambda entry: entry.peer))


def departures(
    state: LedgerState, bodies: Mapping[PeerId, Commit], admitted: Sequence[Admission], bans: Sequence[Ban]
) -> tuple[PeerId, ...]:
    """Members that leave, by a quorum's word, and those that have been absent for too long."""
    counts = Counter(peer for body in bodies.values() for peer in set(body.departures))
    leaving = {p for p, count in counts.items() if count >= state.roster.quorum and state.roster.seat(p)}
    return tuple(sorted(leaving.union(_overdue(state, admitted, bans))))


def freed(
    state: LedgerState, leaving: Sequence[PeerId], admitted: Sequence[Admission], bans: Sequence[Ban]
) -> tuple[PeerId, ...]:
    """Whose seats are freed: as many as may be, the banned aside. The others that leave keep theirs, absent."""
    first = _overdue(state, admitted, bans)
    banned = {ban.peer for ban in bans}
    rest = [peer for peer in leaving if peer not in first and peer not in banned]
    return tuple(sorted((*first, *rest[: _spare(state, admitted, bans) - len(first)])))


def _overdue(state: LedgerState, admitted: Sequence[Admission], bans: Sequence[Ban]) -> list[PeerId]:
    """Seats to free of members that have been absent for too long, while there are spare ones."""
    others = {entry.peer for entry in admitted} | {ban.peer for ban in bans}
    return [peer for peer in state.roster.overdue(state.round) if peer not in others][: _spare(state, admitted, bans)]


def _spare(state: LedgerState, admitted: Sequence[Admission], bans: Sequence[Ban]) -> int:
    """How many seats may be freed by a block that also bans and admits: who comes may be faulty, who is banned was."""
    fresh = sum(state.roster.seat(entry.peer) is None for entry in admitted)
    return state.roster.spare([ban.peer for ban in bans], fresh)


def absences(
    state: LedgerState, committed: Collection[PeerId], linked: Collection[PeerId], kept: Collection[PeerId]
) -> tuple[PeerId, ...]:
    """Present members that sent no Commit in time, committed and opened no link, are blamed, or leave and keep
    their seat.

    A void decision blames nobody.
    """
    if not committed:
        return ()
    silent = {peer for peer in state.roster.present if peer not in committed or peer not in linked}
    return tuple(peer for peer in state.roster.present if peer in silent or peer in kept)


def check_members(
    block: Block, state: LedgerState, blamed: Collection[PeerId], require: Callable[[bool, str], None]
) -> None:
    """Who comes, goes, is absent or on probation. `blamed` lose their seat whatever they sent."""
    roster = state.roster
    leaving = block.departures
    require(list(leaving) == sorted(set(leaving)), "departures: not in member order")
    require(set(leaving) <= set(roster.members), "departures: of a non-member")
    due = _overdue(state, block.admissions, block.bans)
    require(set(due) <= set(leaving), "departures: not all that are due")
    kept = set(leaving).difference(freed(state, leaving, block.admissions, block.bans)).union(blamed)
    absent = absences(state, [e.peer for e in block.commits], [e.peer for e in block.links], kept)
    require(block.absences == absent, "absences: do not follow from commits, links, departures, Tables and reproaches")
    out = {*(ban.peer for ban in block.bans), *block.dismissed}
    graduates = _graduates(state, out)
    admitted = [entry.peer for entry in block.admissions]
    require(admitted == sorted(set(admitted)), "admissions: not in member order")
    require(set(graduates) <= set(block.admissions), "admissions: without who has passed probation")
    others = [entry for entry in block.admissions if entry not in graduates]
    allowed = all(admissible(e, state) and (state.charter.admission != "open" or roster.seat(e.peer)) for e in others)
    require(allowed, "admissions: of one who may not enter")
    require(
        block.dismissed == dismissed(state, block.judgements, block.bans), "dismissed: does not follow from the votes"
    )
    fresh = [entry.peer for entry in block.trainees]
    require(fresh == sorted(set(fresh)), "trainees: not in member order")
    require(len(fresh) <= state.probation.places_left(len(roster.seats)), "trainees: more than there are places")
    may = state.charter.admission == "open" or not fresh
    may = may and all(admissible(entry, state) and not state.answers(entry.peer) for entry in block.trainees)
    require(may, "trainees: of one who may not begin")
    tried = [entry.peer for entry in block.trials]
    require(tried == sorted(set(tried)) and set(tried) <= set(state.probation.peers), "trials: of one not on probation")
