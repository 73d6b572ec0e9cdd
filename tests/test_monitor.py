"""The board follows the events, whoever sends them; the screen says each thing once."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from btrain.monitor import Board, Screen

A, B, C = "12D3KooWaaaaaaaa", "12D3KooWbbbbbbbb", "12D3KooWcccccccc"


def board() -> Board:
    made = Board(120)
    for peer, name, attack in ((A, "peer-0", None), (B, "peer-1", None), (C, "peer-2", "sign_flip")):
        made.add(peer, name, attack)
    return made


def block(number: int, **fields: Any) -> dict[str, Any]:
    standard = {
        "absent": [],
        "admitted": [],
        "left": [],
        "clipped_share": 0.25,
        "losses_left": 1,
        "seconds": {"all": 0.1},
    }
    return {"event": "block", "round": number} | standard | fields


def banned(peer: str, number: int) -> dict[str, Any]:
    return {"event": "banned", "peer": peer, "round": number, "deed": "wrong_gradient", "of_round": number - 2}


def test_a_ban_is_said_once_however_many_see_it() -> None:
    seen = board()
    assert seen.feed(A, banned(C, 7)) == ["BANNED peer-2 in round 7: wrong_gradient in round 5"]
    assert seen.feed(B, banned(C, 7)) == []
    assert seen.rows[C].status == "banned" and "wrong_gradient" in seen.rows[C].verdict


def test_a_rollback_is_said_once_and_makes_the_run_longer() -> None:
    seen = board()
    restored = {"event": "restored", "round": 9, "to_round": 7, "from_step": 8, "step": 6, "rounds_undone": 3}
    assert seen.feed(A, restored) == ["rolled back to round 7 in round 9: step 8 -> 6"]
    assert seen.feed(B, restored) == []
    assert f"of {seen.rounds + 3}" in seen.line()
    seen.feed(A, block(seen.rounds + 3))
    assert f"round {seen.rounds + 3:4d}, closing" in seen.line()


def test_the_words_of_a_banned_peer_are_not_repeated() -> None:
    seen = board()
    seen.feed(A, banned(C, 7))
    assert seen.feed(C, {"event": "error", "text": "this peer was banned"}) == []
    assert seen.rows[C].status == "banned"


def test_losses_are_those_of_honest_peers() -> None:
    seen = board()
    for peer, loss in ((A, 0.5), (B, 0.5), (C, 99.0)):
        seen.feed(peer, {"event": "evaluated", "round": 10, "loss": loss, "metric": 0.9})
    seen.feed(A, {"event": "round", "round": 11, "role": "worker", "members": 3, "present": 3})
    seen.feed(A, block(10))
    assert "loss 0.500" in seen.line() and "accuracy 0.900" in seen.line() and "round   10 of 120" in seen.line()
    assert "members 3" in seen.line() and "clipped 25%" in seen.line()


def test_absence_and_return_are_shown() -> None:
    seen = board()
    seen.feed(A, block(3, absent=[B]))
    assert seen.rows[B].status == "absent"
    seen.feed(A, block(5, admitted=[B]))
    assert seen.rows[B].status == "active"


def test_who_does_not_know_how_many_have_come_just_waits() -> None:
    seen = board()
    seen.feed(A, {"event": "waiting", "have": None, "need": 3})
    seen.feed(B, {"event": "waiting", "have": 1, "need": 3})
    assert (seen.rows[A].status, seen.rows[B].status) == ("waiting", "waiting (1 of 3)")


def test_a_batch_too_small_for_robust_averaging_is_named() -> None:
    seen = board()
    seen.feed(A, block(3, clipped_share=0.6, losses_left=0))
    assert "no more losses can be taken" in seen.advice() and "batch_size is too small" in seen.advice()


def test_the_table_shows_every_peer() -> None:
    seen = board()
    seen.feed(A, block(3))
    console = Console(width=160, record=True)
    console.print(seen.table())
    text = console.export_text()
    assert all(name in text for name in ("peer-0", "peer-1", "peer-2", "sign_flip"))


def test_unknown_events_and_unknown_peers_are_taken_as_they_come() -> None:
    seen = board()
    assert seen.feed(A, {"event": "something new"}) == []
    seen.feed(A, block(3, absent=["12D3KooWdddddddd"]))
    assert seen.rows["12D3KooWdddddddd"].status == "absent"


def test_without_a_terminal_there_are_lines_and_the_last_round_is_among_them() -> None:
    lines: list[str] = []
    with Screen(board(), lines.append, live=False) as screen:
        screen.feed(A, {"event": "round", "round": 0, "role": "worker", "members": 3, "present": 3})
        for number in range(50):
            screen.feed(A, block(number))
        screen.feed(A, banned(C, 49))
    assert lines[-1].startswith("round   49 of 120")
    assert len([line for line in lines if line.startswith("BANNED")]) == 1
    assert len(lines) <= 4  # now and then, not every round
