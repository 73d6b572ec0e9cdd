/* The compiled CPU path of btrain.kernels; torch_backend.py defines every bit of what stands here.
 *
 * Compiled with -ffp-contract=off: a fused multiply-add would round differently. K = 1024 codes a block; a block's
 * integer sums are exact in 32 bits; sums over blocks go in groups of 16 by halving, the groups one after another.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { K = 1024, GROUP = 16, BUCKETS = 64, ROWS = K / BUCKETS, LINE = 16, STRIDE = 64 };

typedef int32_t bits_t __attribute__((may_alias));

static const int32_t ABSMAX_MIN_BITS = 0x08800000;   /* 2^-110 */
static const int32_t ABSMAX_LIMIT_BITS = 0x7f000000; /* 2^127 */
static const int32_t NORMAL_MIN_BITS = 0x00800000;   /* 2^-126 */

static int32_t absmax_bits(const float *x) {
    const bits_t *bits = (const bits_t *)x;
    int32_t top = 0;
    for (int k = 0; k < K; k++) {
        int32_t magnitude = bits[k] & 0x7fffffff;
        top = magnitude > top ? magnitude : top;
    }
    return top;
}

static inline void philox(uint64_t counter, uint64_t high, uint64_t key, uint32_t out[4]) {
    uint32_t c0 = (uint32_t)counter, c1 = (uint32_t)(counter >> 32), c2 = (uint32_t)high, c3 = (uint32_t)(high >> 32);
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)c0 * 0xD2511F53u, b = (uint64_t)c2 * 0xCD9E8D57u;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)b;
        c3 = (uint32_t)a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* Words of the 256 counters of a block in element order; a lane a counter, rounds inside, so that it vectorises. */
static void block_words(uint64_t first, uint64_t key, uint32_t words[K]) {
    enum { COUNT = K / 4 };
    uint32_t lanes[4][COUNT];
    for (int i = 0; i < COUNT; i++) {
        uint32_t c[4];
        philox(first + (uint64_t)i, 0, key, c);
        lanes[0][i] = c[0], lanes[1][i] = c[1], lanes[2][i] = c[2], lanes[3][i] = c[3];
    }
    for (int i = 0; i < COUNT; i++)
        for (int w = 0; w < 4; w++) words[4 * i + w] = lanes[w][i];
}

static void round_nearest(const float *restrict x, float inverse, int8_t *restrict codes) {
    for (int i = 0; i < K; i += STRIDE) {
        /* A block is one page of memory, and the processor's own prefetching stops at a page's end. */
        for (int k = 0; k < STRIDE; k += LINE) __builtin_prefetch(x + K + i + k);
        for (int k = i; k < i + STRIDE; k++) codes[k] = (int8_t)(int32_t)rintf(x[k] * inverse);
    }
}

static void round_stochastic(const float *x, float inverse, int32_t top, int64_t block, uint64_t seed, int8_t *codes) {
    const bits_t *bits = (const bits_t *)x;
    float kept[K]; /* subnormals count as zero */
    uint32_t words[K];
    for (int k = 0; k < K; k++) ((bits_t *)kept)[k] = bits[k] & -((bits[k] & 0x7fffffff) >= NORMAL_MIN_BITS);
    block_words((uint64_t)block * (K / 4), seed, words);
    int32_t q[K]; /* masks in place of branches, and floor by hand: this vectorises */
    for (int k = 0; k < K; k++) {
        float y = kept[k] * inverse + (float)(int32_t)((words[k] >> 9) * 2 + 1) * 0x1p-24f;
        q[k] = (int32_t)y;
        q[k] -= (float)q[k] > y;
    }
    for (int k = 0; k < K; k++) {
        int32_t is_extreme = -((bits[k] & 0x7fffffff) == top), sign = bits[k] >> 31;
        int32_t bounded = q[k] > 127 ? 127 : q[k];
        bounded = bounded < -127 ? -127 : bounded;
        codes[k] = (int8_t)((bounded & ~is_extreme) | (((127 ^ sign) - sign) & is_extreme));
    }
}

