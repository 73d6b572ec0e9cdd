"""Going on from another run: its record verified offline, who was banned in it, the state to start from.

The child's run directory keeps a copy of the parent's record in its folder `parent`, so that its bans stay provable.
"""

from __future__ import annotations

import logging
import re
import shutil
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from btrain.checkpoint import checkpoint_paths, load_checkpoint
from btrain.config import Parent, RunConfig, load
from btrain.errors import ConfigError, ContractError
from btrain.identity import peer_id_text
from btrain.peer.initial import InitialState
from btrain.protocol.ledger import CertifiedState, LedgerState
from btrain.protocol.pieces import assemble, cut
from btrain.storage.blob_store import BlobStore, CorruptBlob
from btrain.storage.durable import storage_error
from btrain.storage.run_directory import PARENT, RunDirectory, run_was_founded
from btrain.training import State
from btrain.verify.ledger import LedgerAudit, audit_ledger
from btrain.verify.reading import GENESIS, LEDGER, InvalidRecord

logger = logging.getLogger(__name__)

_NAMED = re.compile(r"(?P<path>.+?)(?::(?P<round>\d{1,10}))?")
_RECORD = (GENESIS, LEDGER, "config.yaml")


@dataclass(frozen=True)
class Fork:
    """Where a new run leaves its parent. `state` is x[0]: a state that the parent certified, its steps counted anew."""

    path: Path
    parent: Parent
    state: bytes = field(repr=False)

    def keep_record(self, run_dir: Path) -> None:
        """Copy the parent's genesis, ledger and evidence into a run directory that has no run yet."""
        target = run_dir / PARENT
        try:
            if target.exists():
                shutil.rmtree(target)
            _copy_record(self.path, target)
        except OSError as error:
            raise storage_error(target, "be written", error) from error


def read_fork(named: str) -> Fork:
    """Verify the run in RUN_DIR as `btrain audit` does; `named` is RUN_DIR or RUN_DIR:ROUND, a block of it.

    Raises:
        ConfigError: there is no run, no such block, or no state here that was certified by then.
        VerificationError: the run's record does not verify.
    """
    path, round = _place(named)
    if not (path / GENESIS).exists():
        raise ConfigError(f"--fork-from {named}: {path} holds no run; name the run directory of one peer")
    audit = audit_ledger(path)
    check_parent(audit)
    if not audit.blocks:
        raise ConfigError(f"--fork-from {named}: the run has no block yet")
    if round is None:
        round = len(audit.blocks) - 1
    if round >= len(audit.blocks):
        raise ConfigError(f"--fork-from {named}: the ledger ends with block {len(audit.blocks) - 1}")
    after, _ = _left_at(audit, round)
    if after.state is None:
        raise ConfigError(
            f"--fork-from {named}: no state is certified up to block {round}; the run certified one every "
            f"{after.charter.state_sync_every} rounds"
        )
    kept = _kept_state(path, after.state)
    if kept is None:
        raise ConfigError(_not_kept(named, audit, after.state.round))
    state = State.from_bytes(kept)
    begun = State(0, state.tensors, state.scalars)
    return Fork(path, _parent(audit, after, begun.digest().hex()), begun.to_bytes())


def _place(named: str) -> tuple[Path, int | None]:
    """RUN_DIR and ROUND of RUN_DIR or RUN_DIR:ROUND."""
    match = _NAMED.fullmatch(named)
    assert match is not None, "the configuration has checked it"
    return Path(match["path"]), None if match["round"] is None else int(match["round"])


def going_on(config: RunConfig, named: str, run_dir: Path) -> tuple[RunConfig, Fork | None]:
    """The configuration with the run named that it goes on from, and that run's record. Once the new run is founded its
    directory says the first, and the second is not looked at again.

    Raises:
        ContractError: the directory is of a run that goes on from none, or from another block.
        ConfigError, VerificationError: as `read_fork`, or the configuration names another parent.
    """
    if not run_was_founded(run_dir):
        fork = read_fork(named)
        return config.with_parent(fork.parent), fork
    before = load(RunDirectory.config_path(run_dir)).fork_from
    if before is None:
        raise ContractError(f"{run_dir}: its run goes on from no other; name another --run-dir for the new run")
    round = _place(named)[1]
    if round not in (None, before.round):
        raise ContractError(f"{run_dir}: its run goes on from block {before.round} and not {round} of its parent")
    return config.with_parent(before), None


