"""What members sign: one statement per slot, and the bodies of each kind.

A statement names its slot (run, group, prev, round, attempt, kind, index), its sender and `ctx`, the hash of the inputs
it was derived from. Its signature covers a domain tag and the canonical bytes. A received message is verified before it
is read: length, types, bounds, canonical form, signature, run, each with its own error.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import msgspec

from btrain.identity import SigningKey, verify
from btrain.protocol.agreement_messages import Final, Lock, Proposal, Quit, Vote
from btrain.protocol.encoding import MEMBERS_MAX, U16, U32, Hash, PeerId, Record, Signature, decode, digest, encode
from btrain.protocol.errors import ForeignMessage, WrongSignature

DOMAIN = b"btrain/statement/v1\0"
PARTS_MAX = MEMBERS_MAX
LISTED_MAX = 64  # charges, verdicts, admissions in one Commit
TRAINEES_MAX = MEMBERS_MAX // 8  # newcomers on probation at a time
INVITATIONS_MAX = 32
INVITATION_BYTES_MAX = 512
ENVELOPE_BYTES_MAX = 60 * 1024  # a control frame is 64 KiB
ROW_BYTES = 136  # of a Table: a norm and a step, float32, and 64 buckets, int16

Kind = Literal[
    "commit", "missing", "receipt", "result", "reveal", "vote", "quit", "lock", "proposal", "final",
    "accusation", "charge", "join", "leave", "genesis", "table", "dispute", "approval", "trial", "objection",
]  # fmt: skip
Text = Annotated[str, msgspec.Meta(max_length=64)]


class Statement(Record, frozen=True):
    """What is signed. `body` is the canonical encoding of the kind's record."""

    version: Literal[1]
    run: Hash
    group: U16
    prev: Hash
    round: U32
    attempt: U16
    kind: Kind
    index: U32
    sender: Hash
    ctx: Hash
    body: Annotated[bytes, msgspec.Meta(max_length=ENVELOPE_BYTES_MAX)]


class Envelope(Record, frozen=True):
    """A statement's canonical bytes and the Ed25519 signature over `DOMAIN + statement`."""

    statement: Annotated[bytes, msgspec.Meta(max_length=ENVELOPE_BYTES_MAX)]
    signature: Signature


class Charge(Record, frozen=True):
    """'This evidence proves that `accused` did `deed` in `round`.' The key is (accused, round, deed)."""

    accused: Hash
    round: U32
    deed: Text
    evidence: Hash


class Verdict(Record, frozen=True):
    """A member's answer to an accusation: 0 innocent, 1 guilty, 2 unsure, 3 bytes lost.

    The case is (accuser, accused, round).
    """

    accuser: Hash
    accused: Hash
    round: U32
    vote: Literal[0, 1, 2, 3]


class Admission(Record, frozen=True):
    """A peer asks for a seat, or for its own back. `chain_end` stands on its hash chain for round `anchored` - 1."""

    peer: Hash
    chain_end: Hash
    anchored: U32 = 0


class TrialEntry(Record, frozen=True):
    """The Trial of a newcomer on probation, by the hash of its statement."""

    peer: Hash
    hash: Hash


class Judgement(Record, frozen=True):
    """A member's answer to an objection: 1 guilty, 2 another gradient whose bytes are withheld, or near the bound."""

    peer: Hash
    round: U32
    vote: Literal[1, 2]


class Commit(Record, frozen=True):
    """Leaf hashes of every encoded part (none for a validator or one that cannot encode) and the side items."""

    leaves: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=PARTS_MAX)]
    charges: Annotated[tuple[Charge, ...], msgspec.Meta(max_length=LISTED_MAX)]
    verdicts: Annotated[tuple[Verdict, ...], msgspec.Meta(max_length=LISTED_MAX)]
    admissions: Annotated[tuple[Admission, ...], msgspec.Meta(max_length=LISTED_MAX)]
    departures: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=LISTED_MAX)]
    state: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=1)]  # digest of x[t] and the optimizer, when due
    compute_ms: U32
    transfer_ms: U32
    close: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=LISTED_MAX)] = ()  # candidates like the own state
    reproaches: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=LISTED_MAX)] = ()  # who failed in the round before
    trials: Annotated[tuple[TrialEntry, ...], msgspec.Meta(max_length=TRAINEES_MAX)] = ()  # of the round before
    judgements: Annotated[tuple[Judgement, ...], msgspec.Meta(max_length=LISTED_MAX)] = ()


