"""Real peers that drift, or stand on two certified chains, end alike; only who signed both chains is banned."""

from __future__ import annotations

import shutil

import pytest

from btrain.identity import peer_id_text
from btrain.status import read_status_of
from tests.peer.conftest import Town


def test_a_peer_whose_parameters_drift_heals_and_says_so(town: Town) -> None:
    town.config(3, state_sync_every=4)
    first = town.start("a")
    town.until(lambda: bool(first.all("started")))
    peers = [first, town.start("b", join=first.address), town.start("c", join=first.address, nudge=6)]
    drifter = peers[2]
    town.until(lambda: bool(drifter.all("state_loaded")))
    (drift,) = drifter.all("drift")
    (loaded,) = drifter.all("state_loaded")
    assert drift["own"] != drift["certified"] and drift["round"] >= 8
    assert (loaded["round"], loaded["healed"], loaded["heals"]) == (drift["round"], True, 1)
    town.goes_on("a", "b", "c", rounds=6)
    (shown,) = read_status_of(drifter.run_dir)["peers"]
    assert (shown["drifts"], shown["heals"]) == (1, 1)
    town.kill("a", "b", "c")
    assert not any(peer.all("drift") for peer in peers[:2])
    certified = [block.round for block in town.blocks("c") if block.state]
    assert any(round > loaded["round"] for round in certified)
    assert not any(block.bans or block.absences for block in town.blocks("a")[: loaded["round"] + 6])


@pytest.mark.slow
def test_two_chains_that_a_copied_peer_has_certified_become_one(town: Town) -> None:
    """The disk of a peer is copied, each copy works with one half of a broken network, then the network is whole.

    With one of three away no attempt 0 is final, so that a round takes seconds until the copied peer is banned.
    """
    town.config(3, state_sync_every=4, deadlines__message="250ms")
    peers = town.found("a", "b", "c")
    town.until(lambda: all(peer.height >= 3 for peer in peers))
    town.kill("a", "b", "c")
    a, b, c = (peer.peer_id for peer in peers)
    shutil.copytree(town.directory / "c", town.directory / "copy")
    for name, other in (("a", b), ("c", b), ("b", a), ("copy", a)):
        town.start(name, apart=(other,))
    town.goes_on("a", "b", rounds=2)
    town.kill("a", "b", "c", "copy")
    chains = town.blocks("a"), town.blocks("b")
    parted = next(round for round, pair in enumerate(zip(*chains, strict=False)) if pair[0] != pair[1])
    stands = min(chain[parted].hash for chain in chains)
    town.start("a")
    town.start("b")
    town.until(lambda: any(peer_banned(town, name, c) for name in "ab"))
    town.goes_on("a", "b", rounds=6)
    town.kill("a", "b")
    one, other = town.blocks("a"), town.blocks("b")
    shortest = min(len(one), len(other))
    assert one[:shortest] == other[:shortest] and one[parted].hash == stands
    assert {(peer_id_text(ban.peer), ban.deed) for block in one for ban in block.bans} == {(c, "equivocation")}
    back = [name for name in "ab" if town.residents[name].all("rolled_back")]
    assert [event["round"] for name in back for event in town.residents[name].all("rolled_back")] == [parted]
    assert any(block.state for block in one[parted + 4 : shortest])  # both hold the same parameters
    (shown,) = read_status_of(town.residents[back[0]].run_dir)["peers"]
    assert shown["rolled_back"] == 1


def peer_banned(town: Town, name: str, peer: str) -> bool:
    return any(event["peer"] == peer for event in town.residents[name].all("banned"))
