"""The directory of one peer in one run: everything durable, opened together, by one process at a time.

config.yaml        the run's configuration as this peer read it
identity.key       this peer's key, unless it lies elsewhere (see btrain.identity)
run.json           which contract and which identity the directory belongs to
genesis            of the run, once it is founded      chain.salt    of this peer's hash chain in it
signed.log         what was signed, by slot          journal       the open round
ledger             blocks and certificates           evidence/     proofs of misdeeds
ledger.fork-T-N    a chain given up at block T       initial.safetensors   x[0], to return to
parent/            of a run that goes on from another one: genesis, ledger and evidence of that
custody/           parts, results, pieces of states  checkpoints/  safetensors
peers.json         where members were last reached
events.jsonl, metrics.jsonl, status.json             lock          held while a process runs
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from btrain.errors import ConfigError, ContractError, IdentityError
from btrain.identity import LockBusy, ProcessLock, peer_id_text
from btrain.storage.blob_store import BlobStore
from btrain.storage.durable import CorruptFile, StorageError, replace_file, storage_error
from btrain.storage.evidence_store import EvidenceStore
from btrain.storage.journal import Journal
from btrain.storage.ledger_file import LedgerFile, read_ledger
from btrain.storage.signed_log import SignedLog
from btrain.storage.streams import JsonLines, write_status

CUSTODY_BYTES_MAX = 64 * 1024**3
GENESIS, CHAIN_SALT, INITIAL, PARENT = "genesis", "chain.salt", "initial.safetensors", "parent"


class RunDirectoryBusy(ConfigError):
    """Another live process uses the run directory; the message names both."""


class IdentityBusy(IdentityError):
    """A live process runs in the run directory as the very peer that this one is, by a copy of its key."""


class OtherContract(ContractError):
    """The run directory belongs to a run under another contract."""


class OtherIdentity(IdentityError):
    """The run directory belongs to another peer."""


class SignedLogMissing(StorageError):
    """A peer that has run here before finds no record of what it signed."""


class RunBinding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of run.json: contract hash (hex) and peer id (text)."""

    v: int
    contract: str
    identity: str


@dataclass(frozen=True)
class RunListing:
    """What a run directory holds; `binding` is None where no peer has run yet. Rounds and names ascend."""

    binding: RunBinding | None
    blocks: int
    evidence: list[str]
    checkpoints: list[str]
    custody_rounds: list[int]


@dataclass
class RunDirectory:
    """The open directory; a context manager that closes all of it."""

    path: Path
    lock: ProcessLock
    signed: SignedLog
    journal: Journal
    ledger: LedgerFile
    custody: BlobStore
    evidence: EvidenceStore
    events: JsonLines
    metrics: JsonLines

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        contract: bytes,
        identity: bytes,
        custody_bytes_max: int = CUSTODY_BYTES_MAX,
    ) -> Self:
        """Create or open the directory for the contract (its hash) and the identity (public key).

        A directory whose run was never founded may change its contract.

        Raises ConfigError, RunDirectoryBusy, IdentityBusy, OtherContract, OtherIdentity, SignedLogMissing, CorruptFile,
        StorageFull, StorageError.
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path}: is no folder; name another --run-dir")
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / "evidence").mkdir(exist_ok=True)
            (path / "checkpoints").mkdir(exist_ok=True)
            lock = ProcessLock.acquire(path / "lock")
        except LockBusy as busy:
            raise _busy(path, LockBusy.describe(busy.pid), peer_id_text(identity)) from None
        except OSError as error:
            raise storage_error(path, "be opened", error) from error
        with ExitStack() as opened:  # closes what is open already if one of the files does not open
            opened.callback(lock.close)
            _bind(path, RunBinding(1, contract.hex(), peer_id_text(identity)))
            directory = cls(
                path,
                lock,
                opened.enter_context(closing(SignedLog.open(path / "signed.log"))),
                opened.enter_context(closing(Journal.open(path / "journal"))),
                opened.enter_context(closing(LedgerFile.open(path / "ledger"))),
                opened.enter_context(closing(BlobStore.open(path / "custody", custody_bytes_max))),
                EvidenceStore(path / "evidence"),
                opened.enter_context(closing(JsonLines(path / "events.jsonl"))),
                JsonLines(path / "metrics.jsonl"),
            )
            opened.pop_all()
        return directory

    @staticmethod
    def identity_path(path: str | os.PathLike[str]) -> Path:
        """Where the peer's key lies unless another file is named."""
        return Path(path) / "identity.key"

    @staticmethod
    def config_path(path: str | os.PathLike[str]) -> Path:
        """Where the copy of the configuration lies."""
        return Path(path) / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    def save_config(self, text: str) -> None:
        """Keep the configuration beside the run; raises StorageFull, StorageError."""
        replace_file(self.config_path(self.path), text.encode())

    def write_status(self, fields: Mapping[str, Any]) -> None:
        """Replace status.json, which `btrain status` shows; raises StorageFull, StorageError."""
        write_status(self.path / "status.json", fields)

    def close(self) -> None:
        """Close every file, then give up the lock; more than once is harmless."""
        for file in (self.signed, self.journal, self.ledger, self.custody, self.events, self.metrics):
            file.close()
        self.lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _busy(path: Path, holder: str, identity: str) -> RunDirectoryBusy | IdentityBusy:
    known = read_binding(path)
    if known is not None and known.identity == identity:
        return IdentityBusy(
            f"{path}: the identity {identity} is in use by {holder}; stop it, or give this peer another"
        )
    return RunDirectoryBusy(f"{path}: is in use by {holder}; stop it or name another --run-dir")


