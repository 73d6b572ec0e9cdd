"""What a run is told in: the closing report, one peer's screen, status."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from btrain.cli.reporting import report_text
from btrain.cli.solo import PeerScreen
from btrain.config import loads
from btrain.errors import BtrainError
from btrain.progress import Progress
from btrain.simulation.report import Final, PeerReport, Report
from btrain.status import read_status_of, status_text

A, B = "12D3KooWJSdyq1Pbm8ZwhwviQEQukkyHkn5bRSjm6bYyVY31tdVZ", "12D3KooWBKHWvbU7AVMsEETtAvAtTnbmdPWG7THhBv8JWQiQYY3t"


def report(**fields: Any) -> Report:
    peers = [
        PeerReport(A, False, None, "active", None, None, []),
        PeerReport(B, True, "nan", "banned", 2, "illegal_encoding", ["run/peer-0/evidence/x.evidence"]),
    ]
    standard: dict[str, Any] = {
        "run_id": "ab", "rounds": 12, "final": Final(0.5, 0.9), "peers": peers, "false_bans": 0, "digests_equal": True,
        "rounds_to_first_ban": 1, "rounds_to_all_banned": 1, "loss_ratio": None, "bytes_sent_per_parameter": 2.0,
    }  # fmt: skip
    return Report(**standard | fields)


def test_a_report_says_who_was_banned_for_what_and_how_to_check_it() -> None:
    text = report_text(report(run_dir="run", wall_s=3.0), {A: "peer-0", B: "peer-1"})
    assert "peer-1 (nan): banned in round 2 for illegal_encoding" in text
    assert "btrain evidence run/peer-0/evidence/x.evidence" in text and "btrain audit run" in text
    assert "loss 0.5000, accuracy 0.9000; false bans 0; all digests equal" in text
    assert "peer-0" not in text.replace("run/peer-0", "")  # nothing is wrong with it


def test_a_report_hides_nothing_that_went_wrong() -> None:
    text = report_text(report(digests_equal=False, false_bans=1, loss_ratio=1.25), {A: "peer-0"}, {A: "was ended by 9"})
    assert "DIGESTS DIFFER" in text and "false bans 1" in text and "1.250 of the loss" in text
    assert "peer-0 (honest): active: was ended by 9" in text


def test_a_run_without_accuracy_or_end_is_told_so() -> None:
    assert "loss 0.5000;" in report_text(report(final=Final(0.5, 0.5)))
    assert "no loss" in report_text(report(final=Final(math.nan, math.nan)))


def screen(lines: list[str]) -> PeerScreen:
    return PeerScreen(loads("run: x"), Path("run.yaml"), lines.append, live=False)


def test_a_peer_tells_how_to_join_it_and_whom_it_waits_for() -> None:
    lines: list[str] = []
    with screen(lines) as shown:
        addresses = [f"/ip4/127.0.0.1/tcp/4001/p2p/{A}", f"/ip4/192.0.2.7/tcp/4001/p2p/{A}"]
        shown.event({"event": "started", "peer_id": A, "addresses": addresses})
        shown.event({"event": "waiting", "have": 3, "need": 5})
        shown.event({"event": "waiting", "have": 4, "need": 5})
    assert f"  btrain peer --config run.yaml --join {addresses[1]} --run-dir DIR" in lines
    assert not any("127.0.0.1" in line for line in lines)
    assert lines[-2:] == ["waiting for 2 more peers (3 of 5)", "waiting for 1 more peer (4 of 5)"]
    assert shown.closing() == "left before the run began"


@pytest.mark.parametrize(("members", "words"), [(1, "alone"), (2, "no liar is tolerated"), (3, "no audits below four")])
def test_small_groups_are_told_what_they_cannot_do(members: int, words: str) -> None:
    lines: list[str] = []
    with screen(lines) as shown:
        shown.event({"event": "started", "peer_id": A, "addresses": []})
        shown.event({"event": "founded", "run_id": "ab" * 32, "members": [A, B, A][:members], "round": 0})
    assert words in "\n".join(lines)


def test_a_peers_document_holds_its_end() -> None:
    lines: list[str] = []
    with screen(lines) as shown:
        shown.event({"event": "started", "peer_id": A, "addresses": []})
        shown.event({"event": "founded", "run_id": "ab" * 32, "members": [A, B], "round": 0})
        shown.event({"event": "banned", "peer": B, "round": 4, "deed": "equivocation", "of_round": 3, "evidence": []})
        shown.event(
            {"event": "finished", "reason": "finished", "round": 9, "digest": "d", "loss": 0.25, "metric": None,
             "bytes_sent": 10, "numel": 5}
        )  # fmt: skip
    document = shown.document(0)
    assert document["final"] == {"loss": 0.25, "metric": None} and document["exit_code"] == 0
    assert document["bans"] == [{"peer_id": B, "banned_round": 4, "reason": "equivocation"}]
    assert "done: 9 rounds, loss 0.2500" in shown.closing()


def origin(**fields: Any) -> dict[str, Any]:
    standard = {"event": "origin", "here": True, "fingerprint": "ab" * 32, "parent": None, "block": None, "banned": []}
    return standard | fields


def test_a_peer_tells_where_its_run_starts_from_and_what_others_need() -> None:
    parent = {"parent": "cd" * 32, "block": 160}
    for event, words, join in (
        (origin(), "starts from parameters in a file; who joins later and has it not takes `model.fingerprint`", ""),
        (
            origin(**parent, banned=[A]),
            "goes on from run cdcdcdcdcdcd at block 160, with 1 banned there",
            "--fork-from",
        ),
        (origin(**parent, here=False), "its members will give this peer the state to start from", ""),
    ):
        lines: list[str] = []
        with screen(lines) as shown:
            shown.event(event)
            shown.event({"event": "started", "peer_id": A, "addresses": ["/ip4/192.0.2.7/tcp/4001"]})
        assert words in lines[0] and ("--fork-from" in lines[-1]) == bool(join)


HALTED = {"event": "halted", "round": 7, "reached": 3, "members": 8, "needed": 5}
WORDS = "halted at round 7: 3 of 8 members can be reached, and 5 must sign a block. It goes on when 2 more are back"


def test_a_halted_run_says_why_on_screen_and_when_it_is_left() -> None:
    lines: list[str] = []
    finished = {"event": "finished", "reason": "left", "round": 7, "digest": "d", "loss": None, "metric": None,
                "bytes_sent": 1, "numel": 5}  # fmt: skip
    with screen(lines) as shown:
        shown.event({"event": "started", "peer_id": A, "addresses": []})
        shown.event({"event": "founded", "run_id": "ab" * 32, "members": [A, B], "round": 0})
        shown.event(HALTED)
        shown.event(finished)
    assert any(WORDS in line and "--fork-from" in line for line in lines)
    assert "left after 7 rounds; the run was " + WORDS in shown.closing()
    assert WORDS in shown.document(0)["halted"]
    shown.event({"event": "caught_up", "round": 9})
    assert shown.document(0)["halted"] is None and "halted" not in shown.closing()


def test_the_status_of_a_halted_run_says_why_once(tmp_path: Path) -> None:
    for name in ("peer-0", "peer-1"):
        (tmp_path / name).mkdir()
        lines = [json.dumps({"v": 1, "time": 1.0, **e}) for e in ({"event": "founded"}, HALTED)]
        (tmp_path / name / "events.jsonl").write_text("\n".join(lines) + "\n")
    text = status_text(read_status_of(tmp_path))
    assert text.count(WORDS) == 1 and "peer-0: halted" in text and "peer-1: halted" in text
    block = {"event": "block", "clipped_share": 0.1, "losses_left": 1}
    assert Progress.of([{"event": "founded"}, HALTED, block]).fields["state"] == "training"


def test_status_is_the_last_word_of_the_events(tmp_path: Path) -> None:
    peer, empty = tmp_path / "peer-0", tmp_path / "empty"
    peer.mkdir()
    empty.mkdir()
    events: list[dict[str, Any]] = [
        {"event": "started"},
        {"event": "waiting", "have": 1, "need": 3},
        {"event": "founded"},
        {"event": "round", "round": 7, "role": "worker"},
        {"event": "evaluated", "round": 7, "loss": 0.5, "metric": 0.75},
        {"event": "banned", "peer": B, "round": 6, "deed": "equivocation"},
    ]
    (peer / "events.jsonl").write_text("".join(json.dumps({"v": 1, "time": 1.0, **e}) + "\n" for e in events))
    document = read_status_of(tmp_path)
    assert document["peers"][0]["state"] == "training" and document["peers"][0]["round"] == 7
    text = status_text(document)
    assert "peer-0: training, round 7" in text and "accuracy 0.7500" in text and "silent for" in text
    assert "banned in round 6" in text
    (peer / "status.json").write_text(json.dumps({"v": 1, **Progress.of(events).fields, "round": 9}))
    assert read_status_of(tmp_path)["peers"][0]["round"] == 9
    with pytest.raises(BtrainError, match="no peer has run here"):
        read_status_of(empty)
