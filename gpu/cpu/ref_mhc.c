/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hyper-connections (spec 4): what happens around a sublayer to the parallel streams. The mean
 * square is in double for the reason given in ref_norm.c.
 */
#include "config.h"

#include <assert.h>
#include <math.h>

#include "base/fp.h"
#include "gpu/cpu/reference.h"

enum { MAX_HC = 8 };

static float
sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

/* One pass of Sinkhorn over the lines of c [n][n]: rows (step 1) or columns (step n). */
static void
normalise(float *c, int n, int line, int step, float eps)
{
    for (int j = 0; j < n; j++) {
        float sum = 0.0f;

        for (int k = 0; k < n; k++)
            sum += c[j * line + k * step];
        for (int k = 0; k < n; k++)
            c[j * line + k * step] /= sum + eps;
    }
}

static void
sinkhorn(float *c, int n, int iters, float eps)
{
    for (int j = 0; j < n; j++) {
        float *row = c + j * n, top = row[0], sum = 0.0f;

        for (int k = 1; k < n; k++)
            top = fmaxf(top, row[k]);
        for (int k = 0; k < n; k++)
            sum += row[k] = expf(row[k] - top);
        for (int k = 0; k < n; k++)
            row[k] = row[k] / sum + eps;
    }
    normalise(c, n, 1, n, eps);
    for (int i = 1; i < iters; i++) {
        normalise(c, n, n, 1, eps);
        normalise(c, n, 1, n, eps);
    }
}

void
hc_coefficients(const struct hc_pre_args *a, const float *m, float *pre, float *post,
                float *comb)
{
    const int hc = a->hc;

    for (int i = 0; i < hc; i++)
        pre[i] = sigmoid(m[i] * a->scale[0] + a->base[i]) + a->hc_eps;
    if (a->n_mix == hc)
        return;
    for (int i = 0; i < hc; i++)
        post[i] = 2.0f * sigmoid(m[hc + i] * a->scale[1] + a->base[hc + i]);
    for (int i = 0; i < hc * hc; i++)
        comb[i] = m[2 * hc + i] * a->scale[2] + a->base[2 * hc + i];
    sinkhorn(comb, hc, a->iters, a->hc_eps);
}

void
reference_hc_pre(const struct hc_pre_args *a)
{
    const int hc = a->hc, n = a->hc * a->dim;

    assert(hc <= MAX_HC);
    for (int r = 0; r < a->rows; r++) {
        const uint16_t *x = a->x + (size_t)r * n;
        uint16_t *y = a->y + (size_t)r * a->dim;
        float m[2 * MAX_HC + MAX_HC * MAX_HC], pre[MAX_HC];
        double ss = 0.0;

        for (int i = 0; i < n; i++)
            ss += (double)bf16_to_f32(x[i]) * (double)bf16_to_f32(x[i]);

        const float scale = 1.0f / sqrtf((float)(ss / n) + a->norm_eps);

        for (int i = 0; i < a->n_mix; i++)
            m[i] = a->m[(size_t)r * a->n_mix + i] * scale;
        hc_coefficients(a, m, pre, a->post != NULL ? a->post + (size_t)r * hc : NULL,
                        a->comb != NULL ? a->comb + (size_t)r * hc * hc : NULL);
        for (int c = 0; c < a->dim; c++) {
            float sum = 0.0f;

            for (int i = 0; i < hc; i++)
                sum += pre[i] * bf16_to_f32(x[i * a->dim + c]);
            y[c] = f32_to_bf16(sum);
        }
    }
}

void
reference_hc_post(const struct hc_post_args *a)
{
    const int hc = a->hc, n = a->hc * a->dim;

    assert(hc <= MAX_HC);
    for (int r = 0; r < a->rows; r++) {
        const uint16_t *x = a->x + (size_t)r * n, *f = a->f + (size_t)r * a->dim;
        const float *post = a->post + (size_t)r * hc, *comb = a->comb + (size_t)r * hc * hc;
        uint16_t *out = a->out + (size_t)r * n;

        for (int c = 0; c < a->dim; c++) {
            float old[MAX_HC];

            for (int i = 0; i < hc; i++)
                old[i] = bf16_to_f32(x[i * a->dim + c]);
            for (int j = 0; j < hc; j++) {
                float sum = 0.0f;

                for (int i = 0; i < hc; i++)
                    sum += comb[i * hc + j] * old[i];
                out[j * a->dim + c] = f32_to_bf16(post[j] * bf16_to_f32(f[c]) + sum);
            }
        }
    }
}
