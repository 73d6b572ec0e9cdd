"""Real models under real attacks, the whole protocol in virtual time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from btrain.config import RunConfig, loads
from btrain.errors import ConfigError
from btrain.protocol.closing import CLOSING_ROUNDS
from btrain.protocol.evidence import open_evidence, verify_evidence
from btrain.protocol.messages import Verifier
from btrain.simulation.faults import Faults, Outage
from btrain.simulation.report import Report
from btrain.simulation.scenario import Scenario, charter_of, simulate, stage, with_peers
from btrain.templates import template

ATTACK_FROM = 3  # by then there is a history of computing times, and deadlines are short
PROVES_ITSELF = {"illegal_encoding", "equivocation", "wrong_reduction", "false_charge"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def digits(peers: int) -> RunConfig:
    return loads(template("digits"), peers=peers)


def played(attacks: list[str], *, peers: int = 8, byzantine: int = 3, rounds: int = 60, **options: Any) -> Scenario:
    """A run to its end, or until all attackers are banned; every promise that holds for each run is checked."""
    options = {"attack_from": ATTACK_FROM, "stop_when_banned": True} | options
    scenario = stage(digits(peers), peers=peers, byzantine=byzantine, attacks=attacks, rounds=rounds, **options)
    scenario.run()
    scenario.world.check()
    scenario.world.verify()
    report = scenario.report()
    assert report.false_bans == 0
    assert report.digests_equal
    for node in map(scenario.world.node, scenario.world.honest):
        assert node is None or bool(torch.isfinite(node.learner.parameters()).all())
    return scenario


def check_all_banned(scenario: Scenario, deeds: set[str]) -> None:
    report = scenario.report()
    attackers = [row for row in report.peers if row.byzantine]
    assert [row.status for row in attackers] == ["banned"] * len(attackers)
    assert {row.reason for row in attackers} <= deeds
    assert all(row.evidence for row in attackers)
    assert report.rounds_to_all_banned is not None
    check_evidence(scenario)


def check_evidence(scenario: Scenario) -> None:
    """The bundles that honest peers saved of deeds that prove themselves hold for somebody who has nothing else."""
    rule = scenario.world.charter.rule
    for peer in scenario.world.honest:
        for accused, round, deed, data in scenario.world.identities[peer].disk.evidence:
            if deed in PROVES_ITSELF:
                finding = verify_evidence(open_evidence(data), Verifier(), lambda genesis: rule)
                assert (finding.accused, finding.round, finding.deed) == (accused, round, deed)


GRADIENT = ["sign_flip", "random_direction", "ipm:epsilon=0.1", "ipm:epsilon=0.6", "ipm:epsilon=100", "alie", "rop",
            "label_flip", "free_rider", "delayed", "min_max", "mimic", "huge", "forged_scale"]  # fmt: skip
QUICK = {"sign_flip", "ipm:epsilon=0.6", "free_rider"}


@pytest.mark.parametrize("attack", [a if a in QUICK else pytest.param(a, marks=pytest.mark.slow) for a in GRADIENT])
def test_a_wrong_gradient_is_found_and_banned(attack: str) -> None:
    check_all_banned(played([attack]), {"wrong_gradient"})


@pytest.mark.parametrize(
    "attack", ["nan", *(pytest.param(a, marks=pytest.mark.slow) for a in ("inf", "minus_128", "denormal"))]
)
def test_hostile_numbers_are_banned_by_the_next_blocks(attack: str) -> None:
    scenario = played([attack])
    check_all_banned(scenario, {"illegal_encoding"})
    last = scenario.report().rounds_to_all_banned
    assert last is not None
    assert last <= 2


@pytest.mark.parametrize(
    ("attack", "deed"),
    [
        ("wrong_reduce", "wrong_reduction"),
        ("false_accuse", "false_accusation"),
        ("false_accuse:charge=true", "false_charge"),
        ("equivocate", "equivocation"),
        ("double_vote", "equivocation"),
        pytest.param("equivocate:kind=final", "equivocation", marks=pytest.mark.slow),
        pytest.param("equivocate:kind=result", "equivocation", marks=pytest.mark.slow),
        pytest.param("equivocate:kind=reveal", "equivocation", marks=pytest.mark.slow),
        pytest.param("wrong_reduce:shift=0.05", "wrong_reduction", marks=pytest.mark.slow),
    ],
)
def test_a_lie_in_the_protocol_is_proven(attack: str, deed: str) -> None:
    check_all_banned(played([attack]), {deed})


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "rounds"), [("freeze", 10), ("edge_late", 12), ("abort_link", 8)])
def test_who_does_not_take_part_loses_the_seat_and_is_not_banned(attack: str, rounds: int) -> None:
    report = played([attack], rounds=rounds).report()
    for row in report.peers:
        assert row.status != "banned"
        struck = row.status == "absent" or (row.reason or "").startswith("absent")
        assert struck == row.byzantine
    assert report.rounds == rounds + CLOSING_ROUNDS


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    ["garbage", "flood", "replay", "rubber_stamp", "lie", "just_inside_tolerance", "selective_send"],
)
def test_what_is_no_crime_or_not_provable_harms_nobody(attack: str) -> None:
    report = played([attack], rounds=20).report()
    assert report.rounds == 20 + CLOSING_ROUNDS
    assert all(row.status == "active" for row in report.peers if not row.byzantine)
    assert report.final.metric > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_peer_killed_in_every_phase_is_never_banned(seed: int) -> None:
    report = played(["restart_mid_round"], byzantine=3, rounds=20, seed=seed, attack_from=0).report()
    assert [row.status for row in report.peers if row.status == "banned"] == []
    assert [row.byzantine for row in report.peers] == [False] * 8
    assert sum(row.attack == "restart_mid_round" for row in report.peers) == 3
    assert report.rounds == 20 + CLOSING_ROUNDS
    assert report.final.metric > 0.7


def test_one_restarted_peer_among_attackers() -> None:
    scenario = played(["restart_mid_round", "sign_flip", "nan"], rounds=25, attack_from=1)
    report = scenario.report()
    assert [row.status for row in report.peers if row.byzantine] == ["banned", "banned"]


def test_a_thousandfold_sign_flip_leaves_the_model_sound() -> None:
    scenario = played(["sign_flip:scale=1000"], rounds=60, attack_from=0, stop_when_banned=False)
    check_all_banned(scenario, {"wrong_gradient"})
    assert scenario.report().rounds == 60 + CLOSING_ROUNDS
    assert scenario.report().final.metric > 0.9


def test_attackers_of_all_trades() -> None:
    check_all_banned(played(["alie", "wrong_reduce", "equivocate:kind=reveal"]), PROVES_ITSELF | {"wrong_gradient"})


def test_one_attacker_among_four() -> None:
    check_all_banned(played(["label_flip"], peers=4, byzantine=1), {"wrong_gradient"})


def test_one_seed_gives_one_document() -> None:
    attacks = ["nan", "restart_mid_round"]

    def document(seed: int) -> str:
        report = simulate(digits(6), peers=6, byzantine=2, attacks=attacks, attack_from=2, rounds=12, seed=seed)
        return json.dumps(report.document())

    assert document(1) == document(1)
    assert document(1) != document(2)


def test_the_baseline_is_the_same_run_without_attackers() -> None:
    quiet = simulate(digits(4), peers=4, rounds=8, baseline=True)
    assert quiet.loss_ratio == 1.0
    attacked = simulate(digits(4), peers=4, byzantine=1, attacks=["sign_flip"], rounds=8, baseline=True)
    assert attacked.loss_ratio == pytest.approx(attacked.final.loss / quiet.final.loss)


def test_too_many_attackers_are_refused_with_the_limit() -> None:
    with pytest.raises(ConfigError, match=r"--byzantine 4: 8 peers can take at most 3"):
        simulate(digits(8), peers=8, byzantine=4, attacks=["nan"])
    with pytest.raises(ConfigError, match="--attack"):
        simulate(digits(8), peers=8, byzantine=1)


def test_attackers_take_the_attacks_in_turn() -> None:
    scenario = stage(digits(8), peers=8, byzantine=3, attacks=["nan", "sign_flip:from=9"], rounds=2, attack_from=4)
    assert [part.attack for part in scenario.cast] == [None] * 5 + ["nan", "sign_flip:from=9", "nan"]
    assert [part.attack_from for part in scenario.cast[5:]] == [4, 9, 4]


def test_faults_of_honest_peers_are_no_crime() -> None:
    outages = Faults((Outage(1, "crash", 400_000, 2_000_000), Outage(2, "freeze", 3_000_000, 9_000_000)))
    report: Report = simulate(digits(5), peers=5, rounds=10, faults=outages)
    assert (report.false_bans, report.digests_equal, report.rounds) == (0, True, 10 + CLOSING_ROUNDS)


def test_the_charter_says_what_the_configuration_says() -> None:
    overrides = ["deadlines.compute=2s", "verification.audits_per_round=0.5", "precision=bf16"]
    config = loads(template("digits"), overrides=overrides, peers=8)
    charter = charter_of(with_peers(config, 16, rounds=7))
    assert (charter.rounds, charter.byzantine_max, charter.audits_per_round) == (7, 7, 0.5)
    assert (charter.compute_us, charter.transfer_us, charter.message_us) == (2_000_000, None, 1_000_000)
    assert charter.tolerance == 1e-2
    assert with_peers(config, 8).group.byzantine_max == config.group.byzantine_max
