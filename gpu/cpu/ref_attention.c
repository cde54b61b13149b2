/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention of one query over a list of key rows, and the indexer's scores (spec 5.6, 7.4).
 */
#include "config.h"

#include <math.h>

#include "base/fp.h"
#include "gpu/cpu/cpu.h"
#include "gpu/cpu/kvrow.h"
#include "gpu/cpu/pool.h"
#include "gpu/cpu/reference.h"

enum { FP4_GROUP = 32 };

/* q . key in double, rounded once; the unpacked key stays in k f32 [dim]. */
static float
score(const struct attention_args *a, const uint16_t *q, int i, float *k)
{
    double sum = 0.0;

    kv_row_unpack(a->fmt, a->keys[i], a->dim, a->rope_dim, k);
    for (int c = 0; c < a->dim; c++)
        sum += (double)bf16_to_f32(q[c]) * (double)k[c];
    return (float)(sum / sqrt((double)a->dim));
}

/* Scores are computed twice, for the maximum and for the sum: nothing then grows with n. */
static void
attention_head(const struct attention_args *a, int h)
{
    const uint16_t *q = a->q + (size_t)h * a->dim;
    double acc[ATTENTION_MAX_DIM] = {0}, den;
    float k[ATTENTION_MAX_DIM], top = -INFINITY;

    for (int i = 0; i < a->n_keys; i++)
        top = fmaxf(top, score(a, q, i, k));
    den = (double)expf(a->sink[h] - top);
    for (int i = 0; i < a->n_keys; i++) {
        const float p = expf(score(a, q, i, k) - top);

        den += (double)p;
        for (int c = 0; c < a->dim; c++)
            acc[c] += (double)bf16_round(p) * (double)k[c];
        for (int c = 0; MUTANT(MUTANT_SINK_IN_NUMERATOR) && i == 0 && c < a->dim; c++)
            acc[c] += (double)expf(a->sink[h] - top) * (double)k[c];
    }
    for (int c = 0; c < a->dim; c++)
        a->o[(size_t)h * a->dim + c] = f32_to_bf16((float)(acc[c] / den));
}

static void
attention_heads(const void *arg, int i, int end)
{
    const struct attention_args *a = arg;

    for (; i < end; i++)
        attention_head(&a[i / a->n_heads], i % a->n_heads);
}

void
reference_attention(const struct attention_args *a, int n)
{
    if (n > 0)
        pool_run(n * a->n_heads, 4, attention_heads, a);
}

/* Exact: products are multiples of 2^-2 below 2^6, and 32 of them stay far below 2^24. */
static float
dot_group(const uint8_t *a, const uint8_t *b)
{
    float sum = 0.0f;

    for (int i = 0; i < FP4_GROUP / 2; i++)
        sum += e2m1_to_f32(a[i]) * e2m1_to_f32(b[i]) +
               e2m1_to_f32(a[i] >> 4) * e2m1_to_f32(b[i] >> 4);
    return sum;
}

static float
index_score(const struct index_score_args *a, const uint8_t *key)
{
    const int groups = a->dim / FP4_GROUP, row = a->dim / 2 + groups;
    float score = 0.0f;

    for (int h = 0; h < a->n_heads; h++) {
        const uint8_t *q = a->q + (size_t)h * row;
        float d = 0.0f;

        for (int g = 0; g < groups; g++)
            d += dot_group(q + g * FP4_GROUP / 2, key + g * FP4_GROUP / 2) *
                 e8m0_to_f32(q[a->dim / 2 + g]) * e8m0_to_f32(key[a->dim / 2 + g]);
        d = bf16_round(d);
        score += bf16_round((d > 0.0f ? d : 0.0f) * bf16_to_f32(a->w[h]));
    }
    return bf16_round(score);
}

static void
score_rows(const void *arg, int j, int end)
{
    const struct index_score_args *a = arg;
    const size_t row = (size_t)a->dim / 2 + (size_t)a->dim / FP4_GROUP;

    for (; j < end; j++)
        a->score[j] = index_score(a, a->blocks[j / a->block_rows] +
                                         (size_t)(j % a->block_rows) * row);
}

void
reference_index_scores(const struct index_score_args *a, int n)
{
    for (int i = 0; i < n; i++)
        pool_run(a[i].n_rows, 16, score_rows, &a[i]);
}
