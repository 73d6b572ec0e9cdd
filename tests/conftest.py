"""What holds for every test: one thread, no telling clock, the same examples wherever the environment says CI."""

from __future__ import annotations

import os

# Before torch or numpy are imported anywhere: sums keep one order, and two workers on two cores do not fight.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

from hypothesis import HealthCheck, settings

settings.register_profile(
    "btrain",
    deadline=None,
    derandomize="CI" in os.environ,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("btrain")
