"""What a hostile peer can send: nothing but named errors comes of it, and nothing grows without bound."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btrain.protocol.agreement_messages import Final, Proposal, Quit, Vote
from btrain.protocol.behaviour import Behaviour
from btrain.protocol.blobs import EARLY_MAX
from btrain.protocol.chronicle import ANSWERS_MAX
from btrain.protocol.effects import Effect, Send
from btrain.protocol.encoding import ZERO, digest
from btrain.protocol.errors import RemoteProtocolError
from btrain.protocol.ledger import LedgerState
from btrain.protocol.member import FUTURE_MAX, Member, Membership
from btrain.protocol.messages import (
    Accusation,
    Charge,
    Commit,
    Join,
    Leave,
    Message,
    Missing,
    Receipt,
    Result,
    Reveal,
    Verifier,
    sign,
)  # fmt: skip
from btrain.protocol.packets import (
    PACKET_BYTES_MAX,
    Blocks,
    BodyRequest,
    CertifiedBlock,
    Envelopes,
    Value,
    ValueRequest,
    Where,
    decode_packet,
    encode_packet,
)  # fmt: skip
from btrain.protocol.seats import REQUESTS_MAX
from btrain.protocol.statements import RESULT_SETS_MAX
from btrain.simulation.disk import Disk
from btrain.simulation.world import World, simulated_keys

Run = Any  # the fixture of conftest.py


class Recorder(Behaviour):
    """An honest peer whose packets are written down."""

    def __init__(self) -> None:
        self.packets: list[bytes] = []

    def effects(self, effects: list[Effect], round: int, now: int) -> list[Effect]:
        self.packets += [effect.packet for effect in effects if isinstance(effect, Send)]
        return effects


class Bench:
    """One member with the ledger of a finished run's first rounds, and what was said in that run."""

    def __init__(self, world: World, recorder: Recorder, height: int) -> None:
        self.world = world
        self.keys = world.keys
        self.traffic = list(dict.fromkeys(recorder.packets))
        disk = Disk(blocks=list(world.identities[world.honest[0]].disk.blocks[:height]))
        state = LedgerState.start(world.genesis, world.charter)
        for block in world.blocks(world.honest[0])[:height]:
            state = state.advance(block)
        membership = Membership(digest(world.contract), world.genesis.x0, 0.0, world.genesis.nonce)
        self.member = Member(
            self.keys[0], state, membership, disk, x_round=height, behaviour=Behaviour(), verifier=Verifier(),
            draw=random.Random(0).randrange,
        )  # fmt: skip
        self.member.start(0, {})

    def statement(self, body: msgspec.Struct, by: int = 1, **slot: Any) -> Message:
        """A statement of another member in the open round."""
        state = self.member.state
        fields = {"prev": state.head, "round": state.round} | slot
        statement = self.member.desk.statement(body, **fields)
        return sign(self.keys[by], msgspec.structs.replace(statement, sender=self.keys[by].public_key))

    def give(self, *messages: Message, by: int = 1, now: int = 1_000) -> list[Effect]:
        """Hand statements over."""
        packet = encode_packet(Envelopes(tuple(message.data for message in messages)))
        return self.member.packet(self.keys[by].public_key, packet, now)


@pytest.fixture(scope="module")
def recorded(run: Run) -> tuple[World, Recorder]:
    recorder = Recorder()
    world = run.world(4, 6, seed=21)
    world.identities[world.keys[1].public_key].behaviour = recorder
    run.to_the_end(world)
    return world, recorder


@pytest.fixture
def bench(recorded: tuple[World, Recorder]) -> Bench:
    return Bench(*recorded, height=3)


def mutated(data: bytes, dice: random.Random) -> bytes:
    """A packet with flipped, cut, doubled or foreign bytes."""
    out = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 8))):
        at = dice.randrange(len(out))
        match dice.randrange(5):
            case 0:
                out[at] ^= 1 << dice.randrange(8)
            case 1:
                out[at] = dice.randrange(256)
            case 2:
                del out[at : at + dice.randrange(1, 9)]
            case 3:
                out[at:at] = out[at : at + dice.randrange(1, 9)]
            case _:
                out[at:at] = dice.randbytes(dice.randrange(1, 5))
        if not out:
            return b"\xc0"
    return bytes(out)


