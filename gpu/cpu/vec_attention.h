/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CPU_VEC_ATTENTION_H
#define GPU_CPU_VEC_ATTENTION_H

/*
 * Attention and index scores (spec 5.6, 7.4) in vectors of the compiler's extension; included by
 * portable.c and avx2.c behind vec_linear.h. Against the reference: key rows are unpacked once
 * for all heads of an item, not once a head, and sums run in lanes.
 */
#include <math.h>

#include "gpu/cpu/kvrow.h"
#include "gpu/cpu/pool.h"
#include "gpu/cpu/reference.h"

enum { VEC_HEADS = 32, VEC_DOT = 4 };

struct vec_head {
    float top, den;
};

/* q . k over dim, a multiple of 8: four sums of 8 lanes in turn, then pairwise. */
INLINE float
vec_dot(const float *q, const float *k, int dim)
{
    vec s[VEC_DOT] = {0};

    for (int i = 0; i < dim; i += VEC_LANES) {
        vec a, b;

        memcpy(&a, q + i, sizeof a);
        memcpy(&b, k + i, sizeof b);
        vec_madd(&s[i / VEC_LANES % VEC_DOT], &a, &b);
    }
    s[0] = (s[0] + s[1]) + (s[2] + s[3]);
    return ((s[0][0] + s[0][4]) + (s[0][1] + s[0][5])) +
           ((s[0][2] + s[0][6]) + (s[0][3] + s[0][7]));
}

/* The maximum over one chunk of unpacked keys k [n][dim]; q is f32. */
INLINE void
vec_top(const float *q, const float *k, int n, int dim, struct vec_head *h)
{
    const float scale = 1.0f / sqrtf((float)dim);

    for (int i = 0; i < n; i++)
        h->top = fmaxf(h->top, vec_dot(q, k + (size_t)i * dim, dim) * scale);
}

/* One head over one chunk, under the maximum of all chunks. */
INLINE void
vec_chunk(const float *q, const float *k, int n, int dim, struct vec_head *h, float *acc)
{
    const float scale = 1.0f / sqrtf((float)dim);
    float s[ATTENTION_CHUNK];

    for (int i = 0; i < n; i++) {
        s[i] = expf(vec_dot(q, k + (size_t)i * dim, dim) * scale - h->top);
        h->den += s[i];
        s[i] = bf16_round(s[i]);
    }
    for (int c = 0; c < dim; c += VEC_LANES) {
        vec v, key;

        memcpy(&v, acc + c, sizeof v);
        for (int i = 0; i < n; i++) {
            const vec p = {s[i], s[i], s[i], s[i], s[i], s[i], s[i], s[i]};

            memcpy(&key, k + (size_t)i * dim + c, sizeof key);
            vec_madd(&v, &p, &key);
        }
        memcpy(acc + c, &v, sizeof v);
    }
}

INLINE int
vec_load(const struct attention_args *a, int k0, float *k)
{
    const int left = a->n_keys - k0, n = left < ATTENTION_CHUNK ? left : ATTENTION_CHUNK;

    for (int i = 0; i < n; i++)
        kv_row_unpack(a->fmt, a->keys[k0 + i], a->dim, a->rope_dim, k + (size_t)i * a->dim);
    return n;
}

/* Twice over the keys: the maximum of all comes first (gpu/ops/attention.h says why). */
static void
vec_attend(const struct attention_args *a, int h0, int heads)
{
    float k[ATTENTION_CHUNK * ATTENTION_MAX_DIM];
    float q[VEC_HEADS * ATTENTION_MAX_DIM], acc[VEC_HEADS * ATTENTION_MAX_DIM];
    struct vec_head state[VEC_HEADS];
    const size_t first = (size_t)h0 * a->dim, n = (size_t)heads * a->dim;

    for (size_t i = 0; i < n; i++) {
        q[i] = bf16_to_f32(a->q[first + i]);
        acc[i] = 0.0f;
    }
    for (int h = 0; h < heads; h++)
        state[h] = (struct vec_head){.top = -INFINITY};
    for (int k0 = 0; k0 < a->n_keys; k0 += ATTENTION_CHUNK) {
        const int keys = vec_load(a, k0, k);

        for (int h = 0; h < heads; h++)
            vec_top(q + (size_t)h * a->dim, k, keys, a->dim, &state[h]);
    }
    for (int k0 = 0; k0 < a->n_keys; k0 += ATTENTION_CHUNK) {
        const int keys = vec_load(a, k0, k);

        for (int h = 0; h < heads; h++)
            vec_chunk(q + (size_t)h * a->dim, k, keys, a->dim, &state[h],
                      acc + (size_t)h * a->dim);
    }
    for (int h = 0; h < heads; h++) {
        const float den = state[h].den + expf(a->sink[h0 + h] - state[h].top);

        for (int c = 0; c < a->dim; c++)
            a->o[first + (size_t)h * a->dim + c] =
                f32_to_bf16(acc[(size_t)h * a->dim + c] / den);
    }
}

struct vec_items {
    const struct attention_args *a;
    int most, cut; /* heads of an item, items of a job */
};

