/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention (spec 5.6) with AVX-512: all heads share one key row, so 64 keys are two small matrix
 * products, [heads][dim] x [dim][64] and [heads][64] x [64][dim], both on vdpbf16ps. Rows are
 * unpacked for all heads of an item, in a layout for each of the two:
 *   keys    bf16 [4][dim/2][16 keys][2]: lanes are keys, pairs along dim
 *   values  bf16 [32][dim][2]: lanes are elements, pairs of keys
 * Weights are rounded to bf16 under the maximum of all keys (gpu/ops/attention.h), so all scores
 * come first and stay; rows are unpacked a second time for the sums, which costs less than to
 * keep them. A score is one serial sum over dim, an element of the output one over the keys in
 * their order, two at a time: the bits depend on the job alone.
 *
 * An item is a job by up to 64 heads; few jobs are cut into smaller items, so that one decoded
 * token keeps all threads busy.
 */
#include "config.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/fp.h"
#include "gpu/cpu/avx512.h"
#include "gpu/cpu/avx512_math.h"
#include "gpu/cpu/pool.h"
#include "gpu/cpu/reference.h"

enum {
    ITEM_HEADS = 64,
    FEW_HEADS = 16,
    CHUNK = ATTENTION_CHUNK,
    SCORES = ITEM_HEADS * 1152, /* of an item: a window and 1024 chosen keys for 64 heads */
};

struct item {
    uint16_t part[CHUNK * ATTENTION_MAX_DIM] __attribute__((aligned(64))); /* kt or v */
    float s[SCORES] __attribute__((aligned(64))); /* [heads][keys], later bf16 weights */
    float acc[ITEM_HEADS * ATTENTION_MAX_DIM] __attribute__((aligned(64)));
    float den[ITEM_HEADS];
    int keys; /* n_keys in whole chunks: the stride of s */
};

/* 64 codes times 2^(scale - 127), as bf16 in order. The product is exact: codes are normal in
 * bf16, so it is an addition to the exponent, of all but zeros and NaN. */
INLINE void
unpack_group(const uint8_t *row, uint8_t scale, uint16_t *x)
{
    const __m512i order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
    const __m512i add = _mm512_set1_epi16((short)((scale - 127) * 128));
    __m512i v[2];

    widen_fp8(_mm512_permutexvar_epi64(order, _mm512_loadu_si512(row)), &v[0], &v[1]);
    for (int i = 0; i < 2; i++) {
        const __m512i twice = _mm512_sub_epi16(
            _mm512_add_epi16(v[i], v[i]), _mm512_set1_epi16(1)); /* 0 goes to the top */
        const __mmask32 m =
            _mm512_cmplt_epu16_mask(twice, _mm512_set1_epi16((short)0x9000));

        v[i] = _mm512_mask_add_epi16(v[i], m, v[i], add);
        if (scale == 255)
            v[i] = _mm512_set1_epi16(0x7fc0);
        _mm512_storeu_si512(x + i * 32, v[i]);
    }
}

INLINE void
unpack_row(const struct attention_args *a, const uint8_t *row, uint16_t *x)
{
    const int nope = a->fmt == KV_BF16 ? 0 : a->dim - a->rope_dim;
    const uint8_t *scale = row + nope + 2 * a->rope_dim;

    for (int i = 0; i < nope; i += KV_GROUP)
        unpack_group(row + i, scale[i / KV_GROUP], x + i);
    memcpy(x + nope, row + nope, (size_t)(a->dim - nope) * 2);
}

