"""The 8-bit codecs that `btrain.bench.quantize` compares: ours on every backend, and other people's where installed."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from btrain.kernels import BackendUnavailable, QuantizedBlocks, dequantize_blockwise, quantize_blockwise

BLOCK = 1024
"""Elements a block for the codecs that let one choose, so that all carry the same overhead."""


class Codec(NamedTuple):
    """encode: fp32 [n] to anything; decode: that, and an fp32 [n] that may be filled, to fp32 [n]."""

    name: str
    encode: Callable[[Tensor], Any]
    decode: Callable[[Any, Tensor], Tensor]


def available(device: torch.device) -> tuple[list[Codec], dict[str, str]]:
    """The codecs that run here, and why the others do not."""
    makers: dict[str, Callable[[], Codec]] = {
        "btrain torch": lambda: ours("torch"),
        "btrain native": lambda: ours("native"),
        "btrain triton": lambda: ours("triton"),
        "btrain native, stochastic": lambda: ours("native", stochastic=True),
        "btrain triton, stochastic": lambda: ours("triton", stochastic=True),
        "bitsandbytes dynamic": bitsandbytes,
        "torchao dynamic": lambda: torchao(device),
        "hivemind blockwise": lambda: hivemind("BlockwiseQuantization"),
        "hivemind uniform": lambda: hivemind("Uniform8BitQuantization"),
    }
    codecs, missing = [], {}
    for name, make in makers.items():
        try:
            codec = make()._replace(name=name)
            probe = torch.ones(BLOCK, device=device)
            codec.decode(codec.encode(probe), torch.empty_like(probe))
            codecs.append(codec)
        except (ImportError, OSError, RuntimeError, BackendUnavailable) as error:
            missing[name] = str(error).splitlines()[0]
    return codecs, missing


def ours(backend: str, *, stochastic: bool = False) -> Codec:
    """Our codec on one backend; raises BackendUnavailable."""
    if backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        raise BackendUnavailable("the interpreter is no benchmark")

    def encode(x: Tensor) -> QuantizedBlocks:
        if stochastic:
            return quantize_blockwise(x, rounding="stochastic", seed=1, backend=backend)
        return quantize_blockwise(x, backend=backend)

    def decode(q: QuantizedBlocks, out: Tensor) -> Tensor:
        return dequantize_blockwise(q, out, backend=backend)

    return Codec(backend, encode, decode)


def bitsandbytes() -> Codec:
    """bitsandbytes' dynamic map, https://arxiv.org/abs/2110.02861."""
    functional = importlib.import_module("bitsandbytes.functional")

    def decode(encoded: Any, _: Tensor) -> Tensor:
        result: Tensor = functional.dequantize_blockwise(encoded[0], encoded[1])
        return result

    return Codec("bitsandbytes", lambda x: functional.quantize_blockwise(x, blocksize=BLOCK), decode)


def torchao(device: torch.device) -> Codec:
    """torchao's eager form of the same map, as its 8-bit optimizers use it; whole blocks only."""
    utils = importlib.import_module("torchao.optim.quant_utils")
    codebook = torch.tensor(utils.create_dynamic_map(), device=device)

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        scaled, scale = utils.scale_tensor(x, BLOCK)
        return utils.quantize_8bit_with_qmap(scaled, codebook), scale

    def decode(encoded: tuple[Tensor, Tensor], _: Tensor) -> Tensor:
        result: Tensor = utils.dequant_with_qmap(encoded[0], codebook, encoded[1])
        return result

    return Codec("torchao", encode, decode)


def hivemind(name: str) -> Codec:
    """A codec of hivemind, serialisation included, since it has no other interface."""
    codec = getattr(importlib.import_module("hivemind.compression.quantization"), name)()

    def decode(encoded: Any, _: Tensor) -> Tensor:
        result: Tensor = codec.extract(encoded)
        return result

    return Codec(name, lambda x: codec.compress(x, codec_info()), decode)


def codec_info() -> Any:
    """What hivemind wants to know about a tensor."""
    base = importlib.import_module("hivemind.compression.base")
    return base.CompressionInfo(key="x", descriptor=None)
