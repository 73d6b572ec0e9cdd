"""Rounds that are decided and not certified yet are open: they are told again, and their members are heard."""

from __future__ import annotations

from typing import Any

from btrain.protocol.agreement_messages import Final
from btrain.protocol.decisions import BLOCK
from btrain.protocol.effects import Send
from btrain.protocol.encoding import PeerId
from btrain.protocol.messages import Message
from btrain.protocol.packets import Envelopes, decode_packet
from btrain.simulation.faults import Faults, Outage
from btrain.simulation.heap import NodeId
from btrain.simulation.world import World

SECOND = 1_000_000
Run = Any  # the fixture of conftest.py


class LateFinals:
    """The Finals for blocks that `signer` sends arrive when their receivers have decided the block without them."""

    def __init__(self, world: World, signer: PeerId) -> None:
        self.world, self.signer, self.send = world, signer, world.heap.send
        self.held: list[tuple[int, NodeId, Any, int]] = []
        world.heap.send = self._hold  # type: ignore[method-assign]

    def _hold(self, src: NodeId, dst: NodeId, payload: Any, size_bytes: int) -> None:
        finals = [m for m in statements(self.world, payload) if isinstance(m.body, Final) and m.sender == self.signer]
        blocks = [m.statement.round for m in finals if m.statement.index == BLOCK]
        if blocks:
            self.held.append((max(blocks), dst, payload, size_bytes))
        else:
            self.send(src, dst, payload, size_bytes)

    def run(self, until_us: int) -> None:
        """Go on, delivering what is late enough."""
        while self.world.heap.now < until_us:
            self.world.heap.run(self.world.heap.now + 10_000)
            for late in list(self.held):
                round, dst, payload, size_bytes = late
                if round_at(self.world, dst) > round:
                    self.held.remove(late)
                    self.send(self.signer, dst, payload, size_bytes)


def statements(world: World, payload: Any) -> list[Message]:
    packet = decode_packet(payload[1]) if payload[0] == "control" else None
    envelopes = packet.envelopes if isinstance(packet, Envelopes) else ()
    return [world.verifier.open(envelope, world.genesis.run) for envelope in envelopes]


def round_at(world: World, peer: Any) -> int:
    node = world.node(peer)
    return 0 if node is None else node.member.state.round


def test_the_final_of_one_whom_the_block_lets_go_counts_for_the_block(run: Run) -> None:
    """Two of four decide, three must sign: one has crashed for ever, so the one who leaves is needed."""
    faults = Faults((Outage(3, "crash", SECOND, None),))
    world = run.world(4, 60, seed=1, faults=faults)
    stay, leaver = world.honest[:2], world.honest[2]
    late = LateFinals(world, leaver)
    late.run(8 * SECOND)
    world.leave(leaver)
    while leaver in world.node(leaver).member.state.roster.members:
        late.run(world.heap.now + 10_000)
    world.retire(leaver)
    certified = min(world.height(peer) for peer in stay)
    late.run(world.heap.now + 2 * SECOND)
    assert min(world.height(peer) for peer in stay) > certified


def test_who_connects_is_told_every_open_round(run: Run) -> None:
    world = run.world(4, 20, seed=1)
    one, other = world.honest[:2]
    world.heap.run(SECOND)
    for signer in world.honest[2:]:
        LateFinals(world, signer)
    member = world.node(one).member
    while not (member.chronicle.uncertified and member.round is not None and member.round.statements.commits):
        world.heap.run(world.heap.now + 1_000)
    decided = min(member.chronicle.uncertified)
    sent = [effect for effect in member.connected(other, world.heap.now) if isinstance(effect, Send)]
    told = [message for effect in sent for message in statements(world, ("control", effect.packet))]
    assert {message.statement.round for message in told} == {decided, decided + 1}
