"""What an evidence file proves: by its own bytes, or by members' votes, recomputed where data and seed are at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from btrain.charter import charter_of
from btrain.config import RunConfig
from btrain.errors import BtrainError
from btrain.identity import peer_id_text
from btrain.peer.initial import InitialState
from btrain.protocol.audit import excess
from btrain.protocol.encoding import PeerId, digest
from btrain.protocol.errors import RemoteProtocolError
from btrain.protocol.evidence import Evidence, Finding, open_evidence, verify_evidence
from btrain.protocol.ledger import Genesis, LedgerState, open_genesis
from btrain.protocol.messages import Commit, Judgement, Message, Trial, Verifier
from btrain.protocol.randomness import batch_seed
from btrain.protocol.reduction import encode_gradient, open_part
from btrain.protocol.roles import PartLayout
from btrain.protocol.verdicts import GUILTY, INNOCENT
from btrain.storage.evidence_store import read_evidence
from btrain.training import GradientOracle, build_training
from btrain.verify.reading import GENESIS, LEDGER, InvalidRecord, Record, contract_of

ATTESTED: Mapping[str, int] = {"wrong_gradient": GUILTY, "false_accusation": INNOCENT}
"""Deeds that a quorum's votes prove, and the vote that does."""


@dataclass(frozen=True)
class Proof:
    """What a file shows. `voters` attested it, nobody if the bytes prove it; `recomputed` says how the gradient is."""

    path: Path
    evidence: Evidence
    genesis: Genesis
    proof: Literal["bytes", "votes"]
    text: str
    voters: frozenset[PeerId] = frozenset()
    recomputed: str | None = None

    def document(self) -> dict[str, Any]:
        """Plain data for json.dumps."""
        return {
            "file": str(self.path),
            "run_id": self.genesis.run.hex(),
            "peer_id": peer_id_text(self.evidence.accused),
            "deed": self.evidence.deed,
            "round": self.evidence.round,
            "proof": self.proof,
            "text": self.text,
            "voters": sorted(map(peer_id_text, self.voters)),
            "recomputed": self.recomputed,
        }


def check_file(path: Path, record: Record | None = None) -> Proof:
    """Verify an evidence file from nothing; with the run's record beside it also against the ledger.

    record: the run that the file lies in, for the seed of a gradient. Raises InvalidRecord, CorruptFile, StorageError.
    """
    data = read_evidence(path)
    try:
        evidence = open_evidence(data)
        genesis = open_genesis(evidence.genesis)
        if record is not None and evidence.genesis != record.genesis_data:
            raise InvalidRecord(f"{path}: is about another run, {genesis.run.hex()[:12]}")
        config = contract_of(genesis, str(path))
        if evidence.deed in ATTESTED:
            return _attested(path, evidence, genesis, config, record)
        finding = verify_evidence(evidence, Verifier(), lambda _: charter_of(config).rule)
    except RemoteProtocolError as error:
        raise InvalidRecord(f"{path}: {error}") from None
    return _proven(path, evidence, genesis, finding)


def record_around(path: Path) -> Record | None:
    """The run directory that an evidence file lies in, if it lies in one of its own run."""
    folder = path.resolve().parent.parent
    return Record.open(folder) if (folder / GENESIS).exists() and (folder / LEDGER).exists() else None


def _proven(path: Path, evidence: Evidence, genesis: Genesis, finding: Finding) -> Proof:
    return Proof(path, evidence, genesis, finding.proof, finding.text)


def _attested(path: Path, evidence: Evidence, genesis: Genesis, config: RunConfig, record: Record | None) -> Proof:
    """The committed gradient, and the Commits in which members voted on it."""
    verifier = Verifier()
    messages = [verifier.open(data, genesis.run) for data in evidence.envelopes]
    judges = bool(messages) and isinstance(messages[0].body, Commit | Trial)
    if not judges or messages[0].statement.round != evidence.round:
        raise InvalidRecord(f"{path}: does not begin with the Commit of round {evidence.round} that was judged")
    judged = messages[0]
    voters = _voters(evidence, judged, messages[1:])
    needed = charter_of(config).byzantine_max + 1
    counted = voters & {founder.peer for founder in genesis.founders}
    if len(counted) < needed:
        raise InvalidRecord(
            f"{path}: {len(counted)} founders voted so; fewer than {needed} may all be liars, so that nothing is shown"
        )
    _check_blobs(path, evidence, genesis, judged)
    recomputed = _recomputed(path, evidence, genesis, config, judged, record)
    what = (
        "committed to a gradient that is not its minibatch's"
        if evidence.deed == "wrong_gradient"
        else ("accused a member whose gradient is right")
    )
    text = f"{what}, as {len(voters)} of {len(genesis.founders)} members attest that recomputed it"
    return Proof(path, evidence, genesis, "votes", text, voters, recomputed)


