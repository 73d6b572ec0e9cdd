"""Evidence: a bundle of signed statements and bytes that shows a misdeed to anybody who has nothing but the bundle.

The genesis in the bundle hashes to the run's id that every statement names, so sizes and rule are the founders', not
the accuser's. Deeds that only recomputation shows (a wrong gradient, a false accusation) are not among these: their
bundles hold members' votes, and no charge may rest on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import msgspec

from btrain.aggregation import Rule
from btrain.kernels import BLOCK, IllegalEncoding, QuantizedBlocks
from btrain.protocol.contribution import contribution_of, leaf_of
from btrain.protocol.encoding import MEMBERS_MAX, U32, Hash, PeerId, Record, decode, digest, encode
from btrain.protocol.errors import InvalidEvidence, RemoteProtocolError
from btrain.protocol.ledger import Contribution, Genesis, items_digest, open_genesis
from btrain.protocol.messages import PARTS_MAX, Charge, Commit, Dispute, Message, Result, Table, Text, Trial, Verifier
from btrain.protocol.reduction import open_part, reduce_committed
from btrain.protocol.roles import PartLayout
from btrain.protocol.tables import row_of, sketch_seed

EVIDENCE_BYTES_MAX = 2**31 - 1


class Evidence(Record, frozen=True):
    """The file format of an evidence bundle, and what a charge's hash is the hash of."""

    version: Literal[1]
    genesis: Annotated[bytes, msgspec.Meta(max_length=60 * 1024)]
    accused: Hash
    round: U32
    deed: Text
    envelopes: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=4 * MEMBERS_MAX)]
    blobs: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=PARTS_MAX)]


@dataclass(frozen=True)
class Finding:
    """What a bundle shows. `proof`: 'bytes' needs nobody's word; 'votes' is what a quorum attested."""

    accused: PeerId
    round: int
    deed: str
    proof: Literal["bytes", "votes"]
    text: str


RuleOf = Callable[[Genesis], Rule]


def named_deed(data: bytes) -> str:
    """The deed that a bundle names, proven or not; empty if the bytes are no bundle."""
    try:
        return open_evidence(data).deed
    except RemoteProtocolError:
        return ""


def open_evidence(data: bytes) -> Evidence:
    """Decode a bundle."""
    return decode(Evidence, data, EVIDENCE_BYTES_MAX)


def verify_evidence(evidence: Evidence, verifier: Verifier, rule_of: RuleOf) -> Finding:
    """Check a bundle from nothing.

    Raises:
        InvalidEvidence: says which step of the proof fails.
    """
    checks: dict[str, _Check] = {**_CHECKS, "false_charge": partial(_false_charge, Verifier(check=verifier.check))}
    check = checks.get(evidence.deed)
    if check is None:
        raise InvalidEvidence(f"unknown deed {evidence.deed!r}")
    try:
        genesis = open_genesis(evidence.genesis)
        messages = [verifier.open(data, genesis.run) for data in evidence.envelopes]
    except RemoteProtocolError as error:
        raise InvalidEvidence(f"{evidence.deed}: {error.reason}") from error
    if not messages:
        raise InvalidEvidence(f"{evidence.deed}: holds no signed statement")
    first = messages[0]
    if first.sender != evidence.accused or first.statement.round != evidence.round:
        raise InvalidEvidence(f"{evidence.deed}: the first statement is not the accused's of round {evidence.round}")
    proof, text = check(evidence, genesis, messages, rule_of)
    return Finding(evidence.accused, evidence.round, evidence.deed, proof, text)


Proof = tuple[Literal["bytes", "votes"], str]


def _require(holds: bool, text: str) -> None:
    if not holds:
        raise InvalidEvidence(text)


def _equivocation(evidence: Evidence, genesis: Genesis, messages: list[Message], rule_of: RuleOf) -> Proof:
    _require(len(messages) == 2, "equivocation: needs two statements")
    one, other = messages
    _require(one.slot == other.slot, "equivocation: the statements are for different slots")
    _require(one.statement != other.statement, "equivocation: the statements are the same")
    return "bytes", f"signed two different {one.statement.kind} statements for one slot of round {evidence.round}"


def _illegal_encoding(evidence: Evidence, genesis: Genesis, messages: list[Message], rule_of: RuleOf) -> Proof:
    """Commit or Trial by the accused, and the bytes of a part; a hash may stand for parts of different sizes."""
    commit = messages[0]
    _require(isinstance(commit.body, Commit | Trial), "illegal_encoding: needs a Commit")
    assert isinstance(commit.body, Commit | Trial)
    _require(len(evidence.blobs) == 1, "illegal_encoding: needs the bytes of one part")
    blob, leaves = evidence.blobs[0], commit.body.leaves
    layout = _layout(genesis, len(leaves))
    places = [part for part, leaf in enumerate(leaves) if leaf == digest(blob)]
    _require(bool(places), "illegal_encoding: the bytes are not those that were committed")
    for part in places:
        try:
            QuantizedBlocks.from_bytes(blob, layout.part_numel(part))
        except IllegalEncoding as error:
            return "bytes", f"committed to an illegal encoding: {error}"
    raise InvalidEvidence("illegal_encoding: the committed bytes are a legal encoding")


