"""The chain of roles and audits against what can be computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from btrain.bench.chain import NEVER, SWEEP_BLOCKS, VOTE_BLOCKS, Chain, Play, Schedule, detection, quantile

RUNS = 3000


def mean_of_first(members: int, byzantine: int) -> float:
    """Expected rounds from round 1, the first of the attack, to the block of the first ban, one audit a round.

    A Markov chain on who validated the round before: nobody (round 1), one honest or one of the coalition. An honest
    validator draws one of that round's workers but itself; the block after the round of its audit bans.
    """
    n, b, h = members, byzantine, members - byzantine
    hit_1 = h / n * b / (n - 1)
    hit_honest = 1 / n * b / (n - 1) + (h - 1) / n * b / (n - 2)
    hit_coalition = h / n * (b - 1) / (n - 2)
    to_coalition = b / n  # whoever is drawn of the coalition finds nothing
    missed = np.array([[1 - to_coalition - hit_honest, to_coalition], [1 - to_coalition - hit_coalition, to_coalition]])
    audits_honest, audits_coalition = np.linalg.solve(np.eye(2) - missed, np.ones(2))
    audits = 1 + (1 - to_coalition - hit_1) * audits_honest + to_coalition * audits_coalition
    return float(audits) + VOTE_BLOCKS  # audit k is that of round k + 1, block k + 1 + VOTE_BLOCKS bans


@pytest.mark.parametrize(("members", "byzantine"), [(4, 1), (8, 3), (16, 7), (16, 3)])
def test_the_first_ban_comes_as_fast_as_the_markov_chain_says(members: int, byzantine: int) -> None:
    found = detection(Chain(members, byzantine, sweep=False), RUNS, seed=1)
    mean = mean_of_first(members, byzantine)
    assert float(found.first.mean()) == pytest.approx(mean, rel=0.04)
    assert int(found.first.min()) == 1 + VOTE_BLOCKS


def test_one_attacker_is_the_first_and_the_last() -> None:
    found = detection(Chain(4, 1), RUNS, seed=2)
    assert np.array_equal(found.first, found.last)


def test_without_the_sweep_every_attacker_is_a_draw_of_its_own() -> None:
    """Expected rounds to the last ban: about the sum over 7, 6, ... 1 attackers among 9 honest members."""
    mean = sum(mean_of_first(9 + k, k) - VOTE_BLOCKS for k in range(1, 8)) + VOTE_BLOCKS
    found = detection(Chain(sweep=False), RUNS, seed=3)
    assert float(found.last.mean()) == pytest.approx(mean, rel=0.05)


def test_the_sweep_bans_who_cheated_in_the_proven_round_and_the_next() -> None:
    found = detection(Chain(), RUNS, seed=4)
    together = found.last - found.first
    assert float((together <= SWEEP_BLOCKS).mean()) > 0.85
    assert bool((together >= 1).all())
    assert quantile(found.last, 0.95) <= 20 < quantile(detection(Chain(sweep=False), RUNS, seed=4).last, 0.95)  # type: ignore[operator]


def test_who_is_barred_audits_no_more() -> None:
    barred = detection(Chain(sweep=False, barred=True), RUNS, seed=5)
    free = detection(Chain(sweep=False), RUNS, seed=5)
    assert float(barred.last.mean()) < float(free.last.mean())
    assert float(barred.first.mean()) == pytest.approx(float(free.first.mean()), rel=0.04)


def test_a_late_start_changes_nothing_and_strikes_take_longer() -> None:
    late = detection(Chain(schedule=Schedule(start=30), sweep=False), RUNS, seed=6)
    assert float(late.first.mean()) == pytest.approx(mean_of_first(16, 7), rel=0.04)
    strikes = detection(Chain(schedule=Schedule(every=3)), RUNS, seed=6)
    assert float(strikes.first.mean()) == pytest.approx(3 * (mean_of_first(16, 7) - 3) + 3, rel=0.1)
    assert {int(rounds) % 3 for rounds in strikes.first} == {(1 + VOTE_BLOCKS) % 3}


def test_two_audits_a_round_find_twice_as_fast() -> None:
    one, two = (detection(Chain(byzantine=6, audits_per_round=m, sweep=False), RUNS, seed=7) for m in (1, 2))
    assert float(two.first.mean()) - VOTE_BLOCKS < 0.65 * (float(one.first.mean()) - VOTE_BLOCKS)
    half = detection(Chain(byzantine=6, audits_per_round=0.5, sweep=False), RUNS, seed=7)
    assert float(half.first.mean()) - VOTE_BLOCKS == pytest.approx(2 * (float(one.first.mean()) - VOTE_BLOCKS), rel=0.1)


def test_who_cheats_never_is_never_banned() -> None:
    quiet = detection(Chain(schedule=Schedule(start=10**9)), 50, rounds_max=60)
    assert set(quiet.first) == set(quiet.last) == {NEVER}
    assert quiet.document() == {"first_median": None, "first_p95": None, "last_median": None, "last_p95": None}


def test_nobody_honest_is_ever_banned_and_only_workers_cheat() -> None:
    play = Play(Chain(), runs=200, seed=8)
    for _ in range(60):
        work = play.step()
        assert not bool((work.cheats & ~work.workers).any())
        assert not bool((work.cheats & ~play.coalition_N).any())
        assert bool(play.present_RN[:, ~play.coalition_N].all())
        assert bool((work.workers.sum(1) >= 8).all())


def test_a_schedule_says_which_rounds_are_attacked() -> None:
    schedule = Schedule(start=4, every=5, on=2)
    assert [r for r in range(20) if schedule.attacks(r)] == [4, 5, 9, 10, 14, 15, 19]


def test_a_quantile_counts_the_runs_that_never_got_there() -> None:
    rounds = np.array([3, 1, NEVER, 2])
    assert [quantile(rounds, share) for share in (0.25, 0.5, 0.75, 0.95)] == [1, 2, 3, None]
    assert quantile(np.array([5]), 0.95) == 5
    assert math.isfinite(float(quantile(np.arange(100), 0.95) or math.nan))
