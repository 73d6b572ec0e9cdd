"""Compiles `native.c` once per processor into the user's cache, in the background, and never complains if it cannot.

The library's name holds a hash of the source, the flags and the processor, so a stale or foreign one is never loaded.
Only files in a directory that belongs to this user and that nobody else may write are loaded.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
import threading
from pathlib import Path

from btrain.kernels.errors import BackendUnavailable

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("native.c")
CACHE_ENVIRONMENT = "BTRAIN_CACHE_DIR"
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared")
BUILD_TIMEOUT_S = 60.0
CPUINFO_BYTES_MAX = 1 << 14


def compiler() -> str | None:
    """The C compiler's path: $CC, cc, gcc or clang, or None."""
    names = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def library_path() -> Path:
    """Where the library for this source, these flags and this processor belongs."""
    identity = hashlib.sha256(SOURCE.read_bytes())
    identity.update(repr((_flags(), platform.system(), platform.machine(), _processor())).encode())
    return cache_directory() / f"kernels-{identity.hexdigest()[:24]}.so"


def cache_directory() -> Path:
    """$BTRAIN_CACHE_DIR, else btrain under $XDG_CACHE_HOME or ~/.cache."""
    chosen = os.environ.get(CACHE_ENVIRONMENT)
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "btrain"


def load(path: Path) -> ctypes.CDLL | None:
    """The library if it is there and only this user could have written it."""
    try:
        for place in (path.parent, path):
            status = place.stat()
            if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                log.warning("not loading %s: others can write %s", path, place)
                return None
        return ctypes.CDLL(str(path))
    except OSError:
        return None


class Build:
    """One compilation running beside the caller; at most one per user and library, whatever the number of processes."""

    def __init__(self, path: Path) -> None:
        """Start the compiler; raises BackendUnavailable when there is none, or another process already compiles."""
        program = compiler()
        if program is None:
            raise BackendUnavailable("no C compiler found (cc, gcc, clang or $CC)")
        self.path, self.pid = path, os.getpid()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.lock = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BackendUnavailable(f"the cache {path.parent} cannot be written: {error}") from error
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            handle, self.temporary = tempfile.mkstemp(prefix="kernels-", suffix=".tmp", dir=path.parent)
            os.close(handle)
            command = [program, *_flags(), "-o", self.temporary, str(SOURCE), "-lm"]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=-3)
        except OSError as error:
            os.close(self.lock)
            raise BackendUnavailable(f"the kernels cannot be compiled now: {error}") from error
        atexit.register(self.abandon)

    def finished(self, *, wait: bool) -> bool:
        """Whether the compiler has ended; a good result then stands at its place."""
        if os.getpid() != self.pid:
            return False
        try:
            status = self.process.wait(BUILD_TIMEOUT_S) if wait else self.process.poll()
        except subprocess.TimeoutExpired:
            status = None if not wait else -1
        if status is None:
            return False
        if status == 0:
            with contextlib.suppress(OSError):
                Path(self.temporary).chmod(0o700)
                Path(self.temporary).replace(self.path)
        else:
            log.info("the compiler could not build the kernels (status %s): using torch", status)
        self.abandon()
        return True

    def abandon(self) -> None:
        """Stop the compiler if it still runs and remove what it left."""
        if os.getpid() != self.pid:
            return
        atexit.unregister(self.abandon)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        Path(self.temporary).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            os.close(self.lock)


class Library:
    """The library of this process: not looked for, being built, loaded or given up."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._loaded: ctypes.CDLL | None = None
        self._build: Build | None = None
        self._given_up: str | None = None
        self._path: Path | None = None

    def get(self, *, build: bool, wait: bool = False) -> ctypes.CDLL | None:
        """The library, or None while there is none. `build` starts a compilation where one is missing."""
        if self._loaded is not None or (self._given_up and not wait):
            return self._loaded
        with self._mutex:
            if self._loaded is None:
                self._advance(build=build, wait=wait)
            return self._loaded

    def give_up(self, reason: str) -> None:
        """Use the library no more in this process."""
        self._loaded, self._given_up = None, reason

    @property
    def problem(self) -> str:
        """Why there is no library."""
        return self._given_up or "the compiled kernels are not built"

    def _advance(self, *, build: bool, wait: bool) -> None:
        if self._build is not None and self._build.pid != os.getpid():
            self._build = None  # a fork inherited it; the parent looks after its compiler
        try:
            if self._path is None:
                self._path = library_path()
                self._loaded = load(self._path)
            if self._loaded is None and self._build is None and build:
                self._loaded = load(self._path)
                self._build = Build(self._path) if self._loaded is None else None
        except (BackendUnavailable, OSError) as error:
            log.info("no compiled kernels: %s", error)
            self._given_up = str(error)
            return
        if self._build is not None and self._build.finished(wait=wait):
            self._build = None
            self._loaded = load(self._path)
            self._given_up = None if self._loaded else "the compiler could not build the kernels"


def _flags() -> tuple[str, ...]:
    """-march=native is safe because the processor is part of the library's name."""
    return (*FLAGS, "-march=native") if platform.machine() in ("x86_64", "AMD64") else FLAGS


def _processor() -> str:
    """What the compiler may have tuned for: model and feature flags of the first processor."""
    try:
        with Path("/proc/cpuinfo").open(encoding="ascii", errors="replace") as cpuinfo:
            lines = cpuinfo.read(CPUINFO_BYTES_MAX).split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    kept = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU part")
    return "\n".join(line for line in lines if line.split("\t")[0].split(":")[0].strip() in kept)
