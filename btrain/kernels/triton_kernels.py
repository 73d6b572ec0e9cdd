"""The CUDA kernels. torch_backend.py defines every bit of what stands here.

Legend: R rows (blocks) a program, K = 1024 codes a block, T vectors a tile. Divisions are `tl.div_rn` (`/` is 2 ULP
off on the device) and every launch passes `enable_fp_fusion=False` (a fused multiply-add rounds differently).
"""

# mypy: ignore-errors
# The bodies are not Python but the kernel language, whose types a checker of Python cannot know.

from __future__ import annotations

import triton
import triton.language as tl

K = tl.constexpr(1024)
GROUP = tl.constexpr(16)
BUCKETS = tl.constexpr(64)
ROWS = tl.constexpr(16)
ABSMAX_MIN_BITS = tl.constexpr(0x08800000)
ABSMAX_LIMIT_BITS = tl.constexpr(0x7F000000)
NORMAL_MIN_BITS = tl.constexpr(0x00800000)
LINE = tl.constexpr(16)  # distances between vectors are passed in 16 bytes: the compiler sees that they are aligned
ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it leaves the half-even integer in the low bits
ROUNDER_BITS = tl.constexpr(0x4B400000)


@triton.jit
def _uniform(first_counter, seed, R: tl.constexpr):
    """fp32 [R, K] in (0, 1) of the elements whose first counter is given."""
    counter = first_counter + tl.arange(0, R * 256).to(tl.int64).reshape(R, 256)
    low, high = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    r0, r1, r2, r3 = tl.philox(seed, low, high, low * 0, low * 0)
    words = tl.join(tl.join(r0, r2), tl.join(r1, r3)).reshape(R, K)
    return ((words >> 9) * 2 + 1).to(tl.int32, bitcast=True).to(tl.float32) * 5.9604644775390625e-08


@triton.jit(do_not_specialize=["seed"])
def quantize(
    x_ptr, codes_ptr, scales_ptr, numel: tl.int64, first_block: tl.int64, seed: tl.int64,
    R: tl.constexpr, EVEN: tl.constexpr, STOCHASTIC: tl.constexpr,
):  # fmt: skip
    """R blocks a program from `first_block` on. EVEN: all of them are whole, no masks."""
    first = first_block + tl.program_id(0).to(tl.int64) * R
    row = tl.arange(0, R)
    local = row[:, None] * K + tl.arange(0, K)[None, :]
    if EVEN:
        x = tl.load(x_ptr + first * K + local, eviction_policy="evict_first").to(tl.float32)
    else:
        inside = first * K + local < numel
        x = tl.load(x_ptr + first * K + local, mask=inside, other=0.0).to(tl.float32)
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    top = tl.max(magnitude, 1)
    small, refused = top < ABSMAX_MIN_BITS, top >= ABSMAX_LIMIT_BITS
    dead = small | refused
    absmax = tl.where(dead, 1.0, top.to(tl.float32, bitcast=True))
    scale = tl.where(small, 0.0, tl.where(refused, float("nan"), tl.div_rn(absmax, 127.0)))
    inverse = tl.div_rn(tl.full((R,), 127.0, tl.float32), absmax)
    if STOCHASTIC:
        y = tl.where(magnitude < NORMAL_MIN_BITS, 0.0, x) * inverse[:, None]
        y += _uniform(first * 256, seed, R)
        q = y.to(tl.int32)
        q -= (q.to(tl.float32) > y).to(tl.int32)  # floor; tl.floor flushes subnormals
        q = tl.minimum(tl.maximum(q, -127), 127)
        q = tl.where(magnitude == top[:, None], tl.where(bits < 0, -127, 127), q)
    else:
        q = (x * inverse[:, None] + ROUNDER).to(tl.int32, bitcast=True) - ROUNDER_BITS
    q = tl.where(dead[:, None], 0, q).to(tl.int8)
    if EVEN:
        tl.store(codes_ptr + first * K + local, q)
        tl.store(scales_ptr + first + row, scale)
    else:
        last = (numel + K - 1) // K
        tl.store(codes_ptr + first * K + local, q, mask=(first + row < last)[:, None])
        tl.store(scales_ptr + first + row, scale, mask=first + row < last)


@triton.jit
def dequantize(
    codes_ptr, scales_ptr, out_ptr, numel: tl.int64, first_block: tl.int64, R: tl.constexpr, EVEN: tl.constexpr
):  # fmt: skip
    """R blocks a program from `first_block` on. EVEN: all of them are whole, no masks."""
    first = first_block + tl.program_id(0).to(tl.int64) * R
    row = tl.arange(0, R)
    local = row[:, None] * K + tl.arange(0, K)[None, :]
    if EVEN:
        q = tl.load(codes_ptr + first * K + local, eviction_policy="evict_first")
        scale = tl.load(scales_ptr + first + row)
        tl.store(out_ptr + first * K + local, q.to(tl.float32) * scale[:, None])
    else:
        last = (numel + K - 1) // K
        q = tl.load(codes_ptr + first * K + local, mask=(first + row < last)[:, None], other=0)
        scale = tl.load(scales_ptr + first + row, mask=first + row < last, other=0.0)
        inside = first * K + local < numel
        tl.store(out_ptr + first * K + local, q.to(tl.float32) * scale[:, None], mask=inside)


@triton.jit
def _halve(terms, HALF: tl.constexpr, WIDTH: tl.constexpr):
    """[2 * HALF, WIDTH] to [HALF, WIDTH]: first half plus second half."""
    first, second = tl.split(terms.reshape(2, HALF, WIDTH).permute(1, 2, 0))
    return first + second