def resigned(packet: bytes, bench: Bench, dice: random.Random) -> bytes:
    """The statements of a packet with fields replaced by those of others, signed by an attacker who is a member."""
    decoded = decode_packet(packet)
    if not isinstance(decoded, Envelopes):
        return packet
    key, out = bench.keys[dice.randrange(1, 4)], []
    for data in decoded.envelopes:
        statement = Verifier().open(data, bench.member.state.run).statement
        changes: dict[str, Any] = {"sender": key.public_key}
        for name, values in {
            "round": (max(0, bench.member.state.round + dice.randrange(-3, 4)), 2**32 - 1),
            "prev": (bench.member.state.head, ZERO),
            "attempt": (0, 1, 5, 2**16 - 1),
            "index": (0, 1, 2, 3, 2**32 - 1),
            "ctx": (ZERO, bench.member.state.head),
        }.items():
            if dice.random() < 0.5:
                changes[name] = dice.choice(values)
        out.append(sign(key, msgspec.structs.replace(statement, **changes)).data)
    return encode_packet(Envelopes(tuple(out)))


def feed(bench: Bench, seed: int, count: int) -> None:
    """Mutated traffic in; an exception that is no refusal fails the test by itself."""
    dice = random.Random(seed)
    for step in range(count):
        packet = dice.choice(bench.traffic)
        if dice.random() < 0.6:
            packet = resigned(packet, bench, dice)
        if dice.random() < 0.5:
            packet = mutated(packet, dice)
        bench.member.packet(bench.keys[dice.randrange(1, 4)].public_key, packet, 1_000 * step)
        if dice.random() < 0.1:
            blob = dice.randbytes(dice.choice((0, 1, 100)))
            bench.member.blob(digest(blob), blob, dice.choice([key.public_key for key in bench.keys]), 1_000 * step)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32))
def test_mutated_traffic_raises_nothing(recorded: tuple[World, Recorder], seed: int) -> None:
    feed(Bench(*recorded, height=seed % 6), seed, 60)


@pytest.mark.slow
@settings(max_examples=3000)
@given(seed=st.integers(0, 2**32))
def test_much_mutated_traffic_raises_nothing(recorded: tuple[World, Recorder], seed: int) -> None:
    feed(Bench(*recorded, height=seed % 6), seed, 200)


@given(data=st.binary(max_size=400))
def test_any_bytes_raise_nothing(recorded: tuple[World, Recorder], data: bytes) -> None:
    bench = Bench(*recorded, height=2)
    effects = bench.member.packet(bench.keys[1].public_key, data, 5)
    assert any(type(effect).__name__ in ("Drop", "Event", "Send") for effect in effects)


def refusals(effects: list[Effect]) -> Iterator[str]:
    return (e.fields["reason"] for e in effects if type(e).__name__ == "Event" and e.name == "refused")  # type: ignore[union-attr]


def test_the_fault_of_a_signer_is_not_that_of_who_hands_it_on(bench: Bench) -> None:
    wrong = bench.statement(Reveal(ZERO), by=2)
    effects = bench.give(wrong, by=1)
    assert any("not on its chain" in reason for reason in refusals(effects))
    assert not any(type(effect).__name__ == "Drop" for effect in effects)
    effects = bench.give(wrong, by=2)
    assert any(type(effect).__name__ == "Drop" for effect in effects)


def test_a_bad_statement_does_not_hide_the_next(bench: Bench) -> None:
    workers = [i for i in range(1, 4) if bench.keys[i].public_key in bench.member.round.roles.workers]  # type: ignore[union-attr]
    by = workers[0]
    commit = bench.statement(Commit((), (), (), (), (), (), 0, 0), by=by)
    bench.give(bench.statement(Reveal(ZERO), by=2), commit, by=3)
    assert bench.member.round is not None
    assert bench.keys[by].public_key in bench.member.round.statements.commits


COMMIT = Commit((), (), (), (), (), (), 0, 0)
REFUSED: list[tuple[msgspec.Struct, dict[str, Any], str]] = [
    (COMMIT, {"index": 1}, "InconsistentMessage"),
    (COMMIT, {"attempt": 1}, "InconsistentMessage"),
    (Commit((ZERO,) * 200, (), (), (), (), (), 0, 0), {}, "InconsistentMessage"),
    (Missing(0, (ZERO,)), {}, "NotAMember"),
    (Missing(200, (ZERO,)), {}, "NotAMember"),
    (Missing(0, (ZERO,)), {"index": 2}, "InconsistentMessage"),
    (Receipt(ZERO, 0, ZERO), {}, "InconsistentMessage"),
    (Receipt(ZERO, 0, ZERO), {"index": 255}, "InconsistentMessage"),
    (Receipt(ZERO, 0, ZERO), {"attempt": 1}, "InconsistentMessage"),
    (Result(200, ZERO, ()), {"index": 200}, "InconsistentMessage"),
    (Result(0, ZERO, ()), {"index": 1}, "InconsistentMessage"),
    (Result(0, ZERO, (), (ZERO,)), {}, "InconsistentMessage"),
    (Result(0, ZERO, (), (ZERO, ZERO)), {"attempt": 1}, "InconsistentMessage"),
    (Reveal(ZERO), {}, "InconsistentMessage"),
    (Vote(0, ZERO), {"index": 3}, "InconsistentMessage"),
    (Vote(1, ZERO), {"attempt": 0}, "InconsistentMessage"),
    (COMMIT, {"round": 0, "prev": ZERO}, "StaleMessage"),
    (COMMIT, {"round": 2**32 - 1}, "StaleMessage"),
    (Accusation(ZERO, 2, ZERO), {}, "InconsistentMessage"),
    (Charge(ZERO, 2, "equivocation", ZERO), {"index": 8}, "InconsistentMessage"),
    (Join(ZERO, ZERO, ZERO, 0.0, ()), {"round": 2000}, "StaleMessage"),
]


