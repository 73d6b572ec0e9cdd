"""What holds for every test: one thread, no telling clock, the same examples wherever the environment says CI."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch or numpy are imported anywhere: sums keep one order, and two workers on two cores do not fight.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "btrain",
    deadline=None,
    derandomize="CI" in os.environ,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("btrain")

# Real peers, sockets and clocks: they want the machine for themselves, so they have a target of their own.
_OF_PROCESSES = (
    "peer/test_crashes.py",
    "peer/test_founding.py",
    "peer/test_gpt.py",
    "peer/test_healing.py",
    "peer/test_joining.py",
    "peer/test_leaving.py",
    "peer/test_limits.py",
    "peer/test_lineage.py",
    "swarm/test_attacks.py",
    "swarm/test_churn.py",
    "swarm/test_processes.py",
    "swarm/test_sizes.py",
    "p2p/test_processes.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need the machine for themselves."""
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).as_posix().startswith(_OF_PROCESSES):
            item.add_marker(pytest.mark.processes)
