"""Evidence proves what it says to who has nothing else, and nothing false can be proven against an honest peer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
import torch
from msgspec.structs import replace

from btrain.kernels import BLOCK, QuantizedBlocks
from btrain.protocol.contribution import contribution_of
from btrain.protocol.encoding import ZERO, digest, encode
from btrain.protocol.errors import InvalidEvidence, RemoteProtocolError
from btrain.protocol.evidence import Evidence, bundle, named_deed, open_evidence, verify_evidence
from btrain.protocol.ledger import LedgerState, items_digest
from btrain.protocol.messages import (
    Charge,
    Commit,
    Dispute,
    Message,
    Missing,
    Result,
    Reveal,
    Statement,
    Table,
    Verifier,
    sign,
)
from btrain.protocol.reduction import encode_gradient, reduce_committed
from btrain.protocol.roles import PartLayout
from btrain.protocol.tables import rows_of, sketch_seed
from btrain.simulation.world import World

Run = Any  # the fixture of conftest.py
NUMEL = 2100
LAYOUT = PartLayout(NUMEL, 3)


@dataclass
class Case:
    """A round of four members, with whatever each of them signed."""

    run: Run
    world: World

    def sign(self, who: int, kind: str, body: msgspec.Struct, **slot: Any) -> Message:
        fields: dict[str, Any] = {"version": 1, "run": self.world.genesis.run, "group": 0, "prev": ZERO, "round": 7,
                                  "attempt": 0, "kind": kind, "index": 0, "ctx": ZERO} | slot  # fmt: skip
        key = self.world.keys[who]
        return sign(key, Statement(sender=key.public_key, body=encode(body), **fields))

    def commit(self, index: int, parts: list[bytes]) -> Message:
        leaves = tuple(digest(part) for part in parts)
        return self.sign(index, "commit", Commit(leaves, (), (), (), (), (), 0, 0))

    def bundle(self, deed: str, statements: list[Message], blobs: list[bytes], accused: int = 0) -> Evidence:
        genesis, peer = self.world.genesis, self.world.keys[accused].public_key
        return open_evidence(bundle(genesis, peer, 7, deed, statements, blobs))

    def holds(self, evidence: Evidence) -> bool:
        try:
            finding = verify_evidence(evidence, Verifier(), lambda _: self.run.rule)
        except InvalidEvidence:
            return False
        assert (finding.accused, finding.proof) == (evidence.accused, "bytes")
        return True


@pytest.fixture(scope="module")
def case(run: Run) -> Case:
    return Case(run, run.world(4, 4, seed=41, numel=NUMEL))


def parts_of(seed: int) -> list[bytes]:
    parts = encode_gradient(torch.randn(NUMEL, generator=torch.Generator().manual_seed(seed)), LAYOUT)
    assert parts is not None
    return parts


def test_two_bodies_in_one_slot(case: Case) -> None:
    one, other = case.sign(0, "reveal", Reveal(ZERO)), case.sign(0, "reveal", Reveal(digest(b"x")))
    assert case.holds(case.bundle("equivocation", [one, other], []))
    later = case.sign(0, "reveal", Reveal(digest(b"x")), round=8)
    elsewhere = case.sign(0, "reveal", Reveal(digest(b"x")), prev=digest(b"fork"))
    theirs = case.sign(1, "reveal", Reveal(digest(b"x")))
    for wrong in (
        [one, one],
        [one],
        [],
        [one, later],
        [one, elsewhere],
        [one, theirs],
        [theirs, one],
        [one, other, other],
    ):
        assert not case.holds(case.bundle("equivocation", wrong, []))
    assert not case.holds(case.bundle("equivocation", [one, other], [], accused=1))


def test_results_of_other_contributors_are_no_equivocation(case: Case) -> None:
    result = Result(0, ZERO, ())
    one = case.sign(0, "result", result, ctx=digest(b"1"))
    other = case.sign(0, "result", Result(0, digest(b"x"), ()), ctx=digest(b"2"))
    assert not case.holds(case.bundle("equivocation", [one, other], []))


def test_an_illegal_encoding_under_a_valid_commitment(case: Case) -> None:
    parts = parts_of(0)
    illegal = b"\x80" + parts[1][1:]
    assert not case.holds(case.bundle("illegal_encoding", [case.commit(0, parts)], [parts[1]]))
    evil = [parts[0], illegal, parts[2]]
    assert case.holds(case.bundle("illegal_encoding", [case.commit(0, evil)], [illegal]))
    assert not case.holds(case.bundle("illegal_encoding", [case.commit(0, parts)], [illegal]))
    assert not case.holds(case.bundle("illegal_encoding", [case.commit(0, evil)], []))
    assert not case.holds(case.bundle("illegal_encoding", [case.sign(0, "reveal", Reveal(ZERO))], [illegal]))


def test_one_hash_for_parts_of_two_sizes_is_illegal_in_one_of_them(case: Case) -> None:
    parts = parts_of(0)
    assert LAYOUT.part_numel(0) == BLOCK != LAYOUT.part_numel(2)
    twice = [parts[0], parts[1], parts[0]]  # legal as the first part; as the last its padding is not zero
    assert case.holds(case.bundle("illegal_encoding", [case.commit(0, twice)], [parts[0]]))


def test_a_commit_to_a_number_of_parts_that_cannot_be(case: Case) -> None:
    many = [bytes([i]) for i in range(9)]
    assert not case.holds(case.bundle("illegal_encoding", [case.commit(0, many)], [many[8]]))
    assert not case.holds(case.bundle("illegal_encoding", [case.commit(0, [])], [b""]))


def reduction(
    case: Case, complaints: list[Message] | None = None
) -> tuple[list[Message], dict[bytes, list[bytes]], bytes]:
    """The decided statements, everybody's parts, and the digest that results name."""
    gradients = {case.world.keys[i].public_key: parts_of(i) for i in range(4)}
    statements = [case.commit(i, gradients[case.world.keys[i].public_key]) for i in range(4)] + (complaints or [])
    _, items = contribution_of(statements)
    return statements, gradients, items_digest("contributors", ZERO, items)


