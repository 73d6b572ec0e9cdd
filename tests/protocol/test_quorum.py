"""The table of quorums, and what it is for: any two sets that decide share an honest member."""

from __future__ import annotations

import pytest

from btrain.protocol.quorum import byzantine_limit, fast_quorum, quorum, validators_max

TABLE = {1: (0, 1, 1), 2: (0, 2, 2), 3: (1, 2, 3), 4: (1, 3, 3), 5: (1, 3, 4), 6: (2, 4, 5), 7: (2, 4, 5), 8: (3, 5, 6),
         16: (7, 9, 12)}  # fmt: skip


@pytest.mark.parametrize(("members", "row"), TABLE.items())
def test_the_table(members: int, row: tuple[int, int, int]) -> None:
    faulty = byzantine_limit(members, validators_max(members, 1))
    assert (faulty, quorum(members), fast_quorum(members, faulty)) == row


@pytest.mark.parametrize("members", range(1, 80))
def test_an_honest_member_is_in_every_quorum_and_in_two_fast_ones(members: int) -> None:
    faulty = byzantine_limit(members, validators_max(members, 1))
    assert quorum(members) > faulty
    assert 2 * fast_quorum(members, faulty) - members > faulty
    assert members - faulty >= quorum(members)


@pytest.mark.parametrize(
    ("members", "audits", "validators"), [(3, 1, 0), (4, 1, 1), (8, 0.25, 1), (16, 2, 2), (5, 0, 0)]
)
def test_validators(members: int, audits: float, validators: int) -> None:
    assert validators_max(members, audits) == validators
