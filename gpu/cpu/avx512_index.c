/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The indexer's scores (spec 7.4) with VNNI. A key element is one of 0 .5 1 1.5 2 3 4 6 with a
 * sign: twice that, plus 12, is a byte 0..24, and twice a query element a signed byte, so
 * vpdpbusd sums four products a lane exactly; 12 times the sum of the query's bytes comes off
 * again. Everything up to the bf16 rounding of a head's score is exact, so the bits are those of
 * the reference.
 *
 * Lanes are 16 keys, transposed once for all heads. Per 16 keys and head: 32 vpdpbusd at dim
 * 128, all operands in the first-level cache.
 */
#include "config.h"

#include <string.h>

#include "gpu/cpu/avx512.h"
#include "gpu/cpu/avx512_math.h"
#include "gpu/cpu/pool.h"
#include "gpu/cpu/reference.h"

enum {
    MAX_DIM = 256,
    MAX_HEADS = 128,
    GROUP = 32,
    WORDS = GROUP / 8,
    LANES = 16,
    HEADS = 4
};

/* A query, ready: bytes by group, halves of words and word; per group 12 sum(q) and scale/4. */
struct query {
    int32_t q[MAX_HEADS][MAX_DIM / GROUP][WORDS][2];
    int32_t bias[MAX_HEADS][MAX_DIM / GROUP];
    float scale[MAX_HEADS][MAX_DIM / GROUP];
};

static const int8_t twice[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

static float
e8m0(uint8_t b)
{
    const uint32_t u = b == 0 ? 0x00400000 : b == 255 ? 0x7fc00000 : (uint32_t)b << 23;
    float f;

    memcpy(&f, &u, sizeof f);
    return f;
}

static void
load_query(const struct index_score_args *a, struct query *out)
{
    const int groups = a->dim / GROUP, row = a->dim / 2 + groups;

    for (int h = 0; h < a->n_heads; h++) {
        const uint8_t *q = a->q + (size_t)h * row;

        for (int g = 0; g < groups; g++) {
            int8_t bytes[WORDS][2][4];
            int sum = 0;

            for (int i = 0; i < GROUP / 2; i++) {
                const uint8_t both = q[g * GROUP / 2 + i];

                bytes[i / 4][0][i % 4] = twice[both & 15];
                bytes[i / 4][1][i % 4] = twice[both >> 4];
                sum += twice[both & 15] + twice[both >> 4];
            }
            memcpy(out->q[h][g], bytes, sizeof bytes);
            out->bias[h][g] = 12 * sum;
            out->scale[h][g] = 0.25f * e8m0(q[a->dim / 2 + g]);
        }
    }
}

/* Sixteen keys: bytes 12 + twice the element, a lane a key; scales likewise. */
struct keys {
    __m512i b[MAX_DIM / GROUP][WORDS][2];
    __m512 scale[MAX_DIM / GROUP];
};

static void
load_keys(const uint8_t *const *rows, int dim, struct keys *out)
{
    const __m512i table = _mm512_broadcast_i32x4(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    const __m512i low = _mm512_set1_epi8(15);

    for (int g = 0; g < dim / GROUP; g++) {
        uint32_t words[WORDS][LANES];
        float scale[LANES];

        for (int i = 0; i < LANES; i++) {
            scale[i] = e8m0(rows[i][dim / 2 + g]);
            for (int w = 0; w < WORDS; w++)
                memcpy(&words[w][i], rows[i] + g * GROUP / 2 + w * 4, 4);
        }
        out->scale[g] = _mm512_loadu_ps(scale);
        for (int w = 0; w < WORDS; w++) {
            const __m512i v = _mm512_loadu_si512(words[w]);

            out->b[g][w][0] = _mm512_shuffle_epi8(table, _mm512_and_si512(v, low));
            out->b[g][w][1] =
                _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(v, 4), low));
        }
    }
}

