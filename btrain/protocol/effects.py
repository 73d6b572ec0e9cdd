"""What the protocol asks its shell to do, in order. Persisting effects are durable before a later Send leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from torch import Tensor

from btrain.protocol.encoding import PeerId


class Send(msgspec.Struct, frozen=True):
    """Send a control packet to one peer, or to every connected member, at once or after a delay."""

    packet: bytes
    to: PeerId | None = None
    delay_us: int = 0


class PersistSigned(msgspec.Struct, frozen=True):
    """Remember what was signed in this slot; fsynced before it is sent."""

    slot: bytes
    round: int
    envelope: bytes


class Journal(msgspec.Struct, frozen=True):
    """Append to the open round's journal; fsynced before the following effects."""

    kind: str
    round: int
    data: bytes


class PutBlob(msgspec.Struct, frozen=True):
    """Keep these bytes for the custody period of `round`; durable before a later Send leaves."""

    hash: bytes
    data: bytes
    round: int


class PushBlob(msgspec.Struct, frozen=True):
    """Send a kept blob to a peer that waits for it."""

    to: PeerId
    hash: bytes


class FetchBlob(msgspec.Struct, frozen=True):
    """Get a blob from the own store or from one of the peers, in this order; the answer is `blob` or `blob_missing`."""

    hash: bytes
    sources: tuple[PeerId, ...]


class SetTimer(msgspec.Struct, frozen=True):
    """Call `timer(name)` at this time; a timer of the same name is replaced."""

    name: str
    at_us: int


class CancelTimer(msgspec.Struct, frozen=True):
    """Forget a timer."""

    name: str


class Compute(msgspec.Struct, frozen=True):
    """Compute this peer's gradient at x[round]; the answer is `computed`."""

    round: int
    batch_seed: bytes


class Recompute(msgspec.Struct, frozen=True):
    """Recompute somebody's gradient at the kept x[round]; the answer is `recomputed` (None when x is gone)."""

    token: str
    round: int
    batch_seed: bytes


class Work(msgspec.Struct, frozen=True):
    """Run a pure job off the protocol's thread; the answer is `work_done`.

    A job that other members do alike is a `functools.partial` of hashable arguments, which tell it from others.
    """

    token: str
    job: Callable[[], Any]


class KeepParameters(msgspec.Struct, frozen=True):
    """Keep x of these rounds, besides the latest, until told otherwise: somebody may have to recompute at them."""

    rounds: frozenset[int]


class Apply(msgspec.Struct, frozen=True):
    """Step the optimizer with this update (None: a void round, x[round + 1] = x[round]); the answer is `applied`.

    `digest_due`: the answer carries the state in pieces, for certification.
    """

    round: int
    update: Tensor | None
    step: int
    digest_due: bool


class LoadState(msgspec.Struct, frozen=True):
    """Replace parameters and optimizer state by those at the start of `round`; the answer is `state_loaded`.

    The manifest behind `digest` and all its pieces were put into the own store before. `later_holds`: what x was in
    later rounds is kept, since gradients were rightly computed at it.
    """

    round: int
    digest: bytes
    later_holds: bool = False


class CompareStates(msgspec.Struct, frozen=True):
    """Whether `other` is `own` but for rounding; both are in the own store. The answer is `compared`."""

    own: bytes
    other: bytes
    tolerance: float


class AppendBlock(msgspec.Struct, frozen=True):
    """Append a certified block to the ledger. Blobs of rounds before `keep_from` are needed by nobody any more."""

    round: int
    block: bytes
    certificate: tuple[bytes, ...]
    keep_from: int


class RollBack(msgspec.Struct, frozen=True):
    """The ledger ends before block `round`: another chain stands. The journal of open rounds goes with the blocks."""

    round: int


class StartOver(msgspec.Struct, frozen=True):
    """Return to the parameters that the contract starts from, x[0]; the answer is `state_loaded`."""

    later_holds: bool = False  # as of LoadState


class SaveEvidence(msgspec.Struct, frozen=True):
    """Write an evidence file; the returned hash stands in the ledger."""

    accused: PeerId
    round: int
    deed: str
    data: bytes


class Event(msgspec.Struct, frozen=True):
    """Something to log: a name and plain fields."""

    name: str
    fields: dict[str, Any] = {}


class Drop(msgspec.Struct, frozen=True):
    """A peer misbehaved on the wire: close its connection and say why."""

    peer: PeerId
    reason: str


class Halt(msgspec.Struct, frozen=True):
    """The run cannot or need not go on."""

    reason: str
    done: bool = False


Effect = (
    Send | PersistSigned | Journal | PutBlob | PushBlob | FetchBlob | SetTimer | CancelTimer | Compute | Recompute
    | Work | KeepParameters | Apply | LoadState | StartOver | CompareStates | AppendBlock | RollBack | SaveEvidence
    | Event | Drop | Halt
)  # fmt: skip
