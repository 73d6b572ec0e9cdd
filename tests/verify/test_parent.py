"""Going on from another run: what the parent's record must hold, and what the child's record is held against."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from btrain.checkpoint import checkpoint_paths, load_checkpoint
from btrain.config import Parent, RunConfig, loads
from btrain.errors import BtrainError, ConfigError, ContractError, VerificationError
from btrain.identity import SigningKey, peer_id_text
from btrain.peer.initial import InitialState
from btrain.peer.store import Founded
from btrain.protocol.encoding import ZERO, encode, sha256
from btrain.protocol.ledger import Founder, Genesis
from btrain.protocol.messages import GenesisSignature, Statement, sign
from btrain.protocol.pieces import cut
from btrain.simulation.scenario import Scenario
from btrain.storage.blob_store import BlobStore
from btrain.storage.ledger_file import LedgerFile
from btrain.training import State
from btrain.verify import audit_run, audit_text
from btrain.verify.parent import Fork, going_on, read_fork
from tests.verify.conftest import ROUNDS, SYNC_EVERY
from tests.verify.test_ledger import flip


@pytest.fixture(scope="module")
def fork(recorded: Path) -> Fork:
    return read_fork(str(recorded / "peer-0"))


def test_the_last_block_and_all_bans_unless_another_block_is_named(scenario: Scenario, fork: Fork) -> None:
    blocks, state = scenario.ledger()
    parent = fork.parent
    assert (parent.run, parent.round) == (state.run.hex(), ROUNDS - 1) and parent.block == blocks[-1].hash.hex()
    assert parent.banned == tuple(sorted(peer_id_text(ban.peer) for block in blocks for ban in block.bans))
    assert len(parent.banned) == 2
    begun = State.from_bytes(fork.state)
    assert begun.step == 0 and begun.digest().hex() == parent.fingerprint


def test_an_earlier_block_knows_fewer_bans_and_an_earlier_state(scenario: Scenario, fork: Fork) -> None:
    blocks, _ = scenario.ledger()
    at = next(block.round for block in blocks if block.state)
    earlier = read_fork(f"{fork.path}:{at}").parent
    assert earlier.round == at == SYNC_EVERY and earlier.fingerprint != fork.parent.fingerprint
    assert set(earlier.banned) == {peer_id_text(ban.peer) for block in blocks[: at + 1] for ban in block.bans}


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("none", "holds no run; name the run directory of one peer"),
        ("run", "holds no run; name the run directory of one peer"),  # a swarm's
        ("run/peer-0:12", "ends with block 11"),
        ("run/peer-0:2", "no state is certified up to block 2"),
    ],
)
def test_what_is_no_place_to_go_on_from(named: str, words: str, run_dir: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        read_fork(str(run_dir.parent / named))


def test_a_state_that_is_not_kept_and_the_blocks_whose_states_are(run_dir: Path) -> None:
    folders = checkpoint_paths(run_dir / "peer-0" / "checkpoints")
    shutil.rmtree(folders[-1])
    with pytest.raises(ConfigError, match=r"of round 8, is not kept there; with :ROUND name one of the blocks 4$"):
        read_fork(str(run_dir / "peer-0"))


def test_damage_in_custody_is_made_up_for_by_a_checkpoint(run_dir: Path, fork: Fork) -> None:
    peer = run_dir / "peer-0"
    checkpoint = checkpoint_paths(peer / "checkpoints")[-1]
    state = cut(load_checkpoint(checkpoint).state)
    with closing(BlobStore.open(peer / "custody", 2**30)) as custody:
        custody.put(state.digest, encode(state.manifest), 8)
        custody.put(state.manifest.pieces[0], state.pieces[0], 8)
        custody.flush()
    shutil.move(checkpoint, run_dir / "away")
    assert read_fork(str(peer)).state == fork.state
    flip(peer / "custody" / "00000008.pack", -1)
    with pytest.raises(ConfigError, match="of round 8, is not kept there"):
        read_fork(str(peer))
    shutil.move(run_dir / "away", checkpoint)
    assert read_fork(str(peer)).state == fork.state


def test_a_damaged_parent_is_refused(run_dir: Path) -> None:
    path = run_dir / "peer-0" / "ledger"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(VerificationError, match="block"):
        read_fork(str(run_dir / "peer-0"))


def test_a_contract_that_names_another_parent_is_refused_by_its_field(fork: Fork, tmp_path: Path) -> None:
    config = loads("run: child")
    completed, found = going_on(config, str(fork.path), tmp_path / "new")
    assert completed.fork_from == fork.parent and found == fork
    assert completed.with_parent(fork.parent) == completed
    for key, other in {"run": "0" * 64, "round": 3, "block": "1" * 64, "banned": ()}.items():
        elsewhere = config.with_parent(fork.parent.model_copy(update={key: other}))
        with pytest.raises(ConfigError, match=rf"fork_from\.{key}: expected"):
            elsewhere.with_parent(fork.parent)


@dataclass
class Child:
    """The run directory of one who founded a run alone that goes on from the recorded one."""

    path: Path
    fork: Fork

    @property
    def key(self) -> SigningKey:
        return SigningKey.from_seed(sha256(b"child"))

    def write(self, parent: Parent, initial: bytes | None = None) -> None:
        config = self.config(parent)
        store = InitialState(self.path)
        state = store.serve(self.fork.state)
        x0 = sha256(b"x0")
        founders = (Founder(self.key.public_key, ZERO),)
        genesis = Genesis(1, config.contract_bytes(), ZERO, 10, x0, 0.0, founders, state=(state,))
        run, me = genesis.run, self.key.public_key
        consent = sign(
            self.key, Statement(1, run, 0, ZERO, 0, 0, "genesis", 0, me, ZERO, encode(GenesisSignature(run)))
        )
        founded = Founded(encode(genesis), (consent.data,))
        (self.path / "genesis").write_bytes(msgspec.msgpack.encode(founded))
        (self.path / "config.yaml").write_text(config.to_yaml())
        store.keep(self.fork.state if initial is None else initial)

    def config(self, parent: Parent) -> RunConfig:
        return loads("run: child").with_parent(parent)

    def faults(self) -> list[str]:
        return list(audit_run(self.path)["faults"])


@pytest.fixture
def child(fork: Fork, tmp_path: Path) -> Child:
    made = Child(tmp_path / "child", fork)
    made.path.mkdir()
    LedgerFile.open(made.path / "ledger").close()
    fork.keep_record(made.path)
    made.write(fork.parent)
    return made


def test_an_audit_verifies_the_parent_that_lies_beside_it(child: Child) -> None:
    document = audit_run(child.path)
    assert document["ok"], document["faults"]
    found = document["ledgers"][0]["parent"]
    assert found["verified"] and found["banned"] == list(child.fork.parent.banned)
    assert "goes on from run" in audit_text(document) and "2 banned there: verified" in audit_text(document)
    shutil.rmtree(child.path / "parent")
    document = audit_run(child.path)
    assert document["ok"] and not document["ledgers"][0]["parent"]["verified"]
    assert "by the founders' word" in audit_text(document)


@pytest.mark.parametrize(("key", "other"), [("banned", ()), ("block", "0" * 64), ("run", "0" * 64), ("round", 3)])
def test_an_audit_finds_a_genesis_that_says_something_else_of_the_parent(key: str, other: object, child: Child) -> None:
    child.write(child.fork.parent.model_copy(update={key: other}))
    assert any(f"{key} is not what the genesis says" in fault or "block is not" in fault for fault in child.faults())


def test_an_audit_finds_a_start_from_another_state(child: Child) -> None:
    child.write(child.fork.parent, State(0, State.from_bytes(child.fork.state).tensors, {"optimizer/x": 1}).to_bytes())
    assert any("is not the state that the founders signed" in fault for fault in child.faults())


def test_an_audit_finds_founders_who_agreed_on_a_state_that_the_parent_never_certified(child: Child) -> None:
    state = State.from_bytes(child.fork.state)
    name = next(iter(state.tensors))
    other = State(0, state.tensors | {name: state.tensors[name] + 1}, state.scalars)
    child.fork = Fork(child.fork.path, child.fork.parent, other.to_bytes())
    child.write(child.fork.parent.model_copy(update={"fingerprint": other.digest().hex()}))
    assert any("does not start from the state that its parent certified last" in fault for fault in child.faults())


def test_an_audit_finds_a_founder_that_was_banned(child: Child) -> None:
    me = peer_id_text(child.key.public_key)
    child.write(child.fork.parent.model_copy(update={"banned": tuple(sorted((*child.fork.parent.banned, me)))}))
    assert any("was banned in the parent run" in fault for fault in child.faults())


def test_a_run_goes_on_from_one_that_went_on_itself(child: Child, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no block yet"):
        read_fork(str(child.path))
    grandchild = tmp_path / "grandchild"
    grandchild.mkdir()
    Fork(child.path, child.fork.parent, child.fork.state).keep_record(grandchild)
    assert (grandchild / "parent" / "parent" / "ledger").exists()
    (child.path / "parent" / "genesis").write_bytes(b"nonsense")
    with pytest.raises(BtrainError, match="genesis"):
        read_fork(str(child.path))


def test_once_founded_the_parent_is_not_read_again(child: Child) -> None:
    config, found = going_on(loads("run: child"), "/gone", child.path)
    assert config.fork_from == child.fork.parent and found is None
    with pytest.raises(ContractError, match=f"goes on from block {ROUNDS - 1} and not 3"):
        going_on(loads("run: child"), "/gone:3", child.path)
    (child.path / "config.yaml").write_text(loads("run: child").to_yaml())
    with pytest.raises(ContractError, match="goes on from no other"):
        going_on(loads("run: child"), "/gone", child.path)
