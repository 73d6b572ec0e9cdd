"""What an import brings along: never a bare `kernels`, and no network before somebody asks for it."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import btrain

BARE_NAMES = {"aggregation", "kernels", "p2p"}
OPTIONAL = {
    "byzfl",
    "byzpy",
    "bitsandbytes",
    "datasets",
    "hivemind",
    "sklearn",
    "tokenizers",
    "torchao",
    "transformers",
    "triton",
}

IMPORT_ALL = """
import importlib, sys
failed = []
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        failed.append(f"{name} {error.name}")
print(*failed, sep="\\n")
print("LOADED", *sys.modules)
"""


def modules() -> list[str]:
    """Every module of the package, found without importing any of them."""
    root = Path(btrain.__file__).parent
    found = []
    folders = [(root, "btrain")]
    while folders:
        folder, prefix = folders.pop()
        for module in pkgutil.iter_modules([str(folder)], f"{prefix}."):
            found.append(module.name)
            if module.ispkg:
                folders.append((folder / module.name.rpartition(".")[2], module.name))
    return sorted(name for name in found if not name.endswith("__main__"))


def imported(*names: str) -> tuple[list[str], set[str]]:
    """Modules that failed for want of another, and all that a new interpreter holds once `names` are imported."""
    output = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *names], check=True, capture_output=True, text=True, timeout=100
    ).stdout
    failed, _, loaded = output.rpartition("LOADED ")
    return failed.split("\n"), set(loaded.split())


def test_all_of_btrain_imports_without_a_bare_name() -> None:
    names = modules()
    failed, loaded = imported(*names)
    assert len(names) > 10
    assert [line for line in failed if line and line.split()[1].partition(".")[0] not in OPTIONAL] == []
    assert not BARE_NAMES & loaded


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("btrain", {"torch", "libp2p", "trio"}),
        ("btrain.config", {"torch", "libp2p", "trio", "numpy"}),
        ("btrain.protocol.messages", {"libp2p", "trio", "asyncio"}),
        ("btrain.aggregation", {"libp2p", "trio", "triton"}),
        ("btrain.kernels", {"libp2p", "trio", "triton"}),
        ("btrain.simulation", {"libp2p", "trio"}),
    ],
)
def test_what_an_import_leaves_alone(name: str, absent: set[str]) -> None:
    failed, loaded = imported(name)
    assert name in loaded, failed
    assert not absent & loaded


def test_the_links_at_the_root_lead_into_the_package() -> None:
    root = Path(btrain.__file__).parent.parent
    if not (root / "pyproject.toml").exists():
        pytest.skip("not a checkout")
    for name in BARE_NAMES:
        link = root / name
        # A checkout without symbolic links holds small text files instead; nothing needs them.
        assert link.is_file() or link.resolve() == root / "btrain" / name
