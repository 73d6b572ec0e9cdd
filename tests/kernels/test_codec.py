"""Encoding and decoding: error bounds, borders, refusals; on every CPU backend."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from btrain.kernels import (
    BackendUnavailable,
    KernelUsageError,
    NotEncodable,
    QuantizedBlocks,
    dequantize_blockwise,
    quantize_blockwise,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def error_in_steps(x: torch.Tensor, q: QuantizedBlocks) -> torch.Tensor:
    """|decoded - x| in units of the block's scale, fp64."""
    steps = q.scales.double().repeat_interleave(1024)[: x.numel()]
    distance = (dequantize_blockwise(q).double() - x.reshape(-1).double()).abs()
    return torch.where(steps == 0, distance, distance / steps)


@given(st.integers(1, 5000), st.integers(0, 2**32 - 1), st.integers(-30, 37), st.sampled_from(DTYPES))
def test_error_is_at_most_half_a_step(numel: int, seed: int, exponent: int, dtype: torch.dtype) -> None:
    x = torch.randn(numel, generator=torch.Generator().manual_seed(seed))
    x = (x * (1.0 if dtype == torch.float16 else 10.0**exponent)).clamp(-1e38, 1e38).to(dtype)
    for name in ("torch", "auto"):
        q = quantize_blockwise(x, backend=name)
        q.check()
        assert error_in_steps(x, q).max() <= 0.5 * (1 + 2**-15)


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_stochastic_error_is_below_one_step_and_the_encoding_legal(numel: int, seed: int) -> None:
    x = torch.randn(numel, generator=torch.Generator().manual_seed(numel))
    q = quantize_blockwise(x, rounding="stochastic", seed=seed)
    q.check()
    assert error_in_steps(x, q).max() < 1 + 2**-15


def test_stochastic_rounding_is_unbiased(backend: str) -> None:
    x = torch.full((1 << 20,), 0.3)
    x[::1024] = 127.0
    q = quantize_blockwise(x, rounding="stochastic", seed=9, backend=backend)
    codes = q.codes[:, 1:].double()
    assert set(codes.unique().tolist()) == {0.0, 1.0}
    assert abs(codes.mean().item() - 0.3) < 5 * (0.21 / codes.numel()) ** 0.5


def test_encoding_twice_gives_the_same_codes(backend: str) -> None:
    q = quantize_blockwise(torch.randn(3000, generator=torch.Generator().manual_seed(1)), backend=backend)
    again = quantize_blockwise(dequantize_blockwise(q, backend=backend), backend=backend)
    assert torch.equal(q.codes, again.codes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 1023, 1024, 5000])
def test_non_finite_input_names_its_block(backend: str, dtype: torch.dtype, value: float, place: int) -> None:
    x = torch.ones(5001, dtype=dtype)
    x[place] = value
    for options in ({}, {"rounding": "stochastic", "seed": 1}):
        with pytest.raises(NotEncodable, match=f"block {place // 1024} ") as caught:
            quantize_blockwise(x, backend=backend, **options)
        assert caught.value.block == place // 1024


def test_the_first_refused_block_is_named(backend: str) -> None:
    x = torch.ones(1 << 20)
    x[700 * 1024], x[900 * 1024 + 3] = 2.0**127, float("nan")
    with pytest.raises(NotEncodable) as caught:
        quantize_blockwise(x, backend=backend)
    assert caught.value.block == 700


def test_the_largest_magnitude_that_is_taken_decodes_to_finite_numbers(backend: str) -> None:
    x = torch.full((5,), 2.0**127).nextafter(torch.zeros(5))
    q = quantize_blockwise(x, backend=backend)
    q.check()
    assert torch.isfinite(dequantize_blockwise(q, backend=backend)).all()


def test_below_the_least_magnitude_everything_is_zero(backend: str) -> None:
    least = torch.full((1024,), 2.0**-110)
    q = quantize_blockwise(torch.cat((least, least.nextafter(torch.zeros(1024)))), backend=backend)
    assert q.scales[0] > 0
    assert q.scales[1] == 0
    assert not q.codes[1].any()


@pytest.mark.parametrize("numel", [0, 1, 650, 1023, 1024, 1025, 4096])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes_and_padding(backend: str, numel: int, dtype: torch.dtype) -> None:
    x = torch.linspace(-3, 4, numel).to(dtype)
    q = quantize_blockwise(x, backend=backend)
    assert q.numel == numel
    assert q.codes.shape == (-(-numel // 1024), 1024)
    assert not q.codes.view(-1)[numel:].any()
    assert dequantize_blockwise(q, backend=backend).shape == (numel,)


def test_shape_strides_and_gradients_of_the_input_do_not_matter(backend: str) -> None:
    x = torch.randn(40, 50, requires_grad=True)
    plain = quantize_blockwise(x.detach().t().contiguous().view(-1), backend=backend)
    assert quantize_blockwise(x.t(), backend=backend).to_bytes() == plain.to_bytes()


def test_decode_into_a_buffer(backend: str) -> None:
    q = quantize_blockwise(torch.randn(2000), backend=backend)
    out = torch.full((2000,), 7.0)
    assert dequantize_blockwise(q, out, backend=backend) is out
    assert torch.equal(out, dequantize_blockwise(q, backend=backend))


@pytest.mark.parametrize("out", [torch.empty(5), torch.empty(6, dtype=torch.float64), torch.empty(12)[::2]])
def test_an_unfit_buffer_is_refused(out: torch.Tensor) -> None:
    with pytest.raises(KernelUsageError):
        dequantize_blockwise(quantize_blockwise(torch.ones(6)), out)


@pytest.mark.parametrize(
    ("x", "options"),
    [
        (torch.ones(3, dtype=torch.float64), {}),
        (torch.ones(3, dtype=torch.int32), {}),
        (torch.ones(3), {"rounding": "up"}),
        (torch.ones(3), {"rounding": "stochastic"}),
        (torch.ones(3), {"seed": 1}),
        (torch.ones(3), {"rounding": "stochastic", "seed": 1 << 64}),
        (torch.ones(3), {"rounding": "stochastic", "seed": -1}),
    ],
)
def test_wrong_use_is_named(x: torch.Tensor, options: dict[str, object]) -> None:
    with pytest.raises(KernelUsageError):
        quantize_blockwise(x, **options)


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(BackendUnavailable, match="abacus"):
        quantize_blockwise(torch.ones(3), backend="abacus")


def test_flushing_subnormals_changes_nothing(backend: str, golden) -> None:
    inputs = golden.samples()
    options = ({}, {"rounding": "stochastic", "seed": 5})
    encode = lambda: [quantize_blockwise(x, backend=backend, **o).to_bytes() for x in inputs.values() for o in options]  # noqa: E731
    plain = encode()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        flushed = encode()
    finally:
        torch.set_flush_denormal(False)
    assert flushed == plain
