"""kill -9, SIGSTOP and power cuts: nobody is banned, nobody forks, the others go on, who was away comes back."""

from __future__ import annotations

import signal

import pytest

from btrain.status import read_status_of
from tests.peer.conftest import Town


def comes_back(town: Town, name: str, others: tuple[str, ...]) -> None:
    """Restart a peer in its directory, without --join: it finds the others, catches up and contributes."""
    gone_at = max(town.residents[other].height for other in others)
    peer = town.start(name)
    town.until(lambda: peer.contributed > gone_at)
    last = peer.contributed
    town.until(lambda: min(town.residents[other].height for other in others) > last + 1)


@pytest.mark.parametrize(
    ("count", "victim"),
    [
        (4, "a"),
        pytest.param(4, "c", marks=pytest.mark.slow),
        pytest.param(3, "a", marks=pytest.mark.slow),
        pytest.param(5, "a", marks=pytest.mark.slow),
    ],
)
def test_a_killed_peer_is_not_missed_and_comes_back(town: Town, count: int, victim: str) -> None:
    town.config(count)
    names = "abcde"[:count]
    peers = town.found(*names)
    town.until(lambda: all(peer.height >= 3 for peer in peers))
    others = tuple(name for name in names if name != victim)
    town.kill(victim)
    town.goes_on(*others, rounds=4)
    comes_back(town, victim, others)
    town.kill(*names)
    town.check()
    away = town.residents[victim].peer_id
    assert away in town.contributors(others[0], since=4)


def test_a_run_that_too_few_are_left_of_says_so_and_goes_on_when_they_are_back(town: Town) -> None:
    town.config(3)
    peers = town.found("a", "b", "c")
    town.until(lambda: all(peer.height >= 3 for peer in peers))
    town.kill("b", "c")
    town.until(lambda: bool(peers[0].all("halted")))
    halted = peers[0].all("halted")[-1]
    assert (halted["reached"], halted["members"], halted["needed"]) == (1, 3, 2)
    (shown,) = read_status_of(peers[0].run_dir)["peers"]
    assert shown["state"] == "halted" and "1 of 3 members can be reached, and 2 must sign" in shown["halted"]
    town.start("b")
    town.goes_on("a", "b")
    (shown,) = read_status_of(peers[0].run_dir)["peers"]
    assert (shown["state"], shown["halted"]) == ("training", None)
    town.kill("a", "b")
    town.check()


PHASES = [(kind, after) for kind in ("commit", "vote", "result", "reveal", "final") for after in (False, True)]
QUICK = {("commit", True), ("final", False)}


@pytest.mark.parametrize(
    ("kind", "after"), [phase if phase in QUICK else pytest.param(*phase, marks=pytest.mark.slow) for phase in PHASES]
)
def test_killed_in_any_phase(town: Town, kind: str, after: bool) -> None:
    """The statement may have been made durable only, or have left: what was signed once is never signed anew."""
    town.config(4)
    peers = town.found("a", "b", "c")
    victim = town.start("d", join=peers[0].address, die=(kind, 3, after))
    town.gone("d")
    assert victim.exit_code == -signal.SIGKILL
    comes_back(town, "d", ("a", "b", "c"))
    town.kill("a", "b", "c", "d")
    town.check()


def test_a_frozen_peer_catches_up(town: Town) -> None:
    town.config(4)
    peers = town.found("a", "b", "c", "d")
    town.until(lambda: all(peer.height >= 3 for peer in peers))
    town.signal(signal.SIGSTOP, "b")
    town.goes_on("a", "c", "d", rounds=5)
    at = peers[0].height
    town.signal(signal.SIGCONT, "b")
    town.until(lambda: peers[1].contributed > at)
    town.goes_on("a", "b", "c", "d")
    town.kill("a", "b", "c", "d")
    town.check()


@pytest.mark.parametrize("count", [1, 3])
def test_after_a_power_cut_the_run_goes_on_where_it_was(town: Town, count: int) -> None:
    """With ports that are taken again: nobody is told where the others are."""
    names = tuple("abc"[:count])
    town.config(count, state_sync_every=4)
    peers = town.found(*names)
    town.until(lambda: all(peer.height >= 10 for peer in peers))
    town.kill(*names)
    height = max(len(town.blocks(name)) for name in names)
    again = [town.start(name) for name in names]
    town.until(lambda: all(peer.contributed > height + 2 for peer in again))
    assert [peer.all("founded")[-1]["round"] > 8 for peer in again] == [True] * count
    town.kill(*names)
    town.check()
