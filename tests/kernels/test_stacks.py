"""Gram matrix, weighted sum and sketch of several encoded vectors, on every CPU backend."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from btrain.kernels import KernelUsageError, block_gram, dequantize_blockwise, quantize_blockwise, sketch, weighted_sum

SEED = bytes(range(32))


def stack(n: int, numel: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [N, B, K], scales [N, B] and the decoded vectors as fp64 [N, B * K]."""
    generator = torch.Generator().manual_seed(seed)
    parts = [quantize_blockwise(torch.randn(numel, generator=generator) * 10.0 ** (i % 5 - 2)) for i in range(n)]
    codes, scales = torch.stack([q.codes for q in parts]), torch.stack([q.scales for q in parts])
    decoded = (codes.double() * scales.double()[:, :, None]).view(n, -1)
    return codes, scales, decoded


@pytest.mark.parametrize(("n", "numel"), [(1, 1), (2, 650), (5, 20 * 1024 + 1), (16, 16 * 1024), (33, 33 * 1024)])
def test_gram_is_the_fp64_product(backend: str, n: int, numel: int) -> None:
    codes, scales, decoded = stack(n, numel)
    gram = block_gram(codes, scales, backend=backend)
    assert gram.dtype == torch.float64
    assert torch.equal(gram, gram.t())
    norms = decoded.norm(dim=1)
    assert ((gram - decoded @ decoded.t()).abs() <= 1e-12 * norms[:, None] * norms[None, :]).all()


def test_gram_of_one_block_is_exact(backend: str) -> None:
    codes, scales, _ = stack(3, 1024)
    integers = (codes[:, 0].long() @ codes[:, 0].long().t()).double()
    expected = integers * (scales.double() @ scales.double().t())
    assert torch.equal(block_gram(codes, scales, backend=backend), expected)


def test_gram_at_the_largest_integers(backend: str) -> None:
    codes = torch.full((2, 1, 1024), 127, dtype=torch.int8)
    codes[1] = -127
    gram = block_gram(codes, torch.ones(2, 1), backend=backend)
    assert gram.tolist() == [[16516096.0, -16516096.0], [-16516096.0, 16516096.0]]


@pytest.mark.parametrize("kernel", ["gram", "weighted_sum", "sketch"])
def test_a_list_of_vectors_is_a_stack(backend: str, kernel: str) -> None:
    codes, scales, _ = stack(4, 5000)
    run = {
        "gram": lambda c, s: block_gram(c, s, backend=backend),
        "weighted_sum": lambda c, s: weighted_sum(c, s, torch.ones(4, dtype=torch.float64), backend=backend),
        "sketch": lambda c, s: sketch(c, s, SEED, backend=backend),
    }[kernel]
    wide = torch.zeros(4, 9, 1024, dtype=torch.int8)
    wide[:, 2:7] = codes
    expected = run(codes, scales)
    assert torch.equal(run([c.clone() for c in codes], [s.clone() for s in scales]), expected)
    assert torch.equal(run(wide[:, 2:7], scales), expected)


def test_weighted_sum_rounds_each_product_and_sum_to_fp32(backend: str) -> None:
    codes, scales, _ = stack(7, 3000)
    coefficients = torch.linspace(-1, 2, 7, dtype=torch.float64)
    weights = (coefficients[:, None] * scales.double()).float().numpy()
    expected = np.zeros(codes.shape[1:], dtype=np.float32)
    for q, w in zip(codes.numpy(), weights, strict=True):
        expected = expected + q.astype(np.float32) * w[:, None]
    assert torch.equal(weighted_sum(codes, scales, coefficients, backend=backend), torch.from_numpy(expected).view(-1))


def test_weighted_sum_of_one_vector_is_its_decoding(backend: str) -> None:
    q = quantize_blockwise(torch.randn(2500))
    out = weighted_sum([q.codes], [q.scales], torch.ones(1), backend=backend)
    assert torch.equal(out[:2500], dequantize_blockwise(q))
    assert not out[2500:].any()


