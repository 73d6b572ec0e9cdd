"""Peers started by hand, one by one, as in several terminals."""

from __future__ import annotations

import json

import pytest

from btrain.checkpoint import latest_checkpoint
from btrain.protocol.closing import CLOSING_ROUNDS
from tests.peer.conftest import Town


@pytest.mark.parametrize("count", [1, 3, *(pytest.param(count, marks=pytest.mark.slow) for count in (4, 5))])
def test_peers_wait_for_each_other_and_train_to_the_end(town: Town, count: int) -> None:
    names = tuple("abcde"[:count])
    town.config(count, rounds=20, eval__every=5, local__checkpoints__every=8)
    peers = town.found(*names)
    town.gone(*names)
    assert [peer.exit_code for peer in peers] == [0] * count, town.story()
    assert all(peer.all("finished")[0]["reason"] == "finished" for peer in peers)
    assert len({peer.all("finished")[0]["digest"] for peer in peers}) == 1
    assert all(peer.all("ended")[0]["threads"] == [] for peer in peers)
    town.check()
    blocks = town.blocks(names[0])
    swept = CLOSING_ROUNDS if count >= 4 else 0  # below four members nobody audits
    assert [block.void for block in blocks[1:]] == [0] * 19 + [1] * swept
    assert town.contributors(names[0]) == {peer.peer_id for peer in peers}
    for peer in peers:
        listed = {path.name for path in peer.run_dir.iterdir()}
        assert {
            "config.yaml",
            "identity.key",
            "signed.log",
            "ledger",
            "genesis",
            "events.jsonl",
            "metrics.jsonl",
        } <= listed
        metrics = [json.loads(line) for line in (peer.run_dir / "metrics.jsonl").read_text().splitlines()]
        assert [line["round"] for line in metrics] == list(range(20 + swept))
        checkpoint = latest_checkpoint(peer.run_dir / "checkpoints")
        assert checkpoint is not None and checkpoint.round == 20 + swept
