"""x[0]: built from the contract's seed, read from a file, left by a parent run, kept here from before; or the members
give it, to who joins without having it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from btrain.config import RunConfig
from btrain.errors import ConfigError, ContractError
from btrain.peer.initial import InitialState
from btrain.protocol.encoding import digest, sha256
from btrain.protocol.ledger import Genesis
from btrain.protocol.seats import PROBE_TOLERANCE
from btrain.training import GradientOracle, StateError, Trainer

PROBE_SEED = sha256(b"btrain/probe/v1")


@dataclass(frozen=True)
class Start:
    """What this peer knows of x[0], nothing if the members will give it.

    x0: digest of the parameters. state: that of the state, where no seed gives it. probe_norm: of one gradient, the
    same on every machine. probe_ms: how long this one took for it.
    """

    x0: bytes | None = None
    state: tuple[bytes, ...] = ()
    probe_norm: float = 0.0
    probe_ms: int = 0


@dataclass
class Origin:
    """Brings one peer's trainer to x[0]; `prepared`: it is there, by a file or a parent run, where no seed gives it."""

    config: RunConfig
    trainer: Trainer
    oracle: GradientOracle | None
    initial: InitialState
    prepared: bool = False

    def begin(self, *, founded: bool) -> Start:
        """Bring the parameters to x[0] and keep it in the run directory, unless the members have to give it.

        Raises:
            ConfigError: what is here does not fit the model.
            ContractError: it is not what the contract names.
        """
        if self.config.start_fingerprint is not None:
            known = self.initial.intact(self.config.start_fingerprint) if founded else None
            if known is not None:
                load_start(self.trainer, self.oracle, known)
            elif not self.prepared:
                return Start()
            self._check()
        state = self.trainer.state_bytes()
        self.initial.keep(state)
        served = () if self.config.start_fingerprint is None else (self.initial.serve(state),)
        return Start(digest(self.trainer.parameters().numpy().tobytes()), served, *self._probe())

    def given(self, state: bytes, genesis: Genesis) -> None:
        """The members have given x[0], the state that the genesis names; the trainer has taken it over already.

        Raises:
            ContractError: it is not what the contract names, or gradients at it are not what the founders get.
        """
        self._check()
        if self.oracle is not None:
            self.oracle.start_from(self.trainer.model)
            if not math.isclose(self._probe()[0], genesis.probe_norm, rel_tol=PROBE_TOLERANCE):
                raise ContractError(
                    "a gradient of the same samples differs from the founders': another version of the data, the "
                    "model or the task?"
                )
        self.initial.keep(state)
        self.initial.serve(state)

    def event(self, start: Start) -> dict[str, Any]:
        """What the event log says of a run that no seed begins."""
        fields = {"event": "origin", "here": start.x0 is not None, "fingerprint": self.config.start_fingerprint}
        parent = self.config.fork_from
        if parent is None:
            return fields | {"parent": None, "block": None, "banned": []}
        return fields | {"parent": parent.run, "block": parent.round, "banned": list(parent.banned)}

    def _check(self) -> None:
        found, named = self.trainer.state_digest().hex(), self.config.start_fingerprint
        if found != named:
            raise ContractError(f"the state to start from is {found}, and the contract's fingerprint says {named}")

    def _probe(self) -> tuple[float, int]:
        """The norm of one gradient, the same on every machine, and how many milliseconds this one takes for it."""
        if self.oracle is None:
            return 0.0, 0
        begin = time.perf_counter()
        norm = float(self.oracle.gradient(self.trainer.parameters(), PROBE_SEED).norm())
        return norm, max(1, round(1000 * (time.perf_counter() - begin)))


def load_start(trainer: Trainer, oracle: GradientOracle | None, state: bytes) -> None:
    """Take over a state as x[0]. Raises ConfigError if it is none of this model and optimizer."""
    try:
        trainer.load_state(state)
    except StateError as error:
        raise ConfigError(f"the state to start from does not fit the model and optimizer: {error}") from None
    if oracle is not None:
        oracle.start_from(trainer.model)
