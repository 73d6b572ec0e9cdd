"""Reduction of encoded parts: the same bytes everywhere, legal and bounded whatever is sent."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from btrain.aggregation import (
    AffineRule,
    BadWeights,
    CenteredClip,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MultiKrum,
    NearestNeighborMixing,
    NonFiniteInput,
    NotOnTheWire,
    PartMismatch,
    reduce_part,
    reduce_with_report,
    wire,
)
from btrain.aggregation.ordered import F64
from btrain.kernels import BLOCK, QuantizedBlocks, dequantize_blockwise, quantize_blockwise

RULES: list[AffineRule] = [Mean(), CenteredClip(), GeometricMedian(), Krum(), MultiKrum(), NearestNeighborMixing()]
SCALE_MIN, SCALE_MAX = 2.0**-126, float(np.float32(2.0**127) / np.float32(127))
GOLDEN = "51f1beadf248f7ffa2e8ec1526d27dd03b4a4011f41c367370507ba8cbb332ee"


def member(index: int) -> bytes:
    return hashlib.sha256(bytes([index])).digest()


def integer_parts(contributors: int, numel: int) -> dict[bytes, QuantizedBlocks]:
    """Parts from integer arithmetic alone, equal on every machine; a third of them far from the rest."""
    index = np.arange(contributors * numel, dtype=np.uint64)
    noise = ((index * np.uint64(2654435761)) % np.uint64(65521)).astype(np.float32) - 32760
    x_ND = torch.from_numpy((noise / 4096).reshape(contributors, numel))
    x_ND[: contributors // 3] *= 1e4
    return {member(i): quantize_blockwise(x_D) for i, x_D in enumerate(x_ND)}


def legal_part(generator: np.random.Generator, blocks: int, kind: str) -> QuantizedBlocks:
    """Any encoding that a decoder lets in: random codes with one extreme, scales anywhere in the legal range."""
    codes = generator.integers(-127, 128, (blocks, BLOCK)).astype(np.int8)
    codes[:, 0] = 127
    scales = 2.0 ** generator.uniform(-125, 119, blocks)
    if kind == "largest":
        codes[:] = 127 * generator.choice([-1, 1])
        scales[:] = SCALE_MAX
    elif kind == "smallest":
        scales[:] = SCALE_MIN
    elif kind == "zero":
        codes[:], scales[:] = 0, 0.0
    return QuantizedBlocks(torch.from_numpy(codes), torch.from_numpy(scales.astype(np.float32)), blocks * BLOCK)


def decoded(part: QuantizedBlocks) -> F64:
    return dequantize_blockwise(part).double().numpy()


def digest(contributors: int = 16, numel: int = 70 * BLOCK + 5) -> str:
    """SHA-256 over the reduced bytes of every rule."""
    total = hashlib.sha256()
    for rule in RULES:
        total.update(reduce_part(integer_parts(contributors, numel), rule).to_bytes())
    return total.hexdigest()


def test_golden_bytes() -> None:
    assert digest() == GOLDEN


def test_threads_do_not_change_the_bytes() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert digest() == GOLDEN
    finally:
        torch.set_num_threads(before)


def test_narrow_vector_units_do_not_change_the_bytes() -> None:
    features = "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR X86_V3 X86_V4"
    environment = {
        **os.environ,
        "ATEN_CPU_CAPABILITY": "default",
        "NPY_DISABLE_CPU_FEATURES": features,
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "OMP_NUM_THREADS": "2",
    }
    script = f"import runpy; print(runpy.run_path({__file__!r})['digest']())"
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == GOLDEN


def test_torch_alone_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("block_gram", "weighted_sum", "quantize_blockwise"):
        monkeypatch.setattr(wire, name, functools.partial(getattr(wire, name), backend="torch"))
    assert digest() == GOLDEN


def test_chunks_do_not_change_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "CHUNK_BLOCKS", 3)
    assert digest() == GOLDEN


@given(order=st.permutations(range(7)), rule=st.sampled_from(RULES))
def test_the_order_of_arrival_does_not_matter(order: list[int], rule: AffineRule) -> None:
    parts = integer_parts(7, 1500)
    keys = list(parts)
    arrived = {keys[i]: parts[keys[i]] for i in order}
    assert reduce_part(arrived, rule).to_bytes() == reduce_part(parts, rule).to_bytes()


KINDS = ["any", "largest", "smallest", "zero"]


@pytest.mark.parametrize("rule", RULES, ids=repr)
@settings(max_examples=60)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=0, max_size=3),
    extra=st.integers(1, 3),
    honest_exponent=st.integers(-100, 118),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_legal_mix_gives_a_legal_bounded_part(
    rule: AffineRule, kinds: list[str], extra: int, honest_exponent: int, seed: int
) -> None:
    """Legal out of legal; and for CenteredClip inside the bound that test_centered_clip derives."""
    generator = np.random.default_rng(seed)
    byzantine, honest = len(kinds), len(kinds) + extra
    x_ND = (1 + generator.standard_normal((honest, 2 * BLOCK))) * 2.0**honest_exponent
    parts = {member(i): quantize_blockwise(torch.from_numpy(x_D.astype(np.float32))) for i, x_D in enumerate(x_ND)}
    honest_ND = np.stack([decoded(part) for part in parts.values()])
    parts |= {member(honest + i): legal_part(generator, 2, kind) for i, kind in enumerate(kinds)}
    reduction = reduce_with_report(parts, rule)
    again = QuantizedBlocks.from_bytes(reduction.blocks.to_bytes(), 2 * BLOCK)
    assert bool(torch.isfinite(dequantize_blockwise(again)).all())
    if not isinstance(rule, CenteredClip) or honest + byzantine <= 2:
        return
    assert reduction.tau is not None
    mean_D = honest_ND.mean(0)
    radius = float(np.linalg.norm(honest_ND - mean_D, axis=1).max())
    bound = max(radius * (honest + byzantine) / (honest - byzantine), reduction.tau - radius)
    rounding = float(np.linalg.norm(np.repeat(reduction.blocks.scales.double().numpy(), BLOCK))) / 2 + 2.0**-100
    assert np.linalg.norm(decoded(reduction.blocks) - mean_D) <= bound * (1 + 1e-4) + rounding * (1 + 1e-6)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("contributors", [1, 2, 3, 7, 16, 63, 128])
@pytest.mark.parametrize("rule", [Mean(), CenteredClip(), NearestNeighborMixing()], ids=repr)
def test_the_largest_legal_parts_stay_encodable(rule: AffineRule, contributors: int, sign: int) -> None:
    codes = torch.full((1, BLOCK), 127 * sign, dtype=torch.int8)
    part = QuantizedBlocks(codes, torch.tensor([SCALE_MAX], dtype=torch.float32), BLOCK)
    reduced = reduce_part({member(i): part for i in range(contributors)}, rule)
    QuantizedBlocks.from_bytes(reduced.to_bytes(), BLOCK)
    np.testing.assert_allclose(decoded(reduced), decoded(part), rtol=1e-6)


def test_the_report_names_members_in_order_and_what_was_clipped() -> None:
    parts = integer_parts(9, 3000)
    report = reduce_with_report(parts)
    assert report.members == tuple(sorted(parts))
    x_ND = np.stack([decoded(parts[m]) for m in report.members])
    assert report.tau is not None
    distances_N = np.linalg.norm(x_ND - np.array(report.coefficients) @ x_ND, axis=1)
    assert report.clipped_share == np.count_nonzero(distances_N > report.tau) / 9
    np.testing.assert_allclose(decoded(report.blocks), np.array(report.coefficients) @ x_ND, atol=0.2)
    assert reduce_with_report(parts, Mean()).tau is None


def test_weights_go_by_member() -> None:
    parts = integer_parts(3, 100)
    report = reduce_with_report(parts, Mean(max_weight=2.0), {m: float(1 + (m == member(1))) for m in parts})
    assert report.coefficients[report.members.index(member(1))] == 0.5
    with pytest.raises(BadWeights, match=member(0).hex()):
        reduce_part(parts, Mean(), {member(1): 1.0, member(2): 1.0})


def test_an_empty_part_reduces_to_an_empty_part() -> None:
    empty = QuantizedBlocks(torch.empty((0, BLOCK), dtype=torch.int8), torch.empty(0), 0)
    assert reduce_part({member(0): empty, member(1): empty}).to_bytes() == b""


def test_misuse_is_named() -> None:
    parts = integer_parts(3, 100)
    with pytest.raises(PartMismatch, match="no part"):
        reduce_part({})
    with pytest.raises(PartMismatch, match="7 elements, not 100"):
        reduce_part({**parts, b"\xff" * 32: integer_parts(1, 7)[member(0)]})
    with pytest.raises(NotOnTheWire):
        reduce_part(parts, Median())
    broken = QuantizedBlocks(parts[member(2)].codes, torch.tensor([torch.inf]), 100)
    with pytest.raises(NonFiniteInput, match=member(2).hex()):
        reduce_part({**parts, member(2): broken})
