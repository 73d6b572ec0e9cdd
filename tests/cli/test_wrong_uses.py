"""Whatever is asked for wrongly: one message of a few lines that names it, the documented exit code, nothing begun."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from btrain.cli import app
from btrain.templates import template

ID = "12D3KooWC3tBEBcYaLdhW2esT1gAvcCkWpC4fGsCrwcToaRkPHnK"

WRONG = [
    # of the configuration
    ("peer --config none.yaml", 2, ["none.yaml", "no such file", "btrain init"]),
    ("peer --config typo.yaml", 2, ["typo.yaml:", "batch_sise", "did you mean batch_size"]),
    ("peer --config type.yaml", 2, ["type.yaml:", "rounds", "a whole number", "many"]),
    ("peer --set optimiser.lr=3", 2, ["--set optimiser.lr=3", "did you mean optimizer"]),
    ("peer --set rounds=0", 2, ["--set rounds=0", "at least 1"]),
    ("peer --set nonsense", 2, ["nonsense", "KEY=VALUE"]),
    ("peer --set group.byzantine_max=4", 2, ["byzantine_max", "3"]),
    ("peer --set data.builtin=digit", 2, ["data.builtin", "digits"]),
    ("peer --set model={entry_point:nosuch.module:build}", 2, ["model"]),
    ("peer --set model.from=none.safetensors", 2, ["model.from", "none.safetensors", "model.fingerprint"]),
    ("peer --set model.from=run.yaml", 2, ["model.from", "run.yaml", "no safetensors file"]),
    ("peer --set model.fingerprint=abc", 2, ["model.fingerprint", "64 hexadecimal digits"]),
    ("peer --set model.fingerprint=" + "a" * 64, 2, ["founds the run", "--fork-from", "model.from", "--join"]),
    ("peer --fork-from none", 2, ["--fork-from none", "no run", "one peer"]),
    ("peer --fork-from full:3", 2, ["--fork-from full:3", "no run"]),
    ("peer --fork-from full --set model.from=x", 2, ["model.from", "the state of that one"]),
    ("simulate --set model.fingerprint=" + "a" * 64, 2, ["model.fingerprint", "simulation", "model.from"]),
    ("peer --set local.invitations=[abc]", 2, ["local.invitations", "btrain-invite-"]),
    ("peer --set group.admission=invited", 2, ["group.admission", "did you mean invite"]),
    ("peer --set group.admission=invite --set group.invitations=9", 2, ["group.invitations", "the number of founders"]),
    ("invite --run-dir full", 2, ["PEER_ID"]),
    ("invite abc --run-dir full", 2, ["'abc' is no peer id"]),
    # of addresses, devices, keys and folders
    ("peer --join nonsense", 2, ["--join", "nonsense", "/ip4/"]),
    (f"peer --join /ip4/127.0.0.1/tcp/99999/p2p/{ID}", 2, ["--join", "a port from 1"]),
    ("peer --join /ip4/127.0.0.1/tcp/4001", 2, ["--join", "/p2p/"]),
    ("peer --listen 4001", 2, ["--listen", "4001"]),
    ("peer --announce here", 2, ["--announce", "here"]),
    ("peer --device tpu", 2, ["--device", "tpu"]),
    ("peer --run-dir run.yaml", 2, ["run.yaml", "no folder"]),
    ("peer --identity open.key", 6, ["open.key", "chmod 600"]),
    ("peer --identity bad.key", 6, ["bad.key"]),
    ("id --identity open.key", 6, ["open.key", "chmod 600"]),
    ("keygen bad.key", 6, ["bad.key", "exists already"]),
    # of attacks
    ("peer --adversary sign_flop", 2, ["sign_flop", "did you mean sign_flip"]),
    ("peer --adversary sign_flip:size=3", 2, ["sign_flip", "size", "scale"]),
    ("swarm --byzantine 4 --attack nan", 2, ["--byzantine 4", "at most 3 of 8"]),
    ("swarm --byzantine 1", 2, ["--byzantine 1", "--attack"]),
    ("swarm --attack nan", 2, ["--attack nan", "--byzantine"]),
    ("swarm --byzantine 1 --attack nan --attack-from 120", 2, ["--attack-from 120", "119"]),
    ("swarm --byzantine 1 --attack broken_link", 2, ["broken_link", "simulate"]),
    ("swarm --run-dir full", 2, ["full", "not empty"]),
    ("swarm --run-dir run.yaml", 2, ["run.yaml", "no folder"]),
    ("swarm --peers 65", 2, ["--peers"]),
    ("demo --run-dir run.yaml", 2, ["run.yaml", "no folder"]),
    ("simulate --byzantine 4 --attack nan", 2, ["--byzantine 4", "at most 3"]),
    ("simulate --byzantine 1", 2, ["--byzantine 1", "--attack"]),
    ("simulate --attack nan", 2, ["--attack nan", "--byzantine"]),
    ("simulate --byzantine 1 --attack nan:from=x", 2, ["nan", "from", "x"]),
    # of what is to be checked
    ("audit none", 2, ["none", "no run"]),
    ("audit full", 2, ["full", "no run"]),
    ("status none", 2, ["none", "no run directory"]),
    ("status full", 2, ["full", "no peer has run here"]),
    ("doctor none", 2, ["none", "no run directory"]),
    ("evidence none", 2, ["none", "no such file"]),
    ("evidence run.yaml", 3, ["run.yaml", "no btrain file"]),
    ("bench nothing", 2, ["nothing", "round"]),
    ("nothing", 2, ["nothing"]),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    text = template("digits")
    (tmp_path / "run.yaml").write_text(text)
    (tmp_path / "typo.yaml").write_text(text.replace("batch_size:", "batch_sise:"))
    (tmp_path / "type.yaml").write_text(text.replace("rounds: 120", "rounds: many"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "open.key").write_bytes(bytes(64))
    (tmp_path / "open.key").chmod(0o644)
    (tmp_path / "bad.key").write_text("nothing")
    (tmp_path / "bad.key").chmod(0o600)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("command", "code", "words"), WRONG, ids=[command for command, _, _ in WRONG])
def test_one_clear_message_and_the_documented_code(command: str, code: int, words: list[str], folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    result = CliRunner().invoke(app, command.split())
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    said = result.stderr.strip()
    assert result.exit_code == code, said
    assert all(word.lower() in said.lower() for word in words), said
    assert len(said.splitlines()) <= 5 and len(said) <= 600 and not result.stdout
    assert sorted(folder.rglob("*")) == before
