"""What a calm round sends: each statement once to everybody, and hardly a block to those who have it."""

from __future__ import annotations

from collections import Counter

from btrain.protocol.packets import Blocks, decode_packet
from btrain.simulation.soak import Case, Faults, set_up

CASE = Case(seed=2, peers=8, rounds=12, numel=300, attacks=(), attack_from=0, faults=Faults())
STATEMENTS = 10  # a member's own: Commit, Approval, three votes, three Finals, link; of one of them Result and Table


def test_a_calm_round_sends_each_statement_once_and_hardly_a_block() -> None:
    world = set_up(CASE, "counted")
    sent: Counter[str] = Counter()
    send = world.heap.send

    def spy(src: object, dst: object, payload: object, size_bytes: int) -> None:
        assert isinstance(payload, tuple)
        if payload[0] == "control":
            sent[type(decode_packet(payload[1])).__name__] += 1
        send(src, dst, payload, size_bytes)  # type: ignore[arg-type]

    world.heap.send = spy  # type: ignore[method-assign, assignment]
    world.run(CASE.rounds, 60_000_000)
    peer_rounds = CASE.peers * CASE.rounds
    assert sent[Blocks.__name__] / peer_rounds < 0.5  # to whom a message of the round before shows to be behind
    assert sent["Envelopes"] / peer_rounds < (STATEMENTS + 1) * (CASE.peers - 1)
