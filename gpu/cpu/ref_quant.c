/* SPDX-License-Identifier: Apache-2.0 */
/* Rounding of activations to FP8 and of the indexer's vectors to FP4 (spec 3.2, 3.3, 3.6). */
#include "config.h"

#include <assert.h>
#include <math.h>

#include "base/fp.h"
#include "gpu/cpu/reference.h"

enum { MAX_INDEX_DIM = 1024, FP4_GROUP = 32 };

static float
abs_max(const uint16_t *x, int n, float at_least)
{
    float m = at_least;

    for (int i = 0; i < n; i++)
        m = fmaxf(m, fabsf(bf16_to_f32(x[i])));
    return m;
}

static float
clamp(float x, float limit)
{
    return x < -limit ? -limit : x > limit ? limit : x;
}

void
reference_act_quant(const struct act_quant_args *a)
{
    for (int r = 0; r < a->rows; r++) {
        const uint16_t *x = a->x + (size_t)r * a->stride;
        uint16_t *y = a->y + (size_t)r * a->stride;

        for (int i0 = 0; i0 < a->dim; i0 += a->group) {
            const int n = i0 + a->group < a->dim ? a->group : a->dim - i0;
            const float s =
                e8m0_to_f32(f32_to_e8m0_up(abs_max(x + i0, n, 1e-4f) * (1.0f / 448.0f)));

            for (int i = i0; i < i0 + n; i++) {
                const uint8_t q = f32_to_e4m3(clamp(bf16_to_f32(x[i]) / s, 448.0f));
                y[i] = f32_to_bf16(e4m3_to_f32(q) * s);
            }
        }
    }
}

/* x <- bf16(H x / sqrt(n)), H of Sylvester's kind. */
static void
hadamard(const uint16_t *x, float *h, int n)
{
    const float scale = 1.0f / sqrtf((float)n);

    for (int i = 0; i < n; i++)
        h[i] = bf16_to_f32(x[i]);
    for (int stride = 1; stride < n; stride *= 2) {
        for (int i = 0; i < n; i++) {
            if ((i & stride) == 0) {
                const float lo = h[i], hi = h[i + stride];

                h[i] = lo + hi;
                h[i + stride] = lo - hi;
            }
        }
    }
    for (int i = 0; i < n; i++)
        h[i] = bf16_round(h[i] * scale);
}

static void
index_quant_row(const uint16_t *x, uint8_t *y, int dim)
{
    float h[MAX_INDEX_DIM];

    hadamard(x, h, dim);
    for (int g = 0; g < dim / FP4_GROUP; g++) {
        float amax = 0x1.8p-124f; /* 6 * 2^-126 */

        for (int i = g * FP4_GROUP; i < (g + 1) * FP4_GROUP; i++)
            amax = fmaxf(amax, fabsf(h[i]));

        const uint8_t e = f32_to_e8m0_up(amax * (1.0f / 6.0f));
        const float s = e8m0_to_f32(e);

        for (int i = g * FP4_GROUP; i < (g + 1) * FP4_GROUP; i += 2)
            y[i / 2] = (uint8_t)(f32_to_e2m1(clamp(h[i] / s, 6.0f)) |
                                 f32_to_e2m1(clamp(h[i + 1] / s, 6.0f)) << 4);
        y[dim / 2 + g] = e;
    }
}

void
reference_index_quant(const struct index_quant_args *a)
{
    const size_t row = (size_t)a->dim / 2 + (size_t)a->dim / FP4_GROUP;

    assert(a->dim <= MAX_INDEX_DIM);
    for (int r = 0; r < a->rows; r++)
        index_quant_row(a->x + (size_t)r * a->dim, a->y + (size_t)r * row, a->dim);
}
