"""The wheel installs one package, the constraints cover what the ranges ask for, and the contracts are not asleep."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Files of a wheel built from the tracked tree, by the build backend that pyproject names, without network."""
    tree, wheels = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheels")
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=False, capture_output=True, timeout=60)
    if archive.returncode:
        pytest.skip("not a git checkout")
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive.stdout, check=True, timeout=60)
    build = f"import setuptools.build_meta as backend; backend.build_wheel({str(wheels)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True, timeout=100)
    (wheel,) = wheels.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_the_wheel_holds_btrain_and_nothing_else(wheel_names: list[str]) -> None:
    assert {name.split("/")[0] for name in wheel_names} == {"btrain", f"btrain-{PROJECT['version']}.dist-info"}


def test_the_wheel_holds_every_tracked_file_of_the_package(wheel_names: list[str]) -> None:
    listed = subprocess.run(
        ["git", "ls-tree", "-r", "--name-only", "HEAD", "btrain"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    assert set(listed) - set(wheel_names) == set()
    assert "btrain/py.typed" in wheel_names
    assert any(name.endswith("licenses/LICENSE") for name in wheel_names)


def test_every_dependency_has_an_exact_version() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pinned = {canonical(line.split("==")[0]): line.split("==")[1] for line in lines}
    extras = PROJECT["optional-dependencies"]
    wanted = PROJECT["dependencies"] + extras["demo"] + extras["test"] + extras["referees"]
    assert {canonical(re.split(r"[<>=!~;\[ ]", requirement)[0]) for requirement in wanted} - pinned.keys() == set()
    assert pinned["torch"] == "2.13.0"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