def test_a_reduction_that_is_not_what_the_parts_give(case: Case) -> None:
    statements, gradients, ctx = reduction(case)
    inputs = {peer: parts[1] for peer, parts in gradients.items()}
    right = reduce_committed(inputs, LAYOUT.part_numel(1), case.run.rule)
    blobs = list(inputs.values())

    def evidence(
        hash: bytes, coefficients: tuple[float, ...], ctx: bytes, blobs: list[bytes], part: int = 1
    ) -> Evidence:
        result = case.sign(0, "result", Result(part, hash, coefficients), ctx=ctx, index=part)
        return case.bundle("wrong_reduction", [result, *statements], blobs)

    assert not case.holds(evidence(digest(right.data), right.coefficients, ctx, blobs))
    assert case.holds(evidence(digest(b"other"), right.coefficients, ctx, blobs))
    assert case.holds(evidence(digest(right.data), tuple(c / 2 for c in right.coefficients), ctx, blobs))
    assert not case.holds(evidence(digest(b"other"), right.coefficients, digest(b"others"), blobs))
    assert not case.holds(evidence(digest(b"other"), right.coefficients, ctx, blobs[:3]))
    assert not case.holds(evidence(digest(b"other"), right.coefficients, ctx, blobs, part=3))
    some = {peer: parts for peer, parts in inputs.items() if peer != case.world.keys[3].public_key}
    less = reduce_committed(some, LAYOUT.part_numel(1), case.run.rule)
    body = Result(1, digest(less.data), less.coefficients, (case.world.keys[3].public_key,))
    result = case.sign(0, "result", body, ctx=ctx, index=1, attempt=1)
    assert not case.holds(case.bundle("wrong_reduction", [result, *statements], list(some.values())))
    fewer = case.sign(0, "result", Result(1, digest(b"other"), ()), ctx=ctx, index=1)
    assert not case.holds(case.bundle("wrong_reduction", [fewer, *statements[:3]], blobs))