def dense_sketch(decoded: torch.Tensor, seed: bytes, first_block: int = 0) -> torch.Tensor:
    """The definition read literally, one coordinate after another."""
    from btrain.kernels.philox import philox_words

    out = np.zeros(64)
    key, high = int.from_bytes(seed[:8], "little"), int.from_bytes(seed[8:16], "little")
    for r, row in enumerate(decoded.view(-1, 64).numpy()):
        w = [int(v) for v in philox_words(first_block * 16 + r, 1, key=key, high=high)[0]]
        for k in range(64):
            sign = -1 if (w[0] | w[1] << 32) >> k & 1 else 1
            out[(k + w[2]) % 64] += sign * row[k]
    return torch.from_numpy(out)


def test_sketch_is_its_definition(backend: str) -> None:
    codes, scales, decoded = stack(2, 3 * 1024)
    found = sketch(codes, scales, SEED, first_block=2**31, backend=backend)
    for i in range(2):
        torch.testing.assert_close(found[i], dense_sketch(decoded[i], SEED, 2**31), rtol=1e-12, atol=1e-12)


def test_sketch_of_a_vector_is_the_sum_over_its_pieces(backend: str) -> None:
    codes, scales, _ = stack(2, 32 * 1024)
    whole = sketch(codes, scales, SEED, backend=backend)
    halves = [sketch(codes[:, p], scales[:, p], SEED, first_block=p.start, backend=backend)
              for p in (slice(0, 16), slice(16, 32))]  # fmt: skip
    torch.testing.assert_close(whole, halves[0] + halves[1], rtol=1e-12, atol=1e-12)


def test_sketch_keeps_the_energy(backend: str) -> None:
    codes, scales, decoded = stack(1, 20 * 1024)
    energies = [sketch(codes, scales, seed.to_bytes(16, "big"), backend=backend).square().sum() for seed in range(200)]
    ratio = torch.stack(energies).mean() / decoded.square().sum()
    assert abs(ratio.item() - 1) < 5 * (2 / 64 / 200) ** 0.5


def test_sketches_under_other_seeds_differ(backend: str) -> None:
    codes, scales, _ = stack(1, 1024)
    seeds = (bytes(16), b"\1" + bytes(15), bytes(8) + b"\1" + bytes(7), bytes(15) + b"\1")
    found = {tuple(sketch(codes, scales, s, backend=backend)[0].tolist()) for s in seeds}
    assert len(found) == 4


@settings(max_examples=25)
@given(st.integers(1, 9), st.integers(1, 40 * 1024), st.integers(0, 1000))
def test_any_backend_and_thread_count_gives_the_same_bits(n: int, numel: int, seed: int) -> None:
    codes, scales, _ = stack(n, numel, seed)
    coefficients = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    threads, results = torch.get_num_threads(), []
    for name, count in (("torch", 1), ("torch", 4), ("auto", 1)):
        torch.set_num_threads(count)
        results.append(
            (
                block_gram(codes, scales, backend=name),
                weighted_sum(codes, scales, coefficients, backend=name),
                sketch(codes, scales, SEED, backend=name),
            )
        )
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_no_blocks(backend: str) -> None:
    codes, scales = torch.empty(3, 0, 1024, dtype=torch.int8), torch.empty(3, 0)
    assert torch.equal(block_gram(codes, scales, backend=backend), torch.zeros(3, 3, dtype=torch.float64))
    assert weighted_sum(codes, scales, torch.ones(3), backend=backend).shape == (0,)
    assert not sketch(codes, scales, SEED, backend=backend).any()


def test_wrong_use_is_named() -> None:
    codes, scales, _ = stack(2, 1024)
    wrong = [
        lambda: block_gram(codes.float(), scales),
        lambda: block_gram(codes[:, :, :512], scales),
        lambda: block_gram(codes, scales.double()),
        lambda: block_gram(codes, scales[:1]),
        lambda: block_gram([], []),
        lambda: weighted_sum(codes, scales, torch.ones(3)),
        lambda: weighted_sum(codes, scales, torch.tensor([1.0, float("nan")])),
        lambda: sketch(codes, scales, b"short"),
        lambda: sketch(codes, scales, SEED, first_block=-1),
    ]
    for call in wrong:
        with pytest.raises(KernelUsageError):
            call()