def check_parent(audit: LedgerAudit) -> dict[str, Any] | None:
    """What a run says of its parent, held against the parent's record where that lies beside it; None if it has none.

    Raises InvalidRecord, CorruptFile, DamagedCheckpoint, StorageError.
    """
    named, path = audit.record.config.fork_from, audit.record.path
    if named is None:
        return None
    document = {"run_id": named.run, "round": named.round, "block": named.block, "banned": sorted(named.banned)}
    if not (path / PARENT).exists():
        return document | {"verified": False}
    parent = audit_ledger(path / PARENT)
    check_parent(parent)
    if len(parent.blocks) <= named.round:
        raise InvalidRecord(f"{path / PARENT}: ends before block {named.round}, from which the run goes on")
    after, step = _left_at(parent, named.round)
    found = _parent(parent, after, named.fingerprint)
    for what in Parent.model_fields:
        if getattr(named, what) != getattr(found, what):
            raise InvalidRecord(f"{path / PARENT}: {what} is not what the genesis says of the parent run")
    _check_inherited(path, after.state, step)
    return document | {"verified": True}


def _check_inherited(path: Path, certified: CertifiedState | None, step: int) -> None:
    """x[0] is the parent's certified state but for the count of its steps, which was `step`."""
    initial = InitialState(path).read()
    if initial is None:
        return
    state = State.from_bytes(initial)
    before = State(step, state.tensors, state.scalars).to_bytes()
    if certified is None or cut(before).digest != certified.digest:
        raise InvalidRecord(f"{path}: the run does not start from the state that its parent certified last")


def _left_at(audit: LedgerAudit, round: int) -> tuple[LedgerState, int]:
    """The state after a block, and how many steps its newest certified state had taken."""
    state = LedgerState.start(audit.record.genesis, audit.record.charter)
    steps = {}
    for block in audit.blocks[: round + 1]:
        steps[state.round] = state.step
        state = state.advance(block)
    steps[state.round] = state.step
    return state, 0 if state.state is None else steps[state.state.round]


def _parent(audit: LedgerAudit, after: LedgerState, fingerprint: str) -> Parent:
    """The parent as of a block, as a child's contract names it."""
    banned = tuple(sorted(map(peer_id_text, after.roster.banned)))
    return Parent(
        run=after.run.hex(), round=after.round - 1, block=after.head.hex(), fingerprint=fingerprint, banned=banned
    )


def _kept_state(path: Path, certified: CertifiedState) -> bytes | None:
    """The bytes of a certified state, from custody or a checkpoint."""
    with closing(BlobStore.read(path / "custody")) as custody:
        try:
            kept = assemble(certified.digest, custody.get)
        except CorruptBlob as damage:  # a checkpoint may hold it as well
            logger.warning("%s", damage)
            kept = None
    if kept is not None:
        return kept
    for folder in checkpoint_paths(path / "checkpoints"):
        if folder.name == f"round-{certified.round:08d}":
            state = load_checkpoint(folder).state
            return state if cut(state).digest == certified.digest else None
    return None


def _not_kept(named: str, audit: LedgerAudit, round: int) -> str:
    kept = set(audit.checkpoints)
    blocks = [str(block.round) for block in audit.blocks if block.state and block.state[0].round in kept]
    others = f"; with :ROUND name one of the blocks {', '.join(blocks)}" if blocks else ""
    return f"--fork-from {named}: the newest state certified by then, of round {round}, is not kept there{others}"


def _copy_record(source: Path, target: Path) -> None:
    target.mkdir()
    for name in _RECORD:
        if (source / name).exists():
            shutil.copy2(source / name, target / name)
    if (source / "evidence").exists():
        shutil.copytree(source / "evidence", target / "evidence")
    if (source / PARENT).exists():
        _copy_record(source / PARENT, target / PARENT)
