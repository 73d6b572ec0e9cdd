"""SHA-256 of what every kernel makes of fixed inputs. Run as a script: golden.py BACKEND [DEVICE] prints them as JSON.

The inputs come from Philox words by exact or IEEE arithmetic alone, so they are the same on any machine and under any
version of any library.
"""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np
import torch

from btrain.kernels import QuantizedBlocks, block_gram, dequantize_blockwise, quantize_blockwise, sketch, weighted_sum
from btrain.kernels.philox import philox_words

SEED = 0xFEDCBA9876543210
SIZES = {"gaussian": 5 * 1024 + 37, "heavy": 4 * 1024, "denormal": 3 * 1024 + 1, "zero": 2048, "edges": 9 * 1024 + 1023}


def words(count: int, key: int) -> np.ndarray:
    return philox_words(0, -(-count // 4), key=key).reshape(-1)[:count]


def gaussian(count: int, key: int = 1) -> np.ndarray:
    """Sum of twelve uniforms less six; exact until one rounding to fp32."""
    total = sum((words(count, 100 * key + j) >> 8).astype(np.int64) for j in range(12))
    return ((total - 6 * 2**24) * 2.0**-24).astype(np.float32)


def heavy(count: int, key: int = 2) -> np.ndarray:
    """A near-gaussian over the cube of a uniform: no finite mean."""
    uniform = ((words(count, key) >> 8).astype(np.float32) + np.float32(1)) * np.float32(2.0**-24)
    return gaussian(count, key) / (uniform * uniform * uniform + np.float32(1e-12))


def denormal(count: int) -> np.ndarray:
    """Subnormals of both signs; in the second block beside a large number, in the third beside 2^-109."""
    x = (words(count, 3) & np.uint32(0x807FFFFF)).view(np.float32).copy()
    x[1024 + 5], x[2 * 1024 + 7] = 3.0, 2.0**-109
    return x


def zero(count: int) -> np.ndarray:
    x = np.zeros(count, dtype=np.float32)
    x[::3] = -0.0
    return x


def edges(count: int) -> np.ndarray:
    """Blocks on the format's borders, halves that must round to even, and an unfinished last block."""
    x = gaussian(count, 4)
    blocks = [x[b * 1024 : (b + 1) * 1024] for b in range(-(-count // 1024))]
    blocks[0][:] = 2.0**-110
    blocks[1][:] = np.nextafter(np.float32(2.0**-110), np.float32(0))
    blocks[2][:] = np.nextafter(np.float32(2.0**127), np.float32(0))
    blocks[3][:] = (np.arange(1024) % 255 - 127).astype(np.float32) / 2
    blocks[3][0] = 127.0
    blocks[4][1:] = 0.0
    blocks[5][:] *= np.float32(2.0**-100)
    blocks[6][:] *= np.float32(2.0**120)
    blocks[7][::2] = -blocks[7][::2] * np.float32(1e-30)
    return x


def samples() -> dict[str, torch.Tensor]:
    made = {name: globals()[name](count) for name, count in SIZES.items()}
    tensors = {f"{name}/fp32": torch.from_numpy(x) for name, x in made.items()}
    for name in ("gaussian", "denormal"):
        tensors[f"{name}/bf16"] = torch.from_numpy(made[name]).to(torch.bfloat16)
    tensors["edges/bf16"] = torch.from_numpy(np.clip(made["edges"], -1e38, 1e38)).to(torch.bfloat16)
    for name in ("gaussian", "heavy"):
        tensors[f"{name}/fp16"] = torch.from_numpy(np.clip(made[name], -60000, 60000)).to(torch.float16)
    tensors["one/fp32"] = torch.from_numpy(gaussian(1, 5))
    tensors["empty/fp32"] = torch.empty(0)
    return tensors


def stack() -> list[QuantizedBlocks]:
    """Five encoded vectors of 17 blocks and a bit (more than one group of 16), one of them zero, one of tiny scales."""
    numel = 17 * 1024 + 11
    factors = [1.0, 1e-3, 0.0, 2.0**-115, 250.0]
    vectors = [gaussian(numel, 10 + i) * np.float32(f) for i, f in enumerate(factors)]
    return [quantize_blockwise(torch.from_numpy(v), backend="torch") for v in vectors]


def digest(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"".join(t.cpu().contiguous().numpy().tobytes() for t in tensors)).hexdigest()


def signatures(backend: str, device: str = "cpu") -> dict[str, str]:
    found = {}
    for name, x in samples().items():
        q = quantize_blockwise(x.to(device), backend=backend)
        found[f"nearest/{name}"] = hashlib.sha256(q.to_bytes()).hexdigest()
        found[f"decoded/{name}"] = digest(dequantize_blockwise(q, backend=backend))
        q = quantize_blockwise(x.to(device), rounding="stochastic", seed=SEED, backend=backend)
        found[f"stochastic/{name}"] = hashlib.sha256(q.to_bytes()).hexdigest()
    parts = stack()
    codes, scales = [q.codes.to(device) for q in parts], [q.scales.to(device) for q in parts]
    coefficients = torch.tensor([0.3, -1.25, 0.5, 1e-3, 0.1], dtype=torch.float64)
    found["gram"] = digest(block_gram(codes, scales, backend=backend))
    found["weighted_sum"] = digest(weighted_sum(codes, scales, coefficients, backend=backend))
    found["sketch"] = digest(sketch(codes, scales, bytes(range(200, 232)), first_block=2**33 + 5, backend=backend))
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(signatures(*sys.argv[1:]), indent=1, sort_keys=True))
