"""A simulated run with attackers, written out as the run directories of two honest peers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from btrain.checkpoint import save_checkpoint
from btrain.config import loads
from btrain.identity import peer_id_text
from btrain.peer.store import Founded
from btrain.protocol.encoding import ZERO, PeerId, encode
from btrain.protocol.ledger import open_block
from btrain.protocol.messages import GenesisSignature, Statement, sign
from btrain.protocol.pieces import assemble
from btrain.simulation.scenario import Scenario, stage
from btrain.storage.evidence_store import EvidenceStore
from btrain.storage.ledger_file import LedgerFile
from btrain.templates import template

PEERS, ROUNDS, SYNC_EVERY = 6, 12, 4


def founders_signatures(scenario: Scenario) -> tuple[bytes, ...]:
    """Every founder's consent to the genesis."""
    run = scenario.world.genesis.run
    return tuple(
        sign(
            key,
            Statement(1, run, 0, ZERO, 0, 0, "genesis", 0, key.public_key, ZERO, encode(GenesisSignature(run))),
        ).data
        for key in scenario.world.keys
    )


def write_run_dir(scenario: Scenario, peer: PeerId, folder: Path) -> None:
    """The run directory that a real peer with this disk would have."""
    folder.mkdir(parents=True)
    disk = scenario.world.identities[peer].disk
    (folder / "config.yaml").write_text(scenario.learning.config.to_yaml())
    founded = Founded(encode(scenario.world.genesis), founders_signatures(scenario))
    (folder / "genesis").write_bytes(msgspec.msgpack.encode(founded))
    ledger = LedgerFile.open(folder / "ledger")
    for certified in disk.blocks:
        ledger.append(certified.block, msgspec.msgpack.encode(certified.certificate))
        block = open_block(certified.block)
        state = assemble(block.state[0].digest, disk.blob) if block.state else None
        if state is not None:
            save_checkpoint(folder / "checkpoints", block.state[0].round, state, block=certified.block)
    ledger.close()
    (folder / "evidence").mkdir()
    for accused, round, deed, data in disk.evidence:
        EvidenceStore(folder / "evidence").write(round, peer_id_text(accused), deed, data)


@pytest.fixture(scope="session")
def scenario() -> Scenario:
    """Six peers on digits; one sends flipped gradients, one publishes wrong reductions."""
    config = loads(
        template("digits"), "test", [f"state_sync_every={SYNC_EVERY}", "verification.final_sweep=0"], peers=PEERS
    )
    scenario = stage(config, peers=PEERS, byzantine=2, attacks=("sign_flip", "wrong_reduce"), rounds=ROUNDS, seed=1)
    scenario.run()
    return scenario


@pytest.fixture(scope="session")
def recorded(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run; tests that change something copy it."""
    folder = tmp_path_factory.mktemp("recorded") / "run"
    for index, peer in enumerate(scenario.world.honest[:2]):
        write_run_dir(scenario, peer, folder / f"peer-{index}")
    return folder


@pytest.fixture
def run_dir(recorded: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(recorded, tmp_path / "run"))


@pytest.fixture
def write_out() -> Callable[[Scenario, PeerId, Path], None]:
    """Writes a simulated peer's run directory."""
    return write_run_dir
