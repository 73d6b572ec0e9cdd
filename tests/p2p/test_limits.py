"""The meters: a rate over time and a budget among threads."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from btrain.p2p.limits import Budget, Rate


@given(st.lists(st.floats(0.0, 0.5), min_size=1, max_size=200), st.floats(1.0, 100.0), st.floats(1.0, 50.0))
def test_who_waits_as_told_never_exceeds_rate_and_burst(gaps: list[float], per_s: float, burst: float) -> None:
    now = 0.0
    rate = Rate(per_s, burst, now)
    for count, gap in enumerate(gaps, start=1):
        now += gap
        now += rate.take(now)
        assert count <= burst + per_s * now + 1e-6


def test_a_burst_is_free_and_what_follows_waits() -> None:
    rate = Rate(10.0, 3.0, 0.0)
    assert [rate.take(0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert abs(rate.take(0.0) - 0.1) < 1e-9
    assert abs(rate.take(0.0) - 0.2) < 1e-9
    assert rate.take(100.0) == 0.0


def test_who_is_refused_owes_nothing() -> None:
    rate = Rate(10.0, 2.0, 0.0)
    assert [rate.try_take(0.0) for _ in range(100)] == [True, True] + [False] * 98
    assert not rate.try_take(0.09)
    assert rate.try_take(0.11)


def test_threads_never_hold_more_than_the_budget() -> None:
    budget = Budget(10)
    held, peak, lock = [0], [0], threading.Lock()

    def work() -> None:
        for _ in range(2000):
            if budget.take(3):
                with lock:
                    held[0] += 3
                    peak[0] = max(peak[0], held[0])
                with lock:
                    held[0] -= 3
                budget.give(3)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert peak[0] <= 9
    assert budget.take(10)
    assert not budget.take(1)
    budget.give(10)
