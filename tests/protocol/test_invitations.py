"""Invitations: for one peer, one run, a span of rounds and one seat, by members that still are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from btrain.identity import SigningKey
from btrain.protocol.encoding import ZERO
from btrain.protocol.errors import InvalidInvitation, RemoteProtocolError
from btrain.protocol.invitations import (
    check_invitation,
    invitation_bytes,
    invitation_text,
    invite,
    inviters,
    open_invitation,
)
from btrain.protocol.roster import Former
from tests.protocol.test_ledger import KEYS, start

Run = Any  # the fixture of conftest.py
GUEST = SigningKey.from_seed(bytes([3]) * 32)


def test_an_invitation_holds_for_its_guest_run_and_rounds(run: Run) -> None:
    state = start(run)
    good = open_invitation(invite(KEYS[0], state.run, GUEST.public_key, 0, 9))
    check_invitation(good, GUEST.public_key, state)
    stranger = open_invitation(invite(GUEST, state.run, GUEST.public_key, 0, 9))
    used = replace(state, roster=replace(state.roster, former={GUEST.public_key: Former(1, 0, 0)}))
    refused = [
        (good, KEYS[1].public_key, state, "another peer"),
        (open_invitation(invite(KEYS[0], ZERO, GUEST.public_key, 0, 9)), GUEST.public_key, state, "another run"),
        (good, GUEST.public_key, replace(state, round=10), "for rounds 0 to 9"),
        (stranger, GUEST.public_key, state, "holds no seat"),
        (good, GUEST.public_key, used, "used"),
    ]
    for invitation, guest, at, reason in refused:
        with pytest.raises(InvalidInvitation, match=reason):
            check_invitation(invitation, guest, at)


def test_one_changed_byte_is_refused_and_one_member_counts_once(run: Run) -> None:
    state = start(run)
    data = invite(KEYS[0], state.run, GUEST.public_key, 0, 9)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1
        with pytest.raises(RemoteProtocolError):
            open_invitation(bytes(changed))
    again = invite(KEYS[0], state.run, GUEST.public_key, 0, 8)
    other = invite(KEYS[1], state.run, GUEST.public_key, 0, 8)
    assert inviters([data, again, other, b"nonsense"], GUEST.public_key, state) == {k.public_key for k in KEYS[:2]}


def test_the_text_comes_back_and_other_texts_are_refused() -> None:
    data = invite(KEYS[0], ZERO, GUEST.public_key, 0, 9)
    assert invitation_bytes(f" {invitation_text(data)}\n") == data
    for text in ("", "btrain-invite-!", "invite-abc", "btrain-invite-" + "a" * 2000):
        with pytest.raises(InvalidInvitation):
            invitation_bytes(text)


@pytest.mark.parametrize("invited", [1, 2])
def test_a_guest_gets_a_seat_with_enough_invitations(run: Run, invited: int) -> None:
    world = run.world(4, 16, seed=3, admission="invite", invitations=2)
    world.add_newcomer(GUEST, 500_000)
    identity = world.identities[GUEST.public_key]
    letters = tuple(invite(key, world.genesis.run, GUEST.public_key, 0, 16) for key in world.keys[:invited])
    identity.membership = replace(identity.membership, invitations=letters)
    run.to_the_end(world)
    admitted = [b.round for b in world.blocks(world.honest[0]) if any(e.peer == GUEST.public_key for e in b.admissions)]
    assert len(admitted) == (invited == 2)
