"""init, keygen, id: files are made once, never overwritten, and every error names what to change."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from btrain.cli import app
from btrain.config import load
from btrain.identity import read_key
from btrain.templates import template_names


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of one command."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("name", template_names())
def test_init_writes_a_file_that_loads(name: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    code, stdout, _ = run("init", name, "--output", file)
    assert code == 0 and str(file) in stdout
    assert load(file).run


def test_init_keeps_an_existing_file_unless_forced(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("mine")
    code, _, stderr = run("init", "gpt", "-o", file)
    assert code == 2 and str(file) in stderr and "--force" in stderr and file.read_text() == "mine"
    assert run("init", "gpt", "-o", file, "--force")[0] == 0
    assert load(file).run == "small-gpt"


def test_init_names_the_nearest_template(tmp_path: Path) -> None:
    code, _, stderr = run("init", "digit", "-o", tmp_path / "run.yaml")
    assert code == 2 and "did you mean digits" in stderr and not list(tmp_path.iterdir())


def test_keygen_makes_a_closed_file_and_prints_its_peer_id(tmp_path: Path) -> None:
    file = tmp_path / "peer.key"
    code, stdout, _ = run("keygen", file, "--json")
    document = json.loads(stdout)
    assert code == 0 and document["peer_id"].startswith("12D3KooW")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    seed = read_key(file).seed
    code, _, stderr = run("keygen", file)
    assert code == 6 and str(file) in stderr and read_key(file).seed == seed


def test_id_makes_a_key_once_and_shows_the_same_id_ever_after(tmp_path: Path) -> None:
    first = json.loads(run("id", "--run-dir", tmp_path, "--json")[1])
    code, stdout, stderr = run("id", "--identity", tmp_path / "identity.key")
    assert code == 0 and stdout.strip() == first["peer_id"] and "made" not in stderr


def test_id_of_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    run("keygen", tmp_path / "peer.key")
    (tmp_path / "peer.key").chmod(0o644)
    code, stdout, stderr = run("id", "--identity", tmp_path / "peer.key", "--json")
    assert code == 6 and "chmod 600" in stderr
    assert json.loads(stdout)["exit_code"] == 6


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run: x\nrunds: 3\n", ["run.yaml:2", "runds", "rounds"]),
        ("run: x\nrounds: many\n", ["run.yaml:2", "rounds", "many"]),
        ("run: [x\n", ["run.yaml:1", "not YAML"]),
    ],
)
def test_a_wrong_configuration_is_one_message_with_the_line(text: str, expected: list[str], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    for command in ("peer", "swarm", "id"):
        code, stdout, stderr = run(command, "--config", file)
        assert code == 2 and not stdout
        assert all(piece in stderr for piece in expected), stderr
        assert "Traceback" not in stderr and len(stderr.splitlines()) <= 3


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    for command in ("peer", "swarm"):
        code, _, stderr = run(command, "--config", tmp_path / "none.yaml")
        assert code == 2 and "btrain init" in stderr


def test_options_that_stand_for_fields_are_checked_like_fields(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    run("init", "gpt", "-o", file)
    for option, value in (("--join", "127.0.0.1:4001"), ("--listen", "4001"), ("--device", "tpu")):
        code, _, stderr = run("peer", "--config", file, option, value)
        assert code == 2 and option in stderr and value in stderr, stderr


def test_light_commands_load_neither_torch_nor_libp2p(tmp_path: Path) -> None:
    code = """
import sys
from btrain.cli import app
for arguments in (["--help"], ["init", "gpt", "-o", "run.yaml"], ["keygen", "a.key"], ["id", "--identity", "a.key"]):
    try:
        app(arguments)
    except SystemExit as end:
        assert not end.code, (arguments, end.code)
heavy = {"torch", "libp2p", "trio", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, timeout=60)


def test_a_directory_of_another_run_is_refused_with_the_field_before_anything_is_loaded(tmp_path: Path) -> None:
    file, run_dir = tmp_path / "run.yaml", tmp_path / "peer"
    run("init", "gpt", "-o", file)
    run_dir.mkdir()
    (run_dir / "run.json").write_text('{"v":1,"contract":"00","identity":"x"}')
    (run_dir / "genesis").touch()
    (run_dir / "config.yaml").write_text(load(file, ["seed=4"]).to_yaml())
    code, _, stderr = run("peer", "--config", file, "--run-dir", run_dir)
    assert code == 5 and str(run_dir) in stderr and "seed: 0 here, 4 there" in stderr


def test_a_wrong_key_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    run("init", "gpt", "-o", file)
    (tmp_path / "peer").mkdir()
    (tmp_path / "peer" / "identity.key").touch(mode=0o600)
    code, _, stderr = run("peer", "--config", file, "--run-dir", tmp_path / "peer")
    assert code == 6 and "identity.key" in stderr
