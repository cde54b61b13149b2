/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention (spec 5.6) with AVX-512: all heads share one key row, so a chunk of 64 keys is two
 * small matrix products, [heads][dim] x [dim][64] and [heads][64] x [64][dim], both on
 * vdpbf16ps. The rows of a chunk are unpacked once for all heads of an item, in two layouts:
 *   kt  bf16 [4][dim/2][16 keys][2]: lanes are keys, pairs along dim, for the scores
 *   v   bf16 [32][dim][2]: lanes are elements, pairs of keys, for the sums
 * A score is one serial sum over dim, an element of the output one over the keys of the job in
 * their order, two at a time from the start of the chunk: the bits depend on the job alone.
 *
 * The maximum over all keys comes first (gpu/ops/attention.h says why), in a round of its own
 * over the chunks.
 *
 * An item is a job by up to 64 heads; few jobs are cut into smaller items, so that one decoded
 * token keeps all threads busy.
 */
#include "config.h"

#include <math.h>
#include <string.h>

#include "base/fp.h"
#include "gpu/cpu/avx512.h"
#include "gpu/cpu/avx512_math.h"
#include "gpu/cpu/pool.h"
#include "gpu/cpu/reference.h"

enum { ITEM_HEADS = 64, FEW_HEADS = 16, CHUNK = ATTENTION_CHUNK };

struct chunk {
    uint16_t kt[CHUNK * ATTENTION_MAX_DIM] __attribute__((aligned(64)));
    uint16_t v[CHUNK * ATTENTION_MAX_DIM] __attribute__((aligned(64)));
    float p[ITEM_HEADS][CHUNK] __attribute__((aligned(64)));     /* scores */
    uint16_t pb[ITEM_HEADS][CHUNK] __attribute__((aligned(64))); /* bf16(p) */
    float acc[ITEM_HEADS * ATTENTION_MAX_DIM] __attribute__((aligned(64)));
    float top[ITEM_HEADS], den[ITEM_HEADS];
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

/* Sixteen unpacked rows x [16][dim] into both layouts, as keys 16 panel .. 16 panel + 15. */
static void
lay_out(struct chunk *c, const uint16_t *x, int dim, int panel)
{
    uint16_t *kt = c->kt + (size_t)panel * 16 * dim;

    for (int d = 0; d < dim; d += 32) {
        __m512i in[16], out[16];

        for (int i = 0; i < 16; i++)
            in[i] = _mm512_loadu_si512(x + (size_t)i * dim + d);
        transpose16(in, out);
        for (int i = 0; i < 16; i++)
            _mm512_store_si512(kt + (size_t)(d / 2 + i) * 32, out[i]);
        for (int i = 0; i < 16; i += 2) {
            const __m512i lo = _mm512_unpacklo_epi16(in[i], in[i + 1]);
            const __m512i hi = _mm512_unpackhi_epi16(in[i], in[i + 1]);
            uint16_t *v = c->v + ((size_t)(panel * 8 + i / 2) * dim + d) * 2;

            _mm512_store_si512(v, _mm512_permutex2var_epi64(
                                      lo, _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0), hi));
            _mm512_store_si512(v + 32,
                               _mm512_permutex2var_epi64(
                                   lo, _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4), hi));
        }
    }
}

/* Keys k0 .. k0 + n - 1 of the job; what is missing to pairs of panels is zeros. */
static void
load_chunk(const struct attention_args *a, struct chunk *c, int k0, int n)
{
    uint16_t x[16 * ATTENTION_MAX_DIM] __attribute__((aligned(64)));

    for (int p = 0; p < (n + 31) / 32 * 2; p++) {
        for (int i = 0; i < 16; i++) {
            uint16_t *row = x + (size_t)i * a->dim;

            if (p * 16 + i < n)
                unpack_row(a, a->keys[k0 + p * 16 + i], row);
            else
                memset(row, 0, (size_t)a->dim * 2);
        }
        lay_out(c, x, a->dim, p);
    }
}

INLINE __m512i
pair_at(const uint16_t *x)
{
    int32_t both;

    memcpy(&both, x, sizeof both);
    return _mm512_set1_epi32(both);
}

/* Scores of `heads` heads by 32 keys. */
INLINE void
score_tile(const int heads, const uint16_t *q, int dim, const uint16_t *kt, float scale,
           float *s)
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
            _mm512_store_ps(s + h * CHUNK + p * 16,
                            _mm512_mul_ps(sum[h][p], _mm512_set1_ps(scale)));
}

