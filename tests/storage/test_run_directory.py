import os
import signal
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from btrain.errors import ConfigError, ContractError, IdentityError
from btrain.identity import peer_id_text
from btrain.storage.durable import CorruptFile, StorageError
from btrain.storage.run_directory import (
    IdentityBusy,
    OtherContract,
    OtherIdentity,
    RunDirectory,
    RunDirectoryBusy,
    SignedLogMissing,
    list_run,
    read_binding,
)

CONTRACT = bytes(range(32))
IDENTITY = b"\x11" * 32
RUN_FILES = (
    *("checkpoints", "config.yaml", "custody", "events.jsonl", "evidence", "journal", "ledger", "lock"),
    *("metrics.jsonl", "run.json", "signed.log", "status.json"),
)


def open_run(path: Path, contract: bytes = CONTRACT, identity: bytes = IDENTITY) -> RunDirectory:
    return RunDirectory.open(path, contract=contract, identity=identity)


def fill(run: RunDirectory) -> None:
    run.ledger.append(b"genesis", b"signatures")
    run.signed.put(b"slot", b"envelope", 1)
    run.journal.begin(1)
    run.journal.append("vote", b"payload", 1)
    run.custody.put(sha256(b"part").digest(), b"part", 1)
    run.custody.flush()
    run.evidence.write(1, peer_id_text(IDENTITY), "equivocation", b"proof")
    run.events.write({"event": "started"})
    run.metrics.write({"round": 1})
    run.save_config("run: test\n")
    run.write_status({"round": 1})


def test_everything_is_there_again_after_closing(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "test"
    with open_run(path) as run:
        fill(run)
    with open_run(path) as run:
        assert [(block, certificate) for _, block, certificate in run.ledger] == [(b"genesis", b"signatures")]
        assert run.signed.get(b"slot") == b"envelope"
        assert [entry.payload for entry in run.journal.replay()] == [b"payload"]
        assert run.custody.get(sha256(b"part").digest()) == b"part"
        assert len(run.evidence.paths()) == 1
        assert run.config_path(path).read_text() == "run: test\n"
    names = {file.name for file in path.iterdir()}
    assert names >= {"config.yaml", "signed.log", "ledger", "evidence", "checkpoints", "events.jsonl", "metrics.jsonl"}
    assert names <= set(RUN_FILES)


def test_listing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    listing = list_run(tmp_path / "empty")
    assert (listing.binding, listing.blocks, listing.evidence) == (None, 0, [])
    with open_run(tmp_path / "run") as run:
        fill(run)
        (run.checkpoints / "000016.safetensors").touch()
        listing = list_run(tmp_path / "run")
    assert listing.binding is not None
    assert (listing.binding.contract, listing.binding.identity) == (CONTRACT.hex(), peer_id_text(IDENTITY))
    assert (listing.blocks, listing.custody_rounds, listing.checkpoints) == (1, [1], ["000016.safetensors"])
    assert listing.evidence[0].startswith("000001-")
    with pytest.raises(StorageError, match="is no run directory"):
        list_run(tmp_path / "absent")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with open_run(tmp_path / "run"):
        with pytest.raises(RunDirectoryBusy, match=f"is in use by process {os.getpid()}; ") as raised:
            open_run(tmp_path / "run", identity=bytes(32))
        assert isinstance(raised.value, ConfigError)
        with pytest.raises(IdentityBusy, match=f"identity 12D3.* is in use by process {os.getpid()}; ") as copied:
            open_run(tmp_path / "run")  # by a copy of the key
        assert isinstance(copied.value, IdentityError)
    open_run(tmp_path / "run").close()


def test_kill_9_releases_the_directory(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            open_run(tmp_path / "run").ledger.append(b"genesis", b"")
            os.write(writing, b"1")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    assert os.read(reading, 1) == b"1"
    with pytest.raises(IdentityBusy, match=f"process {child};"):
        open_run(tmp_path / "run")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reading)
    with open_run(tmp_path / "run") as run:
        assert len(run.ledger) == 1


def test_another_contract_or_identity_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with open_run(path) as run:
        fill(run)
    (path / "genesis").write_bytes(b"of a run")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != "lock"}
    with pytest.raises(OtherContract, match=r"another contract \(000102030405, this one is 636363636363\)") as contract:
        open_run(path, contract=b"c" * 32)
    with pytest.raises(OtherIdentity, match=peer_id_text(IDENTITY)) as identity:
        open_run(path, identity=b"\x22" * 32)
    assert isinstance(contract.value, ContractError)
    assert isinstance(identity.value, IdentityError)
    assert {file: file.read_bytes() for file in before} == before
    open_run(path).close()


def test_before_the_run_is_founded_the_contract_may_change(tmp_path: Path) -> None:
    """Start, see a mistake in run.yaml, stop, start again. A hash chain that was published is not used again."""
    open_run(tmp_path).close()
    (tmp_path / "chain.salt").write_bytes(bytes(32))
    open_run(tmp_path, contract=b"c" * 32).close()
    assert not (tmp_path / "chain.salt").exists()
    binding = read_binding(tmp_path)
    assert binding is not None and binding.contract == (b"c" * 32).hex()
    with pytest.raises(OtherIdentity):
        open_run(tmp_path, contract=b"c" * 32, identity=b"\x22" * 32)


def test_a_lost_signed_log_is_not_replaced_by_an_empty_one(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run:
        fill(run)
    (tmp_path / "run" / "signed.log").unlink()
    for _ in range(2):
        with pytest.raises(SignedLogMissing, match=r"signed\.log: is missing"):
            open_run(tmp_path / "run")


@pytest.mark.parametrize("name", ["run.json", "signed.log", "journal", "ledger"])
def test_damage_is_named_and_leaves_nothing_open(tmp_path: Path, name: str) -> None:
    with open_run(tmp_path / "run") as run:
        fill(run)
    file = tmp_path / "run" / name
    whole = file.read_bytes()
    file.write_bytes(b"?" + whole[1:])
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CorruptFile, match=f"{file}: byte 0: "):
        open_run(tmp_path / "run")
    assert len(os.listdir("/proc/self/fd")) == descriptors
    file.write_bytes(whole)
    open_run(tmp_path / "run").close()


def test_an_unusable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"{tmp_path / 'file'}: is no folder"):
        open_run(tmp_path / "file")


def test_killed_at_every_step(crash_at_every_step: Callable[..., int]) -> None:
    """Opened anew after each crash: the acknowledged entries are there, and no two files disagree by more than one."""

    def scenario(directory: Path, ack: Callable[[int], None]) -> None:
        run = open_run(directory / "run")
        for height in range(2):
            run.signed.put(b"%d" % height, b"envelope", height)
            run.journal.append("vote", b"%d" % height, height)
            run.ledger.append(b"%d" % height, b"")
            ack(height)
        run.close()

    def check(directory: Path, acknowledged: int) -> None:
        with open_run(directory / "run") as run:
            assert len(run.ledger) - (acknowledged + 1) in {0, 1}
            for height in range(len(run.ledger)):
                assert run.signed.get(b"%d" % height) == b"envelope"
            assert len(list(run.journal.replay())) >= len(run.ledger)

    assert crash_at_every_step(scenario, check) > 20
