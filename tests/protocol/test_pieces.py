"""States in pieces: every state survives the cut, nothing else passes for one, a fetch asks a little of everybody."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btrain.identity import SigningKey
from btrain.protocol import pieces
from btrain.protocol.desk import Desk
from btrain.protocol.effects import FetchBlob, PutBlob
from btrain.protocol.encoding import ZERO, digest, encode
from btrain.protocol.errors import InconsistentMessage, MalformedMessage, RemoteProtocolError
from btrain.protocol.messages import Verifier
from btrain.protocol.pieces import WINDOW, CutState, Manifest, StateFetch, assemble, cut, open_manifest
from btrain.simulation.world import World, simulated_keys

Run = Any  # the fixture of conftest.py
SMALL = 1000
PEERS = tuple(key.public_key for key in simulated_keys(1, 5))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", SMALL)


def stored(state: CutState) -> dict[bytes, bytes]:
    """The blobs that a state is made of, by hash."""
    return {digest(piece): piece for piece in state.pieces} | {state.digest: encode(state.manifest)}


@given(state=st.binary(max_size=3500))
def test_what_is_cut_is_put_together_again(state: bytes) -> None:
    parts = cut(state)
    assert all(len(piece) <= SMALL for piece in parts.pieces)
    assert assemble(parts.digest, stored(parts).get) == state
    assert cut(state).digest == parts.digest
    assert cut(state + b"\0").digest != parts.digest


def test_a_state_without_a_piece_is_none() -> None:
    parts = cut(bytes(range(250)) * 10)
    blobs = stored(parts)
    for hash in blobs:
        assert assemble(parts.digest, {h: d for h, d in blobs.items() if h != hash}.get) is None


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", MalformedMessage),
        (encode(Manifest(1, 2 * SMALL, (ZERO,))), InconsistentMessage),
        (encode(Manifest(1, SMALL, (ZERO, ZERO))), InconsistentMessage),
        (encode(Manifest(1, 0, (ZERO,))), InconsistentMessage),
        (encode(Manifest(1, 5, (ZERO,)))[:-1], MalformedMessage),
    ],
)
def test_a_manifest_that_is_none_is_refused_by_name(data: bytes, error: type[RemoteProtocolError]) -> None:
    with pytest.raises(error):
        open_manifest(data)


def test_pieces_of_another_length_than_the_manifest_says_are_refused() -> None:
    piece = bytes(400)
    manifest = Manifest(1, 900, (digest(piece),))
    with pytest.raises(InconsistentMessage, match="its pieces hold 400"):
        assemble(manifest.digest, {digest(piece): piece, manifest.digest: encode(manifest)}.get)


class Fetching:
    """A fetch and its desk; `asked` are the blobs under way with their sources."""

    def __init__(self, state: CutState, pieces_max: int = 100) -> None:
        self.desk = Desk(SigningKey.from_seed(bytes(32)), ZERO, Verifier())
        self.fetch = StateFetch(self.desk, state.digest, 7, pieces_max)
        self.asked: dict[bytes, tuple[bytes, ...]] = {}
        self.put: dict[bytes, bytes] = {}
        self.asked_in_all = 0

    def go(self, sources: tuple[bytes, ...] = PEERS) -> None:
        self.fetch.go(sources)
        self._take()

    def answer(self, hash: bytes, data: bytes | None) -> None:
        self.asked.pop(hash)
        assert self.fetch.blob(hash, data)
        self._take()

    def _take(self) -> None:
        for effect in self.desk.take():
            if isinstance(effect, FetchBlob):
                assert effect.hash not in self.asked
                self.asked[effect.hash] = effect.sources
                self.asked_in_all += 1
            elif isinstance(effect, PutBlob):
                assert effect.round == 7
                self.put[effect.hash] = effect.data
        assert len(self.asked) <= WINDOW


@pytest.fixture
def state() -> CutState:
    return cut(b"".join(bytes([i]) * SMALL for i in range(40)) + b"tail")


def each_answered(fetching: Fetching, blobs: dict[bytes, bytes | None]) -> Iterator[bytes]:
    """Answer what is asked, one after the other, until nothing is."""
    while fetching.asked:
        hash = next(iter(fetching.asked))
        fetching.answer(hash, blobs.get(hash))
        yield hash


def test_a_fetch_gets_every_piece_once_a_few_at_a_time_from_all(state: CutState) -> None:
    fetching = Fetching(state)
    fetching.go()
    first = {sources[0] for sources in fetching.asked.values()}
    for _ in each_answered(fetching, dict(stored(state))):
        first |= {sources[0] for sources in fetching.asked.values()}
        assert all(set(sources) == set(PEERS) for sources in fetching.asked.values())
    assert fetching.fetch.progress == "here"
    assert fetching.asked_in_all == 1 + len(set(state.pieces))
    assert assemble(state.digest, fetching.put.get) == b"".join(state.pieces)
    assert first == set(PEERS)


def test_equal_pieces_are_asked_for_once() -> None:
    state = cut(bytes(10 * SMALL))
    fetching = Fetching(state)
    fetching.go()
    assert len(list(each_answered(fetching, dict(stored(state))))) == 2
    assert fetching.fetch.progress == "here"


def test_what_nobody_has_is_asked_for_again_and_nothing_else(state: CutState) -> None:
    fetching = Fetching(state)
    fetching.go()
    lacking = digest(state.pieces[3])
    list(each_answered(fetching, dict(stored(state)) | {lacking: None}))
    assert fetching.fetch.progress == "nowhere"
    got = set(fetching.put)
    fetching.go(PEERS[:1])
    again = list(each_answered(fetching, dict(stored(state))))
    assert fetching.fetch.progress == "here"
    assert not set(again) & got


def test_without_a_manifest_a_fetch_begins_anew(state: CutState) -> None:
    fetching = Fetching(state)
    fetching.go()
    fetching.answer(state.digest, None)
    assert fetching.fetch.progress == "nowhere"
    fetching.go()
    list(each_answered(fetching, dict(stored(state))))
    assert fetching.fetch.progress == "here"


def test_a_state_that_is_too_large_or_in_too_large_pieces_is_refused(state: CutState) -> None:
    fetching = Fetching(state, pieces_max=5)
    fetching.go()
    fetching.answer(state.digest, encode(state.manifest))
    assert (fetching.fetch.progress, fetching.asked) == ("refused", {})
    large = bytes(3 * SMALL)
    forged = Manifest(1, SMALL, (digest(large),))
    fetching = Fetching(CutState(forged, (large,)))
    fetching.go()
    list(each_answered(fetching, {forged.digest: encode(forged), digest(large): large}))
    assert fetching.fetch.progress == "refused"
    assert digest(large) not in fetching.put
    fetching.go()
    assert fetching.asked == {}


def test_foreign_blobs_are_not_for_a_fetch(state: CutState) -> None:
    fetching = Fetching(state)
    assert not fetching.fetch.blob(digest(b"x"), b"x")
    fetching.go()
    assert not fetching.fetch.blob(digest(b"x"), b"x")


def newcomer(run: Run, seed: int, start_us: int, **plan: Any) -> tuple[World, bytes]:
    """A run in which a newcomer starts so late that it needs a certified state."""
    world = run.world(4, 44, seed=seed, state_sync_every=8, custody_rounds=8, **plan)
    key = SigningKey.from_seed(bytes([9]) * 32)
    world.add_newcomer(key, start_us)
    return world, key.public_key


def wanted(world: World, peer: bytes, log: list[tuple[bytes, bytes]]) -> None:
    """Write down whom `peer` asks for what."""
    node = world.node(peer)
    assert node is not None
    transmit = node._transmit

    def noting(to: bytes, payload: tuple[Any, ...]) -> None:
        if payload[0] == "want":
            log.append((to, payload[1]))
        transmit(to, payload)

    node._transmit = noting  # type: ignore[method-assign]


def test_a_newcomer_asks_several_members_for_pieces(run: Run) -> None:
    world, peer = newcomer(run, 2, 4_000_000)
    log: list[tuple[bytes, bytes]] = []
    world.heap.call(4_000_001, lambda: wanted(world, peer, log))
    run.to_the_end(world)
    loaded = [fields["round"] for _, name, fields in world.identities[peer].events if name == "state_loaded"]
    certified = next(c for block in world.blocks(peer) for c in block.state if c.round == loaded[0])
    disk = world.identities[world.honest[0]].disk
    assert disk.blob(certified.digest) is None or assemble(certified.digest, disk.blob) is not None
    assert len({to for to, _ in log}) == 4
