"""What follows from the verdicts that members list: whom a block bans, and who may validate no longer.

A question is (accused, round): is the gradient that the accused committed in this round what its seed gives? Guilty is
counted by question, whoever accused: q members say so, one of them honest. Innocent is counted by accuser: q members
have each found an accusation of his false, no matter which. Lost is counted by question, too: it bans nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from btrain.protocol.blocks import Ban, ListedVerdict
from btrain.protocol.encoding import PeerId
from btrain.protocol.messages import Verdict
from btrain.protocol.roster import Roster

INNOCENT: Final = 0  # votes of a verdict
GUILTY: Final = 1
UNSURE: Final = 2
LOST: Final = 3  # the bytes to answer with are not given by those who must keep them

VERDICTS_MAX = 160  # and charges, in one block, beyond the first decided matter: a block travels in one packet

Question = tuple[PeerId, int]  # accused, round of the gradient


def question_of(verdict: Verdict) -> Question:
    """What a verdict answers."""
    return verdict.accused, verdict.round


def decisive_verdicts(
    roster: Roster, listed: Mapping[PeerId, Sequence[Verdict]], opens: Callable[[PeerId, int], bool], charges: int = 0
) -> tuple[ListedVerdict, ...]:
    """The verdicts that a block needs to name: those that decide something, and those that contradict these.

    opens: whether the proof that somebody sent a wrong gradient in some round has it swept, banned already or not.

    One of each member in each matter; matters beyond `VERDICTS_MAX`, less the `charges` of the block, are left to later
    blocks, in which the members list them again.
    """
    entries = [ListedVerdict(member, verdict) for member in sorted(listed) for verdict in listed[member]]
    chosen: set[ListedVerdict] = set()
    for matter in _decided(roster, entries, opens):
        if chosen and len(chosen | matter) > VERDICTS_MAX - charges:
            break
        chosen |= matter
    return tuple(sorted(chosen, key=_order))


def _order(entry: ListedVerdict) -> tuple[object, ...]:
    verdict = entry.verdict
    return verdict.round, verdict.accused, verdict.accuser, entry.member


def _decided(
    roster: Roster, entries: Sequence[ListedVerdict], opens: Callable[[PeerId, int], bool]
) -> Iterable[set[ListedVerdict]]:
    """Every decided matter: a question answered with guilty, then an accuser found false."""
    for question, guilty in sorted(_votes(entries, GUILTY).items(), key=lambda item: (item[0][1], item[0][0])):
        if len(guilty) >= roster.quorum and (roster.seat(question[0]) or opens(*question)):
            yield {*guilty.values(), *_against(entries, {question}, INNOCENT).values()}
    for accuser, innocent in sorted(_innocent(entries).items()):
        if len(innocent) >= roster.quorum and roster.seat(accuser):
            questions = {question_of(entry.verdict) for entry in innocent.values()}
            yield {*innocent.values(), *_against(entries, questions, GUILTY).values()}
    for question, missing in sorted(_votes(entries, LOST).items(), key=lambda item: (item[0][1], item[0][0])):
        if len(missing) >= roster.quorum and roster.seat(question[0]):
            yield set(missing.values())


def _votes(entries: Iterable[ListedVerdict], vote: int) -> dict[Question, dict[PeerId, ListedVerdict]]:
    """Who answers so, by question."""
    found: dict[Question, dict[PeerId, ListedVerdict]] = {}
    for entry in entries:
        if entry.verdict.vote == vote:
            found.setdefault(question_of(entry.verdict), {}).setdefault(entry.member, entry)
    return found


def _innocent(entries: Iterable[ListedVerdict]) -> dict[PeerId, dict[PeerId, ListedVerdict]]:
    """Who says innocent, by accuser."""
    found: dict[PeerId, dict[PeerId, ListedVerdict]] = {}
    for entry in entries:
        if entry.verdict.vote == INNOCENT:
            found.setdefault(entry.verdict.accuser, {}).setdefault(entry.member, entry)
    return found


def _against(entries: Iterable[ListedVerdict], questions: set[Question], vote: int) -> dict[PeerId, ListedVerdict]:
    """One verdict of each member that answers one of the questions so."""
    found: dict[PeerId, ListedVerdict] = {}
    for entry in entries:
        if entry.verdict.vote == vote and question_of(entry.verdict) in questions:
            found.setdefault(entry.member, entry)
    return found


def verdict_bans(roster: Roster, verdicts: Sequence[ListedVerdict]) -> dict[PeerId, Ban]:
    """A quorum of guilty bans the accused, of innocent the accuser."""
    bans: dict[PeerId, Ban] = {}
    for (accused, round), guilty in sorted(_votes(verdicts, GUILTY).items(), key=lambda item: item[0][1]):
        if len(guilty) >= roster.quorum and roster.seat(accused):
            bans.setdefault(accused, Ban(accused, "wrong_gradient", round, ()))
    for accuser, innocent in sorted(_innocent(verdicts).items()):
        if len(innocent) >= roster.quorum and roster.seat(accuser):
            named = Counter(entry.verdict.round for entry in innocent.values())
            round = min(named, key=lambda of: (-named[of], of))
            bans.setdefault(accuser, Ban(accuser, "false_accusation", round, ()))
    return bans


def withholding(roster: Roster, verdicts: Sequence[ListedVerdict]) -> frozenset[PeerId]:
    """Members whose bytes of a round in custody a quorum could get from nobody: they lose their seat for a while."""
    lost = _votes(verdicts, LOST).items()
    return frozenset(accused for (accused, _), by in lost if len(by) >= roster.quorum)


def contradicted(roster: Roster, verdicts: Sequence[ListedVerdict]) -> frozenset[PeerId]:
    """Members that answered a question otherwise than a quorum: what they find is of no use to the others."""
    answers: dict[tuple[Question, int], set[PeerId]] = {}
    for entry in verdicts:
        answers.setdefault((question_of(entry.verdict), entry.verdict.vote), set()).add(entry.member)
    against = {INNOCENT: GUILTY, GUILTY: INNOCENT}
    return frozenset(
        member
        for (question, vote), members in answers.items()
        if vote in against and len(members) >= roster.quorum
        for member in answers.get((question, against[vote]), set())
    )
