/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CPU_VEC_LINEAR_H
#define GPU_CPU_VEC_LINEAR_H

/*
 * Matrix products on panels (panel.h) in vectors of 8 floats, as the compiler's vector
 * extension: portable.c compiles this for any processor, avx2.c for AVX2 with FMA and F16C,
 * which differ in how codes become floats and in whether a product is fused. Code in a header,
 * because it is compiled twice under different flags; each includes it once.
 *
 * Lanes are 4 outputs by 2 inputs (f32: 8 outputs), so an output is two serial sums, of its even
 * and its odd inputs, added at the end. The order does not depend on how many rows share a tile.
 */
#include <string.h>

#include "base/fp.h"
#include "gpu/cpu/panel.h"

enum { VEC_LANES = 8, VEC_ROWS = 3, VEC_QUARTERS = 4 };

typedef float vec __attribute__((vector_size(32)));
typedef int32_t ivec __attribute__((vector_size(32)));

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#    include <immintrin.h>
/* Codes become f16 by shifting, which leaves e4m3 a factor of 2^8 short. */
#    define VEC_FP8_FACTOR 256.0f

INLINE void
vec_madd(vec *sum, const vec *a, const vec *b)
{
    *sum = (vec)_mm256_fmadd_ps((__m256)*a, (__m256)*b, (__m256)*sum);
}

/* 16 codes: 8 of the first pair of inputs, 8 of the second. */
INLINE void
vec_fp8(const uint8_t *p, vec *first, vec *second)
{
    const __m256i b = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p));
    const __m256i h =
        _mm256_and_si256(_mm256_slli_epi16(b, 7), _mm256_set1_epi16((short)0xbf80));

    *first = (vec)_mm256_cvtph_ps(_mm256_castsi256_si128(h));
    *second = (vec)_mm256_cvtph_ps(_mm256_extracti128_si256(h, 1));
}

/* Nibble i of 16 words: 8 outputs by 2 inputs. High bytes of f16 are enough for e2m1. */
INLINE void
vec_fp4(const uint8_t *p, int i, vec *first, vec *second)
{
    const __m256i table = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        0x00, 0x38, 0x3c, 0x3e, 0x40, 0x42, 0x44, 0x46, (char)0x80, (char)0xb8, (char)0xbc,
        (char)0xbe, (char)0xc0, (char)0xc2, (char)0xc4, (char)0xc6));
    const __m256i w = _mm256_loadu_si256((const __m256i *)p);
    const __m256i code =
        _mm256_and_si256(_mm256_srli_epi16(w, 4 * i), _mm256_set1_epi16(15));
    const __m256i h = _mm256_slli_epi16(_mm256_shuffle_epi8(table, code), 8);

    *first = (vec)_mm256_cvtph_ps(_mm256_castsi256_si128(h));
    *second = (vec)_mm256_cvtph_ps(_mm256_extracti128_si256(h, 1));
}

INLINE void
vec_bf16(const uint8_t *p, vec *v)
{
    const __m256i w = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));

    *v = (vec)_mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
}
#else
#    define VEC_FP8_FACTOR 1.0f

INLINE void
vec_madd(vec *sum, const vec *a, const vec *b)
{
    *sum += *a * *b;
}

INLINE void
vec_fp8(const uint8_t *p, vec *first, vec *second)
{
    for (int i = 0; i < VEC_LANES; i++) {
        (*first)[i] = e4m3_to_f32(p[i]);
        (*second)[i] = e4m3_to_f32(p[VEC_LANES + i]);
    }
}

INLINE void
vec_fp4(const uint8_t *p, int i, vec *first, vec *second)
{
    uint16_t w[2 * VEC_LANES];

    memcpy(w, p, sizeof w);
    for (int n = 0; n < VEC_LANES; n++) {
        (*first)[n] = e2m1_to_f32((uint8_t)(w[n] >> (4 * i)));
        (*second)[n] = e2m1_to_f32((uint8_t)(w[VEC_LANES + n] >> (4 * i)));
    }
}

INLINE void
vec_bf16(const uint8_t *p, vec *v)
{
    uint16_t w[VEC_LANES];

    memcpy(w, p, sizeof w);
    for (int n = 0; n < VEC_LANES; n++)
        (*v)[n] = bf16_to_f32(w[n]);
}
#endif

/* Pair s of a step, all outputs of a panel: the four quarters (f32: two halves, the first
 * input's and the second's). */
INLINE void
vec_expand(enum matrix_kind kind, const uint8_t *p, vec w[4][VEC_QUARTERS])
{
#pragma GCC unroll 4
    for (int q = 0; q < VEC_QUARTERS; q++) {
        if (kind == MATRIX_FP8)
            vec_fp8(p + q * 16, &w[0][q], &w[1][q]);
        else if (kind == MATRIX_BF16)
            vec_bf16(p + q * 16, &w[0][q]);
        else if (kind == MATRIX_F32 && q < 2)
            memcpy(&w[0][q], p + q * 32, sizeof w[0][q]);
    }
    if (kind == MATRIX_FP4)
#pragma GCC unroll 4
        for (int s = 0; s < 4; s++)
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++)
                vec_fp4(p + half * 32, s, &w[s][2 * half], &w[s][2 * half + 1]);
}

/* Inputs x[0], x[1] in the lanes where their weights are: in turn, or (f32) one a vector. */
INLINE void
vec_inputs(enum matrix_kind kind, const uint16_t *x, vec v[2])
{
    const float a = bf16_to_f32(x[0]), b = bf16_to_f32(x[1]);

    if (kind == MATRIX_F32) {
        v[0] = (vec){a, a, a, a, a, a, a, a};
        v[1] = (vec){b, b, b, b, b, b, b, b};
    } else {
        v[0] = (vec){a, b, a, b, a, b, a, b};
    }
}

