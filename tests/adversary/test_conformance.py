"""Every adversary that can be named, over the real protocol: what must hold for each, and what each declares."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch

from btrain.adversary import Adversary, adversary_names, get_adversary
from btrain.adversary.adversary import Outcome
from btrain.config import loads
from btrain.simulation.report import Report
from btrain.simulation.scenario import stage
from btrain.templates import template

PEERS, ATTACKERS, ROUNDS, ATTACK_FROM = 8, 3, 12, 2
DAMAGE_MAX = 1.5  # final loss over that of honest peers after as many rounds, for attacks that nobody is banned for
KINDS = ("result", "reveal", "vote", "final", "missing", "accusation", "charge", "quit", "lock", "proposal")
VARIANTS = (
    *(f"equivocate:kind={kind}" for kind in KINDS),
    "bad_proposal:kind=void",
    "bad_proposal:kind=two",
    "false_accuse:charge=true",
    "sign_flip:every=4,on=2",
    "sign_flip:every=2+nan:from=7",
    "alie+rubber_stamp",
    "abort_link+freeze:from=7",
)
SELDOM = {f"equivocate:kind={kind}" for kind in ("accusation", "charge", "quit", "lock", "proposal")}
"""A second statement of these may be refused before it is compared, and few rounds have one: no ban within twelve."""
QUICK = {"drop_contributor", "kill", "sign_flip:every=2+nan:from=7"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def played(spec: str | None) -> Report:
    """Twelve rounds; what must hold for every run is checked."""
    config = loads(template("digits"), overrides=["batch_size=32"], peers=PEERS)
    attacks, byzantine = ((), 0) if spec is None else ((spec,), ATTACKERS)
    scenario = stage(
        config, peers=PEERS, byzantine=byzantine, attacks=attacks, rounds=ROUNDS, attack_from=ATTACK_FROM, seed=4
    )
    scenario.run()
    scenario.world.check()
    scenario.world.verify()
    for node in map(scenario.world.node, scenario.world.honest):
        assert node is None or bool(torch.isfinite(node.learner.parameters()).all())
    report = scenario.report()
    assert (report.false_bans, report.digests_equal, report.rounds) == (0, True, ROUNDS)
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
    report, outcome = played(spec), declared(spec)
    attackers = [row for row in report.peers if row.attack is not None]
    assert len(attackers) == ATTACKERS
    if outcome == "banned" and spec not in SELDOM:
        assert "banned" in {row.status for row in attackers}
    elif outcome == "absent":
        assert all(row.status != "banned" and (row.reason or "").startswith("absent") for row in attackers)
    else:
        assert report.final.loss < DAMAGE_MAX * honest_loss()