/* Heads h .. h + n - 1: their dot products with the keys, rounded to bf16, weighed and added. A
 * key vector is loaded once for all of them; with one head at a time loads are the limit. */
INLINE __m512
add_heads(const int n, const struct index_score_args *a, const struct query *q,
          const struct keys *k, int h, __m512 score)
{
    __m512 d[HEADS];

#pragma GCC unroll 4
    for (int j = 0; j < n; j++)
        d[j] = _mm512_setzero_ps();
    for (int g = 0; g < a->dim / GROUP; g++) {
        __m512i sum[HEADS][2];

#pragma GCC unroll 4
        for (int j = 0; j < n; j++) {
            sum[j][0] = _mm512_set1_epi32(-q->bias[h + j][g]);
            sum[j][1] = _mm512_setzero_si512();
        }
#pragma GCC unroll 4
        for (int i = 0; i < WORDS; i++)
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++) {
                const __m512i b = k->b[g][i][half];

#pragma GCC unroll 4
                for (int j = 0; j < n; j++)
                    sum[j][half] = _mm512_dpbusd_epi32(
                        sum[j][half], b, _mm512_set1_epi32(q->q[h + j][g][i][half]));
            }
#pragma GCC unroll 4
        for (int j = 0; j < n; j++)
            d[j] = _mm512_add_ps(
                d[j], _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(
                                                      sum[j][0], sum[j][1])),
                                                  _mm512_set1_ps(q->scale[h + j][g])),
                                    k->scale[g]));
    }
#pragma GCC unroll 4
    for (int j = 0; j < n; j++) {
        const __m512 w =
            _mm512_castsi512_ps(_mm512_set1_epi32((int)((uint32_t)a->w[h + j] << 16)));

        d[j] = _mm512_max_ps(round_bf16(d[j]), _mm512_setzero_ps());
        score = _mm512_add_ps(score, round_bf16(_mm512_mul_ps(d[j], w)));
    }
    return score;
}

/* All heads, ascending. */
static __m512
score16(const struct index_score_args *a, const struct query *q, const struct keys *k)
{
    __m512 score = _mm512_setzero_ps();
    int h = 0;

    for (; h + HEADS <= a->n_heads; h += HEADS)
        score = add_heads(HEADS, a, q, k, h, score);
    for (; h < a->n_heads; h++)
        score = add_heads(1, a, q, k, h, score);
    return round_bf16(score);
}

struct scoring {
    const struct index_score_args *a;
    const struct query *q;
};

/* Blocks of 16 rows. */
static void
score_blocks(const void *arg, int first, int end)
{
    const struct scoring *s = arg;
    const struct index_score_args *a = s->a;
    const size_t row = (size_t)a->dim / 2 + (size_t)a->dim / GROUP;

    for (int j0 = first * LANES; j0 < end * LANES; j0 += LANES) {
        const int n = a->n_rows - j0 < LANES ? a->n_rows - j0 : LANES;
        const uint8_t *rows[LANES];
        struct keys k;

        for (int i = 0; i < LANES; i++) {
            const int j = j0 + (i < n ? i : n - 1);

            rows[i] = a->blocks[j / a->block_rows] + (size_t)(j % a->block_rows) * row;
        }
        load_keys(rows, a->dim, &k);
        _mm512_mask_storeu_ps(a->score + j0, (__mmask16)((1u << n) - 1),
                              score16(a, s->q, &k));
    }
}

void
avx512_index_scores(const struct index_score_args *a, int n)
{
    for (int i = 0; i < n; i++) {
        struct query q;
        const struct scoring s = {.a = &a[i], .q = &q};

        if (a[i].dim > MAX_DIM || a[i].n_heads > MAX_HEADS) {
            reference_index_scores(&a[i], 1);
            continue;
        }
        load_query(&a[i], &q);
        pool_run((a[i].n_rows + LANES - 1) / LANES, 256 / a[i].n_heads + 1, score_blocks,
                 &s);
    }
}
