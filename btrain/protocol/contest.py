"""Which state a block certifies, and what happens when members hold different ones: a pure function of their Commits.

Equal machines give equal bits, others may differ in the last ones. When no digest has a quorum the block names
candidates: the states of b + 1 members drawn by r[t], of which at least one is honest. Every member gets them in that
order, compares them with its own within the contract's bound, and lists those that it finds close. The first one that a
quorum finds close is certified, and all take it over. One that is poisoned is close to no honest member's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from btrain.protocol.blocks import Block, CertifiedState
from btrain.protocol.encoding import PeerId
from btrain.protocol.messages import Commit
from btrain.protocol.randomness import permutation
from btrain.protocol.roster import Roster
from btrain.protocol.trajectory import Trajectory


@dataclass(frozen=True)
class Contest:
    """States of `round` of which none has been certified, in the order in which they are looked at."""

    round: int
    candidates: tuple[bytes, ...]

    def settled(self, roster: Roster, bodies: Mapping[PeerId, Commit]) -> tuple[CertifiedState, ...]:
        """The first candidate that a quorum finds close."""
        close = Counter(digest for body in bodies.values() for digest in set(body.close))
        found = (digest for digest in self.candidates if close[digest] >= roster.quorum)
        return tuple(CertifiedState(self.round, digest) for digest in found)[:1]


def certified(
    round: int, roster: Roster, contest: Contest | None, bodies: Mapping[PeerId, Commit]
) -> tuple[CertifiedState, ...]:
    """The state that a quorum holds alike, or that settles the open contest."""
    counts = Counter(body.state[0] for body in bodies.values() if body.state).most_common(1)
    if counts and counts[0][1] >= roster.quorum:
        return (CertifiedState(round, counts[0][0]),)
    return () if contest is None else contest.settled(roster, bodies)


def candidates(
    round: int,
    roster: Roster,
    state: tuple[CertifiedState, ...],
    bodies: Mapping[PeerId, Commit],
    randomness: bytes,
) -> tuple[bytes, ...]:
    """The states of this round that are looked at when none of it is certified; `randomness` is r[t]."""
    if any(known.round == round for known in state):
        return ()
    holders = permutation(randomness, "state", (peer for peer, body in bodies.items() if body.state))
    return tuple(dict.fromkeys(bodies[peer].state[0] for peer in holders[: roster.faulty_max + 1]))


def follows(block: Block, contest: Contest | None, roster: Roster) -> bool:
    """Whether what a block says of states can follow from the ledger; the rest its certificate vouches for."""
    fitting = all(
        known.round == block.round
        or (contest is not None and known.round == contest.round and known.digest in contest.candidates)
        for known in block.state
    )
    return fitting and len(block.candidates) <= roster.faulty_max + 1


def after(contest: Contest | None, block: Block, trajectory: Trajectory) -> Contest | None:
    """The contest that is open after a block; states that were undone are of no use to anybody."""
    if block.candidates:
        contest = Contest(block.round, block.candidates)
    elif block.state:
        contest = None
    return contest if contest is not None and trajectory.passes(contest.round) else None
