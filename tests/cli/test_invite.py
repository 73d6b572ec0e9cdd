"""`btrain invite`: what it writes lets the guest in; what nobody would accept is not written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from btrain.config import loads
from btrain.identity import SigningKey, _write_key, peer_id_text
from btrain.protocol.invitations import invitation_bytes, inviters
from btrain.simulation.scenario import Scenario, stage
from btrain.templates import template
from btrain.verify.reading import Record
from tests.cli.test_files import run
from tests.verify.conftest import write_run_dir

PEERS, ROUNDS = 4, 4
GUEST = SigningKey.from_seed(bytes([3]) * 32).public_key


def keep_key(path: Path, key: SigningKey) -> Path:
    _write_key(path, key)
    return path


def written(admission: str, folder: Path) -> Scenario:
    """The run directory of a peer, after a few rounds in which one attacker was banned."""
    overrides = [f"group.admission={admission}", "group.invitations=2"]
    scenario = stage(
        loads(template("digits"), "test", overrides, peers=PEERS), peers=PEERS, byzantine=1, attacks=("nan",),
        rounds=ROUNDS,
    )  # fmt: skip
    scenario.run()
    member = scenario.world.honest[0]
    write_run_dir(scenario, member, folder)
    keep_key(folder / "identity.key", next(key for key in scenario.world.keys if key.public_key == member))
    return scenario


@pytest.fixture(scope="module")
def invited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Scenario]:
    folder = tmp_path_factory.mktemp("invited") / "peer"
    return folder, written("invite", folder)


def test_members_write_what_lets_the_guest_in(invited: tuple[Path, Scenario], tmp_path: Path) -> None:
    folder, scenario = invited
    code, stdout, stderr = run("invite", peer_id_text(GUEST), "--run-dir", folder, "--rounds", 7)
    assert code == 0 and stdout.startswith("btrain-invite-") and len(stdout.split()) == 1
    assert "rounds 4 to 11" in stderr and "local.invitations" in stderr and "2 members" in stderr
    second = scenario.world.honest[1]
    other = keep_key(tmp_path / "other.key", next(key for key in scenario.world.keys if key.public_key == second))
    code, document, _ = run("invite", peer_id_text(GUEST), "--run-dir", folder, "--identity", other, "--json")
    found = json.loads(document)
    assert (code, found["since"], found["until"], found["needed"]) == (0, ROUNDS, ROUNDS + 1000, 2)
    letters = [invitation_bytes(stdout), invitation_bytes(found["invitation"])]
    _, state = Record.open(folder).replay()
    assert inviters(letters, GUEST, state) == set(scenario.world.honest[:2])
    config = loads("run: x", overrides=[f"local.invitations=[{stdout.strip()}, {found['invitation']}]"])
    assert [invitation_bytes(text) for text in config.local.invitations] == letters


def test_what_nobody_would_accept_is_not_written(invited: tuple[Path, Scenario], tmp_path: Path) -> None:
    folder, scenario = invited
    banned = next(part.peer for part in scenario.cast if part.byzantine)
    member = scenario.world.honest[1]
    stranger = keep_key(tmp_path / "stranger.key", SigningKey.from_seed(bytes([9]) * 32))
    guest = peer_id_text(GUEST)
    wrong: list[tuple[list[str | Path], int, str]] = [
        (["nobody", "--run-dir", folder], 2, "is no peer id"),
        ([guest, "--run-dir", tmp_path / "none"], 2, "holds no run"),
        ([guest, "--run-dir", folder.parent], 2, "holds no run"),
        ([guest, "--run-dir", folder, "--rounds", "0"], 2, "--rounds"),
        ([guest, "--run-dir", folder, "--identity", stranger], 2, "holds no seat"),
        ([guest, "--run-dir", folder, "--identity", tmp_path / "none.key"], 6, "none.key"),
        ([peer_id_text(banned), "--run-dir", folder], 2, "was banned"),
        ([peer_id_text(member), "--run-dir", folder], 2, "has a seat"),
    ]
    for arguments, expected, words in wrong:
        code, stdout, stderr = run("invite", *arguments)
        assert (code, stdout) == (expected, "") and words in stderr, (arguments, code, stderr)


def test_a_run_that_asks_for_no_invitations_gets_none(tmp_path: Path) -> None:
    written("open", tmp_path / "peer")
    code, stdout, stderr = run("invite", peer_id_text(GUEST), "--run-dir", tmp_path / "peer")
    assert code == 2 and not stdout and "group.admission is open" in stderr


def test_a_damaged_ledger_is_found(invited: tuple[Path, Scenario], tmp_path: Path) -> None:
    folder, _ = invited
    path = tmp_path / "peer"
    path.mkdir()
    for name in ("genesis", "ledger", "identity.key"):
        (path / name).write_bytes((folder / name).read_bytes())
    (path / "identity.key").chmod(0o600)
    data = bytearray((path / "ledger").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "ledger").write_bytes(data)
    code, stdout, stderr = run("invite", peer_id_text(GUEST), "--run-dir", path)
    assert code == 3 and not stdout and "ledger" in stderr