static void
vec_attend_items(const void *arg, int first, int end)
{
    const struct vec_items *v = arg;

    for (int i = first; i < end; i++) {
        const struct attention_args *job = &v->a[i / v->cut];
        const int h0 = i % v->cut * v->most, left = job->n_heads - h0;

        vec_attend(job, h0, left < v->most ? left : v->most);
    }
}

static void
vec_attention(const struct attention_args *a, int n)
{
    struct vec_items v = {.a = a, .most = VEC_HEADS};

    if (n == 0)
        return;
    if (a->dim % VEC_LANES != 0) {
        reference_attention(a, n);
        return;
    }
    if (n < 2 * pool_threads())
        v.most = (a->n_heads + pool_threads() - 1) / pool_threads();
    if (v.most > VEC_HEADS)
        v.most = VEC_HEADS;
    v.cut = (a->n_heads + v.most - 1) / v.most;
    pool_run(n * v.cut, 1, vec_attend_items, &v);
}

/*
 * Index scores: twice an e2m1 value is an integer of at most 12, 32 products of two at most
 * 4608: lanes of 16 bits hold the sum of a group exactly. Lanes are 16 keys, unpacked once for
 * all heads; everything up to a head's rounding to bf16 is exact, as in the reference.
 */
enum { VEC_KEYS = 16, VEC_INDEX_DIM = 256, VEC_GROUP = 32 };

typedef int16_t svec __attribute__((vector_size(32)));

struct vec_keys {
    svec k[VEC_INDEX_DIM];
    float scale[VEC_INDEX_DIM / VEC_GROUP][VEC_KEYS];
};

static int
vec_twice(uint8_t code)
{
    static const int8_t twice[16] = {0, 1,  2,  3,  4,  6,  8,  12,
                                     0, -1, -2, -3, -4, -6, -8, -12};

    return twice[code & 15];
}

static void
vec_score(const struct index_score_args *a, const struct vec_keys *k, float *score)
{
    const int groups = a->dim / VEC_GROUP, row = a->dim / 2 + groups;

    for (int j = 0; j < VEC_KEYS; j++)
        score[j] = 0.0f;
    for (int h = 0; h < a->n_heads; h++) {
        const uint8_t *q = a->q + (size_t)h * row;
        const float w = bf16_to_f32(a->w[h]);
        float d[VEC_KEYS] = {0};

        for (int g = 0; g < groups; g++) {
            const float scale = 0.25f * e8m0_to_f32(q[a->dim / 2 + g]);
            svec sum = {0};

            for (int i = g * VEC_GROUP; i < (g + 1) * VEC_GROUP; i += 2) {
                sum += k->k[i] * (int16_t)vec_twice(q[i / 2]);
                sum += k->k[i + 1] * (int16_t)vec_twice(q[i / 2] >> 4);
            }
            for (int j = 0; j < VEC_KEYS; j++)
                d[j] += (float)sum[j] * scale * k->scale[g][j];
        }
        for (int j = 0; j < VEC_KEYS; j++) {
            const float r = bf16_round(d[j]);

            score[j] += bf16_round((r > 0.0f ? r : 0.0f) * w);
        }
    }
}

/* Blocks of 16 rows. */
static void
vec_score_blocks(const void *arg, int first, int end)
{
    const struct index_score_args *a = arg;
    const size_t row = (size_t)a->dim / 2 + (size_t)a->dim / VEC_GROUP;

    for (int j0 = first * VEC_KEYS; j0 < end * VEC_KEYS; j0 += VEC_KEYS) {
        const int n = a->n_rows - j0 < VEC_KEYS ? a->n_rows - j0 : VEC_KEYS;
        struct vec_keys k;
        float score[VEC_KEYS];

        for (int i = 0; i < VEC_KEYS; i++) {
            const int j = j0 + (i < n ? i : n - 1);
            const uint8_t *key = a->blocks[j / a->block_rows] +
                                 (size_t)(j % a->block_rows) * row;

            for (int e = 0; e < a->dim; e += 2) {
                k.k[e][i] = (int16_t)vec_twice(key[e / 2]);
                k.k[e + 1][i] = (int16_t)vec_twice(key[e / 2] >> 4);
            }
            for (int g = 0; g < a->dim / VEC_GROUP; g++)
                k.scale[g][i] = e8m0_to_f32(key[a->dim / 2 + g]);
        }
        vec_score(a, &k, score);
        for (int i = 0; i < n; i++)
            a->score[j0 + i] = bf16_round(score[i]);
    }
}

static void
vec_index_scores(const struct index_score_args *a, int n)
{
    for (int i = 0; i < n; i++) {
        if (a[i].dim > VEC_INDEX_DIM)
            reference_index_scores(&a[i], 1);
        else
            pool_run((a[i].n_rows + VEC_KEYS - 1) / VEC_KEYS, 64 / a[i].n_heads + 1,
                     vec_score_blocks, &a[i]);
    }
}

#endif /* GPU_CPU_VEC_ATTENTION_H */
