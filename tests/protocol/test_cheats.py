"""A coalition that lets another deed be known first does not spare its friends the sweep."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from btrain.protocol.behaviour import Behaviour, Replay
from btrain.protocol.charges import Charges
from btrain.protocol.cheats import ROUNDS_MAX
from btrain.protocol.desk import Desk
from btrain.protocol.encoding import ZERO, encode
from btrain.protocol.ledger import Block, LedgerState
from btrain.protocol.messages import Accusation, Charge, Statement, Verdict, Verifier, sign
from btrain.protocol.packets import Envelopes, decode_packet, encode_packet
from btrain.protocol.round import Round
from btrain.simulation.heap import NodeId, Port
from btrain.simulation.peer import Identity, SimulatedPeer
from btrain.simulation.world import World, simulated_keys
from tests.protocol.test_ledger import PEERS, decided, start

SECOND = 1_000_000
Run = Any  # the fixture of conftest.py
EVIDENCE = bytes(32)


def charge(deed: str, round: int, accused: int = 4) -> Charge:
    return Charge(PEERS[accused], round, deed, EVIDENCE)


EQUIVOCATION = charge("equivocation", 3)


def at(run: Run, round: int) -> LedgerState:
    """The state after so many rounds in which nothing happened."""
    state = start(run)
    while state.round < round:
        state = state.advance(decided(state, {i: {} for i in range(5)}))
    return state


def listing(state: LedgerState, side: dict[str, Any], *others: int) -> Block:
    """A block in which a quorum lists this, and the fourth and these members nothing."""
    return decided(state, {**dict.fromkeys(range(3), side), **{i: {} for i in (3, *others)}})


def swept(state: LedgerState) -> list[int]:
    return [sweep.round for sweep in state.sweeps]


def test_of_what_a_quorum_lists_the_deed_that_opens_a_sweep_counts(run: Run) -> None:
    state = at(run, 4)
    block = listing(state, {"charges": (EQUIVOCATION, charge("wrong_reduction", 2))}, 4)
    assert [(ban.peer, ban.deed, ban.round) for ban in block.bans] == [(PEERS[4], "wrong_reduction", 2)]
    assert swept(state.advance(block)) == [2, 3]


def test_what_fewer_than_a_quorum_list_opens_nothing(run: Run) -> None:
    state = at(run, 4)
    sides = {i: {"charges": (EQUIVOCATION, *([charge("wrong_reduction", 2)] if i < 2 else []))} for i in range(4)}
    block = decided(state, sides | {4: {}})
    assert [ban.deed for ban in block.bans] == ["equivocation"]
    assert swept(state.advance(block)) == []


@pytest.mark.parametrize(
    "late",
    [
        {"charges": (charge("wrong_reduction", 2),)},
        {"verdicts": (Verdict(PEERS[0], PEERS[4], 2, 1),)},
    ],
)
def test_a_round_is_swept_for_who_was_banned_for_something_else_before(run: Run, late: dict[str, Any]) -> None:
    state = at(run, 4)
    state = state.advance(listing(state, {"charges": (EQUIVOCATION,)}, 4))
    assert state.roster.seat(PEERS[4]) is None and swept(state) == []
    block = listing(state, late)
    assert block.bans == ()
    state = state.advance(block)
    assert swept(state) == [2, 3]
    block = listing(state, late)
    assert (block.charges, block.verdicts) == ((), ())  # it is swept: nothing is left to decide
    assert swept(state.advance(block)) == [2, 3]


def test_a_ban_opens_a_bounded_number_of_sweeps(run: Run) -> None:
    state = at(run, 10 - 1)
    rounds = range(1, 9)
    state = state.advance(listing(state, {"charges": (EQUIVOCATION,)}, 4))
    verdicts = tuple(Verdict(PEERS[0], PEERS[4], of, 1) for of in rounds)
    state = state.advance(listing(state, {"verdicts": verdicts}))
    (expelled,) = state.expelled
    assert len(expelled.opened) == ROUNDS_MAX
    assert len(swept(state)) <= 2 * ROUNDS_MAX
    assert not any(state.opens_sweep(PEERS[4], of) for of in rounds)


def test_nobody_is_swept_for_who_never_held_a_seat_or_is_long_gone(run: Run) -> None:
    state = at(run, 4)
    assert not state.opens_sweep(bytes(32), 2)
    assert state.opens_sweep(PEERS[4], 4) and not state.opens_sweep(PEERS[4], 0)
    assert not at(run, 9).opens_sweep(PEERS[4], 10)


def test_a_member_lists_a_proof_of_every_spoiled_round_and_goes_on_after_the_ban(run: Run) -> None:
    state = at(run, 9)
    charges = Charges(Desk(simulated_keys(31, 1)[0], state.run, Verifier()), Behaviour(), state)
    for deed, of in [("equivocation", 3), ("equivocation", 4), *(("illegal_result", of) for of in range(1, 9))]:
        charges.charge(deed, PEERS[4], of, [], [])
    listed = charges.listed(state)
    assert [(c.deed, c.round) for c in listed] == [
        ("equivocation", 3), *(("illegal_result", of) for of in range(1, 1 + ROUNDS_MAX)),
    ]  # fmt: skip
    state = state.advance(listing(state, {"charges": listed[:1]}, 4))
    charges.stand_at(state)
    assert charges.listed(state) == listed[1:]
    state = state.advance(listing(state, {"charges": listed[1:]}))
    assert swept(state) == [1, 2]
    charges.stand_at(state)
    assert [charge.round for charge in charges.listed(state)] == [3, 4]


# --- the whole protocol ---


class Dormant(Behaviour):
    """Cheats until somebody is banned, and never again."""

    def gradient(self, own: Tensor, round: Round, replay: Replay) -> Tensor:
        return own if round.round < 2 or round.roster.banned else -1000 * own


class Confessor(SimulatedPeer):
    """Once it is accused of a gradient, it shows everybody two statements of one slot."""

    def __init__(self, port: Port, identity: Identity) -> None:
        super().__init__(port, identity)
        self.confessed = False

    def packet(self, src: NodeId, payload: object, now: int) -> None:
        assert isinstance(payload, tuple)
        if payload[0] == "control" and not self.confessed and self._accused(payload[1]):
            self.confessed = True
            self._confess()
        super().packet(src, payload, now)

    def _accused(self, data: bytes) -> bool:
        packet, member = decode_packet(data), self.member
        found = packet.envelopes if isinstance(packet, Envelopes) else ()
        opened = [self.identity.verifier.open(envelope, member.state.run) for envelope in found]
        return any(isinstance(m.body, Accusation) and m.body.accused == member.me for m in opened)

    def _confess(self) -> None:
        member = self.member
        for deed in ("equivocation", "false_charge"):
            body = Charge(member.state.roster.members[0], 1, deed, bytes(32))
            round, run = member.state.round, member.state.run
            slot = Statement(1, run, 0, run, round, 0, "charge", 7, member.me, ZERO, encode(body))
            packet = encode_packet(Envelopes((sign(self.identity.key, slot).data,)))
            for peer in self._audience:
                self.port.send(peer, ("control", packet), len(packet))


def confessing(run: Run, seed: int) -> World:
    world = run.world(8, 24, seed=seed, byzantine=dict.fromkeys((5, 6, 7), Dormant()), byzantine_max=3)
    for index in world.byzantine:
        identity = world.identities[world.keys[index].public_key]
        world.heap._host(identity.key.public_key).factory = lambda port, identity=identity: Confessor(port, identity)
    return world


@pytest.mark.parametrize("seed", [3, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 14))])
def test_who_confesses_to_something_else_when_accused_has_not_saved_its_friends(run: Run, seed: int) -> None:
    world = confessing(run, seed)
    attackers = {world.keys[index].public_key for index in world.byzantine}
    for target in range(4, 20):
        world.run(target, 400 * SECOND)
        bans = run.bans(world)
        if attackers <= set(bans):
            break
    node, blocks = world.node(world.honest[0]), world.blocks(world.honest[0])
    assert node is not None
    swept = {peer for sweep in node.member.state.sweeps for peer in blocks[sweep.round].contributors}
    assert attackers & swept <= set(bans) <= attackers  # a validator of both swept rounds had no share in them
    assert len(bans) > 1
    first = min(bans.values(), key=lambda ban: ban[2])
    assert first[0] in ("equivocation", "false_charge")  # the confession is faster
