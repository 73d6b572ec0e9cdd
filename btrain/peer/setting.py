"""Everything that a peer's protocol thread needs to know, and what it finds in the run directory when it begins."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from btrain.config import RunConfig
from btrain.errors import ContractError
from btrain.identity import SigningKey
from btrain.peer.learning import Learning
from btrain.peer.origin import Start
from btrain.peer.store import Founded, Store
from btrain.protocol.behaviour import Behaviour
from btrain.protocol.ledger import LedgerState
from btrain.protocol.messages import Verifier


@dataclass(frozen=True)
class Setting:
    """Made by `btrain.Run`."""

    config: RunConfig
    key: SigningKey
    store: Store
    learning: Learning
    behaviour: Behaviour
    start: Start
    numel: int
    listen: str
    announce: tuple[str, ...]
    join: tuple[str, ...]
    invitations: tuple[bytes, ...]
    on_event: Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Beginning:
    """What the run directory holds: nothing yet, or a founded run and its ledger, verified."""

    verifier: Verifier
    salt: bytes  # of this peer's hash chain
    founded: Founded | None
    ledger: LedgerState | None


def begin(setting: Setting) -> Beginning:
    """Read and verify what there is, and bring the parameters to the newest certified state. Before any network is up.

    Raises:
        ContractError: the directory's run starts from other parameters.
        CorruptFile, StorageError: a file is damaged, or a certificate does not hold.
    """
    store, verifier = setting.store, Verifier()
    salt = store.chain_salt(secrets.token_bytes(32))
    known = store.genesis(verifier)
    if known is None:
        return Beginning(verifier, salt, None, None)
    genesis, founded = known
    if genesis.numel != setting.numel or setting.start.x0 not in (None, genesis.x0):
        raise ContractError(
            f"{store.directory.path}: its run starts from other parameters than this model; another version of the "
            "model's code or of torch than when the run began?"
        )
    ledger = store.ledger_state(genesis, verifier)
    certified = store.certified_state(ledger)
    if certified is not None and setting.start.x0 is not None:  # without it x[0] comes first
        setting.learning.restart_at(*certified)
    return Beginning(verifier, salt, founded, ledger)