/* Transposes 16 rows of 16 32-bit elements. */
INLINE void
transpose16(const __m512i *in, __m512i *out)
{
    __m512i a[16], b[16];

#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        a[2 * i] = _mm512_unpacklo_epi32(in[2 * i], in[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(in[2 * i], in[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        b[4 * i] = _mm512_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm512_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm512_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm512_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        a[i] = _mm512_shuffle_i32x4(b[i], b[4 + i], 0x88);
        a[4 + i] = _mm512_shuffle_i32x4(b[i], b[4 + i], 0xdd);
        a[8 + i] = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0x88);
        a[12 + i] = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        out[i] = _mm512_shuffle_i32x4(a[i], a[8 + i], 0x88);
        out[8 + i] = _mm512_shuffle_i32x4(a[i], a[8 + i], 0xdd);
        out[4 + i] = _mm512_shuffle_i32x4(a[4 + i], a[12 + i], 0x88);
        out[12 + i] = _mm512_shuffle_i32x4(a[4 + i], a[12 + i], 0xdd);
    }
}

/* Sixteen unpacked rows x [16][dim] as keys 16 panel .. 16 panel + 15 of the scores' layout. */
static void
lay_out_keys(uint16_t *part, const uint16_t *x, int dim, int panel)
{
    uint16_t *kt = part + (size_t)panel * 16 * dim;

    for (int d = 0; d < dim; d += 32) {
        __m512i in[16], out[16];

        for (int i = 0; i < 16; i++)
            in[i] = _mm512_load_si512(x + (size_t)i * dim + d);
        transpose16(in, out);
        for (int i = 0; i < 16; i++)
            _mm512_store_si512(kt + (size_t)(d / 2 + i) * 32, out[i]);
    }
}

/* The same rows in the layout of the sums. */
static void
lay_out_values(uint16_t *part, const uint16_t *x, int dim, int panel)
{
    const __m512i first = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0);
    const __m512i second = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);

    for (int i = 0; i < 16; i += 2) {
        uint16_t *v = part + (size_t)(panel * 8 + i / 2) * dim * 2;

        for (int d = 0; d < dim; d += 32) {
            const __m512i a = _mm512_load_si512(x + (size_t)i * dim + d);
            const __m512i b = _mm512_load_si512(x + (size_t)(i + 1) * dim + d);
            const __m512i lo = _mm512_unpacklo_epi16(a, b);
            const __m512i hi = _mm512_unpackhi_epi16(a, b);

            _mm512_store_si512(v + 2 * d, _mm512_permutex2var_epi64(lo, first, hi));
            _mm512_store_si512(v + 2 * d + 32, _mm512_permutex2var_epi64(lo, second, hi));
        }
    }
}

/* Keys k0 .. k0 + 63 of the job in one of the layouts; what is missing to pairs of panels is
 * zeros. How many there are. */
static int
load_chunk(const struct attention_args *a, int k0, bool values, uint16_t *part)
{
    const int n = a->n_keys - k0 < CHUNK ? a->n_keys - k0 : CHUNK;
    uint16_t x[16 * ATTENTION_MAX_DIM] __attribute__((aligned(64)));

    for (int p = 0; p < (n + 31) / 32 * 2; p++) {
        for (int i = 0; i < 16; i++) {
            uint16_t *row = x + (size_t)i * a->dim;

            if (p * 16 + i < n)
                unpack_row(a, a->keys[k0 + p * 16 + i], row);
            else
                memset(row, 0, (size_t)a->dim * 2);
        }
        if (values)
            lay_out_values(part, x, a->dim, p);
        else
            lay_out_keys(part, x, a->dim, p);
    }
    return n;
}

INLINE __m512i
pair_at(const uint16_t *x)
{
    int32_t both;

    memcpy(&both, x, sizeof both);
    return _mm512_set1_epi32(both);
}

