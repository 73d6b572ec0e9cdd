"""One peer's run directory verified: founders' signatures, every block and certificate, evidence, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from btrain.checkpoint import checkpoint_paths, load_checkpoint
from btrain.config import contract_difference, load
from btrain.identity import peer_id_text
from btrain.peer.initial import InitialState
from btrain.protocol.encoding import PeerId, encode
from btrain.protocol.errors import RemoteProtocolError
from btrain.protocol.ledger import Ban, Block, LedgerState, check_certificate, check_genesis
from btrain.protocol.messages import Verifier
from btrain.protocol.pieces import cut
from btrain.storage.evidence_store import EvidenceStore
from btrain.storage.ledger_file import CorruptLedger
from btrain.storage.run_directory import INITIAL
from btrain.training import State
from btrain.verify.evidence import Proof, check_file
from btrain.verify.reading import GENESIS, LEDGER, InvalidRecord, Record


@dataclass
class LedgerAudit:
    """What a peer's directory holds, all of it verified."""

    record: Record
    state: LedgerState
    blocks: list[Block] = field(default_factory=list)
    signatures: int = 0
    proofs: list[Proof] = field(default_factory=list)
    checkpoints: list[int] = field(default_factory=list)
    uncertified_checkpoints: list[int] = field(default_factory=list)

    @property
    def bans(self) -> list[tuple[Block, Ban]]:
        """Every ban with the block that decided it."""
        return [(block, ban) for block in self.blocks for ban in block.bans]

    def proofs_of(self, peer: PeerId, ban: Ban) -> list[Proof]:
        """The evidence kept here for a ban."""
        key = (peer, ban.round, ban.deed)
        return [
            proof for proof in self.proofs if (proof.evidence.accused, proof.evidence.round, proof.evidence.deed) == key
        ]

    def document(self) -> dict[str, Any]:
        """Plain data for json.dumps."""
        blocks = self.blocks
        counted = [block for block in blocks if block.void == 0]
        return {
            "path": str(self.record.path),
            "run_id": self.state.run.hex(),
            "founders": len(self.record.genesis.founders),
            "members": [peer_id_text(peer) for peer in self.state.roster.members],
            "blocks": len(blocks),
            "rounds_planned": self.state.charter.rounds,
            "rounds_undone": self.state.trajectory.rounds_undone,
            "void_rounds": len(blocks) - len(counted),
            "void_parts": sum(len(block.void_parts) for block in blocks),
            "bans": [self._ban(block, ban) for block, ban in self.bans],
            "evidence": [proof.document() for proof in self.proofs],
            "checkpoints": self.checkpoints,
            "uncertified_checkpoints": self.uncertified_checkpoints,
            "proven_by_bytes": {
                "founders_signatures": len(self.record.genesis.founders),
                "block_signatures": self.signatures,
                "chained_blocks": len(blocks),
                "hash_chain_links": sum(len(block.links) for block in blocks),
                "evidence_files": sum(proof.proof == "bytes" for proof in self.proofs),
            },
            "attested_by_a_quorum": {
                "sets_of_contributors": len(counted),
                "reduced_parts": sum(len(block.results) for block in blocks),
                "certified_states": sum(len(block.state) for block in blocks),
                "verdicts": sum(len(block.verdicts) for block in blocks),
                "evidence_files": sum(proof.proof == "votes" for proof in self.proofs),
            },
        }

    def _ban(self, block: Block, ban: Ban) -> dict[str, Any]:
        proofs = self.proofs_of(ban.peer, ban)
        by_bytes = any(proof.proof == "bytes" for proof in proofs)
        return {
            "peer_id": peer_id_text(ban.peer),
            "banned_round": block.round,
            "deed": ban.deed,
            "of_round": ban.round,
            "proof": "bytes" if by_bytes else "votes",
            "text": proofs[0].text if proofs else "a quorum decided it; its evidence is not kept here",
            "recomputed": proofs[0].recomputed if proofs else None,
            "files": [str(proof.path) for proof in proofs],
        }


