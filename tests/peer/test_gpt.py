"""The README's way: peers started one by one train the byte-level gpt of `btrain init gpt`."""

from __future__ import annotations

import pytest

from btrain.config import loads
from btrain.data.text import open_stdlib_text
from btrain.templates import template
from tests.peer.conftest import Town

LEARNED = 0.8  # of the unigram entropy: more than frequencies


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [3, 4, 5])
def test_peers_started_by_hand_learn_text(town: Town, count: int) -> None:
    names = tuple("abcde"[:count])
    overrides = ("eval.every=1000", "local.listen=/ip4/127.0.0.1/tcp/0")
    town.text = loads(template("gpt"), overrides=overrides, peers=count).to_yaml()
    peers = town.found(*names)
    town.until(lambda: all(peer.exit_code is not None and not peer.open for peer in peers), patience_s=1200)
    entropy = open_stdlib_text(context=32).split("eval").unigram_entropy()
    for peer in peers:
        assert peer.exit_code == 0 and peer.all("finished")[0]["loss"] <= LEARNED * entropy, town.story()
    town.check()
