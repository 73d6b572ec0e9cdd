"""Newcomers: a late peer gets a seat, from wherever the run is."""

from __future__ import annotations

import pytest

from btrain.config import loads
from btrain.identity import create_key, peer_id_text
from btrain.inviting import write_invitation
from tests.peer.conftest import CONFIG, Resident, Town


def listed(town: Town, names: str, founders: int) -> str:
    """Make keys for these peers and a run that admits them; returns the names, who puts the genesis together first."""
    ids = {}
    for name in names:
        (town.directory / name).mkdir()
        ids[name] = peer_id_text(create_key(town.directory / name / "identity.key").public_key)
    group = f"{{start_when: {founders}, byzantine_max: 1, admission: allowlist, members: {sorted(ids.values())}}}"
    town.text = loads(f"{CONFIG}group: {group}\n").to_yaml()
    return "".join(sorted(names, key=ids.__getitem__))


def test_a_newcomer_learns_the_run_from_one_that_was_no_founder(town: Town) -> None:
    """To it that peer is a stranger until it has the block that gave the seat, and blocks of a run are long."""
    first, *others = listed(town, "abcde", founders=3)
    founders, (late, last) = [first, *others[:2]], others[2:]
    peers = town.found(*founders)
    town.until(lambda: all(peer.height >= 3 for peer in peers))
    middle = town.start(late, join=peers[0].address)
    town.until(lambda: middle.height >= 15)
    newcomer = town.start(last, join=middle.address)
    town.until(lambda: newcomer.contributed > 15)
    assert newcomer.all("misbehaved") == []
    town.kill(*founders, late, last)
    town.check()


@pytest.mark.parametrize(("rounds_before", "sync"), [(3, 16), (14, 4)])
def test_a_late_peer_gets_a_seat_and_contributes(town: Town, rounds_before: int, sync: int) -> None:
    """It is told of one member only; the second time the first rounds' results are gone, so it starts from a state."""
    town.config(3, state_sync_every=sync, verification__custody_rounds=4, group__probation_rounds=3)
    peers = town.found("a", "b", "c")
    town.until(lambda: all(peer.height >= rounds_before for peer in peers))
    late = town.start("d", join=peers[1].address)
    town.until(lambda: bool(late.all("started")))
    town.until(lambda: any(late.peer_id in event["admitted"] for event in peers[0].all("block")))
    assert late.contributed > 0  # on probation
    last = late.contributed
    town.goes_on("a", "b", "c", "d")
    if sync == 4:
        assert late.all("state_loaded") != []
    town.kill("a", "b", "c", "d")
    town.check()
    assert late.peer_id in town.contributors("a", since=last)


def test_only_who_was_invited_by_enough_members_gets_a_seat(town: Town) -> None:
    """Members write invitations while they run; two of three are needed. Who has one, or none, is told so."""
    town.config(3, group__admission="invite")
    peers = town.found("a", "b", "c")
    town.until(lambda: all(peer.height >= 2 for peer in peers))
    guest = create_key(town.directory / "guest.key").public_key
    letters = [write_invitation(peer.run_dir, peer.run_dir / "identity.key", guest, 1000).text for peer in peers[:2]]

    def comes(name: str, letters: list[str]) -> Resident:
        text = loads(town.text, overrides=[f"local.invitations=[{', '.join(letters)}]"]).to_yaml()
        return town.start(name, join=peers[2].address, text=text, identity=town.directory / "guest.key")

    early = comes("early", letters[:1])
    town.until(lambda: bool(early.all("refusal")))
    assert "whom 2 of its members have invited, and 1 invitations" in early.all("refusal")[0]["reason"]
    stranger = town.start("stranger", join=peers[2].address)
    town.until(lambda: bool(stranger.all("refusal")))
    town.kill("early")
    invited = comes("invited", letters)
    town.until(lambda: bool(invited.all("started")))
    town.until(lambda: any(invited.peer_id in event["admitted"] for event in peers[0].all("block")))
    last = peers[0].height
    town.goes_on("a", "b", "c", "invited")
    town.kill("a", "b", "c", "invited", "stranger")
    town.check()
    assert invited.peer_id in town.contributors("a", since=last)
    seated = {peer_id_text(entry.peer) for block in town.blocks("a") for entry in block.admissions}
    assert seated == {invited.peer_id}
