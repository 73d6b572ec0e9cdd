"""Who attacks is drawn from a seed; what cannot be is refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from btrain.config import RunConfig, load, loads
from btrain.errors import ConfigError
from btrain.identity import peer_id_text, read_key
from btrain.swarm.plan import LOCAL_LISTEN, SwarmPlan, prepared_names
from btrain.swarm.running import check_attacks
from btrain.templates import template


def config(peers: int = 8, *overrides: str) -> RunConfig:
    return loads(template("digits"), "test", overrides, peers=peers)


def test_attackers_are_drawn_from_the_seed_and_never_the_bootstrap() -> None:
    drawn = {SwarmPlan.new(config(), byzantine=3, attacks=("nan",), seed=seed).attackers for seed in range(40)}
    assert len(drawn) > 10
    assert all(len(set(attackers)) == 3 and 0 not in attackers for attackers in drawn)
    again = SwarmPlan.new(config(), byzantine=3, attacks=("nan",), seed=7)
    assert again.attackers == SwarmPlan.new(config(), byzantine=3, attacks=("nan",), seed=7).attackers


def test_attackers_take_the_attacks_in_turn() -> None:
    plan = SwarmPlan.new(config(), byzantine=3, attacks=("nan", "sign_flip:scale=10"), seed=1)
    assert [plan.attack_of(index) for index in plan.attackers] == ["nan", "sign_flip:scale=10", "nan"]
    assert sum(plan.attack_of(index) is None for index in range(8)) == 5


def test_an_attack_begins_when_it_says_else_when_all_do(tmp_path: Path) -> None:
    attacks = ("sign_flip:from=5", "nan", "restart_mid_round")
    plan = SwarmPlan.new(config(), byzantine=3, attacks=attacks, attack_from=2, run_dir=tmp_path / "run")
    starts = {peer.attack: peer.attack_from for peer in plan.prepare() if peer.attack}
    assert starts == dict(zip(attacks, (5, 2, 2), strict=True))


def test_an_attack_after_the_end_is_refused() -> None:
    plan = SwarmPlan.new(config(8, "rounds=5"), byzantine=1, attacks=("nan:from=5",))
    with pytest.raises(ConfigError, match="nan:from=5: begins in round 5; the run's last is 4"):
        check_attacks(plan)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"byzantine": 4, "attacks": ("nan",)}, "--byzantine 4: at most 3 of 8 peers"),
        ({"byzantine": 1}, "--attack"),
        ({"attacks": ("nan",)}, "--byzantine"),
        ({"byzantine": 1, "attacks": ("nan",), "attack_from": 9999}, "--attack-from 9999"),
    ],
)
def test_what_cannot_be_is_refused_with_the_option(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SwarmPlan.new(config(), **arguments)  # type: ignore[arg-type]


def test_a_group_too_small_for_attackers_says_none() -> None:
    with pytest.raises(ConfigError, match="none of 2 peers may attack"):
        SwarmPlan.new(config(2), byzantine=1, attacks=("nan",))


def test_prepare_makes_a_folder_and_a_key_for_each_peer(tmp_path: Path) -> None:
    plan = SwarmPlan.new(config(4), byzantine=1, attacks=("restart_mid_round",), run_dir=tmp_path / "run")
    peers = plan.prepare()
    assert [peer.name for peer in peers] == ["peer-0", "peer-1", "peer-2", "peer-3"]
    for peer in peers:
        assert peer_id_text(read_key(peer.run_dir / "identity.key").public_key) == peer.peer_id
    assert prepared_names(plan.run_dir) == {peer.peer_id: peer.name for peer in peers}
    restarted = [peer for peer in peers if peer.restarted]
    assert len(restarted) == 1 and not any(peer.byzantine for peer in peers)
    assert json.loads((plan.run_dir / "swarm.json").read_text())["seed"] == 0


def test_prepare_leaves_a_folder_that_is_not_empty_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(ConfigError, match="not empty"):
        SwarmPlan.new(config(4), run_dir=tmp_path).prepare()
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_the_peers_listen_on_this_machine_only_and_keep_the_contract(tmp_path: Path) -> None:
    given = config(4, "local.listen=/ip4/0.0.0.0/tcp/4001", "optimizer.lr=3e-4")
    plan = SwarmPlan.new(given, run_dir=tmp_path / "run")
    plan.prepare()
    written = load(tmp_path / "run" / "config.yaml")
    assert written.local.listen == LOCAL_LISTEN
    assert written.contract_bytes() == given.contract_bytes()


def test_by_default_every_swarm_gets_a_folder_of_its_own() -> None:
    plan = SwarmPlan.new(config(4))
    assert plan.run_dir.parent == Path("runs") and plan.run_dir.name.startswith("digits-")
    assert plan.without_attackers().run_dir == plan.run_dir / "baseline"
