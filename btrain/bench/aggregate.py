"""`python -m btrain.bench.aggregate`: what a reduction costs, against a memcpy of its inputs and against iterating.

Every row times, on one set of n gaussian vectors of d float32 elements of which a minority is scaled by 100: a memcpy
of the vectors; the default rule on the dense matrix; the default rule on the encoded parts; 20 CenteredClip iterations
on the vectors themselves from the coordinate-wise median; byzfl's CenteredClipping where it is installed. Times are the
best of several. Peak memory is what the process's high-water mark rose by, over the bytes of the inputs (Linux only).

Shapes: N vectors, D elements.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from btrain.aggregation import aggregate, reduce_part
from btrain.kernels import QuantizedBlocks, encoded_bytes, quantize_blockwise

CONTRIBUTORS = (16, 64, 128)
ELEMENTS = (1_000_000, 10_000_000)
SLOW_LIMIT = 70_000_000
"""Largest n * d at which the iterations on vectors are timed; they take minutes above."""
MEMORY_SHARE = 0.8
"""Share of the free memory that a row may take; what needs more is left out and says so."""

Row = dict[str, float | int | str | None]


def vectors(contributors: int, elements: int) -> torch.Tensor:
    """float32 [N, D]: gaussian, the first minority a hundred times longer."""
    x_ND = torch.empty(contributors, elements)
    generator = torch.Generator().manual_seed(contributors)
    for i, x_D in enumerate(x_ND):
        x_D.normal_(generator=generator).mul_(100.0 if i < (contributors - 1) // 2 else 1.0)
    return x_ND


def iterate_on_vectors(x_ND: torch.Tensor, tau: float, iterations: int = 20) -> torch.Tensor:
    """CenteredClip as it is usually written: median start, v <- v + mean_i clip(x_i - v)."""
    v_D = x_ND.median(dim=0).values
    for _ in range(iterations):
        offsets_ND = x_ND - v_D
        clips_N = (tau / offsets_ND.norm(dim=1)).clamp(max=1.0)
        v_D = v_D + (offsets_ND * clips_N[:, None]).mean(dim=0)
    return v_D


def best_ms(action: Callable[[], object], repeats: int) -> float:
    """Best wall time of several, in milliseconds."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return 1000 * min(times)


def peak_bytes(action: Callable[[], object]) -> int | None:
    """How far the process's resident memory rises above where it stands while `action` runs; None off Linux."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    try:
        reset.write_text("5")
    except OSError:
        return None
    before = _status_bytes(status.read_text(), "VmRSS")
    action()
    return _status_bytes(status.read_text(), "VmHWM") - before


def _status_bytes(status: str, key: str) -> int:
    line = next(line for line in status.splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def free_bytes() -> int | None:
    """Memory that can be had without swapping; None off Linux."""
    meminfo = Path("/proc/meminfo")
    return _status_bytes(meminfo.read_text(), "MemAvailable") if meminfo.exists() else None


def byzfl_rule(tau: float) -> Callable[[torch.Tensor], object] | None:
    """byzfl's CenteredClipping with 20 iterations, None where byzfl is not installed."""
    if importlib.util.find_spec("byzfl") is None:
        return None
    # byzfl imports a torchvision built for CUDA, which asks a CPU build of torch for two operators that are not there.
    operators = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            signature = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            operators.define(signature)  # type: ignore[no-untyped-call]
    clipping = importlib.import_module("byzfl").CenteredClipping

    def fresh(x_ND: torch.Tensor) -> object:
        return clipping(L=20, tau=tau)(x_ND)  # it keeps its result as the next start

    return fresh