def audit_ledger(path: Path) -> LedgerAudit:
    """Verify a peer's run directory. Raises InvalidRecord, CorruptFile, DamagedCheckpoint or StorageError."""
    record, verifier = Record.open(path), Verifier()
    try:
        check_genesis(record.genesis, record.signatures, verifier)
        audit = LedgerAudit(record, LedgerState.start(record.genesis, record.charter))
    except RemoteProtocolError as error:
        raise InvalidRecord(f"{path / GENESIS}: {error}") from None
    _check_contract(record)
    _check_start(record)
    for stored in record.rounds():
        try:
            check_certificate(stored.block, stored.certificate, audit.state, verifier)
            audit.state = audit.state.advance(stored.block)
        except RemoteProtocolError as error:
            raise CorruptLedger(path / LEDGER, stored.height, 0, str(error)) from None
        audit.signatures += len(stored.certificate)
        audit.blocks.append(stored.block)
    audit.proofs = [check_file(file, record) for file in EvidenceStore(path / "evidence").paths()]
    _check_bans(audit)
    for folder in checkpoint_paths(path / "checkpoints"):
        _check_checkpoint(folder, audit)
    return audit


def _check_contract(record: Record) -> None:
    """The config.yaml beside the ledger is of the contract that the founders signed."""
    file = record.path / "config.yaml"
    if not file.exists():
        return
    contract = load(file).contract_bytes()
    if contract != record.genesis.contract:
        difference = contract_difference(contract, record.genesis.contract)
        raise InvalidRecord(f"{file}: is not the contract in the genesis: {difference}")


def _check_start(record: Record) -> None:
    """x[0] beside the ledger is what the founders signed, where it is not built from the contract's seed."""
    state, named = InitialState(record.path).read(), record.config.start_fingerprint
    if state is None or named is None:
        return
    if (cut(state).digest,) != record.genesis.state or State.from_bytes(state).digest().hex() != named:
        raise InvalidRecord(f"{record.path / INITIAL}: is not the state that the founders signed to start from")


def _check_bans(audit: LedgerAudit) -> None:
    """Votes in evidence come from a quorum that held seats, and the judged Commit is one that the block lists."""
    rosters = {block.round: state.roster for block, state in _states(audit)}
    for block, ban in audit.bans:
        roster = rosters[block.round]
        for proof in audit.proofs_of(ban.peer, ban):
            count = len(proof.voters.intersection(roster.members))
            if proof.proof == "votes" and count < roster.quorum:
                raise InvalidRecord(
                    f"{proof.path}: holds the votes of {count} members, {roster.quorum} decided the ban"
                )


def _states(audit: LedgerAudit) -> list[tuple[Block, LedgerState]]:
    """Every block with the state before it."""
    state = LedgerState.start(audit.record.genesis, audit.record.charter)
    pairs = []
    for block in audit.blocks:
        pairs.append((block, state))
        state = state.advance(block)
    return pairs


def _check_checkpoint(folder: Path, audit: LedgerAudit) -> None:
    """A checkpoint holds the state that a block of this ledger certifies, or names the last block before it.

    The last one of a run is of the second kind: what this peer ended with, which nobody else has signed unless the last
    rounds were swept.
    """
    checkpoint = load_checkpoint(folder)
    round = checkpoint.round
    blocks = {block.round: block for block in audit.blocks}
    certifying = next((b for b in audit.blocks if b.state and b.state[0].round == round), None)
    named = certifying or blocks.get(round - 1)
    if named is None or encode(named) != checkpoint.block:
        raise InvalidRecord(f"{folder / 'block'}: is no block of the ledger about round {round}")
    if certifying is None:
        last = [state.digest for state in named.state if named.void and state.round == named.round]
        listed = audit.checkpoints if cut(checkpoint.state).digest in last else audit.uncertified_checkpoints
        listed.append(round)  # a void block changes no state: what it certifies is what it leaves
        return
    if certifying.state[0].digest != cut(checkpoint.state).digest:
        raise InvalidRecord(f"{folder}: holds another state than the one that block {certifying.round} certifies")
    audit.checkpoints.append(round)
