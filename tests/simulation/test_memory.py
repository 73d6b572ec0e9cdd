"""What a member keeps does not grow with what liars send it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from btrain.simulation.memory import Retained, retained
from btrain.simulation.soak import Case, Faults, play
from btrain.simulation.world import World

CALM = Case(seed=4, peers=4, rounds=48, numel=300, attacks=(), attack_from=0, faults=Faults())
EARLY = 24  # in rounds; custody, audits and strikes look back 16 rounds at most


def kept(case: Case) -> tuple[Retained, Retained]:
    """The most that any honest member keeps up to the early round, and from then on."""
    most: list[list[Retained]] = [[], []]

    def look(world: World) -> None:
        for node in filter(None, map(world.node, world.honest)):
            most[node.member.state.round > EARLY].append(retained(node.member))

    play(case, "counted", look)
    early, late = (Retained(max(r.entries for r in rs), max(r.bytes for r in rs)) for rs in most)
    return early, late


@pytest.fixture(scope="module")
def calm() -> tuple[Retained, Retained]:
    return kept(CALM)


def test_a_calm_member_keeps_no_more_after_many_rounds(calm: tuple[Retained, Retained]) -> None:
    early, late = calm
    assert early.entries > 100
    assert late.entries < 1.5 * early.entries
    assert late.bytes < 1.5 * early.bytes


@pytest.mark.parametrize(
    "attack",
    ["flood", *(pytest.param(a, marks=pytest.mark.slow) for a in ("garbage", "replay", "equivocate", "oversize"))],
)
def test_a_flooded_member_keeps_little_more_than_a_calm_one(attack: str, calm: tuple[Retained, Retained]) -> None:
    early, late = kept(replace(CALM, attacks=(attack,)))
    assert max(early.entries, late.entries) < 3 * max(calm[0].entries, calm[1].entries)
    assert max(early.bytes, late.bytes) < 3 * max(calm[0].bytes, calm[1].bytes)
    assert late.entries < 1.5 * early.entries
