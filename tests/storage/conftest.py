"""Crashes for storage: a child process that kills itself at one system call after another."""

import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Ack = Callable[[int], None]
Scenario = Callable[[Path, Ack], None]
STEPS = ("open", "pwrite", "write", "fsync", "fdatasync", "ftruncate", "replace", "rename", "link", "unlink", "mkdir")


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(step: int) -> None:
    """Patch `os` so that this process dies before its `step`-th file operation; a write is half done by then."""
    left = step

    def wrap(name: str) -> None:
        original = getattr(os, name)

        def dying(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                if name == "pwrite":
                    descriptor, data, offset = arguments
                    original(descriptor, bytes(data)[: len(data) // 2], offset)
                _kill()
            return original(*arguments, **options)

        setattr(os, name, dying)

    for name in STEPS:
        wrap(name)


def _run_child(scenario: Scenario, directory: Path, step: int, acks: int) -> None:
    write = os.write

    def ack(number: int) -> None:
        write(acks, b"%d\n" % number)

    try:
        _arm(step)
        scenario(directory, ack)
        os._exit(0)
    finally:
        traceback.print_exc()
        os._exit(1)


@pytest.fixture
def crash_at_every_step(tmp_path: Path) -> Callable[[Scenario, Callable[[Path, int], None]], int]:
    """`run(scenario, check)`: for step 1, 2, ... run the scenario in a fresh directory in a child killed at that step,
    then `check(directory, last acknowledged number, -1 for none)`, until a child lives to the end. Returns the steps.
    """

    def run(scenario: Scenario, check: Callable[[Path, int], None]) -> int:
        for step in range(1, 2000):
            directory = tmp_path / f"step-{step}"
            directory.mkdir()
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(reading)
                _run_child(scenario, directory, step, writing)
            os.close(writing)
            with os.fdopen(reading) as acks:
                numbers = [int(line) for line in acks]
            _, status = os.waitpid(child, 0)
            check(directory, numbers[-1] if numbers else -1)
            if os.WIFEXITED(status):
                assert os.WEXITSTATUS(status) == 0
                return step
        raise AssertionError("the scenario does not end")

    return run
