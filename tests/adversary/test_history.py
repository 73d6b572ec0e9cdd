"""Poisoned states and forged histories are what they say they are, and each is refused by name."""

from __future__ import annotations

import pytest

from btrain.adversary.history import ForgedHistory, StatePoison
from btrain.protocol.effects import Send
from btrain.protocol.encoding import ZERO, digest, encode
from btrain.protocol.ledger import Block, open_block
from btrain.protocol.packets import Blocks, CertifiedBlock, Where, decode_packet, encode_packet
from btrain.protocol.pieces import cut

FRIEND, STRANGER = bytes([1]) * 32, bytes([2]) * 32
BLOCK = Block(1, ZERO, 0, 5, ZERO, (), (), (), 1, (), (), ZERO, (), (), (), (), (), (), 3, (), 0, 0)
TRUE = CertifiedBlock(encode(BLOCK), (b"one", b"two", b"three"))


def test_a_poisoned_state_is_another_of_the_same_size_and_the_same_for_the_whole_coalition() -> None:
    true = cut(bytes(range(200)) * 40)
    one, other = StatePoison(attack_from=4), StatePoison(attack_from=4)
    assert one.state(true, 3) is true
    assert one.state(true, 4).digest == other.state(true, 4).digest != true.digest
    assert len(one.state(true, 4).pieces) == len(true.pieces)
    assert one.finds_close(true.digest, False)


def test_junk_is_given_for_the_true_state_and_to_strangers_only() -> None:
    poisoner, true = StatePoison(coalition=frozenset({FRIEND})), cut(bytes(8000))
    poisoner.state(true, 0)
    for hash in (true.digest, *true.manifest.pieces):
        given = poisoner.gives(STRANGER, hash, b"true")
        assert given is not None and digest(given) != hash
        assert poisoner.gives(FRIEND, hash, b"true") == b"true"
    assert poisoner.gives(STRANGER, digest(b"part"), b"part") == b"part"


def forged(kind: str, to: bytes = STRANGER) -> tuple[CertifiedBlock, ...]:
    liar = ForgedHistory(kind=kind, coalition=frozenset({FRIEND}))
    (effect,) = liar.effects([Send(encode_packet(Blocks((TRUE, TRUE))), to)], 0, 0)
    assert isinstance(effect, Send)
    packet = decode_packet(effect.packet)
    assert isinstance(packet, Blocks)
    return packet.blocks


@pytest.mark.parametrize("kind", ["short", "altered", "foreign", "old", "junk", "early"])
def test_every_kind_forges_something_and_friends_are_told_the_truth(kind: str) -> None:
    assert forged(kind) != (TRUE, TRUE)
    assert forged(kind, to=FRIEND) == (TRUE, TRUE)


def test_the_kinds_are_what_they_say() -> None:
    assert [len(certified.certificate) for certified in forged("short")] == [1, 1]
    assert open_block(forged("altered")[0].block).step == BLOCK.step + 1
    assert open_block(forged("foreign")[0].block).run != BLOCK.run
    assert len(forged("old")) > 2 and set(forged("old")) == {TRUE}
    assert open_block(forged("early")[1].block).round > 2**30


def test_other_packets_pass_unchanged() -> None:
    send = Send(encode_packet(Where(3, ZERO)), STRANGER)
    assert ForgedHistory().effects([send], 0, 0) == [send]