/* Encode one block of fp32; returns 0 when the format refuses it. */
static int encode(const float *x, int64_t block, int8_t *codes, float *scale, const uint64_t *seed) {
    int32_t top = absmax_bits(x);
    if (top >= ABSMAX_LIMIT_BITS) {
        memset(codes, 0, K);
        *scale = NAN;
        return 0;
    }
    if (top < ABSMAX_MIN_BITS) {
        memset(codes, 0, K);
        *scale = 0.0f;
        return 1;
    }
    float absmax;
    memcpy(&absmax, &top, sizeof absmax);
    *scale = absmax / 127.0f;
    if (seed)
        round_stochastic(x, 127.0f / absmax, top, block, *seed, codes);
    else
        round_nearest(x, 127.0f / absmax, codes);
    return 1;
}

enum { FLOAT32, BFLOAT16, FLOAT16 };

static void widen(const void *x, int64_t from, int64_t count, int dtype, float *out) {
    if (dtype == FLOAT32) memcpy(out, (const float *)x + from, (size_t)count * sizeof(float));
    if (dtype == BFLOAT16)
        for (int64_t k = 0; k < count; k++) {
            uint32_t wide = (uint32_t)((const uint16_t *)x)[from + k] << 16;
            memcpy(out + k, &wide, sizeof wide);
        }
    if (dtype == FLOAT16)
        for (int64_t k = 0; k < count; k++) out[k] = (float)((const _Float16 *)x)[from + k];
    if (count < K) memset(out + count, 0, (size_t)(K - count) * sizeof(float));
}

/* Index of the first refused block, or -1. */
int64_t btrain_quantize(const void *x, int64_t numel, int dtype, int8_t *codes, float *scales, const uint64_t *seed) {
    int64_t refused = -1;
    float wide[K];
    for (int64_t b = 0; b * K < numel; b++) {
        int64_t count = numel - b * K < K ? numel - b * K : K;
        const float *rows = (const float *)x + b * K;
        if (dtype != FLOAT32 || count < K) {
            widen(x, b * K, count, dtype, wide);
            rows = wide;
        }
        if (!encode(rows, b, codes + b * K, scales + b, seed) && refused < 0) refused = b;
    }
    return refused;
}

void btrain_dequantize(const int8_t *restrict codes, const float *restrict scales, int64_t numel, float *restrict out) {
    for (int64_t b = 0; b * K < numel; b++) {
        int64_t count = numel - b * K < K ? numel - b * K : K;
        float scale = scales[b];
        for (int64_t k = b * K; k < b * K + count; k++) out[k] = (float)codes[k] * scale;
    }
}

/* Sum over 16 slots of `width` numbers each, slot 0 holds the result. */
static void halve(double *terms, int64_t width) {
    for (int half = GROUP / 2; half; half /= 2)
        for (int64_t k = 0; k < half * width; k++) terms[k] += terms[half * width + k];
}

static void dot4(const int16_t *a, const int16_t *b, int32_t out[4]) {
    int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    for (int k = 0; k < K; k++) {
        s0 += (int32_t)a[k] * b[k];
        s1 += (int32_t)a[k] * b[K + k];
        s2 += (int32_t)a[k] * b[2 * K + k];
        s3 += (int32_t)a[k] * b[3 * K + k];
    }
    out[0] = s0, out[1] = s1, out[2] = s2, out[3] = s3;
}

/* The block's integer products times both scales: upper triangle of terms [n, n]; wide is scratch [n + 3, K]. */
static void block_products(const int8_t *const *codes, const float *const *scales, int64_t n, int64_t b, int16_t *wide,
                           double *terms) {
    for (int64_t i = 0; i < n; i++)
        for (int k = 0; k < K; k++) wide[i * K + k] = codes[i][b * K + k];
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = i; j < n; j += 4) {
            int32_t dots[4];
            dot4(wide + i * K, wide + j * K, dots);
            for (int64_t l = j; l < j + 4 && l < n; l++)
                terms[i * n + l] = (double)dots[l - j] * ((double)scales[i][b] * (double)scales[l][b]);
        }
}

/* gram [n, n] zeroed; wide int16 [n + 3, K] and terms fp64 [16, n, n] are scratch, both zeroed. */
void btrain_block_gram(const int8_t *const *codes, const float *const *scales, int64_t n, int64_t blocks, double *gram,
                       int16_t *wide, double *terms) {
    for (int64_t start = 0; start < blocks; start += GROUP) {
        int64_t count = blocks - start < GROUP ? blocks - start : GROUP;
        for (int64_t g = 0; g < count; g++) block_products(codes, scales, n, start + g, wide, terms + g * n * n);
        if (count < GROUP) memset(terms + count * n * n, 0, (size_t)((GROUP - count) * n * n) * sizeof(double));
        halve(terms, n * n);
        for (int64_t k = 0; k < n * n; k++) gram[k] += terms[k];
    }
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < i; j++) gram[i * n + j] = gram[j * n + i];
}

