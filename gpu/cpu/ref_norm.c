/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What goes element by element over a row: norms, rotation, the expert's non-linearity.
 *
 * Sums of squares are in double. The reference adds f32 in a tree, which loses almost nothing;
 * a plain f32 loop loses enough to move the scale of a row by some ulps, and with it bf16
 * roundings of all its elements (on pro-tiny's first layer: 248 of 300 rows differ, not 16).
 */
#include "config.h"

#include <math.h>

#include "base/fp.h"
#include "gpu/cpu/reference.h"

static float
mean_square(const uint16_t *x, int n)
{
    double sum = 0.0;

    for (int i = 0; i < n; i++)
        sum += (double)bf16_to_f32(x[i]) * (double)bf16_to_f32(x[i]);
    return (float)(sum / n);
}

void
reference_rmsnorm(const struct rmsnorm_args *a)
{
    for (int r = 0; r < a->rows; r++) {
        const uint16_t *x = a->x + (size_t)r * a->dim;
        uint16_t *out = a->out + (size_t)r * a->dim;
        const float scale = 1.0f / sqrtf(mean_square(x, a->dim) + a->eps);

        for (int i = 0; i < a->dim; i++)
            out[i] = f32_to_bf16(a->w[i] * (bf16_to_f32(x[i]) * scale));
    }
}

void
reference_head_norm(const struct head_norm_args *a)
{
    for (int r = 0; r < a->rows; r++) {
        uint16_t *q = a->q + (size_t)r * a->dim;
        double sum = 0.0;
        float s;

        for (int i = 0; i < a->dim; i++)
            sum += (double)bf16_round(bf16_to_f32(q[i]) * bf16_to_f32(q[i]));
        s = bf16_round((float)(sum / a->dim));
        s = bf16_round(s + a->eps);
        s = bf16_round(1.0f / sqrtf(s));
        for (int i = 0; i < a->dim; i++)
            q[i] = f32_to_bf16(bf16_to_f32(q[i]) * s);
    }
}

void
reference_rope(const struct rope_args *a)
{
    const int nope = a->dim - a->rope_dim;

    for (int r = 0; r < a->rows; r++) {
        const float *cs = a->cs + (size_t)r * a->rope_dim;

        for (int h = 0; h < a->heads; h++) {
            uint16_t *x = a->x + ((size_t)r * a->heads + h) * a->dim + nope;

            for (int i = 0; i < a->rope_dim; i += 2) {
                const float re = bf16_to_f32(x[i]), im = bf16_to_f32(x[i + 1]);
                const float c = cs[i], s = a->inverse ? -cs[i + 1] : cs[i + 1];

                x[i] = f32_to_bf16(fmaf(re, c, -(im * s)));
                x[i + 1] = f32_to_bf16(fmaf(re, s, im * c));
            }
        }
    }
}

void
reference_swiglu(const struct swiglu_args *a)
{
    for (int r = 0; r < a->rows; r++) {
        const float w = a->weight != NULL ? a->weight[r] : 1.0f;

        for (size_t i = (size_t)r * a->dim; i < (size_t)(r + 1) * a->dim; i++) {
            float u = bf16_to_f32(a->up[i]), g = bf16_to_f32(a->gate[i]);

            u = u < -a->limit ? -a->limit : u > a->limit ? a->limit : u;
            g = g > a->limit ? a->limit : g;
            a->a[i] = f32_to_bf16(w * (g / (1.0f + expf(-g)) * u));
        }
    }
}