@pytest.mark.parametrize(("body", "slot", "name"), REFUSED)
def test_what_has_no_place_is_refused_by_name(
    bench: Bench, body: msgspec.Struct, slot: dict[str, Any], name: str
) -> None:
    assert bench.member.round is not None
    owners = bench.member.round.roles.owners
    by = next(i for i in (1, 2, 3) if bench.keys[i].public_key in owners) if isinstance(body, Result) else 1
    effects = bench.give(bench.statement(body, by=by, **slot), by=by)
    assert any(reason.startswith(name) for reason in refusals(effects))


def test_a_stranger_is_no_member(bench: Bench) -> None:
    stranger = simulated_keys(99, 1)[0]
    statement = msgspec.structs.replace(bench.statement(COMMIT).statement, sender=stranger.public_key)
    packet = encode_packet(Envelopes((sign(stranger, statement).data,)))
    effects = bench.member.packet(stranger.public_key, packet, 5)
    assert any(reason.startswith("NotAMember") for reason in refusals(effects))


def test_an_invalid_certificate_closes_the_connection(bench: Bench) -> None:
    certified = bench.world.identities[bench.keys[1].public_key].disk.blocks[3]
    packet = encode_packet(Blocks((CertifiedBlock(certified.block, certified.certificate[:1]),)))
    effects = bench.member.packet(bench.keys[1].public_key, packet, 5)
    assert any(reason.startswith("InvalidCertificate") for reason in refusals(effects))
    assert any(type(effect).__name__ == "Drop" for effect in effects)


def entries(thing: object, depth: int = 0, seen: set[int] | None = None) -> int:
    """How many table entries hang on an object."""
    seen = set() if seen is None else seen
    if id(thing) in seen or depth > 8:
        return 0
    seen.add(id(thing))
    if isinstance(thing, dict):
        return len(thing) + sum(entries(value, depth + 1, seen) for value in thing.values())
    if isinstance(thing, list | tuple | set | frozenset):
        return len(thing) + sum(entries(value, depth + 1, seen) for value in thing)
    if type(thing).__module__.startswith("btrain.protocol") and hasattr(thing, "__dict__"):
        return sum(entries(value, depth + 1, seen) for value in vars(thing).values())
    return 0


def flood(bench: Bench, kind: str, step: int) -> Message:
    """One more statement that nobody has seen."""
    unique = step.to_bytes(32, "big")
    state = bench.member.state
    match kind:
        case "commit":
            return bench.statement(Commit((), (), (), (), (), (unique,), 0, 0))
        case "future":
            return bench.statement(COMMIT, round=state.round + 1, prev=unique)
        case "result":
            by = next(i for i in (1, 2, 3) if bench.keys[i].public_key in bench.member.round.roles.owners)  # type: ignore[union-attr]
            return bench.statement(Result(0, unique, ()), by=by, ctx=unique)
        case "vote":
            return bench.statement(Vote(step % 2**16, unique), attempt=step % 2**16)
        case "double":
            return bench.statement(Vote(0, unique))
        case "quit":
            return bench.statement(Quit(step % 2**16, None), attempt=step % 2**16, ctx=unique)
        case "proposal":
            items = tuple((f"commit:{i:064x}", unique) for i in range(200))
            return bench.statement(Proposal(1 + step % 3, items, None), attempt=1 + step % 3)
        case "final":
            return bench.statement(Final(unique), index=2)
        case "reveal":
            return bench.statement(Reveal(unique))
        case "charge":
            return bench.statement(Charge(bench.keys[2].public_key, 2, "equivocation", unique), prev=state.run,
                                   index=step % 8)  # fmt: skip
        case "accusation":
            return bench.statement(Accusation(bench.keys[2].public_key, 2, unique), prev=state.run)
        case "leave":
            return bench.statement(Leave(), ctx=unique)
        case _:
            return bench.statement(Join(ZERO, unique, ZERO, 0.0, ("x" * 200,)))


@pytest.mark.parametrize("kind", ["commit", "future", "result", "vote", "double", "quit", "proposal", "final", "reveal",
                                  "charge", "accusation", "leave", "join"])  # fmt: skip