def _layout(genesis: Genesis, parts: int) -> PartLayout:
    """The cut of the gradient into so many parts."""
    _require(1 <= parts <= -(-genesis.numel // BLOCK), f"a gradient of {genesis.numel} values has not {parts} parts")
    return PartLayout(genesis.numel, parts)


def _illegal_result(evidence: Evidence, genesis: Genesis, messages: list[Message], rule_of: RuleOf) -> Proof:
    """Result by the accused, the Commit of anyone (for the number of parts), and the bytes."""
    result = messages[0].body
    _require(isinstance(result, Result), "illegal_result: needs a Result")
    assert isinstance(result, Result)
    (_, items), parts = _decided(messages)
    _require(items_digest("contributors", messages[0].statement.prev, items) == messages[0].statement.ctx,
             "illegal_result: the commits are not those the result names")  # fmt: skip
    _require(len(evidence.blobs) == 1 and digest(evidence.blobs[0]) == result.hash, "illegal_result: other bytes")
    _require(result.part < parts, "illegal_result: there is no such part")
    try:
        QuantizedBlocks.from_bytes(evidence.blobs[0], _layout(genesis, parts).part_numel(result.part))
    except IllegalEncoding as error:
        return "bytes", f"signed a result that is no legal encoding: {error}"
    raise InvalidEvidence("illegal_result: the bytes are a legal encoding")


def _decided(messages: list[Message]) -> tuple[tuple[Contribution, dict[str, bytes]], int]:
    """The contributors' decision that the statements after the first make up, and its number of parts."""
    contribution, items = contribution_of(messages[1:])
    sizes = {len(message.body.leaves) for message in contribution.commits.values()
             if isinstance(message.body, Commit) and message.body.leaves}  # fmt: skip
    _require(len(sizes) == 1, "the commits disagree about the number of parts")
    return (contribution, items), sizes.pop()


def _wrong_reduction(evidence: Evidence, genesis: Genesis, messages: list[Message], rule_of: RuleOf) -> Proof:
    """Result by the accused, then every statement of the contributors' decision, and the part of each contributor."""
    result = messages[0].body
    _require(isinstance(result, Result), "wrong_reduction: needs a Result")
    assert isinstance(result, Result)
    (contribution, items), parts = _decided(messages)
    _require(items_digest("contributors", messages[0].statement.prev, items) == messages[0].statement.ctx,
             "wrong_reduction: the commits are not those the result names")  # fmt: skip
    _require(result.part < parts, "wrong_reduction: there is no such part")
    by_hash = {digest(blob): blob for blob in evidence.blobs}
    inputs: dict[PeerId, bytes] = {}
    for worker in contribution.reduced(result.without):
        commit = contribution.commits[worker].body
        assert isinstance(commit, Commit)
        _require(commit.leaves[result.part] in by_hash, f"wrong_reduction: the part of {worker.hex()[:8]} is missing")
        inputs[worker] = by_hash[commit.leaves[result.part]]
    numel = _layout(genesis, parts).part_numel(result.part)
    right = reduce_committed(inputs, numel, rule_of(genesis))
    wrong = digest(right.data) != result.hash or tuple(right.coefficients) != result.coefficients
    _require(wrong, "wrong_reduction: the result is what the committed parts give")
    return (
        "bytes",
        f"the reduction of part {result.part} in round {evidence.round} is not what the committed parts give",
    )


def _wrong_table(evidence: Evidence, genesis: Genesis, messages: list[Message], rule_of: RuleOf) -> Proof:
    """Table by the accused, its Result, every statement of the contributors' decision; the reduced bytes and the parts
    of contributors: of all of them where the clipping radius is what is wrong.
    """
    table = messages[0].body
    _require(isinstance(table, Table) and len(messages) > 2, "wrong_table: needs a Table, a Result and the Commits")
    assert isinstance(table, Table)
    case = _TableCase.of(evidence, genesis, messages[0], messages[1:])
    if len(table.rows) != len(case.contributors):
        return "bytes", f"signed a Table without a row of every contributor in round {evidence.round}"
    rows = dict(zip(case.contributors, table.rows, strict=True))
    for worker, part in case.parts.items():
        if rows[worker] != case.row(part):
            return "bytes", f"signed a wrong row about {worker.hex()[:8]} in its Table of round {evidence.round}"
    _require(len(case.parts) == len(case.contributors), "wrong_table: the rows are what the committed parts give")
    right = reduce_committed(case.parts, case.numel, rule_of(genesis))
    _require(right.tau != table.tau, "wrong_table: rows and radius are what the committed parts give")
    return "bytes", f"signed a wrong clipping radius in its Table of round {evidence.round}"


def _false_dispute(evidence: Evidence, genesis: Genesis, messages: list[Message], rule_of: RuleOf) -> Proof:
    """Dispute by the accused, the Table it names, its Result, the contributors' decision; both parts' bytes."""
    dispute = messages[0]
    _require(isinstance(dispute.body, Dispute) and len(messages) > 3, "false_dispute: needs a Dispute and its Table")
    table = messages[1].body
    _require(isinstance(table, Table) and messages[1].hash == dispute.statement.ctx, "false_dispute: of another Table")
    assert isinstance(table, Table)
    case = _TableCase.of(evidence, genesis, messages[1], messages[2:])
    _require(messages[1].statement.index == dispute.statement.index, "false_dispute: of another part")
    _require(len(table.rows) == len(case.contributors), "false_dispute: the Table has not a row of each")
    _require(dispute.sender in case.parts, "false_dispute: the accused's part is missing")
    row = table.rows[case.contributors.index(dispute.sender)]
    _require(row == case.row(case.parts[dispute.sender]), "false_dispute: the row is wrong")
    return "bytes", f"disputed a right row in a Table of round {evidence.round}"


@dataclass(frozen=True)
class _TableCase:
    """A Table with what its rows follow from. parts: the bundle's, by contributor."""

    contributors: tuple[PeerId, ...]
    parts: dict[PeerId, bytes]
    numel: int
    reduced: QuantizedBlocks
    seed: bytes

    @classmethod
    def of(cls, evidence: Evidence, genesis: Genesis, table: Message, rest: list[Message]) -> _TableCase:
        """`rest`: the Result and the statements of the contributors' decision."""
        deed, result, body = evidence.deed, rest[0].body, table.body
        _require(isinstance(result, Result) and isinstance(body, Table), f"{deed}: needs a Table and its Result")
        assert isinstance(result, Result) and isinstance(body, Table)
        fits = (body.result, table.sender, table.statement.index) == (rest[0].hash, rest[0].sender, result.part)
        _require(fits, f"{deed}: the Result is not the one that the Table is about")
        (contribution, items), parts = _decided(rest)
        digest_ = items_digest("contributors", rest[0].statement.prev, items)
        _require(digest_ == rest[0].statement.ctx, f"{deed}: the commits are not those the result names")
        _require(result.part < parts, f"{deed}: there is no such part")
        contributors = contribution.reduced(result.without)
        blobs = {digest(blob): blob for blob in evidence.blobs}
        _require(result.hash in blobs, f"{deed}: the reduced bytes are missing")
        numel = _layout(genesis, parts).part_numel(result.part)
        reduced = open_part(blobs[result.hash], numel)
        _require(reduced is not None, f"{deed}: the reduced bytes are no legal encoding")
        assert reduced is not None
        leaves = {worker: leaf_of(contribution.commits[worker], result.part) for worker in contributors}
        given = {worker: blobs[leaf] for worker, leaf in leaves.items() if leaf in blobs}
        return cls(contributors, given, numel, reduced, sketch_seed(table.statement.ctx, result.part))

    def row(self, part: bytes) -> bytes:
        """What the row of these committed bytes is."""
        opened = open_part(part, self.numel)
        return b"" if opened is None else row_of(opened, self.reduced, self.seed)


def _false_charge(
    verifier: Verifier, evidence: Evidence, genesis: Genesis, messages: list[Message], rule_of: RuleOf
) -> Proof:
    charge = messages[0].body
    _require(isinstance(charge, Charge), "false_charge: needs a Charge")
    assert isinstance(charge, Charge)
    _require(len(evidence.blobs) == 1 and digest(evidence.blobs[0]) == charge.evidence, "false_charge: other bytes")
    if named_deed(evidence.blobs[0]) == "false_charge":
        raise InvalidEvidence("false_charge: of a false charge")  # else honest ones could be charged in turn
    try:
        inner = open_evidence(evidence.blobs[0])
        _require(inner.genesis == evidence.genesis, "it is about another run")
        finding = verify_evidence(inner, verifier, rule_of)
    except RemoteProtocolError as error:
        return "bytes", f"charged a peer on evidence that proves nothing: {error}"
    if (finding.accused, finding.round, finding.deed) != (charge.accused, charge.round, charge.deed):
        return "bytes", "charged a peer on evidence about something else"
    raise InvalidEvidence("false_charge: the evidence holds")


_Check = Callable[[Evidence, Genesis, list[Message], RuleOf], Proof]
_CHECKS: Mapping[str, _Check] = {
    "equivocation": _equivocation,
    "illegal_encoding": _illegal_encoding,
    "illegal_result": _illegal_result,
    "wrong_reduction": _wrong_reduction,
    "wrong_table": _wrong_table,
    "false_dispute": _false_dispute,
}


def bundle(
    genesis: Genesis, accused: PeerId, round: int, deed: str, envelopes: list[Message], blobs: list[bytes]
) -> bytes:
    """Canonical bytes of a bundle; the first statement is the accused's own of `round`."""
    evidence = Evidence(
        1, encode(genesis), accused, round, deed, tuple(message.data for message in envelopes), tuple(blobs)
    )
    return encode(evidence)