def _voters(evidence: Evidence, judged: Message, listing: list[Message]) -> frozenset[PeerId]:
    """Who voted for the ban: guilty of the gradient, whoever accused; innocent of anything that the accuser accused."""
    question = judged.sender, evidence.round
    if isinstance(judged.body, Trial):
        guilty = Judgement(*question, GUILTY)
        return frozenset(m.sender for m in listing if isinstance(m.body, Commit) and guilty in m.body.judgements)
    found, is_judged = set(), False
    for message in listing:
        for verdict in message.body.verdicts if isinstance(message.body, Commit) else ():
            about = (verdict.accused, verdict.round) == question
            banned = verdict.accuser if evidence.deed == "false_accusation" else verdict.accused
            if banned == evidence.accused and verdict.vote == ATTESTED[evidence.deed]:
                is_judged |= about
                if about or evidence.deed == "false_accusation":
                    found.add(message.sender)
    return frozenset(found) if is_judged else frozenset()


def _check_blobs(path: Path, evidence: Evidence, genesis: Genesis, judged: Message) -> None:
    """Every blob is a committed part or the parameters."""
    assert isinstance(judged.body, Commit | Trial)
    for blob in evidence.blobs:
        if digest(blob) not in judged.body.leaves and len(blob) not in {0, 4 * genesis.numel}:
            raise InvalidRecord(f"{path}: holds bytes that are neither a committed part nor the parameters")


def _recomputed(
    path: Path, evidence: Evidence, genesis: Genesis, config: RunConfig, judged: Message, record: Record | None
) -> str:
    """Recompute the judged gradient; raises InvalidRecord if that contradicts the votes. Says why where it cannot."""
    if record is None:
        return "not recomputed: the minibatch's seed stands in the ledger, and no ledger lies beside the file"
    seed = _seed(record, evidence.round, judged.sender)
    x = next((blob for blob in evidence.blobs if len(blob) == 4 * genesis.numel), None)
    if seed is None or x is None:
        return f"not recomputed: {'the ledger ends before that round' if seed is None else 'no parameters were kept'}"
    try:
        at = torch.frombuffer(bytearray(x), dtype=torch.float32)
        oracle = _oracle(config, InitialState(record.path).read())
        found = _excess(evidence, genesis, config, judged, oracle.gradient(at, seed))
    except BtrainError as error:
        return f"not recomputed: {error}"
    tolerance = charter_of(config).tolerance
    if found is None:
        return "recomputed: the encoding differs, and the committed bytes were not kept"
    if evidence.deed == "wrong_gradient" and found <= tolerance:
        raise InvalidRecord(f"{path}: the committed gradient is what its seed gives (excess {found:.1e})")
    if evidence.deed == "false_accusation" and found > 2 * tolerance:
        raise InvalidRecord(f"{path}: the accused gradient is wrong after all (excess {found:.1e})")
    return f"recomputed: off by {found:.2g} of its length, {tolerance:g} is allowed"


def _seed(record: Record, round: int, worker: PeerId) -> bytes | None:
    """The minibatch seed of a worker, from r[t-2] in the ledger."""
    state = LedgerState.start(record.genesis, record.charter)
    for stored in record.rounds():
        if state.round == round:
            break
        state = state.advance(stored.block)
    return batch_seed(state.run, state.seed_randomness, worker, round) if state.round == round else None


def _oracle(config: RunConfig, initial: bytes | None) -> GradientOracle:
    """The run's gradients; from x[0] comes what is not trained, where no seed gives it."""
    local = config.local.model_copy(update={"device": "cpu"})
    trainer, oracle, *_ = build_training(config.model_copy(update={"local": local}))
    if initial is not None and config.start_fingerprint is not None:
        trainer.load_state(initial)
        oracle.start_from(trainer.model)
    return oracle


def _excess(
    evidence: Evidence, genesis: Genesis, config: RunConfig, judged: Message, gradient: torch.Tensor
) -> float | None:
    """How far the committed gradient lies off; 0 for equal encodings, None where the committed bytes are missing."""
    assert isinstance(judged.body, Commit | Trial)
    leaves = judged.body.leaves
    layout = PartLayout(genesis.numel, len(leaves))
    if [digest(part) for part in encode_gradient(gradient, layout) or []] == list(leaves):
        return 0.0
    by_hash = {digest(blob): blob for blob in evidence.blobs}
    kept = [open_part(by_hash[leaf], layout.part_numel(part)) if leaf in by_hash else None
            for part, leaf in enumerate(leaves)]  # fmt: skip
    found = excess(kept, gradient, layout)
    return found if None not in kept or found > charter_of(config).tolerance else None