@triton.jit
def _halving_sum(terms, WIDTH: tl.constexpr):
    """fp64 [16, WIDTH] to [WIDTH]."""
    return _halve(_halve(_halve(_halve(terms, 8, WIDTH), 4, WIDTH), 2, WIDTH), 1, WIDTH).reshape(WIDTH)


@triton.jit
def gram_groups(
    codes_ptr, scales_ptr, terms_ptr, vectors: tl.int64, blocks: tl.int64, lines: tl.int64, scale_stride: tl.int64,
    T: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Group g = 16 blocks, tile (i, j) of T vectors each: terms[g, i, j], fp64 [groups, vectors, vectors]."""
    group = tl.program_id(0).to(tl.int64)
    block = group * GROUP + tl.arange(0, GROUP)
    i = tl.program_id(1).to(tl.int64) * T + tl.arange(0, T)
    j = tl.program_id(2).to(tl.int64) * T + tl.arange(0, T)
    k = tl.arange(0, CHUNK)
    live = block < blocks
    left = codes_ptr + i[None, :, None] * (lines * LINE) + block[:, None, None] * K + k[None, None, :]
    right = codes_ptr + j[None, None, :] * (lines * LINE) + block[:, None, None] * K + k[None, :, None]
    left_live = live[:, None, None] & (i < vectors)[None, :, None]
    right_live = live[:, None, None] & (j < vectors)[None, None, :]
    dots = tl.zeros((GROUP, T, T), dtype=tl.int32)
    for start in range(0, K, CHUNK):
        a = tl.load(left + start, mask=left_live, other=0)
        b = tl.load(right + start, mask=right_live, other=0)
        dots = tl.dot(a, b, dots, out_dtype=tl.int32)
    i_scale = scales_ptr + i[None, :] * scale_stride + block[:, None]
    j_scale = scales_ptr + j[None, :] * scale_stride + block[:, None]
    s_i = tl.load(i_scale, mask=live[:, None] & (i < vectors)[None, :], other=0.0).to(tl.float64)
    s_j = tl.load(j_scale, mask=live[:, None] & (j < vectors)[None, :], other=0.0).to(tl.float64)
    terms = dots.to(tl.float64) * (s_i[:, :, None] * s_j[:, None, :])
    total = _halving_sum(terms.reshape(GROUP, T * T), T * T).reshape(T, T)
    out = terms_ptr + (group * vectors + i[:, None]) * vectors + j[None, :]
    tl.store(out, total, mask=(i < vectors)[:, None] & (j < vectors)[None, :])


@triton.jit
def sum_groups(terms_ptr, out_ptr, groups: tl.int64, width: tl.int64, W: tl.constexpr):
    """out [width] = terms [groups, width] added one group after another, fp64."""
    column = tl.program_id(0).to(tl.int64) * W + tl.arange(0, W)
    total = tl.zeros((W,), dtype=tl.float64)
    for group in range(groups):
        total += tl.load(terms_ptr + group * width + column, mask=column < width, other=0.0)
    tl.store(out_ptr + column, total, mask=column < width)


@triton.jit
def weighted_sum(codes_ptr, weights_ptr, out_ptr, vectors: tl.int64, blocks: tl.int64, lines: tl.int64):
    """One block a program: out = sum over vectors in order of weight * code, each operation rounded to fp32."""
    block = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, K)
    total = tl.zeros((K,), dtype=tl.float32)
    for i in range(vectors):
        q = tl.load(codes_ptr + i * (lines * LINE) + block * K + k)
        total += q.to(tl.float32) * tl.load(weights_ptr + i * blocks + block)
    tl.store(out_ptr + block * K + k, total)


@triton.jit(do_not_specialize=["key", "high", "first_block"])
def sketch_groups(
    codes_ptr, scales_ptr, terms_ptr, blocks: tl.int64, lines: tl.int64, scale_stride: tl.int64,
    key: tl.int64, high: tl.int64, first_block: tl.int64,
):  # fmt: skip
    """Group g of 16 blocks of vector i: terms[g, i, :], fp64 [groups, vectors, 64]."""
    group, vector = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    block = group * GROUP + tl.arange(0, GROUP)
    live = block < blocks
    bucket = tl.arange(0, BUCKETS)
    base = codes_ptr + vector * (lines * LINE) + group * (GROUP * K)
    c2 = tl.zeros((GROUP,), dtype=tl.int64) + high
    sums = tl.zeros((GROUP, BUCKETS), dtype=tl.int32)
    for r in range(ROWS):
        counter = (first_block + block) * ROWS + r
        w0, w1, w2, _ = tl.philox(
            key, counter.to(tl.uint32), (counter >> 32).to(tl.uint32), c2.to(tl.uint32), (c2 >> 32).to(tl.uint32)
        )
        source = (bucket[None, :] - w2.to(tl.int32, bitcast=True)[:, None]) & (BUCKETS - 1)
        word = tl.where(source < 32, w0[:, None], w1[:, None])
        negative = (word >> (source & 31).to(tl.uint32)) & 1
        place = tl.arange(0, GROUP)[:, None] * K + r * BUCKETS + source
        q = tl.load(base + place, mask=live[:, None], other=0).to(tl.int32)
        sums += tl.where(negative != 0, -q, q)
    scale = tl.load(scales_ptr + vector * scale_stride + block, mask=live, other=0.0).to(tl.float64)
    total = _halving_sum(sums.to(tl.float64) * scale[:, None], BUCKETS)
    tl.store(terms_ptr + (group * tl.num_programs(1) + vector) * BUCKETS + bucket, total)
