"""Checkpoints: complete or not there, and every damaged byte named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from btrain.checkpoint import (
    DamagedCheckpoint,
    checkpoint_paths,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from btrain.errors import ConfigError, VerificationError
from btrain.training import State, StateError

FILES = ("state.safetensors", "block", "certificate", "manifest.json")


def state_of(number: int) -> bytes:
    return State(number, {"parameter/w": torch.full((4,), float(number))}, {"optimizer/w/step": number}).to_bytes()


def save(directory: Path, number: int, keep: int = 3) -> Path:
    return save_checkpoint(directory, number, state_of(number), block=b"block", certificate=b"votes", keep=keep)


def test_round_trip(tmp_path: Path) -> None:
    directory = tmp_path / "run/checkpoints"
    path = save(directory, 32)
    assert path == directory / "round-00000032"
    found = latest_checkpoint(directory)
    assert found is not None
    assert (found.round, found.state, found.block, found.certificate) == (32, state_of(32), b"block", b"votes")
    assert found.state_digest == State.from_bytes(state_of(32)).digest()
    assert sorted(file.name for file in path.iterdir()) == sorted(FILES)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "none") is None
    for number in (2, 16, 100_000_000, 48):
        save(tmp_path, number, keep=2)
    assert [path.name for path in checkpoint_paths(tmp_path)] == ["round-00000048", "round-100000000"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-00000048", "round-100000000"]


@pytest.mark.parametrize("name", FILES)
def test_any_changed_byte_is_found_and_its_file_named(tmp_path: Path, name: str) -> None:
    save(tmp_path, 16)
    file = save(tmp_path, 32) / name
    original = file.read_bytes()
    for position in range(0, len(original), max(1, len(original) // 40)):
        file.write_bytes(original[:position] + bytes([original[position] ^ 1]) + original[position + 1 :])
        with pytest.raises(VerificationError, match=r"remove the folder .*round-00000032") as refused:
            latest_checkpoint(tmp_path)
        assert str(file) in str(refused.value) or name == "manifest.json"
    for wrong in (original[:-1], original + b"x", b""):
        file.write_bytes(wrong)
        with pytest.raises(DamagedCheckpoint):
            latest_checkpoint(tmp_path)
    file.unlink()
    with pytest.raises(DamagedCheckpoint, match=f"{name}: is missing"):
        latest_checkpoint(tmp_path)
    assert load_checkpoint(tmp_path / "round-00000016").round == 16


def test_a_checkpoint_of_another_round_or_version_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 32)
    path.rename(tmp_path / "round-00000033")
    with pytest.raises(DamagedCheckpoint, match="says round 32, which is not its folder's"):
        latest_checkpoint(tmp_path)
    manifest = tmp_path / "round-00000033/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 2}))
    with pytest.raises(DamagedCheckpoint, match="version 2, this btrain reads 1"):
        latest_checkpoint(tmp_path)


@pytest.mark.parametrize("failing", ["write", "rename"])
def test_an_interrupted_save_leaves_the_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    save(tmp_path, 16)

    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        target = "btrain.checkpoint.replace_file" if failing == "write" else "pathlib.Path.rename"
        patched.setattr(target, kill)
        with pytest.raises(Killed):
            save(tmp_path, 32)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.round == 16
    save(tmp_path, 48)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-00000016", "round-00000048"]


def test_the_same_round_again(tmp_path: Path) -> None:
    path = save(tmp_path, 32)
    inode = path.stat().st_ino
    assert save(tmp_path, 32).stat().st_ino == inode
    (path / "block").write_bytes(b"damaged")
    save(tmp_path, 32)
    assert load_checkpoint(path).block == b"block"
    save_checkpoint(tmp_path, 32, state_of(33), block=b"other")
    assert load_checkpoint(path).state == state_of(33)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_what_is_no_state_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(StateError):
        save_checkpoint(tmp_path, 1, b"nonsense")
    with pytest.raises(ConfigError):
        save_checkpoint(tmp_path, 1, state_of(1), keep=0)
    assert list(tmp_path.iterdir()) == []
