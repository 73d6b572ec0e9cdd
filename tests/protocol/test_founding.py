"""The founders of a run, without a network: who is let in, what everybody signs, who makes room."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from btrain.identity import SigningKey
from btrain.protocol.desk import Desk
from btrain.protocol.effects import Effect, Event, Send, SetTimer
from btrain.protocol.encoding import PeerId, sha256
from btrain.protocol.errors import InconsistentMessage, RemoteProtocolError
from btrain.protocol.founding import Founders, Plan
from btrain.protocol.ledger import check_genesis, open_genesis
from btrain.protocol.member import Membership
from btrain.protocol.messages import Verifier
from btrain.protocol.packets import Founding, Refusal, decode_packet, encode_packet
from btrain.protocol.seats import NOT_HERE

CONTRACT = b"contract"
DELTA_US = 1_000_000


def founder(number: int, *, count: int = 3, assembler: bool | None = None, **changes: Any) -> Founders:
    key = SigningKey.from_seed(sha256(b"founder", bytes([number])))
    membership = Membership(sha256(CONTRACT), sha256(b"x0"), 1.0, bytes(32), (f"/ip4/127.0.0.1/tcp/{4000 + number}",))
    membership = replace(membership, **{k: v for k, v in changes.items() if hasattr(membership, k)})
    plan = Plan(
        CONTRACT, membership, 10, count, sha256(b"nonce"), sha256(b"chain", key.public_key), DELTA_US,
        assembler=number == 0 if assembler is None else assembler, allowed=changes.get("allowed", frozenset()),
        banned=changes.get("banned", frozenset()), state=changes.get("state", ()),
    )  # fmt: skip
    return Founders(plan, Desk(key, sha256(CONTRACT), Verifier()))


class Wire:
    """Delivers what the founders send to each other, at once and in order."""

    def __init__(self, *founders: Founders) -> None:
        self.founders = {f.desk.me: f for f in founders}
        self.sent: list[tuple[PeerId, PeerId, Any]] = []
        self.events: list[Event] = []
        self.timers: list[SetTimer] = []
        self.cut: set[PeerId] = set()

    def do(self, sender: Founders, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send) and effect.to is not None:
                self.sent.append((sender.desk.me, effect.to, decode_packet(effect.packet)))
                if effect.to in self.founders and not {effect.to, sender.desk.me} & self.cut:
                    receiver = self.founders[effect.to]
                    self.do(receiver, receiver.packet(sender.desk.me, effect.packet, 0))
            elif isinstance(effect, Event):
                self.events.append(effect)
            elif isinstance(effect, SetTimer):
                self.timers.append(effect)

    def start(self) -> None:
        for f in self.founders.values():
            self.do(f, f.start(0))
        assembler = next(f for f in self.founders.values() if f.plan.assembler)
        for f in self.founders.values():
            if f is not assembler:
                self.do(f, f.connected(assembler.desk.me, 0))


def test_all_sign_one_genesis() -> None:
    wire = Wire(*(founder(i) for i in range(3)))
    wire.start()
    packets = [f.founded for f in wire.founders.values()]
    assert None not in packets
    geneses = {p.genesis for p in packets if p is not None}
    assert len(geneses) == 1
    genesis = open_genesis(geneses.pop())
    assert [f.peer for f in genesis.founders] == sorted(wire.founders)
    for packet in packets:
        assert packet is not None
        check_genesis(genesis, packet.signatures, Verifier())
        assert len(packet.joins) == 3


def test_a_run_of_one_is_founded_at_once() -> None:
    alone = founder(0, count=1)
    alone.start(0)
    assert alone.founded is not None


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"contract": sha256(b"other")}, "contract"),
        ({"x0": sha256(b"other")}, "other parameters"),
        ({"probe_norm": 1.1}, "gradient"),
        ({"x0": NOT_HERE}, "join once it is founded"),
    ],
)
def test_who_does_not_fit_is_told_at_once(changes: dict[str, Any], word: str) -> None:
    assembler, other = founder(0, count=2), founder(1, count=2, **changes)
    wire = Wire(assembler, other)
    wire.do(assembler, assembler.start(0))
    wire.do(other, other.start(0))
    join = next(e.packet for e in other.connected(assembler.desk.me, 0) if isinstance(e, Send))
    effects = assembler.packet(other.desk.me, join, 0)
    refusals = [decode_packet(e.packet) for e in effects if isinstance(e, Send)]
    assert len(refusals) == 1 and isinstance(refusals[0], Refusal) and word in refusals[0].reason
    assert any(isinstance(e, Event) and e.name == "refused" for e in effects)
    assert assembler.have == 1 and assembler.founded is None


def test_only_listed_members_found_a_run_with_a_list() -> None:
    other = founder(1, count=2)
    assembler = founder(0, count=2, allowed=frozenset({bytes(32)}))
    wire = Wire(assembler, other)
    wire.start()
    assert assembler.founded is None
    assert any(isinstance(packet, Refusal) and "group.members" in packet.reason for _, _, packet in wire.sent)


def test_who_was_banned_in_the_parent_run_is_no_founder_again() -> None:
    liar = founder(1, count=2)
    banned = frozenset({liar.desk.me})
    assembler = founder(0, count=2, banned=banned)
    wire = Wire(assembler, liar)
    wire.start()
    assert assembler.founded is None and liar.desk.me not in assembler.joins
    assert any(isinstance(packet, Refusal) and "was banned" in packet.reason for _, _, packet in wire.sent)
    friends = Wire(founder(0, count=2), liar)  # who assembles has forgotten the bans: nobody honest signs, or follows
    friends.start()
    assert liar.founded is not None
    with pytest.raises(InconsistentMessage, match="banned in the parent run"):
        founder(2, count=2, banned=banned).packet(liar.desk.me, encode_packet(liar.founded), 0)


def test_founders_sign_the_state_that_no_seed_gives() -> None:
    state = (sha256(b"state"),)
    wire = Wire(*(founder(i, state=state) for i in range(3)))
    wire.start()
    founded = wire.founders[max(wire.founders)].founded
    assert founded is not None and open_genesis(founded.genesis).state == state
    other = founder(3, state=(sha256(b"another"),))
    with pytest.raises(InconsistentMessage, match="starts from another state"):
        other.packet(bytes(32), encode_packet(founded), 0)
    newcomer = founder(4, x0=NOT_HERE)
    newcomer.packet(bytes(32), encode_packet(founded), 0)
    assert newcomer.founded == founded


def test_a_newcomer_without_x0_follows_no_genesis_that_does_not_name_it() -> None:
    wire = Wire(*(founder(i) for i in range(3)))
    wire.start()
    founded = wire.founders[min(wire.founders)].founded
    assert founded is not None
    with pytest.raises(InconsistentMessage, match="does not name the state"):
        founder(4, x0=NOT_HERE).packet(bytes(32), encode_packet(founded), 0)


def test_a_genesis_of_other_founders_than_the_contract_asks_for_is_refused() -> None:
    """Liars found a run of their own under the same contract, all of it signed: a newcomer does not follow it."""
    liars = Wire(founder(0, count=1))
    liars.start()
    (liar,) = liars.founders.values()
    assert liar.founded is not None
    for newcomer in (founder(5, count=3), founder(5, count=1, assembler=False, allowed=frozenset({bytes(32)}))):
        with pytest.raises(InconsistentMessage, match="other founders"):
            newcomer.packet(liar.desk.me, encode_packet(liar.founded), 0)
        assert newcomer.founded is None
    listed = founder(5, count=1, assembler=False, allowed=frozenset({liar.desk.me}))
    listed.packet(liar.desk.me, encode_packet(liar.founded), 0)
    assert listed.founded == liar.founded


def test_who_does_not_sign_makes_room_for_the_next() -> None:
    a, silent, late = founder(0, count=2), founder(1, count=2), founder(2, count=2)
    wire = Wire(a, silent)
    wire.cut = {silent.desk.me}
    wire.do(a, a.start(0))
    silent.start(0)
    join = next(e.packet for e in silent.connected(a.desk.me, 0) if isinstance(e, Send))
    wire.do(a, a.packet(silent.desk.me, join, 0))
    assert [timer.at_us for timer in wire.timers] == [3 * DELTA_US]
    wire.do(a, a.timer(3 * DELTA_US))
    wire.founders[late.desk.me] = late
    wire.do(late, late.start(0))
    wire.do(late, late.connected(a.desk.me, 0))
    assert a.founded is not None
    assert silent.desk.me not in [f.peer for f in open_genesis(a.founded.genesis).founders]
    assert late.founded == a.founded or late.founded is not None


def test_the_slowest_founder_decides_the_first_deadline() -> None:
    wire = Wire(founder(0, probe_ms=30), founder(1, probe_ms=2500), founder(2, probe_ms=40))
    wire.start()
    assert {open_genesis(f.founded.genesis).compute_ms for f in wire.founders.values() if f.founded} == {2500}


def test_a_genesis_that_leaves_us_too_little_time_is_not_signed() -> None:
    slow, assembler = founder(1, count=2, probe_ms=2500), founder(0, count=2)
    said = founder(1, count=2, probe_ms=249)  # what the assembler makes of our Join
    wire = Wire(assembler)
    wire.do(assembler, assembler.start(0))
    slow.start(0)
    said.start(0)
    join = next(e.packet for e in said.connected(assembler.desk.me, 0) if isinstance(e, Send))
    effects = assembler.packet(slow.desk.me, join, 0)
    proposal = next(e.packet for e in effects if isinstance(e, Send))
    with pytest.raises(InconsistentMessage, match="too little time"):
        slow.packet(assembler.desk.me, proposal, 0)
    assert said.packet(assembler.desk.me, proposal, 0) != []


def test_a_genesis_without_our_join_or_of_another_contract_is_not_signed() -> None:
    me = founder(1)
    me.start(0)
    wire = Wire(founder(0, count=1, assembler=True))
    assembler = next(iter(wire.founders.values()))
    assembler.start(0)
    assert assembler.founded is not None
    unsigned = Founding(assembler.founded.genesis, (), ())
    with pytest.raises(InconsistentMessage, match="own join"):
        me.packet(assembler.desk.me, encode_packet(unsigned), 0)
    stranger = founder(1, x0=sha256(b"other"))
    stranger.start(0)
    with pytest.raises(RemoteProtocolError, match="another state"):
        stranger.packet(assembler.desk.me, encode_packet(assembler.founded), 0)
