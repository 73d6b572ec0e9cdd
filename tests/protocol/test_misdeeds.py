"""Every misdeed over the real protocol: who did it is banned for it, nobody else is, and the rest goes on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from btrain.adversary.registry import get_adversary
from btrain.kernels import QuantizedBlocks, dequantize_blockwise, quantize_blockwise
from btrain.protocol.agreement_messages import Final
from btrain.protocol.audit import GradientCheck
from btrain.protocol.behaviour import Behaviour, Replay
from btrain.protocol.court import Court
from btrain.protocol.desk import Desk
from btrain.protocol.effects import Effect, PutBlob
from btrain.protocol.encoding import PeerId, digest
from btrain.protocol.evidence import open_evidence, verify_evidence
from btrain.protocol.messages import Charge, Verifier, sign
from btrain.protocol.reduction import ReducedPart
from btrain.protocol.round import Round
from btrain.simulation.world import World

Run = Any  # the fixture of conftest.py


class Reversed(Behaviour):
    """Commits to its gradient, reversed and a thousand times as long."""

    def gradient(self, own: Tensor, round: Round, replay: Replay) -> Tensor:
        return -1000 * own


class Shifted(Behaviour):
    """Adds a constant to what it reduces."""

    def reduced(self, reduced: ReducedPart, part: int, round: Round) -> ReducedPart:
        right = dequantize_blockwise(QuantizedBlocks.from_bytes(reduced.data, round.roles.layout.part_numel(part)))
        return replace(reduced, data=quantize_blockwise(right + 1e-3).to_bytes())


class OtherCoefficients(Behaviour):
    """Publishes the right bytes with coefficients that would not give them."""

    def reduced(self, reduced: ReducedPart, part: int, round: Round) -> ReducedPart:
        return replace(reduced, coefficients=tuple(2 * c for c in reduced.coefficients))


class Accuser(Behaviour):
    """Accuses whomever it audits."""

    def accuses(self, check: GradientCheck, tolerance: float) -> bool:
        return True


@dataclass
class Encoding(Behaviour):
    """Commits to bytes with one illegal scale or code."""

    scale: float | None = None
    code: int | None = None

    def parts(self, parts: list[bytes], round: Round) -> list[bytes]:
        if not parts:
            return parts
        blocks = QuantizedBlocks.from_bytes(parts[0], round.roles.layout.part_numel(0))
        data = bytearray(parts[0])
        legal = np.array([blocks.scales[0].item()], dtype="<f4").tobytes()
        if self.scale is not None:
            at = data.index(legal)
            data[at : at + 4] = np.array([self.scale], dtype="<f4").tobytes()
        if self.code is not None:
            codes = blocks.codes.numpy().tobytes()
            at = data.index(codes[:64])
            data[at] = self.code % 256
        return [bytes(data), *parts[1:]]


@dataclass
class Charger(Behaviour):
    """Charges an honest peer on nothing, in every round."""

    victim: int = 0

    def effects(self, effects: list[Effect], round: int, now: int) -> list[Effect]:
        return [*effects, PutBlob(digest(b"nothing"), b"nothing", round)]

    def broadcast(self, desk: Any, message: Any, round: Round) -> None:
        super().broadcast(desk, message, round)
        victim = round.roster.members[self.victim]
        if message.statement.kind == "commit" and victim != desk.me:
            body = Charge(victim, round.round, "equivocation", digest(b"nothing"))
            desk.broadcast(desk.sign(desk.statement(body, prev=desk.run, round=round.round)))


def finish(run: Run, world: World, byzantine: int = 1) -> dict[bytes, tuple[str, int, int]]:
    """Run to the end; the one attacker is the last peer."""
    run.to_the_end(world)
    bans: dict[bytes, tuple[str, int, int]] = run.bans(world)
    assert set(bans) <= {world.keys[index].public_key for index in world.byzantine}
    return bans


def attacker(world: World) -> bytes:
    return world.keys[next(iter(world.byzantine))].public_key


def saved(world: World, deed: str) -> list[bytes]:
    return [data for peer in world.honest for _, _, name, data in world.identities[peer].disk.evidence if name == deed]


def test_a_wrong_gradient_is_accused_judged_and_banned(run: Run) -> None:
    world = run.world(5, 30, byzantine={4: Reversed()})
    deed, _, _ = finish(run, world)[attacker(world)]
    assert deed == "wrong_gradient"
    evidence = open_evidence(saved(world, deed)[0])
    assert evidence.blobs[-1]  # the parameters at which it can be recomputed
    verdicts = [v for block in world.blocks(world.honest[0]) for v in block.verdicts]
    assert {v.verdict.vote for v in verdicts if v.member in world.honest} == {1}


@pytest.mark.parametrize("behaviour", [Shifted(), OtherCoefficients()])
def test_a_wrong_reduction_proves_itself(run: Run, behaviour: Behaviour) -> None:
    world = run.world(5, 30, seed=1, byzantine={2: behaviour})
    deed, _, _ = finish(run, world)[attacker(world)]
    assert deed == "wrong_reduction"
    finding = verify_evidence(open_evidence(saved(world, deed)[0]), Verifier(), lambda _: run.rule)
    assert (finding.accused, finding.proof) == (attacker(world), "bytes")


def test_a_false_accuser_is_banned_by_the_verdict(run: Run) -> None:
    world = run.world(5, 30, seed=2, byzantine={3: Accuser()})
    assert finish(run, world)[attacker(world)][0] == "false_accusation"


def test_a_false_charge_bans_its_signer_in_the_next_block(run: Run) -> None:
    world = run.world(4, 8, seed=3, byzantine={3: Charger()})
    deed, of, banned = finish(run, world)[attacker(world)]
    assert deed == "false_charge"
    assert banned <= of + 2
    finding = verify_evidence(open_evidence(saved(world, deed)[0]), Verifier(), lambda _: run.rule)
    assert finding.accused == attacker(world)


ILLEGAL = [Encoding(scale=float("nan")), Encoding(scale=float("inf")), Encoding(scale=-1.0), Encoding(scale=1e38),
           Encoding(scale=1e-42), Encoding(code=-128)]  # fmt: skip


@pytest.mark.parametrize("behaviour", ILLEGAL)
def test_an_illegal_encoding_is_banned_in_the_next_block(run: Run, behaviour: Behaviour) -> None:
    world = run.world(4, 8, seed=4, byzantine={1: behaviour})
    deed, of, banned = finish(run, world)[attacker(world)]
    assert (deed, banned) == ("illegal_encoding", of + 1)
    assert torch.isfinite(world.node(world.honest[0]).learner.x).all()
    finding = verify_evidence(open_evidence(saved(world, deed)[0]), Verifier(), lambda _: run.rule)
    assert finding.accused == attacker(world)


class Friend(Behaviour):
    """Says nothing of what it sees of others."""

    def charges(self, accused: PeerId, deed: str) -> bool:
        return False


def test_who_was_not_told_of_a_charge_hears_of_it_by_the_commits(run: Run) -> None:
    """Three of four must list it: a link that was down for a moment would set the guilty free."""
    world = run.world(4, 12, seed=1, byzantine={3: Friend()})
    world.run(3, 60_000_000)
    teller, deaf, guilty = *world.honest[:2], attacker(world)
    twice = Desk(world.identities[guilty].key, world.genesis.run, Verifier())
    statements = [twice.statement(Final(bytes([i]) * 32), prev=bytes(32), round=2) for i in range(2)]
    node = world.node(teller)
    assert node is not None
    node.member.charges.charge("equivocation", guilty, 2, [sign(twice.key, each) for each in statements], [])
    effects = node.member.desk.take()
    node._connected.discard(deaf)
    node._run(effects)
    node._connected.add(deaf)
    run.to_the_end(world)
    assert run.bans(world)[guilty][0] == "equivocation"


@dataclass
class ForFriend(Behaviour):
    """Commits to no legal encoding of the one part that a friend reduces."""

    friend: PeerId

    def parts(self, parts: list[bytes], round: Round) -> list[bytes]:
        owned = round.roles.owned(self.friend)
        return [b"" if part == owned else data for part, data in enumerate(parts)]


@pytest.mark.parametrize("audit", ["_gradient_check", "_reduce_again"])
def test_an_illegal_encoding_that_only_a_friend_has_seen_is_found_by_audits(
    run: Run, audit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By those of the gradient and by those of the reduction, each without the other."""
    friend = run.world(7, 40, seed=4).keys[5].public_key
    world = run.world(7, 40, seed=4, byzantine={5: Friend(), 6: ForFriend(friend)}, audits_per_round=2)
    other = {"_gradient_check": ("_reduce_again", "_begin_table_check"), "_reduce_again": ("_ask",)}[audit]
    for method in other:
        monkeypatch.setattr(Court, method, lambda *_, **__: None)
    bans = finish(run, world)
    assert bans[world.keys[6].public_key][0] == "illegal_encoding" and friend not in bans