/* acc[h] += p v, for `heads` heads and 32 elements. */
INLINE void
value_tile(const int heads, const uint16_t *pb, const uint16_t *v, int dim, int pairs,
           float *acc)
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
            const __m512i x = pair_at(pb + h * CHUNK + 2 * j);

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
        } else {                             \
            f(1, h);                         \
            h += 1, left -= 1;               \
        }                                    \
    }

static void
scores(const struct attention_args *a, struct chunk *c, const uint16_t *q, int heads, int n)
{
    const float scale = 1.0f / sqrtf((float)a->dim);
    const int dim = a->dim;

#define SCORE2(hn, h)                                                             \
    score_tile(hn, q + (size_t)(h)*dim, dim, c->kt + (size_t)p * 16 * dim, scale, \
               c->p[h] + p * 16)
    for (int p = 0; p * 16 < n; p += 2) {
        BY_HEADS(h, heads, SCORE2)
    }
}

/* A quarter of a head's scores; -inf behind the n-th of the chunk. */
INLINE __m512
score16(const struct chunk *c, int h, int i, int n)
{
    const int left = n - i * 16;
    const __mmask16 k = left >= 16 ? 0xffff : left > 0 ? (__mmask16)((1u << left) - 1) : 0;

    return _mm512_mask_load_ps(_mm512_set1_ps(-INFINITY), k, c->p[h] + i * 16);
}

static void
raise_top(struct chunk *c, int h, int n)
{
    __m512 top = _mm512_set1_ps(c->top[h]);

    for (int i = 0; i < 4; i++)
        top = _mm512_max_ps(score16(c, h, i, n), top);
    c->top[h] = _mm512_reduce_max_ps(top); /* a maximum has no order */
}

/* Weights of one head in this chunk, under the maximum of all chunks. */
static void
softmax(struct chunk *c, int h, int n)
{
    __m512 sum = _mm512_setzero_ps();

    for (int i = 0; i < 4; i++) {
        const __m512 p =
            exp16(_mm512_sub_ps(score16(c, h, i, n), _mm512_set1_ps(c->top[h])));

        sum = _mm512_add_ps(sum, p);
        _mm256_store_si256((__m256i *)(c->pb[h] + i * 16), narrow(p));
    }
    c->den[h] += sum16(sum);
}

static void
attend(const struct attention_args *a, int h0, int heads)
{
    struct chunk c;
    const int dim = a->dim;
    const uint16_t *q = a->q + (size_t)h0 * dim;

    memset(c.acc, 0, (size_t)heads * dim * sizeof(float));
    for (int h = 0; h < heads; h++) {
        c.top[h] = -INFINITY;
        c.den[h] = 0.0f;
    }
    for (int k0 = 0; k0 < a->n_keys; k0 += CHUNK) {
        const int n = a->n_keys - k0 < CHUNK ? a->n_keys - k0 : CHUNK;

        load_chunk(a, &c, k0, n);
        scores(a, &c, q, heads, n);
        for (int h = 0; h < heads; h++)
            raise_top(&c, h, n);
    }
    for (int k0 = 0; k0 < a->n_keys; k0 += CHUNK) {
        const int n = a->n_keys - k0 < CHUNK ? a->n_keys - k0 : CHUNK;

        if (a->n_keys > CHUNK) { /* else the only chunk is still there */
            load_chunk(a, &c, k0, n);
            scores(a, &c, q, heads, n);
        }
        for (int h = 0; h < heads; h++)
            softmax(&c, h, n);
#define VALUE(hn, h)                                               \
    value_tile(hn, c.pb[h], c.v + (size_t)d * 2, dim, (n + 1) / 2, \
               c.acc + (size_t)(h)*dim + d)
        for (int d = 0; d < dim; d += 32) {
            BY_HEADS(h, heads, VALUE)
        }
    }
    for (int h = 0; h < heads; h++) {
        const float den = c.den[h] + expf(a->sink[h0 + h] - c.top[h]);

        for (int d = 0; d < dim; d += 16)
            store_bf16(a->o + (size_t)(h0 + h) * dim + d,
                       _mm512_div_ps(_mm512_load_ps(c.acc + (size_t)h * dim + d),
                                     _mm512_set1_ps(den)));
    }
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
    struct items v = {.a = a};

    if (n == 0)
        return;
    if (a->dim % 32 != 0 || nope % KV_GROUP != 0) {
        reference_attention(a, n);
        return;
    }
    v.most = n >= 2 * pool_threads() ? ITEM_HEADS : FEW_HEADS;
    v.cut = (a->n_heads + v.most - 1) / v.most;
    pool_run(n * v.cut, 1, attend_items, &v);
}