/* Four vectors at a time keep the sums of a block in registers for four additions; the order stays 0, 1, 2, ... */
static void add4(const int8_t *const q[4], const float w[4], float *restrict sum) {
    const int8_t *restrict q0 = q[0], *restrict q1 = q[1], *restrict q2 = q[2], *restrict q3 = q[3];
    for (int k = 0; k < K; k++)
        sum[k] = (((sum[k] + (float)q0[k] * w[0]) + (float)q1[k] * w[1]) + (float)q2[k] * w[2]) + (float)q3[k] * w[3];
}

void btrain_weighted_sum(const int8_t *const *codes, const float *weights, int64_t n, int64_t blocks, float *out) {
    for (int64_t b = 0; b < blocks; b++) {
        float sum[K] = {0};
        int64_t i = 0;
        for (; i + 4 <= n; i += 4) {
            const int8_t *q[4] = {codes[i] + b * K, codes[i + 1] + b * K, codes[i + 2] + b * K, codes[i + 3] + b * K};
            const float *w = weights + i * blocks + b;
            add4(q, (const float[4]){w[0], w[blocks], w[2 * blocks], w[3 * blocks]}, sum);
        }
        for (; i < n; i++)
            for (int k = 0; k < K; k++) sum[k] += (float)codes[i][b * K + k] * weights[i * blocks + b];
        memcpy(out + b * K, sum, sizeof sum);
    }
}

/* Signs of one row as masks (0 or -1) of 64 coordinates. */
static void sign_masks(const uint32_t words[4], int8_t masks[BUCKETS]) {
    uint64_t bits = (uint64_t)words[0] | (uint64_t)words[1] << 32;
    for (int byte = 0; byte < 8; byte++) {
        uint8_t value = (uint8_t)(bits >> (8 * byte));
        for (int k = 0; k < 8; k++) masks[8 * byte + k] = (value & (1 << k)) ? -1 : 0;
    }
}

static void block_sketch(const int8_t *codes, const int8_t masks[ROWS][BUCKETS], const int turns[ROWS], double scale,
                         double out[BUCKETS]) {
    int16_t sums[2 * BUCKETS] = {0}; /* a row is added at its rotation; what runs over the end is folded back below */
    for (int r = 0; r < ROWS; r++)
        for (int k = 0; k < BUCKETS; k++)
            sums[turns[r] + k] += (int16_t)((codes[r * BUCKETS + k] ^ masks[r][k]) - masks[r][k]);
    for (int k = 0; k < BUCKETS; k++) out[k] = (double)(sums[k] + sums[BUCKETS + k]) * scale;
}

/* out [n, 64] zeroed; terms fp64 [n, 16, 64] scratch. */
void btrain_sketch(const int8_t *const *codes, const float *const *scales, int64_t n, int64_t blocks, uint64_t key,
                   uint64_t high, uint64_t first_row, double *out, double *terms) {
    enum { WIDTH = GROUP * BUCKETS };
    for (int64_t start = 0; start < blocks; start += GROUP) {
        memset(terms, 0, (size_t)(n * WIDTH) * sizeof(double));
        for (int64_t b = start; b < blocks && b < start + GROUP; b++) {
            int8_t masks[ROWS][BUCKETS];
            int turns[ROWS];
            for (int r = 0; r < ROWS; r++) {
                uint32_t words[4];
                philox(first_row + (uint64_t)(b * ROWS + r), high, key, words);
                sign_masks(words, masks[r]);
                turns[r] = (int)(words[2] % BUCKETS);
            }
            for (int64_t i = 0; i < n; i++)
                block_sketch(codes[i] + b * K, masks, turns, scales[i][b], terms + i * WIDTH + (b - start) * BUCKETS);
        }
        for (int64_t i = 0; i < n; i++) {
            halve(terms + i * WIDTH, BUCKETS);
            for (int k = 0; k < BUCKETS; k++) out[i * BUCKETS + k] += terms[i * WIDTH + k];
        }
    }
}
