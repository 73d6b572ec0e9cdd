"""Hash chains, r[t], permutations and seeds."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btrain.protocol.encoding import sha256
from btrain.protocol.randomness import (
    ANCHOR_ROUNDS,
    SPARE_LINKS,
    HashChain,
    batch_seed,
    drawn_count,
    next_randomness,
    on_chain,
    permutation,
)

CHAIN = HashChain(b"secret" * 6, b"salt", 4)
PEERS = [sha256(bytes([i])) for i in range(9)]


def test_a_link_leads_to_every_earlier_one_and_to_no_other() -> None:
    assert on_chain(CHAIN.link(0), 0, CHAIN.end, -1)
    assert on_chain(CHAIN.link(7), 7, CHAIN.link(3), 3)
    assert not on_chain(CHAIN.link(7), 6, CHAIN.link(3), 3)
    assert not on_chain(CHAIN.link(3), 3, CHAIN.link(3), 3)
    assert not on_chain(CHAIN.link(2), 2, CHAIN.link(3), 3)
    assert not on_chain(bytes(32), 5, CHAIN.link(3), 3)


def test_a_chain_is_its_secret_and_salt_and_ends() -> None:
    assert HashChain(b"secret" * 6, b"salt", 4).end == CHAIN.end != HashChain(b"secret" * 6, b"other", 4).end
    assert CHAIN.link(4 + SPARE_LINKS - 1)
    with pytest.raises(IndexError, match="the chain ends"):
        CHAIN.link(4 + SPARE_LINKS)


def test_every_link_and_the_round_change_the_randomness() -> None:
    links = [sha256(b"a"), sha256(b"b")]
    values = [
        next_randomness(bytes(32), 1, links), next_randomness(bytes(32), 1, links[::-1]),
        next_randomness(bytes(32), 1, links[:1]), next_randomness(bytes(32), 2, links),
        next_randomness(sha256(b"r"), 1, links), next_randomness(bytes(32), 1, []), next_randomness(bytes(32), 2, []),
    ]  # fmt: skip
    assert len(set(values)) == len(values)


@given(st.binary(min_size=32, max_size=32), st.permutations(PEERS))
def test_a_permutation_depends_on_the_set_only(randomness: bytes, peers: list[bytes]) -> None:
    order = permutation(randomness, "own", peers)
    assert order == permutation(randomness, "own", PEERS)
    assert sorted(order) == sorted(PEERS)


def test_permutations_of_other_purposes_are_others() -> None:
    firsts = [(permutation(sha256(bytes([i])), "own", PEERS), permutation(sha256(bytes([i])), "validate", PEERS))
              for i in range(30)]  # fmt: skip
    assert sum(own == validate for own, validate in firsts) == 0


def test_everybody_comes_first_as_often() -> None:
    firsts = Counter(permutation(sha256(i.to_bytes(4, "big")), "propose", PEERS)[0] for i in range(1800))
    assert set(firsts) == set(PEERS)
    assert all(140 < count < 260 for count in firsts.values())


def test_a_batch_seed_names_run_randomness_worker_and_round() -> None:
    one = batch_seed(bytes(32), bytes(32), PEERS[0], 3)
    assert len(one) == 32
    others = [batch_seed(PEERS[1], bytes(32), PEERS[0], 3), batch_seed(bytes(32), PEERS[1], PEERS[0], 3),
              batch_seed(bytes(32), bytes(32), PEERS[1], 3), batch_seed(bytes(32), bytes(32), PEERS[0], 4)]  # fmt: skip
    assert len({one, *others}) == 5
    assert one == sha256(b"btrain/batch/v1", bytes(32), bytes(32), PEERS[0], (3).to_bytes(8, "little"))


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0, 2.5])
def test_the_count_drawn_has_the_rate_as_its_mean(rate: float) -> None:
    counts = [drawn_count(sha256(i.to_bytes(4, "big")), rate) for i in range(2000)]
    assert set(counts) <= {int(rate), int(rate) + 1}
    assert abs(sum(counts) / len(counts) - rate) < 0.05


@given(rounds=st.integers(1, 300), order=st.lists(st.integers(-1, 299 + SPARE_LINKS), min_size=1, max_size=8))
def test_links_are_the_same_in_whatever_order_they_are_asked_for(rounds: int, order: list[int]) -> None:
    chain, links = HashChain(b"secret", b"salt", rounds), [sha256(b"btrain/chain/v1", b"secret", b"salt")]
    for _ in range(rounds + SPARE_LINKS):
        links.append(hashlib.sha256(links[-1]).digest())
    for round in (r for r in order if r < rounds + SPARE_LINKS):
        assert chain.link(round) == links[len(links) - 2 - round]


def test_a_long_chain_takes_little_memory_and_an_anchor_is_near() -> None:
    tracemalloc.start()
    chain = HashChain(b"secret", b"salt", 100_000)
    link, at = chain.anchor(70_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
    assert 70_000 - ANCHOR_ROUNDS <= at < 70_000
    assert on_chain(chain.link(70_000), 70_000, link, at)
    assert chain.anchor(0) == (chain.end, -1)
