import json
import resource
from pathlib import Path

import pytest

from btrain.storage.durable import CorruptFile, StorageFull
from btrain.storage.streams import JsonLines, read_json_lines, read_status, write_status


def fields(path: Path) -> list[dict[str, object]]:
    return [{key: value for key, value in line.items() if key != "time"} for line in read_json_lines(path)]


def test_lines_are_versioned_json_objects(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events = JsonLines(path)
    events.write({"event": "banned", "peer": "12D3KooW\n"})
    events.write({"round": 3, "loss": float("nan")})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [list(line)[:2] for line in lines] == [["v", "time"]] * 2
    assert abs(lines[0]["time"] - path.stat().st_mtime) < 60
    assert fields(path) == [
        {"v": 1, "event": "banned", "peer": "12D3KooW\n"},
        {"v": 1, "round": 3, "loss": None},
    ]


@pytest.mark.parametrize("torn", [b'{"v": 1, "rou', b"x" * 200_000])
def test_a_line_cut_by_a_crash_goes_and_the_others_stay(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = JsonLines(path)
    metrics.write({"round": 1})
    metrics.close()
    with path.open("ab") as file:
        file.write(torn)
    assert fields(path) == [{"v": 1, "round": 1}]
    reopened = JsonLines(path)
    reopened.write({"round": 2})
    assert path.read_bytes().count(b"\n") == 2
    assert path.read_bytes().endswith(b"}\n")
    assert fields(path) == [{"v": 1, "round": 1}, {"v": 1, "round": 2}]


def test_a_first_line_that_was_cut_leaves_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"v":')
    JsonLines(path).write({"round": 1})
    assert fields(path) == [{"v": 1, "round": 1}]


@pytest.mark.parametrize("garbled", [b'{"v": }\n', b"[1]\n", b"\xff\n"])
def test_a_garbled_line_is_named(tmp_path: Path, garbled: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"v": 1}\n' + garbled)
    with pytest.raises(CorruptFile, match="byte 9: is no JSON object"):
        list(read_json_lines(path))


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events = JsonLines(path)
    events.write({"round": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(StorageFull):
            events.write({"text": "x" * 200})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    events.write({"round": 2})
    assert [line["round"] for line in read_json_lines(path)] == [1, 2]


def test_status_is_the_last_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    assert read_status(path) is None
    for round_ in range(3):
        write_status(path, {"round": round_})
    status = read_status(path)
    assert status is not None
    assert (status["v"], status["round"]) == (1, 2)
    assert [file.name for file in tmp_path.iterdir()] == ["status.json"]
    path.write_bytes(b"{")
    with pytest.raises(CorruptFile, match="is no status"):
        read_status(path)
