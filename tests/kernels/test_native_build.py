"""The compiled path comes and goes unnoticed: no compiler, no cache, a bad library, several processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from btrain.kernels import BackendUnavailable, choice, native_backend, native_build, quantize_blockwise

BIG = choice.BUILD_MIN_ELEMENTS


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process as if it had never looked for a library; the empty cache's path."""
    monkeypatch.setenv(native_build.CACHE_ENVIRONMENT, str(tmp_path / "cache"))
    monkeypatch.delenv(choice.ENVIRONMENT, raising=False)
    monkeypatch.setattr(native_backend, "_library", native_build.Library())
    monkeypatch.setattr(native_backend, "_backend", None)
    return tmp_path / "cache"


def backend_for(elements: int, name: str = "auto") -> str:
    return choice.choose(name, torch.device("cpu"), elements).name


def needs_compiler() -> None:
    if native_build.compiler() is None:
        pytest.skip("no C compiler here")


def test_small_vectors_start_no_compiler(fresh: Path) -> None:
    assert backend_for(BIG - 1) == "torch"
    assert not fresh.exists()


def test_the_first_large_vector_starts_the_compiler_and_does_not_wait(fresh: Path) -> None:
    needs_compiler()
    assert backend_for(BIG) == "torch"
    assert native_backend.demanded().name == "native"  # waits for the same compiler
    assert backend_for(1) == "native"
    assert [p.suffix for p in sorted(fresh.iterdir())] == [".lock", ".so"]
    assert fresh.stat().st_mode & 0o077 == 0


def test_the_finished_library_is_taken_up_later(fresh: Path) -> None:
    needs_compiler()
    assert backend_for(BIG) == "torch"
    limit = time.monotonic() + 60
    while backend_for(1) != "native":
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_without_a_compiler_torch_works_and_says_nothing(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(fresh))
    monkeypatch.delenv("CC", raising=False)
    caplog.set_level("WARNING")
    q = quantize_blockwise(torch.ones(BIG))
    assert q.codes.min() == 127
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    with pytest.raises(BackendUnavailable, match="no C compiler"):
        native_backend.demanded()


@pytest.mark.parametrize("program", ["#!/bin/sh\nexit 1\n", "#!/bin/sh\nexit 0\n"])
def test_a_compiler_that_fails_or_writes_nothing_useful(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], program: str
) -> None:
    broken = tmp_path / "broken-cc"
    broken.write_text(program)
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(BackendUnavailable, match="could not build"):
        native_backend.demanded()
    assert backend_for(BIG) == "torch"
    assert capfd.readouterr() == ("", "")
    assert not list(fresh.glob("*.tmp"))


def test_a_cache_that_cannot_be_written(tmp_path: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_compiler()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(native_build.CACHE_ENVIRONMENT, str(tmp_path / "file" / "cache"))
    assert backend_for(BIG) == "torch"
    with pytest.raises(BackendUnavailable, match="cannot be written"):
        native_backend.demanded()


def test_a_library_that_others_could_have_written_is_not_loaded(fresh: Path) -> None:
    needs_compiler()
    native_backend.demanded()
    path = native_build.library_path()
    assert native_build.load(path) is not None
    path.chmod(0o777)
    assert native_build.load(path) is None
    path.chmod(0o700)
    fresh.chmod(0o777)
    assert native_build.load(path) is None


def test_a_library_with_other_bits_is_given_up(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_compiler()
    source = native_build.SOURCE.read_text().replace("rintf(", "truncf(")
    wrong = fresh.parent / "wrong.c"
    wrong.write_text(source)
    monkeypatch.setattr(native_build, "SOURCE", wrong)
    with pytest.raises(BackendUnavailable, match="bits of the reference"):
        native_backend.demanded()
    assert backend_for(BIG) == "torch"


def test_only_one_process_compiles(fresh: Path) -> None:
    needs_compiler()
    path = native_build.library_path()
    first = native_build.Build(path)
    with pytest.raises(BackendUnavailable, match="now"):
        native_build.Build(path)
    assert first.finished(wait=True)
    assert path.exists()
    native_build.Build(path).abandon()
    assert not list(fresh.glob("*.tmp"))


def test_torch_can_be_demanded_by_the_environment(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choice.ENVIRONMENT, "torch")
    assert backend_for(BIG) == "torch"
    assert not fresh.exists()


def test_importing_compiles_and_loads_nothing(tmp_path: Path) -> None:
    code = "import sys, btrain.kernels; assert 'triton' not in sys.modules; print('fine')"
    environment = dict(os.environ, **{native_build.CACHE_ENVIRONMENT: str(tmp_path / "cache")})
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "fine\n"
    assert not (tmp_path / "cache").exists()


def test_leaving_while_the_compiler_runs_leaves_nothing(tmp_path: Path) -> None:
    slow = tmp_path / "slow-cc"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    code = (
        "import torch; from btrain.kernels import quantize_blockwise, native_backend\n"
        f"quantize_blockwise(torch.ones({BIG})); print(native_backend._library._build.process.pid)"
    )
    environment = dict(os.environ, CC=str(slow), **{native_build.CACHE_ENVIRONMENT: str(tmp_path / "cache")})
    environment.pop(choice.ENVIRONMENT, None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert not list((tmp_path / "cache").glob("*.tmp"))
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)