def table_case(case: Case) -> tuple[list[Message], dict[bytes, list[bytes]], Message, Table]:
    """The decided statements, everybody's parts, the right Result of part 1 by member 0 and its right Table."""
    statements, gradients, ctx = reduction(case)
    inputs = {peer: parts[1] for peer, parts in sorted(gradients.items())}
    right = reduce_committed(inputs, LAYOUT.part_numel(1), case.run.rule)
    result = case.sign(0, "result", Result(1, digest(right.data), right.coefficients), ctx=ctx, index=1)
    opened = [QuantizedBlocks.from_bytes(data, LAYOUT.part_numel(1)) for data in inputs.values()]
    reduced = QuantizedBlocks.from_bytes(right.data, LAYOUT.part_numel(1))
    rows = rows_of(opened, reduced, sketch_seed(SKETCHED, 1))
    return statements, gradients, result, Table(result.hash, b"\x0f", right.tau, rows)


SKETCHED = digest(b"randomness")


def test_a_wrong_row_a_wrong_radius_and_a_row_too_few(case: Case) -> None:
    statements, gradients, result, right = table_case(case)
    parts = [gradients[peer][1] for peer in sorted(gradients)]
    reduced = reduce_committed(
        dict(zip(sorted(gradients), parts, strict=True)), LAYOUT.part_numel(1), case.run.rule
    ).data

    def evidence(table: Table, blobs: list[bytes], statements: list[Message] = statements, **slot: Any) -> Evidence:
        signed = case.sign(0, "table", table, **{"index": 1, "ctx": SKETCHED} | slot)
        return case.bundle("wrong_table", [signed, result, *statements], blobs)

    wrong = replace(right, rows=(right.rows[0], right.rows[1][:-1] + b"\x7f", *right.rows[2:]))
    assert not case.holds(evidence(right, [reduced, *parts]))
    assert not case.holds(evidence(right, [reduced, parts[1]]))
    assert case.holds(evidence(wrong, [reduced, parts[1]]))
    assert not case.holds(evidence(wrong, [reduced, parts[0]]))
    assert not case.holds(evidence(wrong, [parts[1]]))
    assert not case.holds(evidence(wrong, [reduced]))
    assert not case.holds(evidence(wrong, [reduced, parts[1]], statements[:3]))
    assert not case.holds(evidence(wrong, [reduced, parts[1]], index=0))
    assert not case.holds(evidence(replace(wrong, result=ZERO), [reduced, parts[1]]))
    assert case.holds(evidence(replace(right, rows=right.rows[1:]), [reduced]))
    assert case.holds(evidence(replace(right, rows=(b"", *right.rows[1:])), [reduced, parts[0]]))
    assert case.holds(evidence(replace(right, tau=2 * right.tau), [reduced, *parts]))
    assert not case.holds(evidence(replace(right, tau=2 * right.tau), [reduced, *parts[1:]]))
    assert case.holds(evidence(right, [reduced, parts[1]], ctx=digest(b"another seed")))


def test_a_dispute_about_a_right_row(case: Case) -> None:
    statements, gradients, result, right = table_case(case)
    peers = sorted(gradients)
    inputs = {peer: gradients[peer][1] for peer in peers}
    reduced = reduce_committed(inputs, LAYOUT.part_numel(1), case.run.rule).data
    who = [key.public_key for key in case.world.keys].index(peers[2])
    wrong = replace(right, rows=(*right.rows[:2], right.rows[3], right.rows[3]))

    def evidence(table: Table, blobs: list[bytes], index: int = 1, of: bytes | None = None) -> Evidence:
        signed = case.sign(0, "table", table, index=1, ctx=SKETCHED)
        dispute = case.sign(who, "dispute", Dispute(), index=index, ctx=signed.hash if of is None else of)
        return case.bundle("false_dispute", [dispute, signed, result, *statements], blobs, accused=who)

    assert case.holds(evidence(right, [reduced, inputs[peers[2]]]))
    assert not case.holds(evidence(wrong, [reduced, inputs[peers[2]]]))
    assert not case.holds(evidence(right, [reduced, inputs[peers[1]]]))
    assert not case.holds(evidence(right, [reduced, inputs[peers[2]]], index=0))
    assert not case.holds(evidence(right, [reduced, inputs[peers[2]]], of=ZERO))


def test_who_complains_and_who_is_complained_of_are_not_in_the_sum(case: Case) -> None:
    complaint = case.sign(1, "missing", Missing(0, (case.world.keys[2].public_key,)), index=1)
    statements, gradients, ctx = reduction(case, [complaint])
    inputs = {peer: gradients[peer][0] for peer in (case.world.keys[0].public_key, case.world.keys[3].public_key)}
    right = reduce_committed(inputs, LAYOUT.part_numel(0), case.run.rule)
    result = case.sign(0, "result", Result(0, digest(right.data), right.coefficients), ctx=ctx)
    assert not case.holds(case.bundle("wrong_reduction", [result, *statements], list(inputs.values())))