/* Scores of `heads` heads by 32 keys; s [heads][keys]. */
INLINE void
score_tile(const int heads, const uint16_t *q, int dim, const uint16_t *kt, float scale,
           float *s, int keys)
{
    __m512 sum[8][2];

#pragma GCC unroll 8
    for (int h = 0; h < heads; h++)
        sum[h][0] = sum[h][1] = _mm512_setzero_ps();
    for (int d = 0; d < dim; d += 2) {
        const __m512i k0 = _mm512_load_si512(kt + (size_t)d * 16);
        const __m512i k1 = _mm512_load_si512(kt + (size_t)(dim + d) * 16);

#pragma GCC unroll 8
        for (int h = 0; h < heads; h++) {
            const __m512i x = pair_at(q + (size_t)h * dim + d);

            sum[h][0] = _mm512_dpbf16_ps(sum[h][0], (__m512bh)k0, (__m512bh)x);
            sum[h][1] = _mm512_dpbf16_ps(sum[h][1], (__m512bh)k1, (__m512bh)x);
        }
    }
#pragma GCC unroll 8
    for (int h = 0; h < heads; h++)
        for (int p = 0; p < 2; p++)
            _mm512_store_ps(s + (size_t)h * keys + p * 16,
                            _mm512_mul_ps(sum[h][p], _mm512_set1_ps(scale)));
}

/* acc[h] += p v, for `heads` heads and 32 elements; p bf16 [heads][stride]. */
INLINE void
value_tile(const int heads, const uint16_t *p, size_t stride, const uint16_t *v, int dim,
           int pairs, float *acc)
{
    __m512 sum[8][2];

#pragma GCC unroll 8
    for (int h = 0; h < heads; h++)
        for (int i = 0; i < 2; i++)
            sum[h][i] = _mm512_load_ps(acc + (size_t)h * dim + i * 16);
    for (int j = 0; j < pairs; j++) {
        const __m512i v0 = _mm512_load_si512(v + (size_t)j * dim * 2);
        const __m512i v1 = _mm512_load_si512(v + (size_t)j * dim * 2 + 32);

#pragma GCC unroll 8
        for (int h = 0; h < heads; h++) {
            const __m512i x = pair_at(p + (size_t)h * stride + 2 * j);

            sum[h][0] = _mm512_dpbf16_ps(sum[h][0], (__m512bh)v0, (__m512bh)x);
            sum[h][1] = _mm512_dpbf16_ps(sum[h][1], (__m512bh)v1, (__m512bh)x);
        }
    }
#pragma GCC unroll 8
    for (int h = 0; h < heads; h++)
        for (int i = 0; i < 2; i++)
            _mm512_store_ps(acc + (size_t)h * dim + i * 16, sum[h][i]);
}

/* Calls f with a constant number of heads, at most 8. */
#define BY_HEADS(h, n, f)                    \
    for (int h = 0, left = (n); left > 0;) { \
        if (left >= 8) {                     \
            f(8, h);                         \
            h += 8, left -= 8;               \
        } else if (left >= 6) {              \
            f(6, h);                         \
            h += 6, left -= 6;               \
        } else if (left >= 4) {              \
            f(4, h);                         \
            h += 4, left -= 4;               \
        } else if (left >= 3) {              \
            f(3, h);                         \
            h += 3, left -= 3;               \
        } else {                             \
            f(1, h);                         \
            h += 1, left -= 1;               \
        }                                    \
    }

static void
score_chunk(const struct attention_args *a, struct item *c, const uint16_t *q, int heads,
            int k0)
{
    const float scale = 1.0f / sqrtf((float)a->dim);
    const int dim = a->dim, n = load_chunk(a, k0, false, c->part);

#define SCORE(hn, h)                                                                \
    score_tile(hn, q + (size_t)(h)*dim, dim, c->part + (size_t)p * 16 * dim, scale, \
               c->s + (size_t)(h)*c->keys + k0 + p * 16, c->keys)
    for (int p = 0; p * 16 < n; p += 2) {
        BY_HEADS(h, heads, SCORE)
    }
}

/* Scores i .. i + 15 of a head; -inf behind the last. */
INLINE __m512
score16(const float *s, int i, int n)
{
    const __mmask16 k = n - i >= 16 ? 0xffff : n > i ? (__mmask16)((1u << (n - i)) - 1) : 0;

    return _mm512_mask_load_ps(_mm512_set1_ps(-INFINITY), k, s + i);
}

/* A head's scores become weights under the maximum of all: bf16, in the same place, from the
 * front, where the scores have been read already. */
