"""The file of --faults: what it says is what happens, and every mistake is named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from btrain.config import loads
from btrain.errors import ConfigError
from btrain.simulation.fault_file import load_faults, loads_faults
from btrain.simulation.faults import Faults, Outage
from btrain.simulation.heap import Clock, LinkPlan, SlowReader
from btrain.simulation.invariants import InvariantViolated
from btrain.simulation.scenario import Liveness, stage
from btrain.templates import template

DOCS = Path(__file__).parents[2] / "docs"
SECOND = 1_000_000


def refusal(text: str, peers: int = 4) -> str:
    with pytest.raises(ConfigError) as caught:
        loads_faults(text, "f.yaml").faults(peers, 0)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("link: {loss: 0.1}", "f.yaml: safety: missing; this key is required"),
        ("safety: 5s\noutage: []", "f.yaml:2: outage: unknown key; did you mean outages?"),
        ("safety: 5s\nlink: {los: 0.1}", "f.yaml:2: link.los: unknown key; did you mean loss?"),
        ("safety: 5s\nlink: {loss: 1}", "f.yaml:2: link.loss: expected a number below 1"),
        ("safety: 5", "f.yaml:1: safety: expected a time such as 0s, 20ms or 1.5min, at most 24h, got 5"),
        (
            "safety: 5s\noutages:\n  - {peer: 1, kind: crush, start: 1s}",
            "kind: expected crash, freeze, cut, clog, deaf or mute, got 'crush'; did you mean crash?",
        ),
        (
            "safety: 5s\noutages:\n  - {peer: 1, kind: freeze, start: 1s}",
            "f.yaml:3: outages[0]: has no end; only a crash may be for ever",
        ),
        (
            "safety: 5s\noutages:\n  - {peer: 1, kind: cut, start: 1s, end: 9s}",
            "f.yaml:3: outages[0].end: is after the end of the safety phase",
        ),
        ("safety: 5s\npartitions: [{from: 0, to: 1, start: 2s, end: 2s}]", "partitions[0].end: is not after the start"),
        ("safety: 5s\nlink: {latency: [2ms, 1ms]}", "f.yaml:2: link.latency: the least is above the most"),
        (
            "safety: 5s\nclocks:\n  - {peer: 0}\n  - {peer: 4}",
            "f.yaml:4: clocks[1].peer: there is no peer 4; the 4 peers are 0 to 3",
        ),
        ("safety: 5s\nlinks: [{from: [0, 9], to: 1}]", "links[0].from: there is no peer 9"),
        ("safety: [", "f.yaml:1: not YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_line_key_and_the_nearest_name(text: str, error: str) -> None:
    assert error in refusal(text)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_faults(tmp_path / "none.yaml")


def test_every_key_becomes_its_fault() -> None:
    faults = load_faults(DOCS / "faults.yaml").faults(8, seed=3)
    assert faults.end_us == 20 * SECOND
    assert faults.link == LinkPlan(1_000, 40_000, None, 0.01, 0.02, 0.5)
    assert faults.links == {(peer, 2): LinkPlan(80_000, 120_000, 200_000) for peer in (0, 1)}
    assert [(p.sources, p.one_way, p.clogged) for p in faults.partitions] == [
        ((0, 1), False, False), ((3,), True, False), ((2,), False, True),
    ]  # fmt: skip
    assert faults.outages[0] == Outage(1, "crash", 10 * SECOND, 13 * SECOND)
    assert 3 <= len(faults.outages) <= 6
    assert faults.gone == {3}
    assert faults.clocks == {0: Clock(3 * 3600 * SECOND, 2000), 4: Clock(0, -2000)}
    assert faults.readers == {5: SlowReader(100_000, 5 * SECOND, 10 * SECOND)}
    assert faults.sync_us == 4_000


def test_drawn_outages_follow_from_the_seed() -> None:
    file = loads_faults("safety: 9s\nrandom: {outages: 20, at_once: 2}")
    one, same, other = file.faults(6, 1), file.faults(6, 1), file.faults(6, 2)
    assert one == same != other
    assert all(outage.until_us <= 9 * SECOND for outage in one.outages)


def test_the_documented_example_runs_and_goes_on_after_its_faults() -> None:
    file = load_faults(DOCS / "faults.yaml")
    scenario = stage(
        loads(template("digits"), peers=8), peers=8, rounds=400, seed=1, faults=file.faults(8, 1),
        liveness=file.liveness, signatures="counted",
    )  # fmt: skip
    world, end_us = scenario.world, scenario.faults.end_us
    world.heap.run(end_us)
    before = max(world.height(peer) for peer in world.honest)
    assert world.node(world.honest[3]) is None
    while max(world.height(peer) for peer in world.honest) < before + file.liveness.rounds:
        world.heap.run(world.heap.now + SECOND)
        world.check()
        assert world.heap.now < end_us + file.liveness.within_us
    world.verify()


def test_a_run_that_does_not_go_on_has_failed() -> None:
    faults = Faults(tuple(Outage(peer, "crash", SECOND, None) for peer in (0, 1, 2)), safety_us=2 * SECOND)
    scenario = stage(
        loads(template("digits"), peers=4), peers=4, rounds=60, faults=faults, liveness=Liveness(3, 20 * SECOND)
    )
    with pytest.raises(InvariantViolated, match="0 rounds within 20 s of the end of the faults, not 3"):
        scenario.run()