def test_an_illegal_result(case: Case) -> None:
    statements, _, ctx = reduction(case)
    for data, guilty in ((b"\x80" + parts_of(1)[0][1:], True), (b"", True), (parts_of(1)[0], False)):
        result = case.sign(0, "result", Result(0, digest(data), ()), ctx=ctx)
        assert case.holds(case.bundle("illegal_result", [result, *statements], [data])) is guilty
        assert not case.holds(case.bundle("illegal_result", [result, *statements[:2]], [data]))


def charged(case: Case, deed: str, data: bytes, accused: int = 1, round: int = 7) -> Evidence:
    body = Charge(case.world.keys[accused].public_key, round, deed, digest(data))
    return case.bundle("false_charge", [case.sign(0, "charge", body)], [data])


def equivocation(case: Case, accused: int = 1) -> bytes:
    two = [case.sign(accused, "reveal", Reveal(ZERO)), case.sign(accused, "reveal", Reveal(digest(b"x")))]
    return encode(case.bundle("equivocation", two, [], accused=accused))


def test_a_charge_on_nothing_and_one_on_something_else(case: Case) -> None:
    proof = equivocation(case)
    assert not case.holds(charged(case, "equivocation", proof))
    assert case.holds(charged(case, "equivocation", b"nothing"))
    assert case.holds(charged(case, "illegal_encoding", proof))
    assert case.holds(charged(case, "equivocation", proof, accused=2))
    assert case.holds(charged(case, "equivocation", proof, round=6))


def test_a_true_proof_of_another_run_proves_nothing_here(case: Case, run: Run) -> None:
    other = Case(run, run.world(4, 4, seed=41, numel=NUMEL + 1))
    assert case.world.genesis.run != other.world.genesis.run
    assert case.holds(charged(case, "equivocation", equivocation(other)))


def test_who_charges_a_false_charge_cannot_be_charged_for_it(case: Case) -> None:
    honest = encode(charged(case, "equivocation", b"nothing"))
    assert named_deed(honest) == "false_charge"
    assert not case.holds(charged(case, "false_charge", honest, accused=0))
    nonsense = encode(case.bundle("false_charge", [case.sign(0, "reveal", Reveal(ZERO))], [b""]))
    assert not case.holds(charged(case, "false_charge", nonsense, accused=0))


@pytest.mark.parametrize("deed", ["wrong_gradient", "false_accusation", "coffee", ""])
def test_what_only_votes_show_is_no_ground_for_a_charge(case: Case, deed: str) -> None:
    with pytest.raises(InvalidEvidence, match="unknown deed"):
        verify_evidence(case.bundle(deed, [case.commit(0, parts_of(0))], []), Verifier(), lambda _: case.run.rule)


def test_statements_that_do_not_verify_prove_nothing(case: Case) -> None:
    good = open_evidence(equivocation(case))
    broken = bytearray(good.envelopes[0])
    broken[-1] ^= 1
    with pytest.raises(InvalidEvidence, match="WrongSignature"):
        verify_evidence(
            msgspec.structs.replace(good, envelopes=(bytes(broken), good.envelopes[1])),
            Verifier(),
            lambda _: case.run.rule,
        )
    with pytest.raises(InvalidEvidence):
        verify_evidence(msgspec.structs.replace(good, genesis=b""), Verifier(), lambda _: case.run.rule)


def test_one_changed_byte_of_a_bundle_is_seen(case: Case) -> None:
    data = equivocation(case)
    for at in range(0, len(data), 3):
        changed = bytearray(data)
        changed[at] ^= 4
        with pytest.raises(RemoteProtocolError):
            verify_evidence(open_evidence(bytes(changed)), Verifier(), lambda _: case.run.rule)


def test_an_honest_run_leaves_no_evidence(case: Case) -> None:
    world = case.run.to_the_end(case.run.world(4, 6, seed=42))
    assert not any(world.identities[peer].disk.evidence for peer in world.honest)
    assert LedgerState.start(world.genesis, world.charter).round == 0