def measure(contributors: int, elements: int, repeats: int) -> Row:
    """One row. Times in ms, ratios without unit."""
    row: Row = {"n": contributors, "d": elements}
    bytes_in = 4 * contributors * elements
    free = free_bytes()
    if free is not None and 2.4 * bytes_in > MEMORY_SHARE * free:
        row["left_out"] = f"needs {2.4 * bytes_in / 2**30:.1f} GiB, {free / 2**30:.1f} are free"
        return row
    x_ND = vectors(contributors, elements)
    parts = {i.to_bytes(4, "big"): quantize_blockwise(x_D) for i, x_D in enumerate(x_ND)}
    row |= _memory(x_ND, parts)
    memcpy_ms = _memcpy_ms(x_ND, repeats)
    dense_ms = best_ms(lambda: aggregate(x_ND), repeats)
    wire_ms = best_ms(lambda: reduce_part(parts), repeats)
    row |= {"memcpy_ms": memcpy_ms, "dense_ms": dense_ms, "wire_ms": wire_ms}
    row |= {"dense_over_memcpy": dense_ms / memcpy_ms, "wire_over_memcpy": wire_ms / memcpy_ms}
    return row | _rivals(x_ND, dense_ms)


def _memcpy_ms(x_ND: torch.Tensor, repeats: int) -> float:
    copy_ND = torch.empty_like(x_ND)
    return best_ms(lambda: copy_ND.copy_(x_ND), repeats + 1)


def _memory(x_ND: torch.Tensor, parts: dict[bytes, QuantizedBlocks]) -> Row:
    aggregate(x_ND[:, : 1 << 16])  # what the BLAS keeps once per process is no part of a row
    dense, wire = peak_bytes(lambda: aggregate(x_ND)), peak_bytes(lambda: reduce_part(parts))
    encoded = sum(encoded_bytes(q.numel) for q in parts.values())
    return {
        "dense_peak_share": None if dense is None else dense / (4 * x_ND.numel()),
        "wire_peak_share": None if wire is None else wire / encoded,
    }


def _rivals(x_ND: torch.Tensor, dense_ms: float) -> Row:
    if x_ND.numel() > SLOW_LIMIT:
        return {}
    tau = float(x_ND.shape[1]) ** 0.5
    iterating_ms = best_ms(lambda: iterate_on_vectors(x_ND, tau), 1)
    row: Row = {"iterating_ms": iterating_ms, "iterating_over_dense": iterating_ms / dense_ms}
    rule = byzfl_rule(tau)
    if rule is not None:
        byzfl_ms = best_ms(lambda: rule(x_ND), 1)
        row |= {"byzfl_ms": byzfl_ms, "byzfl_over_dense": byzfl_ms / dense_ms}
    return row


def report(contributors: tuple[int, ...], elements: tuple[int, ...], repeats: int) -> dict[str, object]:
    """The whole benchmark as one document."""
    aggregate(torch.randn(4, 10_000))  # what torch sets up once does not belong to a row
    reduce_part({bytes([i]): quantize_blockwise(torch.randn(10_000)) for i in range(4)})
    rows = []
    for n in contributors:
        for d in elements:
            rows.append(measure(n, d, repeats))
            print(f"n={n} d={d}: done", file=sys.stderr)
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": machine, "rows": rows}


def as_text(document: dict[str, object]) -> str:
    """The rows as a table."""
    keys = ["n", "d", "memcpy_ms", "dense_ms", "dense_over_memcpy", "wire_ms", "wire_over_memcpy"]
    keys += ["dense_peak_share", "wire_peak_share", "iterating_over_dense", "byzfl_over_dense", "left_out"]
    rows = document["rows"]
    assert isinstance(rows, list)
    lines = ["  ".join(f"{key:>17}" for key in keys)]
    for row in rows:
        cells = [row.get(key) for key in keys]
        lines.append("  ".join(f"{cell:17.4g}" if isinstance(cell, float) else f"{cell or '-':>17}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    parser.add_argument("--n", type=int, nargs="+", default=list(CONTRIBUTORS), help="numbers of vectors")
    parser.add_argument("--d", type=int, nargs="+", default=list(ELEMENTS), help="elements of each")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    document = report(tuple(options.n), tuple(options.d), options.repeats)
    print(json.dumps(document, indent=2) if options.json else as_text(document))


if __name__ == "__main__":
    main()
