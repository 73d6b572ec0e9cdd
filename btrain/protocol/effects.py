"""What the protocol asks its shell to do, in order. Persisting effects are durable before a later Send leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from btrain.protocol.encoding import PeerId


@dataclass(frozen=True, slots=True)
class Send:
    """Send a control packet to one peer, or to every connected member, at once or after a delay."""

    packet: bytes
    to: PeerId | None = None
    delay_us: int = 0


@dataclass(frozen=True, slots=True)
class PersistSigned:
    """Remember what was signed in this slot; fsynced before it is sent."""

    slot: bytes
    round: int
    envelope: bytes


@dataclass(frozen=True, slots=True)
class Journal:
    """Append to the open round's journal; fsynced before the following effects."""

    kind: str
    round: int
    data: bytes


@dataclass(frozen=True, slots=True)
class PutBlob:
    """Keep these bytes for the custody period of `round`; durable before a later Send leaves."""

    hash: bytes
    data: bytes
    round: int


@dataclass(frozen=True, slots=True)
class PushBlob:
    """Send a kept blob to a peer that waits for it."""

    to: PeerId
    hash: bytes


@dataclass(frozen=True, slots=True)
class FetchBlob:
    """Get a blob from the own store or from one of the peers, in this order; the answer is `blob` or `blob_missing`."""

    hash: bytes
    sources: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Call `timer(name)` at this time; a timer of the same name is replaced."""

    name: str
    at_us: int


@dataclass(frozen=True, slots=True)
class CancelTimer:
    """Forget a timer."""

    name: str


@dataclass(frozen=True, slots=True)
class Compute:
    """Compute this peer's gradient at x[round]; the answer is `computed`."""

    round: int
    batch_seed: bytes


@dataclass(frozen=True, slots=True)
class Recompute:
    """Recompute somebody's gradient at the kept x[round]; the answer is `recomputed` (None when x is gone)."""

    token: str
    round: int
    batch_seed: bytes


@dataclass(frozen=True, slots=True)
class Work:
    """Run a pure job off the protocol's thread; the answer is `work_done`.

    A job that other members do alike is a `functools.partial` of hashable arguments, which tell it from others.
    """

    token: str
    job: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class KeepParameters:
    """Keep x of these rounds, besides the latest, until told otherwise: somebody may have to recompute at them."""

    rounds: frozenset[int]


@dataclass(frozen=True, slots=True)
class Apply:
    """Step the optimizer with this update (None: a void round, x[round + 1] = x[round]); the answer is `applied`.

    `digest_due`: the answer carries the state in pieces, for certification.
    """

    round: int
    update: Tensor | None
    step: int
    digest_due: bool


@dataclass(frozen=True, slots=True)
class LoadState:
    """Replace parameters and optimizer state by those at the start of `round`; the answer is `state_loaded`.

    The manifest behind `digest` and all its pieces were put into the own store before. `later_holds`: what x was in
    later rounds is kept, since gradients were rightly computed at it.
    """

    round: int
    digest: bytes
    later_holds: bool = False


@dataclass(frozen=True, slots=True)
class CompareStates:
    """Whether `other` is `own` but for rounding; both are in the own store. The answer is `compared`."""

    own: bytes
    other: bytes
    tolerance: float


@dataclass(frozen=True, slots=True)
class AppendBlock:
    """Append a certified block to the ledger. Blobs of rounds before `keep_from` are needed by nobody any more."""

    round: int
    block: bytes
    certificate: tuple[bytes, ...]
    keep_from: int


@dataclass(frozen=True, slots=True)
class RollBack:
    """The ledger ends before block `round`: another chain stands. The journal of open rounds goes with the blocks."""

    round: int


@dataclass(frozen=True, slots=True)
class StartOver:
    """Return to the parameters that the contract starts from, x[0]; the answer is `state_loaded`."""

    later_holds: bool = False  # as of LoadState


@dataclass(frozen=True, slots=True)
class SaveEvidence:
    """Write an evidence file; the returned hash stands in the ledger."""

    accused: PeerId
    round: int
    deed: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Event:
    """Something to log: a name and plain fields."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Drop:
    """A peer misbehaved on the wire: close its connection and say why."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class Halt:
    """The run cannot or need not go on."""

    reason: str
    done: bool = False


Effect = (
    Send | PersistSigned | Journal | PutBlob | PushBlob | FetchBlob | SetTimer | CancelTimer | Compute | Recompute
    | Work | KeepParameters | Apply | LoadState | StartOver | CompareStates | AppendBlock | RollBack | SaveEvidence
    | Event | Drop | Halt
)  # fmt: skip
