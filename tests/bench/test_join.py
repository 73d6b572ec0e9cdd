"""The benchmark of joining: what it makes of a newcomer's events, and the section of the page it writes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from btrain.bench.join import FRAMEWORK, PHASES, Group, JoinFailed, as_text, phases_of
from btrain.bench.page import write_section

EVENTS: list[dict[str, Any]] = [
    {"event": "started", "time": 10.25},
    {"event": "founded", "time": 10.5},
    {"event": "round", "time": 10.5, "round": 0, "role": "absent"},
    {"event": "caught_up", "time": 11.0, "round": 4},
    {"event": "round", "time": 11.5, "round": 4, "role": "absent"},
    {"event": "block", "time": 11.75, "round": 4},
    {"event": "caught_up", "time": 12.0, "round": 5},
    {"event": "round", "time": 13.0, "round": 5, "role": "validator"},
    {"event": "block", "time": 15.0, "round": 5},
]


def test_phases_end_with_the_block_of_the_first_round_with_a_role() -> None:
    assert phases_of(10.0, EVENTS) == {"prepare": 0.25, "find": 0.25, "follow": 0.5, "seat": 2.0, "contribute": 2.0}
    at_once = [event for event in EVENTS if event["event"] != "caught_up"]
    assert phases_of(10.0, at_once) == {"prepare": 0.25, "find": 0.25, "follow": 2.5, "seat": 0.0, "contribute": 2.0}


def test_each_line_of_a_log_is_read_once_and_whole(tmp_path: Path) -> None:
    group = Group(tmp_path, 1000)
    name = group.names[0]
    assert group.events(name) == []
    log = tmp_path / name / "events.jsonl"
    log.write_text('{"event":"started"}\n{"event":"fou')
    assert group.events(name) == [{"event": "started"}]
    log.write_text("-" * 19 + '\n{"event":"founded"}\n')
    assert group.events(name) == [{"event": "started"}, {"event": "founded"}]


def test_a_peer_that_ends_without_a_word_fails_the_benchmark(tmp_path: Path) -> None:
    group = Group(tmp_path, 1000)
    group.processes.running[group.names[0]] = SimpleNamespace(exit_code=-9, closed=True)  # type: ignore[assignment]
    with pytest.raises(JoinFailed, match=f"{group.names[0]} ended with exit code -9"):
        group.wait("nothing", lambda: False)


def test_the_table_names_every_phase() -> None:
    seconds = dict.fromkeys(PHASES, 0.5)
    machine = {"processor": "P", "cores": 2, "load_before": 0.1}
    document = {"machine": machine, "founders": 4, "newcomers": 3, "parameters": 10, "seconds_by_phase": seconds,
                "framework_seconds": 1.5, "seconds": 2.5, "round_seconds": 0.25}  # fmt: skip
    text = as_text(document)
    assert all(f"| {phase} |" in text for phase in PHASES) and f"| framework | {', '.join(FRAMEWORK)} | 1.50 |" in text
    assert "a round takes 0.25 s. P, 2 cores" in text


@pytest.mark.parametrize("title", ["Rounds", "Joining"])
def test_a_section_is_replaced_and_the_others_stay(title: str, tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    write_section(page, "Rounds", "one\n")
    write_section(page, "Joining", "two")
    assert page.read_text() == "# Benchmarks\n\n## Rounds\n\none\n\n## Joining\n\ntwo\n"
    write_section(page, title, "three")
    other = {"Rounds": "two", "Joining": "one"}[title]
    assert page.read_text().count("three") == 1 and other in page.read_text() and page.read_text().count("## ") == 2
