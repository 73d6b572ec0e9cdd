"""A run that goes on from another one, or starts from parameters in a file; and newcomers that have neither."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from btrain.config import load, loads
from btrain.data import open_source
from btrain.models import build_model
from btrain.verify import audit_run
from tests.peer.conftest import Resident, Town
from tests.peer.test_refusals import fails

SETTINGS: dict[str, Any] = {"group__probation_rounds": 3, "state_sync_every": 4, "verification__custody_rounds": 4}


def set_to(town: Town, *overrides: str) -> str:
    """The town's configuration with some more settings."""
    return loads(town.text, overrides=overrides).to_yaml()


def started(town: Town, name: str, **options: Any) -> Resident:
    peer = town.start(name, **options)
    town.until(lambda: bool(peer.all("started")))
    return peer


def comes_without_x0(town: Town, name: str, member: Resident, text: str) -> None:
    """A newcomer is given x[0] by the members, serves its probation and gets a seat."""
    late = started(town, name, join=member.address, text=text)
    town.until(lambda: any(late.peer_id in event["admitted"] for event in member.all("block")))
    assert late.all("state_loaded")[0]["round"] == 0


def audited(run_dir: Path) -> Any:
    """What `btrain audit` says of a peer's directory, in which everything verifies."""
    found = audit_run(run_dir)
    assert found["ok"], found["faults"]
    return found["ledgers"][0]


def test_a_fork_carries_bans_and_state_over(town: Town) -> None:
    town.config(4, **SETTINGS)
    peers = [started(town, "a")]
    peers += [town.start(name, join=peers[0].address) for name in "bc"]
    town.start("liar", join=peers[0].address, adversary="nan:from=2")
    town.until(lambda: all(peer.all("banned") != [] and peer.height > 8 for peer in peers))
    liar = town.residents["liar"].peer_id
    town.kill("a", "b", "c")
    town.gone("liar")
    blocks = min((town.blocks(name) for name in "abc"), key=len)
    at = len(blocks) - 1

    town.config(3, **SETTINGS)
    child = {name: set_to(town, f"local.fork_from={town.directory / name}:{at}") for name in "abc"}
    keys = {name: town.directory / name / "identity.key" for name in ("a", "b", "c", "liar")}
    peers = [started(town, "a2", text=child["a"], identity=keys["a"])]
    refusal = fails(town, "liar2", "ConfigError", 2, join=peers[0].address, text=child["a"], identity=keys["liar"])
    assert "was banned in the run that this one goes on from" in refusal
    peers += [town.start(f"{name}2", join=peers[0].address, text=child[name], identity=keys[name]) for name in "bc"]
    town.until(lambda: all(peer.height > 2 for peer in peers))
    parent = load(town.directory / "a2" / "config.yaml").fork_from
    assert parent is not None and (parent.banned, parent.round) == ((liar,), at)
    assert parent.block == blocks[at].hash.hex()

    comes_without_x0(town, "d", peers[0], set_to(town, f"fork_from={json.dumps(parent.model_dump())}"))
    town.kill("a2")
    town.start("a2", text=child["a"], identity=keys["a"])
    town.goes_on("a2", "b2", "c2", "d")
    town.kill("a2", "b2", "c2", "d")
    for name, verified in (("a2", True), ("b2", True), ("d", False)):
        found = audited(town.directory / name)["parent"]
        assert found["banned"] == [liar] and found["verified"] is verified
    assert list((town.directory / "a2" / "parent" / "evidence").iterdir()) != []


def test_a_run_starts_from_parameters_in_a_file(town: Town) -> None:
    town.config(2, **SETTINGS)
    config = loads(town.text)
    model = build_model(config.model_options(), open_source(config.data_options()), seed=7)
    file = town.directory / "first.safetensors"
    save_file(model.state_dict(), file)
    text = set_to(town, f"model.from={file}")
    peers = [started(town, "a", text=text)]
    fingerprint = load(town.directory / "a" / "config.yaml").model.fingerprint  # type: ignore[union-attr]
    without = set_to(town, f"model.fingerprint='{fingerprint}'")
    refusal = fails(town, "early", "ContractError", 5, join=peers[0].address, text=without)
    assert "join once it is founded" in refusal
    assert "model.fingerprint" in fails(town, "seed", "ContractError", 5, join=peers[0].address)
    peers.append(town.start("b", join=peers[0].address, text=text))
    town.until(lambda: all(peer.height > 2 for peer in peers))
    comes_without_x0(town, "c", peers[1], without)
    town.goes_on("a", "b", "c")
    town.kill("a", "b", "c")
    town.check()
    for name in "abc":
        audited(town.directory / name)