class Missing(Record, frozen=True):
    """'I aggregate `part`, and I have not got it of these workers.' Index 0 asks them to send it through relays.

    Index 1 asks once more, and complains of the first named: without a receipt one of the two stays out of the sum.
    """

    part: U16
    workers: Annotated[tuple[Hash, ...], msgspec.Meta(min_length=1, max_length=MEMBERS_MAX)]


class Receipt(Record, frozen=True):
    """'I hold `part` of `worker`, the bytes of this hash, and serve them to its aggregator.' By a drawn relay."""

    worker: Hash
    part: U16
    leaf: Hash


class Result(Record, frozen=True):
    """A reduced part: the hash of its bytes and the contributors' coefficients (float64 bits), in member order.

    `without`: contributors left out of this part by an aggregator of a later attempt, to which nobody gave their bytes.
    It leaves out one and itself, so that the rest keeps its honest majority; lacking more it leaves out all: zeros.
    """

    part: U16
    hash: Hash
    coefficients: Annotated[tuple[float, ...], msgspec.Meta(max_length=MEMBERS_MAX)]
    without: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=MEMBERS_MAX)] = ()


class Reveal(Record, frozen=True):
    """The link of the sender's hash chain that belongs to this round."""

    link: Hash


class Table(Record, frozen=True):
    """What the aggregator of a part says of every contributor once links are open; see `protocol/tables.py`.

    result: hash of its Result. links: mask of the committed members whose links make up ctx. tau: the clipping radius,
    infinite where nothing is clipped. rows: in member order, empty where the committed bytes are no legal encoding.
    """

    result: Hash
    links: Annotated[bytes, msgspec.Meta(max_length=MEMBERS_MAX // 8)]
    tau: float
    rows: Annotated[
        tuple[Annotated[bytes, msgspec.Meta(max_length=ROW_BYTES)], ...], msgspec.Meta(max_length=MEMBERS_MAX)
    ]


class Dispute(Record, frozen=True):
    """'My row in the Table of this hash is wrong.' index = part, ctx = the Table. It or the Table is proven wrong."""


class Approval(Record, frozen=True):
    """'My rows are right in all Tables.' ctx = digest of the Tables in part order. It saves waiting for disputes."""


class Accusation(Record, frozen=True):
    """'I recomputed the gradient that `accused` committed in `round`, and it is another.' One a round."""

    accused: Hash
    round: U32
    commit: Hash


class Join(Record, frozen=True):
    """Ask for a seat: contract, the digest of x[0], the norm of a probe gradient, and where to be reached.

    `probe_ms`: how long the probe gradient took, 0 if there is none.
    """

    contract: Hash
    chain_end: Hash
    x0: Hash
    probe_norm: float
    addresses: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=256)], ...], msgspec.Meta(max_length=8)]
    probe_ms: U32 = 0
    anchored: U32 = 0  # the chain's link of the round before this one stands in `chain_end`
    ready: bool = False  # the sender has followed the run so far: it could take part in the next round
    invitations: Annotated[
        tuple[Annotated[bytes, msgspec.Meta(max_length=INVITATION_BYTES_MAX)], ...],
        msgspec.Meta(max_length=INVITATIONS_MAX),
    ] = ()


class Objection(Record, frozen=True):
    """'I recomputed the Trial that `peer` handed in in `round`: it is another, or its bytes are withheld.'"""

    peer: Hash
    round: U32
    trial: Hash


class Trial(Record, frozen=True):
    """The gradient of a newcomer on probation: leaf hashes of every encoded part. It counts in no sum."""

    leaves: Annotated[tuple[Hash, ...], msgspec.Meta(min_length=1, max_length=PARTS_MAX)]


class Leave(Record, frozen=True):
    """The sender gives its seat up in order."""


class GenesisSignature(Record, frozen=True):
    """A founder's consent to the genesis with this hash."""

    genesis: Hash


