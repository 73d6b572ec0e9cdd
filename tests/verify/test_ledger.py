"""`btrain audit`: an untouched run passes; whatever is changed is found and named."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from btrain.checkpoint import load_checkpoint, save_checkpoint
from btrain.config import loads
from btrain.errors import ConfigError, VerificationError
from btrain.protocol.encoding import PeerId
from btrain.protocol.ledger import open_block
from btrain.simulation.scenario import Scenario, stage
from btrain.storage.ledger_file import LedgerFile, StoredBlock, read_ledger
from btrain.templates import template
from btrain.verify import audit_run, audit_text
from btrain.verify.ledger import audit_ledger

Tamper = Callable[[list[StoredBlock]], list[tuple[bytes, bytes]]]
WriteOut = Callable[[Scenario, PeerId, Path], None]


def flip(file: Path, position: int) -> None:
    """Change one byte."""
    data = bytearray(file.read_bytes())
    data[position] ^= 0x41
    file.write_bytes(data)


def rewrite(ledger: Path, tamper: Tamper) -> None:
    """Write the ledger anew, with correct checksums, from what `tamper` makes of its blocks."""
    pairs = tamper(list(read_ledger(ledger)))
    ledger.unlink()
    file = LedgerFile.open(ledger)
    for block, certificate in pairs:
        file.append(block, certificate)
    file.close()


def same(blocks: list[StoredBlock]) -> list[tuple[bytes, bytes]]:
    return [(stored.block, stored.certificate) for stored in blocks]


def test_an_attacked_run_passes_and_tells_proof_from_testimony(recorded: Path, scenario: Scenario) -> None:
    document = audit_run(recorded)
    assert document["ok"] and not document["faults"] and len(document["ledgers"]) == 2
    ledger = document["ledgers"][0]
    assert ledger["blocks"] == 12 and ledger["checkpoints"]
    proofs = {ban["deed"]: ban for ban in ledger["bans"]}
    assert set(proofs) == {"wrong_gradient", "wrong_reduction"}
    assert proofs["wrong_reduction"]["proof"] == "bytes" and proofs["wrong_reduction"]["files"]
    assert proofs["wrong_gradient"]["proof"] == "votes"
    assert "recomputed: off by" in proofs["wrong_gradient"]["recomputed"]
    banned = {row.peer_id for row in scenario.report().peers if row.status == "banned"}
    assert {ban["peer_id"] for ban in ledger["bans"]} == banned
    text = audit_text(document)
    assert "proven by the bytes" in text and "attested by a quorum" in text and "everything verifies" in text


@pytest.mark.parametrize("seed", range(25))
def test_one_changed_byte_of_the_ledger_is_found_and_named(seed: int, run_dir: Path) -> None:
    ledger = run_dir / "peer-0" / "ledger"
    flip(ledger, random.Random(seed).randrange(len(ledger.read_bytes())))
    with pytest.raises(VerificationError, match=r"peer-0/ledger"):
        audit_ledger(run_dir / "peer-0")


def test_every_byte_of_the_last_block_counts(run_dir: Path) -> None:
    ledger = run_dir / "peer-0" / "ledger"
    intact = ledger.read_bytes()
    last = LedgerFile.open(ledger)._offsets[-1]
    for position in (*range(last, last + 40), len(intact) - 1, len(intact) - 40):
        flip(ledger, position)
        with pytest.raises(VerificationError, match=r"peer-0/ledger.*block 11"):
            list(read_ledger(ledger))
        ledger.write_bytes(intact)


def without_a_signature(blocks: list[StoredBlock]) -> list[tuple[bytes, bytes]]:
    pairs = same(blocks)
    signatures = msgspec.msgpack.decode(pairs[5][1], type=tuple[bytes, ...])
    kept = signatures[: len(signatures) // 2]
    pairs[5] = (pairs[5][0], msgspec.msgpack.encode(kept))
    return pairs


def with_one_signature_repeated(blocks: list[StoredBlock]) -> list[tuple[bytes, bytes]]:
    pairs = same(blocks)
    signatures = msgspec.msgpack.decode(pairs[5][1], type=tuple[bytes, ...])
    pairs[5] = (pairs[5][0], msgspec.msgpack.encode((signatures[0],) * len(signatures)))
    return pairs


def with_another_certificate(blocks: list[StoredBlock]) -> list[tuple[bytes, bytes]]:
    pairs = same(blocks)
    pairs[5] = (pairs[5][0], pairs[6][1])
    return pairs


def without_a_block(blocks: list[StoredBlock]) -> list[tuple[bytes, bytes]]:
    pairs = same(blocks)
    del pairs[5]
    return pairs


def without_bans(blocks: list[StoredBlock]) -> list[tuple[bytes, bytes]]:
    pairs = same(blocks)
    index = next(i for i, stored in enumerate(blocks) if open_block(stored.block).bans)
    forged = msgspec.structs.replace(open_block(blocks[index].block), bans=())
    pairs[index] = (msgspec.msgpack.encode(forged), pairs[index][1])
    return pairs


@pytest.mark.parametrize(
    ("tamper", "place"),
    [
        (without_a_signature, "block 5.*members signed"),
        (with_one_signature_repeated, "block 5.*1 members signed"),
        (with_another_certificate, "block 5.*signature for something else"),
        (without_a_block, "block 5"),
        (without_bans, "block .*another block"),
    ],
)
def test_a_forged_ledger_with_right_checksums_is_found(tamper: Tamper, place: str, run_dir: Path) -> None:
    rewrite(run_dir / "peer-0" / "ledger", tamper)
    document = audit_run(run_dir)
    assert not document["ok"] and len(document["faults"]) == 1
    with pytest.raises(VerificationError, match=place):
        audit_ledger(run_dir / "peer-0")


def test_a_shorter_ledger_is_a_shorter_run(run_dir: Path) -> None:
    rewrite(run_dir / "peer-0" / "ledger", lambda blocks: same(blocks)[:9])
    for checkpoint in (run_dir / "peer-0" / "checkpoints").iterdir():
        if checkpoint.name > "round-00000008":
            for file in checkpoint.iterdir():
                file.unlink()
            checkpoint.rmdir()
    document = audit_run(run_dir)
    assert document["ok"] and [ledger["blocks"] for ledger in document["ledgers"]] == [9, 12]


@pytest.mark.parametrize("seed", range(8))
def test_one_changed_byte_of_the_genesis_is_found(seed: int, run_dir: Path) -> None:
    genesis = run_dir / "peer-0" / "genesis"
    flip(genesis, random.Random(seed).randrange(len(genesis.read_bytes())))
    with pytest.raises(VerificationError, match=r"peer-0/(genesis|config\.yaml)"):
        audit_ledger(run_dir / "peer-0")


def test_another_contract_beside_the_ledger_is_found_with_the_field(run_dir: Path) -> None:
    config = run_dir / "peer-0" / "config.yaml"
    config.write_text(config.read_text().replace("rounds: 12", "rounds: 13"))
    with pytest.raises(VerificationError, match=r"config\.yaml.*rounds: 13 here, 12 there"):
        audit_ledger(run_dir / "peer-0")


@pytest.mark.parametrize("name", ["state.safetensors", "block", "manifest.json"])
def test_one_changed_byte_of_a_checkpoint_is_found(name: str, run_dir: Path) -> None:
    checkpoint = max((run_dir / "peer-0" / "checkpoints").iterdir())
    flip(checkpoint / name, 100)
    with pytest.raises(VerificationError, match=checkpoint.name):
        audit_ledger(run_dir / "peer-0")


def test_a_checkpoint_of_another_state_is_found(run_dir: Path) -> None:
    old, *_, new = [load_checkpoint(folder) for folder in sorted((run_dir / "peer-0" / "checkpoints").iterdir())]
    save_checkpoint(run_dir / "peer-0" / "checkpoints", new.round, old.state, block=new.block)
    with pytest.raises(VerificationError, match=r"round-\d+: holds another state"):
        audit_ledger(run_dir / "peer-0")


def test_what_a_peer_ended_with_passes_as_uncertified_and_beside_its_last_block_only(run_dir: Path) -> None:
    folder = run_dir / "peer-0" / "checkpoints"
    state = load_checkpoint(max(folder.iterdir())).state
    first, *_, last = [stored.block for stored in read_ledger(run_dir / "peer-0" / "ledger")]
    save_checkpoint(folder, 12, state, block=last, keep=9)
    assert audit_ledger(run_dir / "peer-0").uncertified_checkpoints == [12]
    save_checkpoint(folder, 12, state, block=first, keep=9)
    with pytest.raises(VerificationError, match=r"round-00000012/block: is no block of the ledger"):
        audit_ledger(run_dir / "peer-0")


def test_ledgers_of_two_runs_in_one_folder_are_found(run_dir: Path, write_out: WriteOut) -> None:
    config = loads(template("digits"), "test", ["seed=9"], peers=3)
    other = stage(config, peers=3, rounds=2, seed=5)
    other.run()
    write_out(other, other.world.honest[0], run_dir / "peer-2")
    document = audit_run(run_dir)
    assert not document["ok"] and "belongs to another run" in document["faults"][0]


def test_a_folder_without_a_run_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        audit_run(tmp_path)
