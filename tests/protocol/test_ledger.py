"""Blocks follow from what was decided, and a block that does not follow is refused by the field that is wrong."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest

from btrain.protocol.blocks import (
    Block,
    Complaint,
    DisputeEntry,
    Founder,
    Genesis,
    ResultEntry,
    TableEntry,
    open_block,
)
from btrain.protocol.checking import DISPUTES_MAX
from btrain.protocol.encoding import ZERO, digest, encode, sha256
from btrain.protocol.errors import InconsistentMessage, InvalidCertificate, RemoteProtocolError
from btrain.protocol.ledger import (
    Contribution,
    LedgerState,
    build_block,
    check_certificate,
    check_genesis,
    items_digest,
)
from btrain.protocol.messages import (
    Admission,
    Charge,
    Commit,
    GenesisSignature,
    Message,
    Statement,
    Verdict,
    Verifier,
    sign,
)
from btrain.protocol.packets import Blocks, CertifiedBlock, decode_packet, encode_packet
from btrain.protocol.randomness import HashChain
from btrain.protocol.verdicts import VERDICTS_MAX
from btrain.simulation.world import World, simulated_keys

Run = Any  # the fixture of conftest.py
KEYS = simulated_keys(31, 5)
PEERS = [key.public_key for key in KEYS]
CHAINS = {key.public_key: HashChain(key.seed, b"", 10) for key in KEYS}


def start(run: Run, **changes: Any) -> LedgerState:
    founders = tuple(Founder(peer, CHAINS[peer].end) for peer in PEERS)
    return LedgerState.start(Genesis(1, b"", ZERO, 3000, ZERO, 0.0, founders), run.charter(5, 10, **changes))


def statement(state: LedgerState, index: int, body: msgspec.Struct, kind: str = "commit") -> Message:
    fields = (1, state.run, 0, state.head, state.round, 0, kind, 0, PEERS[index], ZERO, encode(body))
    return sign(KEYS[index], Statement(*fields))


def decided(state: LedgerState, commits: dict[int, dict[str, Any]], links: list[int] | None = None) -> Block:
    """The block of a round in which these members committed to these side items."""
    empty: dict[str, Any] = {"leaves": (), "charges": (), "verdicts": (), "admissions": (), "departures": (),
                             "state": (), "compute_ms": 0, "transfer_ms": 0}  # fmt: skip
    messages = {PEERS[i]: statement(state, i, Commit(**{**empty, **side})) for i, side in commits.items()}
    opened = {PEERS[i]: CHAINS[PEERS[i]].link(state.round) for i in (commits if links is None else links)}
    return build_block(state, Contribution(ZERO, messages, (), ()), (), False, opened)


EVERYBODY: dict[int, dict[str, Any]] = {i: {} for i in range(5)}


def test_who_did_not_commit_or_open_its_link_is_absent(run: Run) -> None:
    state = start(run)
    block = decided(state, {i: {} for i in range(4)}, links=[0, 1, 2])
    assert block.absences == (PEERS[3], PEERS[4])
    after = state.advance(block)
    assert after.roster.present == tuple(PEERS[:3])
    assert after.round == 1 and after.head == block.hash


def test_a_void_decision_blames_nobody(run: Run) -> None:
    state = start(run)
    block = build_block(state, Contribution(ZERO, {}, (), (), void=True), (), False, {})
    assert (block.void, block.absences, block.step) == (1, (), 0)
    assert state.advance(block).randomness[1] != state.randomness[1]


def charge(accused: int, deed: str, evidence: bytes = ZERO) -> Charge:
    return Charge(PEERS[accused], 0, deed, evidence)


def test_a_quorum_of_charges_bans_whatever_deed_each_has_seen(run: Run) -> None:
    state = start(run)
    seen = [
        charge(4, "equivocation", digest(b"1")),
        charge(4, "illegal_encoding"),
        charge(4, "equivocation", digest(b"2")),
    ]
    sides = {**EVERYBODY, **{i: {"charges": (proof,)} for i, proof in enumerate(seen)}}
    block = decided(state, sides)
    assert [(ban.peer, ban.deed) for ban in block.bans] == [(PEERS[4], "equivocation")]
    assert block.bans[0].evidence == tuple(sorted((digest(b"1"), digest(b"2"), ZERO)))
    after = state.advance(block)
    assert after.roster.seat(PEERS[4]) is None and PEERS[4] in after.roster.banned


def test_liars_can_neither_ban_nor_fill_the_block(run: Run) -> None:
    many = tuple(charge(accused, f"deed{i}") for accused in range(3) for i in range(20))
    verdicts = tuple(Verdict(PEERS[0], PEERS[1], i, 1) for i in range(60))
    sides = {
        0: {},
        1: {},
        2: {},
        3: {"charges": many, "verdicts": verdicts},
        4: {"charges": many, "verdicts": verdicts},
    }
    block = decided(start(run), sides)
    assert (block.bans, block.charges, block.verdicts) == ((), (), ())


@pytest.mark.parametrize(("votes", "banned"), [
    ((1, 1, 1, 0, 2), "wrong_gradient"), ((0, 0, 0, 1, 1), "false_accusation"), ((1, 1, 0, 0, 2), None),
    ((2, 2, 2, 2, 2), None),
])  # fmt: skip
def test_verdicts_are_counted(run: Run, votes: tuple[int, ...], banned: str | None) -> None:
    sides = {i: {"verdicts": (Verdict(PEERS[0], PEERS[1], 0, vote),)} for i, vote in enumerate(votes)}  # type: ignore[arg-type]
    block = decided(start(run), sides)
    assert [ban.deed for ban in block.bans] == ([banned] if banned else [])
    if banned:
        assert block.bans[0].peer == PEERS[1 if banned == "wrong_gradient" else 0]


def test_one_member_votes_once(run: Run) -> None:
    double = tuple(Verdict(PEERS[0], PEERS[1], 0, 1) for _ in range(5))
    assert decided(start(run), {**EVERYBODY, 3: {"verdicts": double}}).bans == ()


def test_seats_are_given_and_given_up_by_a_quorum(run: Run) -> None:
    newcomer = Admission(sha256(b"new"), ZERO)
    state = start(run, admission="allowlist", allowed=frozenset({newcomer.peer}))
    two = {**EVERYBODY, 0: {"admissions": (newcomer,)}, 1: {"admissions": (newcomer,)}}
    assert decided(state, two).admissions == ()
    three = {**two, 2: {"admissions": (newcomer,), "departures": (PEERS[4],)}, 3: {"departures": (PEERS[4],)},
             4: {"departures": (PEERS[4],)}}  # fmt: skip
    block = decided(state, three)
    assert (block.admissions, block.departures) == ((newcomer,), (PEERS[4],))
    assert len(state.advance(block).roster.seats) == 5


def test_seats_are_not_given_up_below_the_bound(run: Run) -> None:
    leaving = {i: {"departures": tuple(PEERS[1:])} for i in range(5)}
    state = start(run)
    block = decided(state, leaving)
    after = state.advance(block).roster
    assert after.members == (PEERS[0], *PEERS[3:])  # 2 b + 1 remain
    assert block.absences == tuple(PEERS[3:])  # who leaves is not waited for
    assert after.present == after.members  # but by one of three nothing could be decided: all are awaited again


def test_an_allowlist_admits_only_its_own(run: Run) -> None:
    newcomer = Admission(sha256(b"new"), ZERO)
    state = start(run, admission="allowlist")
    asked: dict[int, dict[str, Any]] = {i: {"admissions": (newcomer,)} for i in range(5)}
    assert decided(state, asked).admissions == ()
    assert decided(start(run, admission="allowlist", allowed=frozenset({newcomer.peer})), asked).admissions


def test_a_state_is_certified_by_a_quorum_and_times_by_the_median(run: Run) -> None:
    sides: dict[int, dict[str, Any]] = {
        i: {"state": (digest(b"x") if i < 3 else digest(b"y"),), "compute_ms": (10, 30, 20, 0, 10**9)[i]}
        for i in range(5)
    }
    block = decided(start(run), sides)
    assert block.state[0].digest == digest(b"x")
    assert block.compute_ms == 20  # one who says nothing does not count, one liar does not matter


TAMPERED: list[tuple[str, Any]] = [
    ("run", ZERO), ("group", 1), ("round", 1), ("prev", sha256(b"other")), ("commits", ()),
    ("contributors", (PEERS[0],) * 2),
    ("contributors", (sha256(b"stranger"),)), ("void", 0), ("void", 3), ("links", ()), ("randomness", ZERO),
    ("absences", (PEERS[1],)), ("departures", (sha256(b"stranger"),)), ("departures", tuple(PEERS)), ("step", 1),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), TAMPERED, ids=[f"{field}{i}" for i, (field, _) in enumerate(TAMPERED)])
def test_a_tampered_field_is_refused(run: Run, field: str, value: Any) -> None:
    state = start(run)
    block = decided(state, EVERYBODY)
    assert state.advance(block).round == 1
    with pytest.raises(InconsistentMessage, match="block"):
        state.advance(msgspec.structs.replace(block, **{field: value}))


def test_bans_admissions_and_links_out_of_nothing_are_refused(run: Run) -> None:
    state = start(run)
    sides = {i: {"charges": (charge(4, "equivocation"),)} for i in range(4)} | {4: {}}
    block = decided(state, sides)
    replace = msgspec.structs.replace
    forged = [
        replace(block, bans=()),
        replace(block, charges=block.charges[:2]),
        replace(block, bans=(replace(block.bans[0], peer=PEERS[0]),)),
        replace(block, admissions=(Admission(PEERS[0], ZERO),)),
        replace(block, links=(replace(block.links[0], link=ZERO), *block.links[1:])),
        replace(block, links=block.links[::-1]),
        replace(block, commits=block.commits[::-1]),
    ]
    for tampered in forged:
        with pytest.raises(InconsistentMessage):
            state.advance(tampered)


def test_the_hash_of_a_block_covers_every_field(run: Run) -> None:
    block = decided(start(run), EVERYBODY)
    hashes = {block.hash}
    for name in Block.__struct_fields__:
        value = getattr(block, name)
        changed = value + 1 if isinstance(value, int) else digest(value) if isinstance(value, bytes) else ()
        if changed == value:
            changed = (PEERS[0],)
        hashes.add(msgspec.structs.replace(block, **{name: changed}).hash)
    assert len(hashes) == 1 + len(Block.__struct_fields__)


@pytest.fixture(scope="module")
def world(run: Run) -> World:
    world: World = run.to_the_end(run.world(4, 5, seed=33))
    return world


def read(world: World, number: int) -> tuple[LedgerState, Block, CertifiedBlock]:
    state = LedgerState.start(world.genesis, world.charter)
    blocks = world.identities[world.honest[0]].disk.blocks
    for certified in blocks[:number]:
        state = state.advance(open_block(certified.block))
    return state, open_block(blocks[number].block), blocks[number]


def test_a_certificate_is_q_finals_of_members_for_this_block(world: World) -> None:
    state, block, certified = read(world, 2)
    check_certificate(block, certified.certificate, state, Verifier())
    _, _, other = read(world, 3)
    wrong: list[tuple[tuple[bytes, ...], str]] = [
        (certified.certificate[:2], "2 members signed, 3 must"),
        ((*certified.certificate[:2], certified.certificate[0]), "2 members signed"),
        (other.certificate, "something else"),
        ((), "0 members signed"),
    ]
    for certificate, reason in wrong:
        with pytest.raises(InvalidCertificate, match=reason):
            check_certificate(block, certificate, state, Verifier())
    changed = msgspec.structs.replace(block, compute_ms=block.compute_ms + 1)
    with pytest.raises(InvalidCertificate, match="another block"):
        check_certificate(changed, certified.certificate, state, Verifier())


def test_one_changed_byte_anywhere_is_refused(world: World) -> None:
    state, _, certified = read(world, 2)
    for at in range(0, len(certified.block), 7):
        data = bytearray(certified.block)
        data[at] ^= 1
        with pytest.raises(RemoteProtocolError):
            check_certificate(open_block(bytes(data)), certified.certificate, state, Verifier())
    for at in range(0, len(certified.certificate[0]), 5):
        final = bytearray(certified.certificate[0])
        final[at] ^= 1
        with pytest.raises(RemoteProtocolError):
            check_certificate(
                open_block(certified.block), (bytes(final), *certified.certificate[1:3]), state, Verifier()
            )


def test_a_genesis_needs_all_its_founders(run: Run) -> None:
    state = start(run)
    signatures = [statement(state, i, GenesisSignature(state.run), "genesis").data for i in range(5)]
    check_genesis(state.genesis, signatures, Verifier())
    with pytest.raises(InvalidCertificate, match="has not signed"):
        check_genesis(state.genesis, signatures[:4], Verifier())
    signatures[4] = statement(state, 4, GenesisSignature(ZERO), "genesis").data
    with pytest.raises(InvalidCertificate, match="has not signed"):
        check_genesis(state.genesis, signatures, Verifier())


def test_a_digest_of_items_is_of_what_they_are_for(run: Run) -> None:
    items = {"a": ZERO, "b": digest(b"")}
    assert items_digest("block", ZERO, items) == items_digest("block", ZERO, dict(reversed(items.items())))
    others = {items_digest("results", ZERO, items), items_digest("block", digest(b""), items),
              items_digest("block", ZERO, {"a": ZERO})}  # fmt: skip
    assert items_digest("block", ZERO, items) not in others and len(others) == 3


def test_what_a_quorum_could_get_from_nobody_costs_the_seat_and_no_ban(run: Run) -> None:
    state = start(run)
    sides = {i: {"verdicts": (Verdict(PEERS[i], PEERS[4], 0, 3),)} for i in range(3)}
    two = decided(state, {**EVERYBODY, **dict(list(sides.items())[:2])})
    assert (two.absences, two.verdicts) == ((), ())
    block = decided(state, {**EVERYBODY, **sides})
    assert (block.absences, block.bans) == ((PEERS[4],), ())
    seat = state.advance(block).roster.seat(PEERS[4])
    assert seat is not None and seat.absent
    with pytest.raises(InconsistentMessage, match="absences"):
        state.advance(msgspec.structs.replace(block, absences=()))


def test_who_contradicts_a_quorum_is_barred_from_auditing(run: Run) -> None:
    state = start(run)
    votes = {0: 1, 1: 1, 2: 1, 3: 0}
    sides = {i: {"verdicts": (Verdict(PEERS[0], PEERS[4], 0, vote),)} for i, vote in votes.items()}  # type: ignore[arg-type]
    block = decided(state, {**EVERYBODY, **sides})
    assert [ban.peer for ban in block.bans] == [PEERS[4]]
    barred = [seat.peer for seat in state.advance(block).roster.seats if seat.barred]
    assert barred == [PEERS[3]]


def test_guilty_is_counted_whoever_accused_and_innocent_whomever_he_accused(run: Run) -> None:
    guilty = {i: {"verdicts": (Verdict(PEERS[i], PEERS[4], 2, 1),)} for i in range(3)}
    assert [ban.deed for ban in decided(start(run), {**EVERYBODY, **guilty}).bans] == ["wrong_gradient"]
    innocent = {i: {"verdicts": (Verdict(PEERS[4], PEERS[i], 2, 0),)} for i in range(3)}
    bans = decided(start(run), {**EVERYBODY, **innocent}).bans
    assert [(ban.peer, ban.deed) for ban in bans] == [(PEERS[4], "false_accusation")]


def test_a_block_names_no_more_verdicts_than_it_must(run: Run) -> None:
    many = tuple(Verdict(PEERS[0], PEERS[4], of, 1) for of in range(60))
    block = decided(start(run), {i: {"verdicts": many} for i in range(4)})
    assert len(block.verdicts) <= VERDICTS_MAX
    assert [ban.peer for ban in block.bans] == [PEERS[4]]


@pytest.mark.parametrize("members", [16, 32, 64])
def test_the_fullest_block_fits_a_packet(run: Run, members: int) -> None:
    """Everybody charges, votes against, reproaches and complains of as many as it may, in one round."""
    peers = sorted(sha256(b"peer", bytes([i])) for i in range(members))
    liars = peers[members // 2 + 1 :]
    founders = tuple(Founder(peer, ZERO) for peer in peers)
    state = LedgerState.start(Genesis(1, b"", ZERO, 1024 * members, ZERO, 0.0, founders), run.charter(members, 10))
    state = dataclasses.replace(state, round=1)
    charges = tuple(Charge(liar, 2**31, "d" * 64, ZERO) for liar in liars)
    verdicts = tuple(Verdict(peers[0], liars[i % len(liars)], 2**30 + i, 1) for i in range(64))
    seen = tuple(msgspec.structs.replace(charge, deed="wrong_reduction", evidence=b"e" * 32) for charge in charges)
    sides = Commit((), charges, verdicts, (), (), (), 2**31, 2**31, reproaches=tuple(liars))
    messages = {}
    for index, peer in enumerate(peers):
        own = msgspec.structs.replace(sides, charges=charges if peer in liars else tuple(
            msgspec.structs.replace(charge, evidence=sha256(peer, charge.accused)) for charge in seen))  # fmt: skip
        fields = (1, state.run, 0, state.head, 1, 0, "commit", index, peer, ZERO, encode(own))
        messages[peer] = Message(b"", Statement(*fields), own)
    missing = tuple(Complaint(liar, peer) for liar, peer in zip(liars, peers, strict=False))
    parts = range(members - 1)
    results = [ResultEntry(part, 2**15, peers[part], ZERO) for part in parts]
    tables = [TableEntry(part, 0, ZERO) for part in parts]
    disputes = [DisputeEntry(part, liar) for part in range(DISPUTES_MAX) for liar in liars]
    contribution = Contribution(ZERO, messages, missing, tuple(peers[1:]))
    block = build_block(state, contribution, results, False, dict.fromkeys(peers, ZERO), tables, disputes)
    assert (
        len(block.results) == members - 1
        and len(block.charges) >= members
        and len(block.verdicts) >= members // 2
        and block.reproaches
    )
    certificate = (bytes(290),) * (members // 2 + 1)
    decode_packet(encode_packet(Blocks((CertifiedBlock(encode(block), certificate),))))
