"""A whole run directory, of a peer or of a swarm: every ledger in it, and that they are one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from btrain.errors import BtrainError, ConfigError
from btrain.identity import short_id
from btrain.verify.evidence import check_file, record_around
from btrain.verify.ledger import LedgerAudit, audit_ledger
from btrain.verify.parent import check_parent
from btrain.verify.reading import GENESIS


def audit_run(path: Path) -> dict[str, Any]:
    """Verify everything under `path`; `ok` is false and `faults` names every place where something does not hold.

    Raises ConfigError if there is no run to verify.
    """
    folders = [path] if (path / GENESIS).exists() else sorted(
        (folder.parent for folder in path.glob(f"*/{GENESIS}")), key=_natural
    )  # fmt: skip
    if not folders:
        raise ConfigError(f"{path}: holds no run: no {GENESIS} in it or in a folder of it")
    audits: list[LedgerAudit] = []
    faults: list[str] = []
    ledgers = []
    for folder in folders:
        try:
            audit = audit_ledger(folder)
            audits.append(audit)
            ledgers.append(audit.document() | {"parent": check_parent(audit)})
        except BtrainError as error:
            faults.append(str(error))
    faults += _forks(audits)
    return {"run_dir": str(path), "ok": not faults, "faults": faults, "ledgers": ledgers}


def _natural(path: Path) -> tuple[int, str]:
    """peer-2 before peer-10."""
    return len(path.name), path.name


def _forks(audits: Sequence[LedgerAudit]) -> list[str]:
    """Ledgers of one run must hold the same blocks as far as both go."""
    faults = []
    for audit in audits[1:]:
        first = audits[0]
        if audit.state.run != first.state.run:
            faults.append(f"{audit.record.path}: belongs to another run than {first.record.path}")
            continue
        for ours, theirs in zip(first.blocks, audit.blocks, strict=False):
            if ours.hash != theirs.hash:
                place = f"{audit.record.path} and {first.record.path}"
                faults.append(f"{place}: hold different blocks {ours.round}, both certified: a fork")
                break
    return faults


def audit_text(document: Mapping[str, Any]) -> str:
    """An audit in words."""
    ledgers = document["ledgers"]
    lines = []
    if ledgers:
        longest = max(ledgers, key=lambda ledger: ledger["blocks"])
        lines += _ledger_lines(longest, len(ledgers))
    lines += [f"FAULT {fault}" for fault in document["faults"]]
    lines.append("everything verifies" if document["ok"] else f"{len(document['faults'])} faults found")
    return "\n".join(lines)


def _ledger_lines(ledger: Mapping[str, Any], ledgers: int) -> list[str]:
    proven, attested = ledger["proven_by_bytes"], ledger["attested_by_a_quorum"]
    same = f"; {ledgers} peers' ledgers compared" if ledgers > 1 else ""
    undone = f", {ledger['rounds_undone']} undone" if ledger["rounds_undone"] else ""
    rounds = f"{ledger['blocks']} blocks, {ledger['rounds_planned']} rounds planned{undone}"
    lines = [
        f"run {ledger['run_id'][:12]}: {rounds}{same}",
        *_parent_lines(ledger["parent"]),
        _counts("proven by the bytes", proven),
        _counts("attested by a quorum", attested),
    ]
    for ban in ledger["bans"]:
        how = "proven by the bytes" if ban["proof"] == "bytes" else "attested by a quorum"
        recomputed = f"; {ban['recomputed']}" if ban["recomputed"] else ""
        lines.append(
            f"banned in round {ban['banned_round']}: {short_id(ban['peer_id'])} for {ban['deed']} in round "
            f"{ban['of_round']}, {how}{recomputed}"
        )
    return lines


def _parent_lines(parent: Mapping[str, Any] | None) -> list[str]:
    if parent is None:
        return []
    how = "verified from its record" if parent["verified"] else "by the founders' word, its record is not here"
    banned = f"{len(parent['banned'])} banned there"
    return [f"goes on from run {parent['run_id'][:12]} at block {parent['round']}, {banned}: {how}"]


def _counts(title: str, counts: Mapping[str, int]) -> str:
    return f"{title}: " + ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())


def verify_evidence_file(path: Path) -> dict[str, Any]:
    """What one evidence file proves. Raises InvalidRecord, CorruptFile, StorageError."""
    return check_file(path, record_around(path)).document()


def evidence_text(document: Mapping[str, Any]) -> str:
    """A proof in words."""
    how = "proven by the bytes alone" if document["proof"] == "bytes" else "attested by votes"
    lines = [
        f"{document['peer_id']}: {document['text']}",
        f"deed {document['deed']}, round {document['round']}, run {document['run_id'][:12]}: {how}",
    ]
    return "\n".join([*lines, *([document["recomputed"]] if document["recomputed"] else [])])