static float
softmax(float *s, int n, int keys, float sink)
{
    __m512 top = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    float m;

    for (int i = 0; i < n; i += 16)
        top = _mm512_max_ps(score16(s, i, n), top);
    m = _mm512_reduce_max_ps(top); /* a maximum has no order */
    for (int i = 0; i < keys; i += 16) {
        const __m512 p = exp16(_mm512_sub_ps(score16(s, i, n), _mm512_set1_ps(m)));

        sum = _mm512_add_ps(sum, p);
        _mm256_store_si256((__m256i *)s + i / 16, narrow(p));
    }
    return sum16(sum) + expf(sink - m);
}

static void
value_chunk(const struct attention_args *a, struct item *c, int heads, int k0)
{
    const int dim = a->dim, n = load_chunk(a, k0, true, c->part);
    const size_t stride = (size_t)c->keys * 2;
    const uint16_t *p = (const uint16_t *)(const void *)c->s + k0;

#define VALUE(hn, h)                                                             \
    value_tile(hn, p + (size_t)(h)*stride, stride, c->part + (size_t)d * 2, dim, \
               (n + 1) / 2, c->acc + (size_t)(h)*dim + d)
    for (int d = 0; d < dim; d += 32) {
        BY_HEADS(h, heads, VALUE)
    }
}

static void
attend(const struct attention_args *a, int h0, int heads)
{
    struct item c;
    const int dim = a->dim;
    const uint16_t *q = a->q + (size_t)h0 * dim;

    c.keys = (a->n_keys + CHUNK - 1) / CHUNK * CHUNK;
    memset(c.acc, 0, (size_t)heads * dim * sizeof(float));
    for (int k0 = 0; k0 < a->n_keys; k0 += CHUNK)
        score_chunk(a, &c, q, heads, k0);
    for (int h = 0; h < heads; h++)
        c.den[h] = softmax(c.s + (size_t)h * c.keys, a->n_keys, c.keys, a->sink[h0 + h]);
    for (int k0 = 0; k0 < a->n_keys; k0 += CHUNK)
        value_chunk(a, &c, heads, k0);
    for (int h = 0; h < heads; h++)
        for (int d = 0; d < dim; d += 16)
            store_bf16(a->o + (size_t)(h0 + h) * dim + d,
                       _mm512_div_ps(_mm512_load_ps(c.acc + (size_t)h * dim + d),
                                     _mm512_set1_ps(c.den[h])));
}

struct items {
    const struct attention_args *a;
    int most, cut; /* heads of an item, items of a job */
};

static void
attend_items(const void *arg, int first, int end)
{
    const struct items *v = arg;

    for (int i = first; i < end; i++) {
        const struct attention_args *job = &v->a[i / v->cut];
        const int h0 = i % v->cut * v->most, left = job->n_heads - h0;

        attend(job, h0, left < v->most ? left : v->most);
    }
}

void
avx512_attention(const struct attention_args *a, int n)
{
    const int nope = n > 0 && a->fmt != KV_BF16 ? a->dim - a->rope_dim : 0;
    struct items v = {.a = a, .most = ITEM_HEADS};
    int keys = CHUNK;

    for (int i = 0; i < n; i++)
        keys = a[i].n_keys > keys ? a[i].n_keys : keys;
    if (n == 0)
        return;
    if (a->dim % 32 != 0 || nope % KV_GROUP != 0 || keys > SCORES - CHUNK) {
        reference_attention(a, n);
        return;
    }
    if (n < 2 * pool_threads()) {
        const int share = (a->n_heads + pool_threads() - 1) / pool_threads();

        v.most = share < FEW_HEADS ? share : FEW_HEADS;
    }
    keys = (keys + CHUNK - 1) / CHUNK * CHUNK;
    v.most = v.most < SCORES / keys ? v.most : SCORES / keys;
    v.cut = (a->n_heads + v.most - 1) / v.most;
    pool_run(n * v.cut, 1, attend_items, &v);
}