INLINE void
vec_scale(enum matrix_kind kind, const struct panel_group *g, int b, int p, int quarter,
          vec *scale)
{
    if (kind == MATRIX_FP4) {
        const uint8_t *s = g->scale4 + ((size_t)b * (size_t)g->n + (size_t)p) * 16 +
                           (size_t)quarter * 4;
        const float s0 = e8m0_to_f32(s[0]), s1 = e8m0_to_f32(s[1]), s2 = e8m0_to_f32(s[2]),
                    s3 = e8m0_to_f32(s[3]);

        *scale = (vec){s0, s0, s1, s1, s2, s2, s3, s3};
    } else {
        const float f = kind == MATRIX_FP8 ? g->scale8[b] * VEC_FP8_FACTOR : 1.0f;

        *scale = (vec){f, f, f, f, f, f, f, f};
    }
}

INLINE void
vec_store(const struct linear_args *a, const struct panel_group *g, enum matrix_kind kind,
          const vec *sum, int r, int p)
{
    const int outputs = panel_outputs(kind), left = g->outs - p * outputs;
    const size_t at = (size_t)r * a->y_stride + g->out0 + p * outputs;

    for (int o = 0; o < outputs && o < left; o++) {
        const float y = kind == MATRIX_F32
                            ? sum[0][o] + sum[1][o]
                            : sum[o / 4][o % 4 * 2] + sum[o / 4][o % 4 * 2 + 1];

        if (a->y_f32)
            ((float *)a->y)[at + o] = y;
        else
            ((uint16_t *)a->y)[at + o] = f32_to_bf16(y);
    }
}

/* Rows r .. r + rows - 1 of x by panel p of the group. */
INLINE void
vec_tile(enum matrix_kind kind, const int rows, const struct linear_args *a,
         const struct panel_group *g, int r, int p)
{
    const int in = a->w->in, step = panel_inputs(kind);
    const int block = kind == MATRIX_FP4 ? PANEL_FP4_BLOCK : PANEL_BLOCK;
    const int quarters = kind == MATRIX_F32 ? 2 : VEC_QUARTERS;
    const uint16_t *x = a->x + (size_t)r * a->x_stride;
    const uint8_t *at = g->w + (size_t)p * PANEL_STEP;
    vec total[VEC_ROWS][VEC_QUARTERS] = {0};

    for (int k0 = 0, b = 0; k0 < in; k0 += block, b++) {
        const int k1 = k0 + block < in ? k0 + block : in;
        vec sum[VEC_ROWS][VEC_QUARTERS] = {0};

        for (int k = k0; k < k1; k += step) {
            vec w[4][VEC_QUARTERS];

            vec_expand(kind, at, w);
#pragma GCC unroll 4
            for (int s = 0; s < step / 2; s++) {
#pragma GCC unroll 3
                for (int i = 0; i < rows; i++) {
                    vec v[2];

                    vec_inputs(kind, x + (size_t)i * a->x_stride + k + 2 * s, v);
#pragma GCC unroll 4
                    for (int q = 0; q < quarters; q++)
                        vec_madd(&sum[i][q], &w[s][q], &v[kind == MATRIX_F32 ? q : 0]);
                }
            }
            at += (size_t)g->n * PANEL_STEP;
        }
#pragma GCC unroll 4
        for (int q = 0; q < quarters; q++) {
            vec scale;

            vec_scale(kind, g, b, p, q, &scale);
#pragma GCC unroll 3
            for (int i = 0; i < rows; i++)
                vec_madd(&total[i][q], &sum[i][q], &scale);
        }
    }
#pragma GCC unroll 3
    for (int i = 0; i < rows; i++)
        vec_store(a, g, kind, total[i], r + i, p);
}

#define VEC_KIND(kind)                 \
case kind:                             \
    if (rows == 1)                     \
        vec_tile(kind, 1, a, g, r, p); \
    else if (rows == 2)                \
        vec_tile(kind, 2, a, g, r, p); \
    else                               \
        vec_tile(kind, 3, a, g, r, p); \
    break;

static void
vec_group(const struct linear_args *a, const struct panel_group *g)
{
    int rows;

    for (int r = 0; r < a->rows; r += rows) {
        rows = a->rows - r < VEC_ROWS ? a->rows - r : VEC_ROWS;
        for (int p = 0; p < g->n; p++) {
            switch (a->w->kind) {
                VEC_KIND(MATRIX_BF16)
                VEC_KIND(MATRIX_F32)
                VEC_KIND(MATRIX_FP8)
                VEC_KIND(MATRIX_FP4)
            }
        }
    }
}

static void
vec_linear(const struct linear_args *a, int n)
{
    panel_linear(a, n, vec_group);
}

/* Codes of e4m3 that are NaN do not survive the way over f16: such a matrix, which no sane
 * checkpoint has, stays with the reference. */
static size_t
vec_packed_bytes(const struct matrix *w)
{
    const uint8_t *code = w->w;

    if (w->kind == MATRIX_FP8)
        for (size_t i = 0; i < (size_t)w->out * (size_t)w->in; i++)
            if ((code[i] & 0x7f) == 0x7f)
                return 0;
    return panel_packed_bytes(w);
}

#endif /* GPU_CPU_VEC_LINEAR_H */
