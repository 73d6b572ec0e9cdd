"""Every adversary that can be named, over the real protocol: what must hold for each, and what each declares."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch

from btrain.adversary import Adversary, adversary_names, get_adversary
from btrain.adversary.adversary import Outcome
from btrain.bench import attacks
from btrain.config import loads
from btrain.simulation.report import Report
from btrain.simulation.scenario import stage
from btrain.templates import template

PEERS, ATTACKERS, ROUNDS, ATTACK_FROM = 8, 3, 12, 2
BANNED_ROUNDS = 40  # an audit a round finds nobody in so many once in 1e5 runs; most are over after ten
DAMAGE_MAX = 1.5  # final loss over that of honest peers after as many rounds, for attacks that nobody is banned for
VARIANTS = tuple(spec for spec in attacks.VARIANTS if "from=40" not in spec)
QUICK = {"drop_contributor", "kill", "equivocate:kind=approval"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def played(spec: str | None, rounds: int = ROUNDS) -> Report:
    """So many rounds, or until all attackers are banned; what must hold for every run is checked."""
    config = loads(template("digits"), overrides=["batch_size=32", "verification.final_sweep=0"], peers=PEERS)
    attacks, byzantine = ((), 0) if spec is None else ((spec,), ATTACKERS)
    scenario = stage(
        config, peers=PEERS, byzantine=byzantine, attacks=attacks, rounds=rounds, attack_from=ATTACK_FROM, seed=4,
        stop_when_banned=True,
    )  # fmt: skip
    scenario.run()
    scenario.world.check()
    scenario.world.verify()
    for node in map(scenario.world.node, scenario.world.honest):
        assert node is None or bool(torch.isfinite(node.learner.parameters()).all())
    report = scenario.report()
    assert (report.false_bans, report.digests_equal) == (0, True)
    assert report.rounds == rounds or report.rounds_to_all_banned is not None
    return report


@functools.cache
def honest_loss() -> float:
    return played(None).final.loss


def declared(spec: str) -> Outcome | None:
    behaviour = get_adversary(spec)
    return behaviour.outcome if isinstance(behaviour, Adversary) else None


@pytest.mark.parametrize(
    "spec",
    [s if s in QUICK else pytest.param(s, marks=pytest.mark.slow) for s in (*adversary_names(), *VARIANTS)],
)
def test_an_adversary_harms_nobody_and_ends_as_declared(spec: str) -> None:
    outcome = declared(spec)
    report = played(spec, BANNED_ROUNDS if outcome == "banned" else ROUNDS)
    attackers = [row for row in report.peers if row.attack is not None]
    assert len(attackers) == ATTACKERS
    if outcome == "banned":
        assert "banned" in {row.status for row in attackers}
    elif outcome == "absent":
        assert all(row.status != "banned" and (row.reason or "").startswith("absent") for row in attackers)
    else:
        assert report.final.loss < DAMAGE_MAX * honest_loss()