@pytest.mark.parametrize("kind", ["commit", "result", "reveal", "vote", "final"])
def test_two_statements_in_one_slot_ban_their_signer(run: Run, kind: str) -> None:
    world = run.world(5, 12, seed=5)
    coalition = frozenset({world.keys[1].public_key})
    world = run.world(5, 12, seed=5, byzantine={
        1: get_adversary(f"equivocate:kind={kind}", coalition=coalition, attack_from=1, seed=5)
    })  # fmt: skip
    assert finish(run, world)[attacker(world)][0] == "equivocation"


QUIET = ["edge_late", "selective_send", "abort_link", "withhold_part", "freeze", "garbage", "flood", "replay"]


@pytest.mark.parametrize("name", QUIET)
def test_what_proves_nothing_bans_nobody_and_stops_nobody(run: Run, name: str) -> None:
    world = run.world(5, 8, seed=6)
    coalition = frozenset({world.keys[2].public_key})
    byzantine = {2: get_adversary(name, coalition=coalition, attack_from=1, seed=6)}
    assert finish(run, run.world(5, 8, seed=6, byzantine=byzantine)) == {}


@pytest.mark.parametrize("name", ["sign_flip", "equivocate", "edge_late"])
def test_a_coalition_as_large_as_it_may_be(run: Run, name: str) -> None:
    peers, members = 8, (0, 3, 6)
    keys = run.world(peers, 6, seed=7).keys
    coalition = frozenset(keys[index].public_key for index in members)
    byzantine = {i: get_adversary(name, coalition=coalition, attack_from=1, seed=7) for i in members}
    finish(run, run.world(peers, 6, seed=7, byzantine=byzantine))


def test_withheld_parts_void_no_round(run: Run) -> None:
    # The votes of the others decided over the head of the aggregator that lacked a part: each round was void.
    keys = run.world(8, 5, seed=3014).keys
    coalition = frozenset(key.public_key for key in keys[:2])
    byzantine = {i: get_adversary("withhold_part", coalition=coalition, attack_from=1, seed=1) for i in range(2)}
    world = run.world(8, 5, seed=3014, byzantine=byzantine)
    assert finish(run, world) == {}
    assert [block.void for block in world.blocks(world.honest[0])] == [1, 0, 0, 0, 0]
