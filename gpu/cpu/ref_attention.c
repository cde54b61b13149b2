/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention of one query over a list of key rows, and the indexer's scores (spec 5.6, 7.4).
 */
#include "config.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

#include "base/fp.h"
#include "gpu/cpu/cpu.h"
#include "gpu/cpu/kvrow.h"
#include "gpu/cpu/reference.h"

enum { FP4_GROUP = 32 };

/* One head over unpacked keys k f32 [n][dim]; s f32 [n] is scratch. Sums are in double. */
static void
attention_head(const struct attention_args *a, int h, const float *k, float *s)
{
    const double scale = 1.0 / sqrt((double)a->dim);
    const uint16_t *q = a->q + (size_t)h * a->dim;
    float top = -INFINITY;
    double den = 0.0;

    for (int i = 0; i < a->n_keys; i++) {
        double sum = 0.0;

        for (int c = 0; c < a->dim; c++)
            sum += (double)bf16_to_f32(q[c]) * (double)k[(size_t)i * a->dim + c];
        s[i] = (float)(sum * scale);
        top = fmaxf(top, s[i]);
    }
    for (int i = 0; i < a->n_keys; i++) {
        s[i] = expf(s[i] - top);
        den += (double)s[i];
        s[i] = bf16_round(s[i]);
    }
    den += (double)expf(a->sink[h] - top);
    for (int c = 0; c < a->dim; c++) {
        double sum = 0.0;

        for (int i = 0; i < a->n_keys; i++)
            sum += (double)s[i] * (double)k[(size_t)i * a->dim + c];
        if (MUTANT(MUTANT_SINK_IN_NUMERATOR))
            sum += (double)expf(a->sink[h] - top) * (double)k[c];
        a->o[(size_t)h * a->dim + c] = f32_to_bf16((float)(sum / den));
    }
}

/* The unpacked keys of one job, once for all heads. */
static void
attention_one(const struct attention_args *a)
{
    const size_t n = (size_t)a->n_keys, dim = (size_t)a->dim;
    float *k = malloc((n * dim + n * (size_t)a->n_heads) * sizeof *k);

    assert(k != NULL);
    for (size_t i = 0; i < n; i++)
        kv_row_unpack(a->fmt, a->keys[i], a->dim, a->rope_dim, k + i * dim);
#pragma omp parallel for schedule(static)
    for (int h = 0; h < a->n_heads; h++)
        attention_head(a, h, k, k + n * dim + (size_t)h * n);
    free(k);
}

void
reference_attention(const struct attention_args *a, int n)
{
    for (int i = 0; i < n; i++)
        attention_one(&a[i]);
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

void
reference_index_scores(const struct index_score_args *a, int n)
{
    for (int i = 0; i < n; i++) {
        const struct index_score_args *job = &a[i];
        const size_t row = (size_t)job->dim / 2 + (size_t)job->dim / FP4_GROUP;

#pragma omp parallel for schedule(static)
        for (int j = 0; j < job->n_rows; j++)
            job->score[j] = index_score(job, job->blocks[j / job->block_rows] +
                                                 (size_t)(j % job->block_rows) * row);
    }
}
