"""The chain of roles and audits alone: who validates, whom an audit hits, when votes and sweeps ban. No bytes.

One validator a round is drawn from the present members and audits, in private, one worker of the round before that is
not itself. An honest validator of round t that hits a cheat accuses; others recompute beside training, and block
t + `VOTE_BLOCKS` bans. A validator of the coalition clears everybody. With the sweep, a block B that proves a cheat of
round s has all workers of s and s + 1 audited by b + 1 members, one of them honest: block B + `SWEEP_BLOCKS` bans all
who cheated in one of the two.

Shapes: R runs, N members; the coalition has the first B columns, which changes nothing since every draw is fair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

VOTE_BLOCKS = 2  # as the whole protocol mostly takes when rounds are short and every honest vote is needed; else 1
SWEEP_BLOCKS = 3  # audits from the round after the ban on, then votes
ROUNDS_MAX = 2000  # who is not banned by then is not banned
NEVER = -1


@dataclass(frozen=True)
class Schedule:
    """When the coalition cheats: from round `start` on, in the first `on` of every `every` rounds."""

    start: int = 1
    every: int = 1
    on: int = 1

    def attacks(self, round: int) -> bool:
        """Whether this round is one of the attack."""
        return round >= self.start and (round - self.start) % self.every < self.on


@dataclass(frozen=True)
class Chain:
    """What is played.

    barred: whether who contradicts a quorum's verdict validates no longer, and the coalition does contradict. Else it
    abstains in time and goes on validating, which serves it better.
    """

    members: int = 16
    byzantine: int = 7
    schedule: Schedule = Schedule()
    sweep: bool = True
    audits_per_round: float = 1.0
    barred: bool = False


@dataclass(frozen=True)
class Work:
    """One round of all runs: who worked and who of them cheated, both bool [R, N]."""

    round: int
    workers: Bools
    cheats: Bools


class Play:
    """R runs of a chain side by side, one `step` a round."""

    def __init__(self, chain: Chain, runs: int, seed: int = 0) -> None:
        self.chain, self.runs = chain, runs
        self.present_RN = np.ones((runs, chain.members), bool)
        self.coalition_N: Bools = np.arange(chain.members) < chain.byzantine
        self.first_R = np.full(runs, NEVER)  # the block of the first ban
        self.last_R = np.full(runs, NEVER)  # the block after which nobody of the coalition is left
        self.number = 0
        self._random = np.random.default_rng(seed)
        self._convicted_R = np.zeros(runs, bool)
        nobody = np.zeros_like(self.present_RN)
        self._works = [Work(0, nobody, nobody)] * (VOTE_BLOCKS + 2)  # as old as a proof can be
        # block -> (round it proves, whether that is swept already, whom it bans [R, N])
        self._due: dict[int, list[tuple[Work, bool, Bools]]] = {}
        self.banned: list[tuple[int, Bools]] = []  # by the last block: (round that was proven, who [R, N])

    @property
    def over(self) -> bool:
        """Whether all runs have banned the whole coalition."""
        return bool((self.last_R != NEVER).all())

    def step(self) -> Work:
        """The next round, its audits, and the bans of its block."""
        self.number += 1
        validators_RN = self._validators()
        workers_RN = self.present_RN & ~validators_RN
        attacked = self.chain.schedule.attacks(self.number)
        work = Work(self.number, workers_RN, workers_RN & self.coalition_N & attacked)
        self._audit(validators_RN, self._works[-1])
        self._certify()
        self._works = [*self._works[1:], work]
        return work

    def _validators(self) -> Bools:
        """Drawn from the present, while the workers keep an honest majority: bool [R, N]."""
        if self.number < 2:
            return np.zeros_like(self.present_RN)
        rate, seats_R = self.chain.audits_per_round, self.present_RN.sum(1)
        faulty_R = np.maximum(0, (seats_R - math.ceil(rate) - 1) // 2)
        wanted_R = np.floor(rate + self._random.random(self.runs)).astype(np.int64)
        wanted_R = np.where(seats_R >= 4, np.minimum(wanted_R, seats_R - 2 * faulty_R - 1), 0)
        able_RN = self.present_RN.copy()
        if self.chain.barred:
            able_RN &= ~(self._convicted_R[:, None] & self.coalition_N)
        rank_RN = np.where(able_RN, self._random.random(able_RN.shape), np.inf).argsort(1).argsort(1)
        return able_RN & (rank_RN < wanted_R[:, None])

    def _audit(self, validators_RN: Bools, before: Work) -> None:
        """Every honest validator draws one worker of the round before and accuses it if it cheated."""
        rows_R = np.arange(self.runs)
        guilty_RN = np.zeros_like(validators_RN)
        left_RN = validators_RN & ~self.coalition_N
        while left_RN.any():
            acting_R, validator_R = left_RN.any(1), left_RN.argmax(1)
            left_RN[rows_R, validator_R] = False
            able_RN = before.workers.copy()
            able_RN[rows_R, validator_R] = False
            target_R = np.where(able_RN, self._random.random(able_RN.shape), -1.0).argmax(1)
            hit_R = acting_R & able_RN.any(1) & before.cheats[rows_R, target_R]
            guilty_RN[rows_R[hit_R], target_R[hit_R]] = True
        if guilty_RN.any():
            self._due.setdefault(self.number + VOTE_BLOCKS, []).append((before, False, guilty_RN))

    def _certify(self) -> None:
        """The block: bans that are due, and the sweeps that they open."""
        self.banned = []
        for proven, swept, guilty_RN in self._due.pop(self.number, []):
            fresh_RN = guilty_RN & self.present_RN
            self.banned.append((proven.round, fresh_RN))
            self.present_RN &= ~fresh_RN
            some_R = np.asarray(fresh_RN.any(1))
            self._convicted_R |= some_R
            self.first_R = np.where(some_R & (self.first_R == NEVER), self.number, self.first_R)
            if self.chain.sweep and not swept:
                swept_RN = self._cheats_of(proven.round) & some_R[:, None]
                self._due.setdefault(self.number + SWEEP_BLOCKS, []).append((proven, True, swept_RN))
        gone_R = np.asarray(~(self.present_RN & self.coalition_N).any(1))
        self.last_R = np.where(gone_R & (self.last_R == NEVER), self.number, self.last_R)

    def _cheats_of(self, round: int) -> Bools:
        """Who cheated in a round or in the one after it: bool [R, N]."""
        swept = [work.cheats for work in self._works if work.round in (round, round + 1)]
        return np.asarray(np.logical_or.reduce(swept))


@dataclass(frozen=True)
class Detection:
    """Rounds from the first of the attack to the block of the first and of the last ban, int [R]; NEVER if not."""

    first: Ints
    last: Ints

    def document(self) -> dict[str, int | None]:
        """Median and p95 of both; None where so many runs never got there."""
        return {
            "first_median": quantile(self.first, 0.5),
            "first_p95": quantile(self.first, 0.95),
            "last_median": quantile(self.last, 0.5),
            "last_p95": quantile(self.last, 0.95),
        }

    def last_quantiles(self, shares: Sequence[float]) -> list[int | None]:
        """The distribution of the rounds to the last ban."""
        return [quantile(self.last, share) for share in shares]


def quantile(rounds_R: Ints, share: float) -> int | None:
    """The smallest number of rounds within which at least this share of the runs got there; None if fewer did."""
    reached = np.sort(rounds_R[rounds_R != NEVER])
    needed = max(1, math.ceil(share * len(rounds_R)))
    return int(reached[needed - 1]) if len(reached) >= needed else None


def detection(chain: Chain, runs: int, seed: int = 0, rounds_max: int = ROUNDS_MAX) -> Detection:
    """Play a chain many times, until everybody is banned or `rounds_max` rounds are over."""
    play = Play(chain, runs, seed)
    while not play.over and play.number < rounds_max:
        play.step()
    start = max(1, chain.schedule.start)
    return Detection(*(np.where(r == NEVER, NEVER, r - start) for r in (play.first_R, play.last_R)))
