"""Newcomers of an open run: they compute for k rounds, audited, before they get a seat. A pure function of blocks.

A trainee counts in no quorum, no sum and no deadline; what it computes is its Trial, which a quorum of Commits records.
So a key costs work: thousands of them take the few places in turn and dilute nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from btrain.protocol.blocks import ListedJudgement
from btrain.protocol.encoding import PeerId, sha256
from btrain.protocol.messages import TRAINEES_MAX, Admission, Commit, Judgement, TrialEntry
from btrain.protocol.randomness import permutation
from btrain.protocol.roster import Anchor, Roster
from btrain.protocol.verdicts import GUILTY

SILENT_ROUNDS_MIN: Final = 16  # a trainee without a recorded trial for so long, or 2 k rounds, makes room

Case = tuple[PeerId, int]  # trainee, round of the trial


@dataclass(frozen=True)
class Trainee:
    """A newcomer on probation."""

    peer: PeerId
    anchor: Anchor
    rounds: int  # k: trials that it must have in the ledger
    heard: int  # round of its last recorded trial, or of the block that took it in
    served: int = 0


@dataclass(frozen=True)
class Probation:
    """Who is on probation, in member order. Seats are given one in k rounds."""

    rounds: int  # k, of the contract
    trainees: tuple[Trainee, ...] = ()
    seated: int | None = None  # round of the last block that gave a seat to a trainee

    @cached_property
    def peers(self) -> tuple[PeerId, ...]:
        """The trainees' ids."""
        return tuple(trainee.peer for trainee in self.trainees)

    def places_left(self, members: int) -> int:
        """How many more may begin: one for eight members, but at least one."""
        return max(0, min(TRAINEES_MAX, max(1, members // 8)) - len(self.trainees))

    def graduate(self, round: int) -> Trainee | None:
        """Who gets a seat by the block of `round`, unless that block bans or dismisses it."""
        if self.seated is not None and round < self.seated + self.rounds:
            return None
        ready = [trainee for trainee in self.trainees if trainee.served >= trainee.rounds]
        return min(ready, key=lambda trainee: (trainee.heard, trainee.peer), default=None)

    def after(
        self,
        round: int,
        roster: Roster,
        *,
        trainees: Iterable[Admission],
        trials: Iterable[TrialEntry],
        gone: Collection[PeerId],
        seated: Collection[PeerId],
    ) -> Probation:
        """Probation from `round` + 1 on; `gone` were banned or dismissed. The roster is the one before the block."""
        recorded, silent_max = {entry.peer for entry in trials}, max(SILENT_ROUNDS_MIN, 2 * self.rounds)
        kept = []
        for trainee in self.trainees:
            if trainee.peer in recorded:
                trainee = replace(trainee, served=trainee.served + 1, heard=round)
            if trainee.peer not in gone and trainee.peer not in seated and round - trainee.heard < silent_max:
                kept.append(trainee)
        for entry in trainees:
            past = roster.former.get(entry.peer)
            rounds = self.rounds * 2 ** (past.strikes if past else 0)
            kept.append(Trainee(entry.peer, (entry.chain_end, entry.anchored - 1), rounds, round))
        graduated = any(trainee.peer in seated for trainee in self.trainees)
        ordered = tuple(sorted(kept, key=lambda trainee: trainee.peer))
        return replace(self, trainees=ordered, seated=round if graduated else self.seated)


def lot(randomness: bytes, peer: PeerId) -> bytes:
    """A newcomer's place in the queue of this round: thousands of keys have no order of their own to grind for."""
    return sha256(b"btrain/probation/v1", randomness, peer)


def auditors(peers: Sequence[PeerId], randomness: bytes, roster: Roster, round: int) -> dict[PeerId, PeerId]:
    """Who recomputes whose trial of `round`: drawn by r[round], among members that were present in it."""
    able = [seat.peer for seat in roster.seats if not seat.absent and seat.present_since <= round]
    drawn = permutation(randomness, "probation", able)
    return {peer: drawn[i % len(drawn)] for i, peer in enumerate(peers)} if drawn else {}


def recorded_trials(
    peers: Collection[PeerId], roster: Roster, bodies: Mapping[PeerId, Commit]
) -> tuple[TrialEntry, ...]:
    """Trials of the round before that a quorum lists, at most one of each trainee."""
    counts = Counter(entry for body in bodies.values() for entry in set(body.trials))
    found: dict[PeerId, TrialEntry] = {}
    for entry, count in sorted(counts.items(), key=lambda item: (item[0].peer, item[0].hash)):
        if count >= roster.quorum and entry.peer in peers:
            found.setdefault(entry.peer, entry)
    return tuple(found.values())


def decisive_judgements(
    peers: Collection[PeerId], roster: Roster, bodies: Mapping[PeerId, Commit]
) -> tuple[ListedJudgement, ...]:
    """Judgements of trials that a quorum finds not clean, one of each member."""
    found: dict[Case, dict[PeerId, Judgement]] = {}
    for member, body in sorted(bodies.items()):
        for judgement in body.judgements:
            if judgement.peer in peers:
                found.setdefault((judgement.peer, judgement.round), {}).setdefault(member, judgement)
    return tuple(
        ListedJudgement(member, judgement)
        for _, by in sorted(found.items())
        if len(by) >= roster.quorum
        for member, judgement in sorted(by.items())
    )


def convictions(peers: Collection[PeerId], roster: Roster, listed: Iterable[ListedJudgement]) -> dict[PeerId, int]:
    """Trainees that a quorum finds guilty, and of which round."""
    guilty = [entry for entry in listed if entry.judgement.vote == GUILTY]
    return dict(_by_quorum(peers, roster, guilty))


def failures(peers: Collection[PeerId], roster: Roster, listed: Iterable[ListedJudgement]) -> set[PeerId]:
    """Trainees of whose trial a quorum says that it is not clean: guilty, or the bytes were withheld."""
    return {peer for peer, _ in _by_quorum(peers, roster, listed)}


def _by_quorum(peers: Collection[PeerId], roster: Roster, listed: Iterable[ListedJudgement]) -> list[Case]:
    by: dict[Case, set[PeerId]] = {}
    for entry in listed:
        by.setdefault((entry.judgement.peer, entry.judgement.round), set()).add(entry.member)
    return sorted(case for case, members in by.items() if case[0] in peers and len(members) >= roster.quorum)
