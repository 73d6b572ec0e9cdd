"""Newcomers: a late peer gets a seat, from wherever the run is."""

from __future__ import annotations

import pytest

from tests.peer.conftest import Town


@pytest.mark.parametrize(("rounds_before", "sync"), [(3, 16), (14, 4)])
def test_a_late_peer_gets_a_seat_and_contributes(town: Town, rounds_before: int, sync: int) -> None:
    """It is told of one member only; the second time the first rounds' results are gone, so it starts from a state."""
    town.config(3, state_sync_every=sync, verification__custody_rounds=4, group__probation_rounds=3)
    peers = town.found("a", "b", "c")
    town.until(lambda: all(peer.height >= rounds_before for peer in peers))
    late = town.start("d", join=peers[1].address)
    town.until(lambda: bool(late.all("started")))
    town.until(lambda: any(late.peer_id in event["admitted"] for event in peers[0].all("block")))
    assert late.contributed > 0  # on probation
    last = late.contributed
    town.goes_on("a", "b", "c", "d")
    if sync == 4:
        assert late.all("state_loaded") != []
    town.kill("a", "b", "c", "d")
    town.check()
    assert late.peer_id in town.contributors("a", since=last)