def run_was_founded(path: Path) -> bool:
    """Whether the directory holds the genesis of a run. Before, its peer has said nothing that binds it."""
    return (path / GENESIS).exists()


def read_binding(path: Path) -> RunBinding | None:
    """Whom the run directory belongs to, None if nobody has run in it; raises CorruptFile, StorageError."""
    file = path / "run.json"
    try:
        return msgspec.json.decode(file.read_bytes(), type=RunBinding)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CorruptFile(file, 0, f"does not name contract and identity: {error}") from None
    except OSError as error:
        raise storage_error(file, "be read", error) from error


def _bind(path: Path, binding: RunBinding) -> None:
    known = read_binding(path)
    if known is not None and known.contract != binding.contract and not run_was_founded(path):
        for name in (CHAIN_SALT, INITIAL):  # a hash chain is for one run, and so is x[0]
            (path / name).unlink(missing_ok=True)
        known = None
    if known is None:
        SignedLog.open(path / "signed.log").close()  # before run.json, which says that it must be there
        replace_file(path / "run.json", msgspec.json.encode(binding) + b"\n")
        return
    if known.contract != binding.contract:
        raise OtherContract(
            f"{path}: belongs to a run under another contract ({known.contract[:12]}, this one is "
            f"{binding.contract[:12]}); compare its config.yaml, or name another --run-dir"
        )
    if known.identity != binding.identity:
        raise OtherIdentity(
            f"{path}: belongs to the peer {known.identity}, this one is {binding.identity}; "
            "give that peer's key with --identity, or name another --run-dir"
        )
    if not (path / "signed.log").exists():
        raise SignedLogMissing(
            f"{path / 'signed.log'}: is missing, so that this peer could sign something twice and be banned for it; "
            "restore it, or start as a new peer in a new --run-dir with a new key"
        )


def list_run(path: str | os.PathLike[str]) -> RunListing:
    """What is in a run directory, read only, also while a peer runs in it; raises CorruptFile, StorageError."""
    path = Path(path)
    if not path.is_dir():
        raise StorageError(f"{path}: is no run directory")
    ledger = path / "ledger"
    return RunListing(
        read_binding(path),
        sum(1 for _ in read_ledger(ledger)) if ledger.exists() else 0,
        [file.name for file in EvidenceStore(path / "evidence").paths()],
        sorted(file.name for file in (path / "checkpoints").glob("[!.]*")),
        sorted(int(file.stem) for file in (path / "custody").glob("*.pack") if file.stem.isdigit()),
    )