def test_a_flood_of_statements_fills_nothing(bench: Bench, kind: str) -> None:
    for step in range(150):
        bench.give(flood(bench, kind, step))
    before = entries(bench.member)
    events = 0
    for step in range(150, 300):
        effects = bench.give(flood(bench, kind, step))
        events += sum(type(effect).__name__ == "Event" for effect in effects)
    cached = len(bench.member.desk.verifier._passed)
    assert entries(bench.member) <= before + 150 + 20  # the verifier's cache has a bound of its own
    assert cached <= 20_000
    assert events <= 20
    assert all(len(waiting) <= FUTURE_MAX for waiting in bench.member._future.values())
    assert bench.member.round is not None
    assert len(bench.member.round.statements.results) <= 4 * RESULT_SETS_MAX


def test_identities_that_ask_for_seats_are_limited(bench: Bench) -> None:
    membership = bench.member.membership
    for step, key in enumerate(simulated_keys(5, REQUESTS_MAX + 20)):
        body = Join(membership.contract, ZERO, membership.x0, 0.0, ("/ip4/1.2.3.4/tcp/1",))
        statement = msgspec.structs.replace(bench.statement(body).statement, sender=key.public_key)
        bench.member.packet(key.public_key, encode_packet(Envelopes((sign(key, statement).data,))), step)
    assert len(bench.member.addresses) == REQUESTS_MAX
    assert not bench.member.candidates  # nobody is let in for asking


def test_answers_cost_the_asker_its_allowance(bench: Bench) -> None:
    commits = [bench.statement(COMMIT, by=i) for i in (1, 2, 3)]
    bench.give(*commits)
    state = bench.member.state
    sent = 0
    for _ in range(20_000):
        request = BodyRequest(state.round, tuple(commit.hash for commit in commits) * 300)
        effects = bench.member.packet(bench.keys[1].public_key, encode_packet(request), 2_000)
        sent += sum(len(effect.packet) for effect in effects if isinstance(effect, Send))
        if not any(isinstance(effect, Send) for effect in effects):
            break
    assert 0 < sent <= 65 * PACKET_BYTES_MAX


def test_asking_where_is_answered_now_and_then(bench: Bench) -> None:
    answers = 0
    for _ in range(200):
        effects = bench.member.packet(bench.keys[1].public_key, encode_packet(Where(0, ZERO)), 2_000)
        answers += sum(isinstance(effect, Send) for effect in effects)
    assert answers <= ANSWERS_MAX


def test_strangers_are_told_blocks_and_nothing_of_the_round(bench: Bench) -> None:
    stranger = simulated_keys(98, 1)[0].public_key
    round = bench.member.state.round
    for packet in (ValueRequest(round, 0, ZERO), BodyRequest(round, (ZERO,)), Value(round, 2, (("x", ZERO),))):
        assert not [e for e in bench.member.packet(stranger, encode_packet(packet), 5) if isinstance(e, Send)]


def test_values_of_nonsense_are_kept_once_a_sender(bench: Bench) -> None:
    round = bench.member.state.round
    for step in range(100):
        items = tuple((f"link:{i:x}", step.to_bytes(32, "big")) for i in range(100))
        for decision in (0, 1, 2, 2**16 - 1):
            bench.member.packet(bench.keys[1].public_key, encode_packet(Value(round, decision, items)), 5)
    assert bench.member.round is not None
    engine = bench.member.round.engines[0]
    assert engine is not None and len(engine.state.values) <= 5


def test_pushed_blobs_are_limited_for_each_member(bench: Bench) -> None:
    for step in range(50):
        data = step.to_bytes(8, "big")
        bench.member.blob(digest(data), data, bench.keys[1].public_key, 5)
        bench.member.blob(digest(data + b"x"), data + b"x", simulated_keys(97, 1)[0].public_key, 5)
    assert sum(bench.member.blobs.get(digest(step.to_bytes(8, "big"))) is not None for step in range(50)) == EARLY_MAX
    assert bench.member.blobs.get(digest((49).to_bytes(8, "big") + b"x")) is None


def test_a_flooded_run_goes_on(run: Run) -> None:
    class Flooder(Behaviour):
        """Sends requests, values and positions without end."""

        def effects(self, effects: list[Effect], round: int, now: int) -> list[Effect]:
            packets = [Where(0, ZERO), BodyRequest(round, (ZERO,) * 900), ValueRequest(round, 1, ZERO),
                       Value(round, 0, tuple((f"{i:0160x}", ZERO) for i in range(200)))]  # fmt: skip
            return [*effects, *(Send(encode_packet(packet)) for packet in packets)]

    run.to_the_end(run.world(4, 6, seed=22, byzantine={3: Flooder()}))


def test_refusals_have_a_name() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_packet(b"\xc1")
    assert caught.value.reason.startswith("MalformedMessage: ")
