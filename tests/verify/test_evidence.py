"""`btrain evidence`: a file proves its deed by itself; a changed one, or one that proves nothing, does not."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import msgspec
import pytest

from btrain.config import loads
from btrain.errors import VerificationError
from btrain.identity import peer_id_text
from btrain.protocol.evidence import Evidence, open_evidence
from btrain.simulation.scenario import Scenario, stage
from btrain.storage.evidence_store import EvidenceStore, read_evidence
from btrain.templates import template
from btrain.verify import evidence_text, verify_evidence_file


def evidence_of(folder: Path, deed: str) -> Path:
    """The file about a deed."""
    return next((folder / "peer-0" / "evidence").glob(f"*{deed}.evidence"))


def forged(folder: Path, evidence: Evidence) -> Path:
    """A file with right checksums and this content."""
    data = msgspec.msgpack.encode(evidence)
    return EvidenceStore(folder).write(evidence.round, peer_id_text(evidence.accused), evidence.deed, data)


@pytest.mark.parametrize(("deed", "proof"), [("wrong_reduction", "bytes"), ("wrong_gradient", "votes")])
def test_a_file_alone_is_enough(deed: str, proof: str, recorded: Path, scenario: Scenario, tmp_path: Path) -> None:
    file = Path(shutil.copy(evidence_of(recorded, deed), tmp_path / "some.evidence"))
    document = verify_evidence_file(file)
    attackers = {row.peer_id for row in scenario.report().peers if row.byzantine}
    assert document["deed"] == deed and document["proof"] == proof and document["peer_id"] in attackers
    assert document["run_id"] == scenario.world.genesis.run.hex()
    assert deed in evidence_text(document)


def test_beside_its_ledger_a_wrong_gradient_is_recomputed(recorded: Path) -> None:
    document = verify_evidence_file(evidence_of(recorded, "wrong_gradient"))
    assert document["recomputed"].startswith("recomputed: off by")


@pytest.mark.parametrize("deed", ["wrong_reduction", "wrong_gradient"])
@pytest.mark.parametrize("seed", range(10))
def test_one_changed_byte_is_found_and_the_file_named(deed: str, seed: int, run_dir: Path) -> None:
    file = evidence_of(run_dir, deed)
    data = bytearray(file.read_bytes())
    data[random.Random(seed).randrange(len(data))] ^= 1
    file.write_bytes(data)
    with pytest.raises(VerificationError, match=file.name):
        verify_evidence_file(file)


@pytest.mark.parametrize("deed", ["wrong_reduction", "wrong_gradient"])
def test_it_convicts_nobody_else(deed: str, recorded: Path, scenario: Scenario, tmp_path: Path) -> None:
    evidence = open_evidence(read_evidence(evidence_of(recorded, deed)))
    for peer in scenario.world.honest:
        with pytest.raises(VerificationError):
            verify_evidence_file(forged(tmp_path / peer.hex(), msgspec.structs.replace(evidence, accused=peer)))


def test_votes_of_as_many_as_may_all_lie_show_nothing(recorded: Path, tmp_path: Path) -> None:
    evidence = open_evidence(read_evidence(evidence_of(recorded, "wrong_gradient")))
    few = msgspec.structs.replace(evidence, envelopes=evidence.envelopes[:3])
    with pytest.raises(VerificationError, match="2 founders voted so; fewer than 3 may all be liars"):
        verify_evidence_file(forged(tmp_path / "evidence", few))


def test_evidence_of_another_run_is_not_of_this_ledger(run_dir: Path) -> None:
    config = loads(template("digits"), "test", ["seed=9"], peers=6)
    other = stage(config, peers=6, byzantine=1, attacks=("equivocate",), rounds=4, seed=5)
    other.run()
    accused, round, deed, data = other.world.identities[other.world.honest[0]].disk.evidence[0]
    file = EvidenceStore(run_dir / "peer-0" / "evidence").write(round, peer_id_text(accused), deed, data)
    with pytest.raises(VerificationError, match="is about another run"):
        verify_evidence_file(file)


def test_a_false_accusation_is_shown_by_the_votes_that_clear_the_accused(tmp_path: Path) -> None:
    config = loads(template("digits"), "test", [], peers=6)
    scenario = stage(config, peers=6, byzantine=1, attacks=("false_accuse",), rounds=14, seed=1)
    scenario.run()
    found = [
        entry
        for peer in scenario.world.honest
        for entry in scenario.world.identities[peer].disk.evidence
        if entry[2] == "false_accusation"
    ]
    accused, round, deed, data = found[0]
    document = verify_evidence_file(EvidenceStore(tmp_path).write(round, peer_id_text(accused), deed, data))
    assert document["proof"] == "votes" and "accused a member whose gradient is right" in document["text"]
    assert document["peer_id"] == peer_id_text(scenario.cast[-1].peer)


def test_no_evidence_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.evidence").write_bytes(b"hello")
    with pytest.raises(VerificationError, match=r"x\.evidence"):
        verify_evidence_file(tmp_path / "x.evidence")
