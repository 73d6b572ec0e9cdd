from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest

from btrain.identity import SigningKey, peer_id_text
from btrain.protocol.ledger import Ban
from btrain.simulation.report import (
    Final,
    Part,
    PeerReport,
    Report,
    false_bans,
    loss_ratio,
    peer_reports,
    rounds_to_bans,
)

PEERS = [SigningKey.from_seed(bytes([i]) * 32).public_key for i in range(5)]
HASH = b"\x0a" * 32


def block(round: int, bans: tuple[Ban, ...] = (), absences: Any = (), departures: Any = ()) -> Any:
    return SimpleNamespace(round=round, bans=bans, absences=absences, departures=departures)


def state(**seats: bool) -> Any:
    """Seats by the peer's number, as `p0=absent`; who is not named holds none."""
    held = {PEERS[int(name[1:])]: SimpleNamespace(absent=absent) for name, absent in seats.items()}
    return SimpleNamespace(roster=SimpleNamespace(seat=held.get))


def test_every_status_is_read_from_the_ledger() -> None:
    cast = [Part(PEERS[0]), Part(PEERS[1], True, "nan"), Part(PEERS[2]), Part(PEERS[3], True, "freeze"), Part(PEERS[4])]
    blocks = [block(0), block(1, absences=(PEERS[3],)), block(2, (Ban(PEERS[1], "illegal_encoding", 1, (HASH,)),)),
              block(3, departures=(PEERS[2],))]  # fmt: skip
    rows = peer_reports(cast, blocks, state(p0=False, p3=True, p4=False))
    assert [row.status for row in rows] == ["active", "banned", "left", "absent", "active"]
    assert (rows[1].banned_round, rows[1].reason, rows[1].evidence) == (2, "illegal_encoding", [HASH.hex()])
    assert rows[3].reason == "absent 1 times"
    assert (rows[0].peer_id, rows[0].reason, rows[0].evidence) == (peer_id_text(PEERS[0]), None, [])
    assert false_bans(rows) == 0


def test_evidence_is_named_where_it_lies_and_a_ban_of_an_honest_peer_is_false() -> None:
    ban = Ban(PEERS[0], "wrong_gradient", 4, ())
    rows = peer_reports([Part(PEERS[0])], [block(6, (ban,))], state(), {(PEERS[0], 4, "wrong_gradient"): ["a/file"]})
    assert rows[0].evidence == ["a/file"]
    assert false_bans(rows) == 1


@pytest.mark.parametrize(
    ("attack_from", "bans", "expected"),
    [
        (0, {}, (None, None)),
        (0, {1: 2}, (1, None)),
        (0, {1: 2, 3: 9}, (1, 8)),
        (5, {1: 6, 3: 6}, (1, 1)),
        (0, {0: 3}, (None, None)),
    ],
)
def test_rounds_count_from_the_attack_to_the_block(
    attack_from: int, bans: dict[int, int], expected: tuple[int | None, int | None]
) -> None:
    cast = [Part(peer, i in (1, 3), None, attack_from) for i, peer in enumerate(PEERS)]
    blocks = [block(round, (Ban(PEERS[i], "x", 1, ()),)) for i, round in bans.items()]
    assert rounds_to_bans(cast, blocks) == expected


def report(**values: Any) -> Report:
    row = PeerReport("12D3", True, "sign_flip", "banned", 3, "wrong_gradient", ["h"])
    given: dict[str, Any] = {
        "run_id": "ab", "rounds": 9, "final": Final(0.1, 0.95), "peers": [row], "false_bans": 0, "digests_equal": True,
        "rounds_to_first_ban": 2, "rounds_to_all_banned": None, "loss_ratio": None, "bytes_sent_per_parameter": 2.0,
    }  # fmt: skip
    return Report(**(given | values))


def test_a_simulated_document_has_no_real_time() -> None:
    document = report().document()
    assert list(document) == [
        "run_id", "rounds", "final", "peers", "false_bans", "digests_equal", "rounds_to_first_ban",
        "rounds_to_all_banned", "loss_ratio", "bytes_sent_per_parameter", "run_dir",
    ]  # fmt: skip
    assert document["peers"] == [
        {"peer_id": "12D3", "byzantine": True, "attack": "sign_flip", "status": "banned", "banned_round": 3,
         "reason": "wrong_gradient", "evidence": ["h"]}
    ]  # fmt: skip
    assert document["final"] == {"loss": 0.1, "metric": 0.95}
    assert document["run_dir"] is None


def test_a_real_runs_document_has_times() -> None:
    document = report(wall_s=3.5, seconds_by_phase={"compute": 0.25}, run_dir="runs/x").document()
    assert document["wall_s"] == 3.5
    assert document["seconds_by_phase"] == {"compute": 0.25}
    assert document["run_dir"] == "runs/x"


def test_what_is_not_finite_is_null_in_the_document() -> None:
    document = report(final=Final(math.inf, math.nan), loss_ratio=math.nan).document()
    assert json.loads(json.dumps(document, allow_nan=False))["final"] == {"loss": None, "metric": None}
    assert document["loss_ratio"] is None


def test_loss_ratio() -> None:
    assert loss_ratio(0.3, 0.2) == pytest.approx(1.5)
    assert math.isnan(loss_ratio(0.3, 0.0))