Body = (
    Commit | Missing | Receipt | Result | Reveal | Vote | Quit | Lock | Proposal | Final
    | Accusation | Charge | Join | Leave | GenesisSignature | Table | Dispute | Approval | Trial | Objection
)  # fmt: skip

BODIES: dict[str, type[msgspec.Struct]] = {
    "commit": Commit,
    "missing": Missing,
    "receipt": Receipt,
    "result": Result,
    "reveal": Reveal,
    "vote": Vote,
    "quit": Quit,
    "lock": Lock,
    "proposal": Proposal,
    "final": Final,
    "accusation": Accusation,
    "charge": Charge,
    "join": Join,
    "leave": Leave,
    "genesis": GenesisSignature,
    "table": Table,
    "dispute": Dispute,
    "approval": Approval,
    "trial": Trial,
    "objection": Objection,
}


@dataclass(frozen=True)
class Message:
    """A verified envelope with its statement and body decoded."""

    data: bytes  # the envelope's canonical bytes: what is stored and handed on
    statement: Statement
    body: Body

    @cached_property
    def sender(self) -> PeerId:
        """The signer."""
        return self.statement.sender

    @cached_property
    def hash(self) -> bytes:
        """Hash of the statement: equal for equal bodies, whatever the signature bytes."""
        return digest(encode(self.statement))

    @cached_property
    def slot(self) -> bytes:
        """Key of the slot. Results of different ctx are not compared: who saw another decision is no liar."""
        return slot_key(self.statement)


def slot_key(statement: Statement) -> bytes:
    """Canonical key of a statement's slot and sender; two bodies under one key are equivocation."""
    s = statement
    scope = s.ctx if s.kind == "result" else b""
    return msgspec.msgpack.encode((s.run, s.group, s.prev, s.round, s.attempt, s.kind, s.index, s.sender, scope))


class Verifier:
    """Checks signatures and remembers the envelopes that passed, so that a handed-on message costs one check.

    `check` takes (public key, message, signature); only simulations have another than Ed25519.
    """

    def __init__(
        self,
        cached_max: int = 20_000,
        cached_bytes_max: int = 64 * 2**20,
        check: Callable[[PeerId, bytes, bytes], bool] = verify,
    ) -> None:
        self.check = check
        self._passed: OrderedDict[bytes, Message] = OrderedDict()
        self._cached_max, self._cached_bytes_max = cached_max, cached_bytes_max
        self._cached_bytes = 0

    def open(self, data: bytes, run: bytes, group: int = 0) -> Message:
        """Parse and verify one envelope.

        Raises:
            OversizedMessage, MalformedMessage, NonCanonicalMessage, WrongSignature, ForeignMessage
        """
        known = self._passed.get(data)
        if known is None:
            known = _open(data, self.check)
            self._passed[data] = known
            self._cached_bytes += len(data)
            while len(self._passed) > self._cached_max or self._cached_bytes > self._cached_bytes_max:
                self._cached_bytes -= len(self._passed.popitem(last=False)[1].data)
        statement = known.statement
        if statement.run != run or statement.group != group:
            raise ForeignMessage(f"{known.statement.kind} of run {known.statement.run.hex()[:12]}")
        return known


def _open(data: bytes, check: Callable[[PeerId, bytes, bytes], bool]) -> Message:
    envelope = decode(Envelope, data, ENVELOPE_BYTES_MAX)
    statement = decode(Statement, envelope.statement, ENVELOPE_BYTES_MAX)
    if not check(statement.sender, DOMAIN + envelope.statement, envelope.signature):
        raise WrongSignature(f"{statement.kind} of round {statement.round}")
    body = decode(BODIES[statement.kind], statement.body, ENVELOPE_BYTES_MAX)
    return Message(data, statement, body)  # type: ignore[arg-type]  # BODIES holds exactly the members of Body


def sign(key: SigningKey, statement: Statement) -> Message:
    """Sign a statement; the caller has made sure that its slot is still unsigned."""
    data = encode(statement)
    signature = key.sign(DOMAIN + data)
    body = decode(BODIES[statement.kind], statement.body, ENVELOPE_BYTES_MAX)
    return Message(encode(Envelope(data, signature)), statement, body)  # type: ignore[arg-type]


Opener = Callable[[bytes], Message]
