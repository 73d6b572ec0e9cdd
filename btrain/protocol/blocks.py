"""The records of a ledger: the genesis, and blocks with everything that a round decided."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from btrain.protocol.encoding import MEMBERS_MAX, U8, U16, U32, U64, Hash, Record, decode, digest, encode
from btrain.protocol.messages import PARTS_MAX, TRAINEES_MAX, Admission, Charge, Judgement, Text, TrialEntry, Verdict

BLOCK_BYTES_MAX = 4 * 2**20
GENESIS_BYTES_MAX = 60 * 1024

Members = Annotated[tuple[Hash, ...], msgspec.Meta(max_length=MEMBERS_MAX)]
Listed = msgspec.Meta(max_length=MEMBERS_MAX * MEMBERS_MAX)


class Founder(Record, frozen=True):
    """A founding member and the published end of its hash chain."""

    peer: Hash
    chain_end: Hash


class Genesis(Record, frozen=True):
    """What all founders sign: the contract, who they are, and the model they start from. Its hash is the run's id.

    `compute_ms`: the slowest founder's probe gradient, from which the first deadlines follow; 0 if there is none.
    `state`: the digest of the state at x[0], by which members give it to newcomers, where it is not built from a seed.
    """

    version: Literal[1]
    contract: Annotated[bytes, msgspec.Meta(max_length=32 * 1024)]
    nonce: Hash
    numel: U64
    x0: Hash
    probe_norm: float
    founders: Annotated[tuple[Founder, ...], msgspec.Meta(min_length=1, max_length=MEMBERS_MAX)]
    compute_ms: U32 = 0
    state: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=1)] = ()

    @property
    def run(self) -> bytes:
        """The run's id."""
        return digest(encode(self))


class CommitEntry(Record, frozen=True):
    """A Commit that the members agreed on, by the hash of its statement."""

    peer: Hash
    hash: Hash


class ResultEntry(Record, frozen=True):
    """The agreed bytes of a reduced part and who reduced them."""

    part: U16
    attempt: U16
    aggregator: Hash
    hash: Hash


class TableEntry(Record, frozen=True):
    """The agreed Table of a part, by the hash of its statement. verdict: 0 sound, 1 doubtful, 2 unsound."""

    part: U16
    verdict: U8
    hash: Hash


class DisputeEntry(Record, frozen=True):
    """`peer` says that its row in the Table of `part` is wrong."""

    part: U16
    peer: Hash


class LinkEntry(Record, frozen=True):
    """An opened link."""

    peer: Hash
    link: Hash


class Complaint(Record, frozen=True):
    """`aggregator` lacked the part of `worker`."""

    aggregator: Hash
    worker: Hash


class ListedCharge(Record, frozen=True):
    """Who listed which charge in its Commit."""

    member: Hash
    charge: Charge


class ListedVerdict(Record, frozen=True):
    """Who voted how on which accusation in its Commit."""

    member: Hash
    verdict: Verdict


class Reproach(Record, frozen=True):
    """`member` saw `of` failing in the round before: late, or with a part or a result that did not come."""

    member: Hash
    of: Hash


class ListedJudgement(Record, frozen=True):
    """Who said in its Commit that a trainee's work is not clean."""

    member: Hash
    judgement: Judgement


class Ban(Record, frozen=True):
    """A member proven guilty of `deed` in `round`; the hashes of the evidence that members listed."""

    peer: Hash
    deed: Text
    round: U32
    evidence: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=MEMBERS_MAX)]


class CertifiedState(Record, frozen=True):
    """Parameters and optimizer state at the start of `round`, by the digest that a quorum holds or found close."""

    round: U32
    digest: Hash


class Block(Record, frozen=True):
    """Everything that a round decided. Its hash excludes the certificate."""

    version: Literal[1]
    run: Hash
    group: U16
    round: U32
    prev: Hash
    commits: Annotated[tuple[CommitEntry, ...], msgspec.Meta(max_length=MEMBERS_MAX)]
    missing: Annotated[tuple[Complaint, ...], msgspec.Meta(max_length=MEMBERS_MAX)]
    contributors: Members
    void: U8  # 0 no, 1 no contributors, 2 no results
    results: Annotated[tuple[ResultEntry, ...], msgspec.Meta(max_length=PARTS_MAX)]
    links: Annotated[tuple[LinkEntry, ...], msgspec.Meta(max_length=MEMBERS_MAX)]
    randomness: Hash
    charges: Annotated[tuple[ListedCharge, ...], Listed]
    verdicts: Annotated[tuple[ListedVerdict, ...], Listed]
    bans: Annotated[tuple[Ban, ...], msgspec.Meta(max_length=MEMBERS_MAX)]
    admissions: Annotated[tuple[Admission, ...], msgspec.Meta(max_length=MEMBERS_MAX)]
    departures: Members
    absences: Members
    step: U32  # optimizer steps after this block
    state: Annotated[tuple[CertifiedState, ...], msgspec.Meta(max_length=1)]
    compute_ms: U32  # median of what the members reported, 0 before there is a history
    transfer_ms: U32
    candidates: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=MEMBERS_MAX)] = ()  # states that differ, as drawn
    reproaches: Annotated[tuple[Reproach, ...], Listed] = ()
    trainees: Annotated[tuple[Admission, ...], msgspec.Meta(max_length=TRAINEES_MAX)] = ()  # newly on probation
    trials: Annotated[tuple[TrialEntry, ...], msgspec.Meta(max_length=TRAINEES_MAX)] = ()  # of the round before
    judgements: Annotated[tuple[ListedJudgement, ...], Listed] = ()
    dismissed: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=TRAINEES_MAX)] = ()  # trainees whose trial failed
    tables: Annotated[tuple[TableEntry, ...], msgspec.Meta(max_length=PARTS_MAX)] = ()
    disputes: Annotated[tuple[DisputeEntry, ...], Listed] = ()

    @property
    def void_parts(self) -> tuple[int, ...]:
        """Parts whose slice of the update is zero: without a sound and undisputed Table."""
        sound = {entry.part for entry in self.tables if entry.verdict == 0}
        disputed = {entry.part for entry in self.disputes}
        return tuple(entry.part for entry in self.results if entry.part not in sound or entry.part in disputed)

    @property
    def hash(self) -> bytes:
        """The block's id."""
        return digest(encode(self))


def open_block(data: bytes) -> Block:
    """Decode a block's bytes."""
    return decode(Block, data, BLOCK_BYTES_MAX)


def open_genesis(data: bytes) -> Genesis:
    """Decode a genesis' bytes."""
    return decode(Genesis, data, GENESIS_BYTES_MAX)
