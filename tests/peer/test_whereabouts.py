"""peers.json: where members were last reached, worth nothing but time."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from btrain.identity import SigningKey, peer_id_text
from btrain.peer.store import Addresses, Store
from btrain.peer.whereabouts import Whereabouts
from btrain.storage.run_directory import RunDirectory

ME, OTHER = (SigningKey.from_seed(bytes([seed]) * 32).public_key for seed in (1, 2))
KNOWN = Addresses({peer_id_text(OTHER): ("/ip4/127.0.0.1/tcp/4001",)}, ("/ip4/127.0.0.1/tcp/4002",), (b"join",))


@pytest.mark.parametrize("mask", [0x01, 0x80])
def test_no_damage_keeps_a_peer_from_starting(mask: int, tmp_path: Path) -> None:
    charter: Any = None
    with closing(RunDirectory.open(tmp_path, contract=bytes(32), identity=ME)) as directory:
        store = Store(directory, charter)
        store.save_addresses(KNOWN)
        assert store.addresses() == KNOWN
        file = tmp_path / "peers.json"
        whole = file.read_bytes()
        for position in range(len(whole)):
            file.write_bytes(whole[:position] + bytes([whole[position] ^ mask]) + whole[position + 1 :])
            Whereabouts(store).listen_again("/ip4/0.0.0.0/tcp/0")
        file.write_bytes(b"")
        assert store.addresses() == Addresses()
