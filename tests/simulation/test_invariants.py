"""That the invariants are looked at: each is broken on purpose and noticed."""

from __future__ import annotations

import msgspec
import pytest
import torch

from btrain.protocol.ledger import Ban
from btrain.protocol.packets import CertifiedBlock
from btrain.simulation.invariants import InvariantViolated
from btrain.simulation.soak import Case, Faults, set_up
from btrain.simulation.world import World

CASE = Case(seed=5, peers=4, rounds=6, numel=300, attacks=(), attack_from=0, faults=Faults())
EVENT = {"peer": "", "round": 1, "deed": "equivocation", "seen": 1}


def finished(case: Case = CASE) -> World:
    world = set_up(case, "counted")
    world.run(case.rounds, 60_000_000)
    return world


def test_a_sound_run_breaks_nothing() -> None:
    world = finished()
    world.check()
    world.verify()
    assert world.at_rest


def test_a_fork_is_noticed() -> None:
    world = finished()
    ledger = world.identities[world.honest[2]].disk.blocks
    block = msgspec.structs.replace(world.blocks(world.honest[2])[-1], step=99)
    ledger.append(CertifiedBlock(ledger[-1].block, ()))
    world.check()
    world.identities[world.honest[1]].disk.blocks.append(CertifiedBlock(msgspec.msgpack.encode(block), ()))
    with pytest.raises(InvariantViolated, match="forks at round 6"):
        world.check()


def test_a_banned_honest_peer_is_noticed() -> None:
    world = finished()
    ban = Ban(world.honest[0], "equivocation", 3, ())
    block = msgspec.structs.replace(world.blocks(world.honest[1])[-1], bans=(ban,))
    world.identities[world.honest[1]].disk.blocks.append(CertifiedBlock(msgspec.msgpack.encode(block), ()))
    with pytest.raises(InvariantViolated, match="banned in round 6 for equivocation"):
        world.check()


def test_different_parameters_are_noticed() -> None:
    world = finished()
    world.identities[world.honest[1]].digests[5] = bytes(32)
    with pytest.raises(InvariantViolated, match=r"x\[5\]"):
        world.check()


def test_a_weight_that_is_not_finite_is_noticed() -> None:
    world = finished()
    node = world.node(world.honest[1])
    assert node is not None
    node.learner.load_state(torch.full((300,), torch.nan).numpy().tobytes())
    world.identities[world.honest[1]].digests[99] = bytes(32)
    with pytest.raises(InvariantViolated, match="not finite"):
        world.check()


@pytest.mark.parametrize("name", ["charged", "accuses"])
def test_an_honest_peer_against_an_honest_peer_is_noticed(name: str) -> None:
    world = finished()
    world.identities[world.honest[0]].events.append((0, name, EVENT | {"peer": world.honest[1].hex()}))
    with pytest.raises(InvariantViolated, match=name):
        world.check()


def test_a_charge_without_a_ban_is_noticed_in_a_calm_run() -> None:
    world = finished()
    world.identities[world.honest[0]].events.append((0, "charged", EVENT | {"peer": (b"\x09" * 32).hex()}))
    with pytest.raises(InvariantViolated, match="charged in round 1"):
        world.check()


def test_a_ledger_without_certificates_does_not_verify() -> None:
    world = finished()
    ledger = world.identities[world.honest[0]].disk.blocks
    ledger[3] = CertifiedBlock(ledger[3].block, ledger[3].certificate[:1])
    with pytest.raises(Exception, match="certificate of block 3"):
        world.verify()
