"""The bits never change: one table of hashes for every backend, device, thread count and machine."""

import json
import mmap
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from btrain.kernels import BackendUnavailable, block_gram, native_backend, quantize_blockwise

EXPECTED = json.loads(Path(__file__).with_name("golden.json").read_text())


def test_cpu_backend(backend: str, golden) -> None:
    assert golden.signatures(backend) == EXPECTED


def test_the_table_tells_inputs_apart() -> None:
    of_inputs = [value for name, value in EXPECTED.items() if not name.endswith("empty/fp32")]
    assert len(set(of_inputs)) >= len(of_inputs) - 8  # rounding changes nothing in zeros, ones and exact halves


@pytest.mark.skipif(not find_spec("triton"), reason="triton is not installed (pip install 'btrain[gpu]')")
def test_triton_interpreted(golden) -> None:
    environment = dict(os.environ, TRITON_INTERPRET="1")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(golden.path), "triton"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == EXPECTED


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["torch", "triton"])
def test_cuda(golden, name: str) -> None:
    assert golden.signatures(name, "cuda") == EXPECTED


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_large_vector_under_any_thread_count(golden, threads: int) -> None:
    x = torch.from_numpy(golden.gaussian((1 << 20) + 77))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        q = quantize_blockwise(x, backend="torch")
    finally:
        torch.set_num_threads(before)
    assert golden.digest(q.codes, q.scales) == LARGE


LARGE = "aa7d262206434c4e45580698b70f1f2e8cb68747273f3c836b02119d5e27617c"


def test_elements_beyond_two_to_the_31() -> None:
    """Private anonymous pages that nobody wrote cost no memory: 2 GiB of zeros with one block at the far end."""
    try:
        native_backend.demanded()
    except BackendUnavailable as error:
        pytest.skip(str(error))
    blocks = 2**21 + 2
    memory = mmap.mmap(-1, blocks * 1024, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    codes = torch.frombuffer(memory, dtype=torch.int8).view(blocks, 1024)
    codes[-1] = 3
    gram = block_gram([codes], [torch.full((blocks,), 0.5)], backend="native")
    assert gram.item() == 9 * 1024 * 0.25


@pytest.mark.slow
def test_encoding_beyond_two_to_the_31_elements(backend: str) -> None:
    x = torch.zeros(2**31 + 2048, dtype=torch.float16)
    x[-1] = 5.0
    q = quantize_blockwise(x, backend=backend)
    assert q.codes.view(-1)[-1] == 127
    assert q.scales.nonzero().tolist() == [[q.codes.shape[0] - 1]]
