/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrix products, the plain way: one output at a time, blocks of 128 along the input in
 * ascending order, each scaled by its power of two (spec 3.4); FP4 has a scale per 32, so its
 * blocks are 32. Products of bf16 values are exact and sums are in double, so the only rounding
 * that counts is the one at the end: this is what other tables are measured against.
 */
#include "config.h"

#include "base/fp.h"
#include "gpu/cpu/pool.h"
#include "gpu/cpu/reference.h"

enum { BLOCK = 128, FP4_BLOCK = 32 };

bool
reference_usable(void)
{
    return true;
}

size_t
reference_packed_bytes(const struct matrix *w)
{
    (void)w;
    return 0;
}

void
reference_pack(const struct matrix *w, void *dst)
{
    (void)w;
    (void)dst;
}

static float
dot_bf16(const uint16_t *x, const uint16_t *w, int n)
{
    double sum = 0.0;

    for (int k = 0; k < n; k++)
        sum += (double)bf16_to_f32(x[k]) * (double)bf16_to_f32(w[k]);
    return (float)sum;
}

static float
dot_f32(const uint16_t *x, const float *w, int n)
{
    double sum = 0.0;

    for (int k = 0; k < n; k++)
        sum += (double)bf16_to_f32(x[k]) * (double)w[k];
    return (float)sum;
}

static float
dot_fp8(const uint16_t *x, const uint8_t *w, const uint8_t *scale, int n)
{
    double total = 0.0;

    for (int k0 = 0; k0 < n; k0 += BLOCK) {
        const int k1 = k0 + BLOCK < n ? k0 + BLOCK : n;
        double sum = 0.0;

        for (int k = k0; k < k1; k++)
            sum += (double)bf16_to_f32(x[k]) * (double)e4m3_to_f32(w[k]);
        total += sum * (double)e8m0_to_f32(scale[k0 / BLOCK]);
    }
    return (float)total;
}

static float
dot_fp4(const uint16_t *x, const uint8_t *w, const uint8_t *scale, int n)
{
    double total = 0.0;

    for (int k0 = 0; k0 < n; k0 += FP4_BLOCK) {
        double sum = 0.0;

        for (int k = k0; k < k0 + FP4_BLOCK; k += 2) {
            sum += (double)bf16_to_f32(x[k]) * (double)e2m1_to_f32(w[k / 2]);
            sum += (double)bf16_to_f32(x[k + 1]) * (double)e2m1_to_f32(w[k / 2] >> 4);
        }
        total += sum * (double)e8m0_to_f32(scale[k0 / FP4_BLOCK]);
    }
    return (float)total;
}

static float
dot(const struct matrix *m, const uint16_t *x, int o)
{
    const size_t n = (size_t)m->in, row = (size_t)o * n;

    switch (m->kind) {
    case MATRIX_BF16: return dot_bf16(x, (const uint16_t *)m->w + row, m->in);
    case MATRIX_F32: return dot_f32(x, (const float *)m->w + row, m->in);
    case MATRIX_FP8:
        return dot_fp8(x, (const uint8_t *)m->w + row,
                       m->scale + (size_t)(o / BLOCK) * ((n + BLOCK - 1) / BLOCK), m->in);
    case MATRIX_FP4:
        return dot_fp4(x, (const uint8_t *)m->w + row / 2,
                       m->scale + (size_t)o * (n / FP4_BLOCK), m->in);
    }
    return 0.0f;
}

static void
linear_outputs(const void *arg, int o, int end)
{
    const struct linear_args *a = arg;

    for (; o < end; o++) {
        for (int r = 0; r < a->rows; r++) {
            const float y = dot(a->w, a->x + (size_t)r * a->x_stride, o);
            const size_t at = (size_t)r * a->y_stride + o;

            if (a->y_f32)
                ((float *)a->y)[at] = y;
            else
                ((uint16_t *)a->y)[at] = f32_to_bf16(y);
        }
    }
}

void
reference_linear(const struct linear_args *a, int n)
{
    for (int i = 0; i < n; i++)
        if (a[i].rows > 0)
            pool_run(a[i].w->out, 16, linear_outputs, &a[i]);
}
