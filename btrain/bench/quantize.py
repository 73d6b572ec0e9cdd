"""`python -m btrain.bench.quantize`: how fast and how exact the 8-bit codecs are, against a memcpy of the same bytes.

Every repetition times a memcpy and then the codec, so that both see the same load of the machine. Both move the same
bytes: encoding reads 4 bytes and writes 1 an element (and a scale per 1024), decoding the reverse; the memcpy reads
half of them and writes half. CPU: one thread, processor time. CUDA: events, after a warm-up; the copy is
a device-to-device copy. `ratio` is the median of the copy's time over the codec's, pair by pair.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from btrain.bench.codecs import BLOCK, Codec, available

ELEMENTS = 10_000_000
REPEATS = 15
ERROR_ELEMENTS = 1 << 20

Timer = Callable[[Callable[[], object]], float]
Row = dict[str, float]


def run(elements: int = ELEMENTS, repeats: int = REPEATS, device: str = "cpu") -> dict[str, object]:
    """The whole benchmark as one document; `elements` are rounded down to whole blocks, which torchao needs."""
    place = torch.device(device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        codecs, missing = available(place)
        x = torch.randn(elements // BLOCK * BLOCK, generator=torch.Generator().manual_seed(0)).to(place)
        speeds = {codec.name: speed(codec, x, repeats) for codec in codecs}
        errors = {
            kind: {c.name: relative_error(c, sample.to(place)) for c in codecs} for kind, sample in samples().items()
        }
    finally:
        torch.set_num_threads(threads)
    return {
        "benchmark": "quantize",
        "elements": x.numel(),
        "repeats": repeats,
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "speed": speeds,
        "relative_error": errors,
        "missing": missing,
    }


def speed(codec: Codec, x: Tensor, repeats: int) -> dict[str, Row]:
    """Encoding and decoding of x, each beside a copy of as many bytes."""
    encoded, out = codec.encode(x), torch.empty_like(x)
    codec.decode(encoded, out)
    timer = cuda_seconds if x.is_cuda else cpu_seconds
    return {
        "encode": against_copy(lambda: codec.encode(x), x, timer, repeats),
        "decode": against_copy(lambda: codec.decode(encoded, out), x, timer, repeats),
    }


def against_copy(action: Callable[[], object], x: Tensor, timer: Timer, repeats: int) -> Row:
    """Median and quartiles of an action's time and of its ratio to a copy that moves as many bytes."""
    moved = x.numel() * 5 + x.numel() // BLOCK * 4
    source = torch.ones(moved // 2, dtype=torch.uint8, device=x.device)
    target = torch.zeros_like(source)

    def copy() -> object:
        if source.is_cuda:
            return target.copy_(source)
        return ctypes.memmove(target.data_ptr(), source.data_ptr(), source.numel())

    action(), copy()
    pairs = [(timer(copy), timer(action)) for _ in range(repeats)]
    seconds = quartiles([taken for _, taken in pairs])
    ratios = quartiles([copied / taken for copied, taken in pairs])
    return {
        "ms": 1e3 * seconds[1],
        "ms_q1": 1e3 * seconds[0],
        "ms_q3": 1e3 * seconds[2],
        "gb_per_s": moved / seconds[1] / 1e9,
        "copy_gb_per_s": moved / statistics.median(copied for copied, _ in pairs) / 1e9,
        "ratio": ratios[1],
        "ratio_q1": ratios[0],
        "ratio_q3": ratios[2],
    }


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def cpu_seconds(action: Callable[[], object]) -> float:
    """Processor time of this process, whatever its threads."""
    start = time.process_time()
    action()
    return time.process_time() - start


def cuda_seconds(action: Callable[[], object]) -> float:
    """Time between two events around the action."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    action()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def relative_error(codec: Codec, x: Tensor) -> float:
    """|decoded - x| / |x|, Euclidean."""
    decoded = codec.decode(codec.encode(x), torch.empty_like(x)).double()
    return float((decoded - x.double()).norm() / x.double().norm())


def samples() -> dict[str, Tensor]:
    """What the error is measured on: fp32, whole blocks."""
    generator = torch.Generator().manual_seed(1)
    gaussian = torch.randn(ERROR_ELEMENTS, generator=generator)
    chi_square = torch.randn(3, ERROR_ELEMENTS, generator=generator).square().mean(0)
    return {"gaussian": gaussian, "student-t3": gaussian / chi_square.sqrt(), "mlp gradient": mlp_gradient()}


def mlp_gradient() -> Tensor:
    """The gradient of a three-layer perceptron after 50 steps on a task that it can learn; whole blocks of it."""
    torch.manual_seed(0)
    width = 256
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    teacher = torch.randn(64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(50):
        x = torch.randn(128, 64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), (x @ teacher).argmax(1)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    flat = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])
    return flat[: flat.numel() // BLOCK * BLOCK]


def as_text(document: dict[str, object]) -> str:
    """Two Markdown tables and what could not be measured."""
    speeds, errors, missing = document["speed"], document["relative_error"], document["missing"]
    assert isinstance(speeds, dict)
    assert isinstance(errors, dict)
    assert isinstance(missing, dict)
    lines = [f"{document['elements']} fp32 elements, {document['device']}, torch {document['torch']}", ""]
    lines += [
        "| codec | encode GB/s | of memcpy (quartiles) | decode GB/s | of memcpy (quartiles) |",
        "|---|---|---|---|---|",
    ]
    for name, row in speeds.items():
        cells = [
            f"{r['gb_per_s']:.2f} | {r['ratio']:.2f} ({r['ratio_q1']:.2f}-{r['ratio_q3']:.2f})" for r in row.values()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", f"| relative error, % | {' | '.join(errors)} |", "|---" * (len(errors) + 1) + "|"]
    for name in speeds:
        lines.append(f"| {name} | {' | '.join(f'{100 * by_codec[name]:.2f}' for by_codec in errors.values())} |")
    lines += ["", *(f"not measured: {name}: {why}" for name, why in missing.items())]
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of tables")
    parser.add_argument("--elements", type=int, default=ELEMENTS)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    arguments = parser.parse_args()
    if arguments.elements < BLOCK or arguments.repeats < 1:
        parser.error(f"--elements is at least {BLOCK}, --repeats at least 1")
    document = run(arguments.elements, arguments.repeats, arguments.device)
    sys.stdout.write((json.dumps(document, indent=2) if arguments.json else as_text(document)) + "\n")


if __name__ == "__main__":
    main()
