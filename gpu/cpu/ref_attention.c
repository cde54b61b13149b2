/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention of one query over a list of key rows, and the indexer's scores (spec 5.6, 7.4).
 * Rows are unpacked once for all heads of a job, 64 at a time: a chunk of the online softmax.
 */
#include "config.h"

#include <math.h>
#include <stdlib.h>

#include "base/fp.h"
#include "gpu/cpu/kvrow.h"
#include "gpu/cpu/reference.h"

enum { FP4_GROUP = 32 };

/* One head over one chunk of unpacked keys k [n][dim]; m, den and acc [dim] go on. */
static void
head_chunk(const struct attention_args *a, const uint16_t *q, const float *k, int n,
           float *m, float *den, float *acc)
{
    const float scale = 1.0f / sqrtf((float)a->dim);
    float s[ATTENTION_CHUNK], top = *m;

    for (int i = 0; i < n; i++) {
        float sum = 0.0f;

        for (int c = 0; c < a->dim; c++)
            sum += bf16_to_f32(q[c]) * k[i * a->dim + c];
        s[i] = sum * scale;
        top = fmaxf(top, s[i]);
    }

    const float keep = expf(*m - top); /* 0 on the first chunk, where m is -inf */

    *m = top;
    *den *= keep;
    for (int c = 0; c < a->dim; c++)
        acc[c] *= keep;
    for (int i = 0; i < n; i++) {
        const float p = expf(s[i] - top), pv = bf16_round(p);

        *den += p;
        for (int c = 0; c < a->dim; c++)
            acc[c] += pv * k[i * a->dim + c];
    }
}

static void
attention_heads(const struct attention_args *a, int h0, int h1)
{
    float k[ATTENTION_CHUNK * ATTENTION_MAX_DIM];
    float acc[ATTENTION_MAX_DIM];

    for (int h = h0; h < h1; h++) {
        const uint16_t *q = a->q + (size_t)h * a->dim;
        uint16_t *o = a->o + (size_t)h * a->dim;
        float m = -INFINITY, den = 0.0f;

        for (int c = 0; c < a->dim; c++)
            acc[c] = 0.0f;
        for (int k0 = 0; k0 < a->n_keys; k0 += ATTENTION_CHUNK) {
            const int n = a->n_keys - k0 < ATTENTION_CHUNK ? a->n_keys - k0
                                                           : ATTENTION_CHUNK;

            for (int i = 0; i < n; i++)
                kv_row_unpack(a->fmt, a->keys[k0 + i], a->dim, a->rope_dim, k + i * a->dim);
            head_chunk(a, q, k, n, &m, &den, acc);
        }
        den += expf(a->sink[h] - m);
        for (int c = 0; c < a->dim; c++)
            o[c] = f32_to_bf16(acc[c] / den);
    }
}

void
reference_attention(const struct attention_args *a, int n)
{
    const int heads = n > 0 ? a->n_heads : 0;

#pragma omp parallel for schedule(dynamic, 4)
    for (int i = 0; i < n * heads; i++)
        attention_heads(&a[i / heads], i % heads, i % heads + 1);
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
