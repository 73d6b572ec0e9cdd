"""The compiled CPU path: same bits as torch_backend, several times faster, there only where a C compiler is."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from btrain.kernels.backend import SketchSeed
from btrain.kernels.blocks import BLOCK
from btrain.kernels.errors import BackendUnavailable
from btrain.kernels.native_build import Library
from btrain.kernels.torch_backend import BUCKETS, SUM_GROUP, TorchBackend

log = logging.getLogger(__name__)

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
WIDE_ROWS_SPARE = 3
"""The Gram kernel reads vectors in fours."""

_library = Library()
_backend: NativeBackend | None = None


class NativeBackend:
    """Calls `native.c` through ctypes, which releases the interpreter lock."""

    name = "native"

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, integer, word = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint64
        self._quantize = library.btrain_quantize
        self._quantize.argtypes = [pointer, integer, ctypes.c_int, pointer, pointer, pointer]
        self._quantize.restype = integer
        self._dequantize = library.btrain_dequantize
        self._dequantize.argtypes = [pointer, pointer, integer, pointer]
        self._gram = library.btrain_block_gram
        self._gram.argtypes = [pointer, pointer, integer, integer, pointer, pointer, pointer]
        self._weighted_sum = library.btrain_weighted_sum
        self._weighted_sum.argtypes = [pointer, pointer, integer, integer, pointer]
        self._sketch = library.btrain_sketch
        self._sketch.argtypes = [pointer, pointer, integer, integer, word, word, word, pointer, pointer]
        for function in (self._dequantize, self._gram, self._weighted_sum, self._sketch):
            function.restype = None

    def quantize(self, x: Tensor, codes: Tensor, scales: Tensor, seed: int | None) -> int:
        """See Backend.quantize."""
        word = None if seed is None else ctypes.byref(ctypes.c_uint64(seed))
        arguments = (x.data_ptr(), x.numel(), DTYPES[x.dtype], codes.data_ptr(), scales.data_ptr(), word)
        return int(self._quantize(*arguments))

    def dequantize(self, codes: Tensor, scales: Tensor, out: Tensor) -> None:
        """See Backend.dequantize."""
        self._dequantize(codes.data_ptr(), scales.data_ptr(), out.numel(), out.data_ptr())

    def block_gram(self, codes: Sequence[Tensor], scales: Sequence[Tensor]) -> Tensor:
        """See Backend.block_gram."""
        n = len(codes)
        gram = torch.zeros((n, n), dtype=torch.float64)
        wide = torch.zeros((n + WIDE_ROWS_SPARE, BLOCK), dtype=torch.int16)
        terms = torch.zeros((SUM_GROUP, n, n), dtype=torch.float64)
        blocks = codes[0].shape[0]
        scratch = (wide.data_ptr(), terms.data_ptr())
        self._gram(_pointers(codes), _pointers(scales), n, blocks, gram.data_ptr(), *scratch)
        return gram

    def weighted_sum(self, codes: Sequence[Tensor], weights_NB: Tensor, out_BK: Tensor) -> None:
        """See Backend.weighted_sum."""
        n, blocks = weights_NB.shape
        self._weighted_sum(_pointers(codes), weights_NB.data_ptr(), n, blocks, out_BK.data_ptr())

    def sketch(self, codes: Sequence[Tensor], scales: Sequence[Tensor], seed: SketchSeed, first_block: int) -> Tensor:
        """See Backend.sketch."""
        n, blocks = len(codes), codes[0].shape[0]
        out = torch.zeros((n, BUCKETS), dtype=torch.float64)
        terms = torch.empty((n, SUM_GROUP, BUCKETS), dtype=torch.float64)
        first_row = first_block * (BLOCK // BUCKETS)
        tail = (seed.key, seed.high, first_row, out.data_ptr(), terms.data_ptr())
        self._sketch(_pointers(codes), _pointers(scales), n, blocks, *tail)
        return out


def ready(*, build: bool) -> NativeBackend | None:
    """The backend if its library is there; otherwise None, and `build` starts compiling it in the background."""
    if _backend is not None:
        return _backend
    library = _library.get(build=build)
    return None if library is None else _accept(library)


def demanded() -> NativeBackend:
    """The backend, compiled now if need be; raises BackendUnavailable saying why it cannot be had."""
    if _backend is not None:
        return _backend
    library = _library.get(build=True, wait=True)
    backend = None if library is None else _accept(library)
    if backend is None:
        raise BackendUnavailable(f"no native kernels: {_library.problem}")
    return backend


def _accept(library: ctypes.CDLL) -> NativeBackend | None:
    """The backend if it gives the bits of the torch twin on a small example; a miscompiled library is given up."""
    global _backend  # noqa: PLW0603 - one library a process
    backend = NativeBackend(library)
    if _signature(backend) != _signature(TorchBackend()):
        _library.give_up("the compiled kernels do not give the bits of the reference")
        log.warning("%s: using torch", _library.problem)
        return None
    _backend = backend
    return backend


def _signature(backend: NativeBackend | TorchBackend) -> list[bytes]:
    """Bytes of every kernel's result on two vectors of two blocks."""
    numel = 2 * BLOCK - 5
    x = (torch.arange(2 * numel, dtype=torch.float32) * 0.7310585).frac_().sub_(0.4).view(2, numel)
    codes = torch.empty((2, 2, BLOCK), dtype=torch.int8)
    scales = torch.empty((2, 2), dtype=torch.float32)
    backend.quantize(x[0], codes[0], scales[0], None)
    backend.quantize(x[1], codes[1], scales[1], 0x0123456789ABCDEF)
    out_BK = torch.empty((2, BLOCK), dtype=torch.float32)
    backend.weighted_sum(list(codes), scales * 0.3, out_BK)
    decoded = torch.empty(numel, dtype=torch.float32)
    backend.dequantize(codes[0], scales[0], decoded)
    gram = backend.block_gram(list(codes), list(scales))
    sketches = backend.sketch(list(codes), list(scales), SketchSeed(1, 2), 3)
    return [t.numpy().tobytes() for t in (codes, scales, out_BK, decoded, gram, sketches)]


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    """An array of the tensors' addresses; the caller keeps the tensors alive."""
    return (ctypes.c_void_p * len(tensors))(*[t.data_ptr() for t in tensors])
