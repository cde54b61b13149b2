/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What goes element by element over a row, with AVX-512. act_quant and index_quant round at
 * every step as the reference does and give its bits; the norms and sigmoids sum and
 * exponentiate in another order, a bf16 place apart at most. Dimensions that are not whole
 * vectors go to the reference.
 */
#include "config.h"

#include <math.h>
#include <string.h>

#include "gpu/cpu/avx512.h"
#include "gpu/cpu/avx512_math.h"
#include "gpu/cpu/pool.h"
#include "gpu/cpu/reference.h"

enum {
    RANGE = 8192, /* elements, at least: about a microsecond of work */
    MAX_GROUP = 128,
    MAX_HADAMARD = 256,
    FP4_GROUP = 32,
};

/* Rows of a range. */
static int
range_of(size_t dim)
{
    return dim >= RANGE ? 1 : (int)(RANGE / dim);
}

/* 2^ceil(log2 t), 0 < t, as bits of f32; NaN for an infinite t. */
INLINE uint32_t
power_up(float t)
{
    uint32_t u;

    memcpy(&u, &t, sizeof u);
    u = (u + 0x7fffff) & 0xff800000;
    return u >= 0x7f800000 ? 0x7fc00000 : u;
}

INLINE float
from_bits(uint32_t u)
{
    float f;

    memcpy(&f, &u, sizeof f);
    return f;
}

/* v, at most 448 in size, to the nearest e4m3 value: 3 bits of mantissa, or steps of 2^-9. */
INLINE __m512
round_e4m3(__m512 v)
{
    const __m512i u = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 20), _mm512_set1_epi32(1));
    const __m512i big = _mm512_and_si512(
        _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7ffff))),
        _mm512_set1_epi32((int)0xfff00000));
    const __m512 magic = _mm512_set1_ps(0x1.8p14f);
    __m512 small = _mm512_sub_ps(_mm512_add_ps(v, magic), magic);
    const __mmask16 m =
        _mm512_cmp_ps_mask(_mm512_abs_ps(v), _mm512_set1_ps(0x1p-6f), _CMP_LT_OQ);

    small = _mm512_or_ps(small, _mm512_and_ps(v, _mm512_set1_ps(-0.0f))); /* keep -0 */
    small = _mm512_mask_mov_ps(_mm512_castsi512_ps(big), m, small);
    return _mm512_mask_mov_ps(small, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), v);
}

/* One group of n elements, n a multiple of 16 and at most MAX_GROUP. */
INLINE void
act_quant_group(const uint16_t *x, uint16_t *y, int n)
{
    const __m512 limit = _mm512_set1_ps(448.0f);
    __m512 v[MAX_GROUP / 16], m = _mm512_set1_ps(1e-4f), s, inverse;
    uint32_t scale;

    for (int i = 0; i < n / 16; i++) {
        v[i] = load_bf16(x + i * 16);
        m = _mm512_max_ps(_mm512_abs_ps(v[i]), m); /* a NaN leaves m as it is */
    }
    scale = power_up(_mm512_reduce_max_ps(m) * (1.0f / 448.0f));
    s = _mm512_set1_ps(from_bits(scale));
    inverse = _mm512_set1_ps(scale == 0x7fc00000 ? NAN : from_bits(0x7f000000 - scale));
    for (int i = 0; i < n / 16; i++) {
        __m512 q = _mm512_mul_ps(v[i], inverse);

        /* max and min give their second operand for a NaN: it stays one. */
        q = _mm512_min_ps(limit,
                          _mm512_max_ps(_mm512_sub_ps(_mm512_setzero_ps(), limit), q));
        q = _mm512_mul_ps(round_e4m3(q), s);
        store_bf16(y + i * 16, q);
    }
}

static void
act_quant_rows(const void *arg, int r0, int end)
{
    const struct act_quant_args *a = arg;

    for (int r = r0; r < end; r++)
        for (int i = 0; i < a->dim; i += a->group)
            act_quant_group(a->x + (size_t)r * a->stride + i,
                            a->y + (size_t)r * a->stride + i,
                            a->dim - i < a->group ? a->dim - i : a->group);
}

void
avx512_act_quant(const struct act_quant_args *a)
{
    if (a->group % 16 != 0 || a->group > MAX_GROUP || a->dim % 16 != 0) {
        reference_act_quant(a);
        return;
    }
    pool_run(a->rows, range_of((size_t)a->dim), act_quant_rows, a);
}

/* Butterflies inside a vector: lanes whose partner is below get partner - self. */
INLINE __m512
butterfly(__m512 v, __m512 partner, __mmask16 upper)
{
    return _mm512_mask_sub_ps(_mm512_add_ps(v, partner), upper, partner, v);
}

/* 16 values within +-6 to e2m1 codes. Ties go to the even code. */
INLINE __m512i
to_e2m1(__m512 v)
{
    static const float edge[7] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
    const __m512 size = _mm512_abs_ps(v);
    const __m512i one = _mm512_set1_epi32(1);
    __m512i code = _mm512_and_si512(_mm512_srli_epi32(_mm512_castps_si512(v), 28),
                                    _mm512_set1_epi32(8));

#pragma GCC unroll 7
    for (int i = 0; i < 7; i++) {
        const __m512 e = _mm512_set1_ps(edge[i]);
        const __mmask16 m = i % 2 == 0 ? _mm512_cmp_ps_mask(size, e, _CMP_GT_OQ)
                                       : _mm512_cmp_ps_mask(size, e, _CMP_GE_OQ);

        code = _mm512_mask_add_epi32(code, m, code, one);
    }
    return code;
}

static void
index_quant_row(const uint16_t *x, uint8_t *y, int dim)
{
    const int n = dim / 16;
    const __m512 norm = _mm512_set1_ps(1.0f / sqrtf((float)dim));
    __m512 h[MAX_HADAMARD / 16];

    for (int i = 0; i < n; i++) {
        __m512 v = load_bf16(x + i * 16);

        v = butterfly(v, _mm512_permute_ps(v, 0xb1), 0xaaaa);
        v = butterfly(v, _mm512_permute_ps(v, 0x4e), 0xcccc);
        v = butterfly(v, _mm512_shuffle_f32x4(v, v, 0xb1), 0xf0f0);
        h[i] = butterfly(v, _mm512_shuffle_f32x4(v, v, 0x4e), 0xff00);
    }
    for (int stride = 1; stride < n; stride *= 2)
        for (int i = 0; i < n; i++)
            if ((i & stride) == 0) {
                const __m512 lo = h[i], hi = h[i + stride];

                h[i] = _mm512_add_ps(lo, hi);
                h[i + stride] = _mm512_sub_ps(lo, hi);
            }
    for (int i = 0; i < n; i++)
        h[i] = round_bf16(_mm512_mul_ps(h[i], norm));

    for (int g = 0; g < dim / FP4_GROUP; g++) {
        const __m512 limit = _mm512_set1_ps(6.0f);
        __m512 m = _mm512_set1_ps(0x1.8p-124f), s;
        uint32_t codes[FP4_GROUP];
        uint32_t scale;

        m = _mm512_max_ps(_mm512_abs_ps(h[2 * g]), m);
        m = _mm512_max_ps(_mm512_abs_ps(h[2 * g + 1]), m);
        scale = power_up(_mm512_reduce_max_ps(m) * (1.0f / 6.0f));
        s = _mm512_set1_ps(from_bits(scale));
        for (int i = 0; i < 2; i++) {
            __m512 q = _mm512_div_ps(h[2 * g + i], s);

            q = _mm512_min_ps(limit,
                              _mm512_max_ps(_mm512_sub_ps(_mm512_setzero_ps(), limit), q));
            _mm512_storeu_si512(codes + i * 16, to_e2m1(q));
        }
        for (int i = 0; i < FP4_GROUP / 2; i++)
            y[g * FP4_GROUP / 2 + i] = (uint8_t)(codes[2 * i] | codes[2 * i + 1] << 4);
        y[dim / 2 + g] = (uint8_t)(scale >= 0x7f800000 ? 255 : scale >> 23);
    }
}

static void
index_quant_rows(const void *arg, int r0, int end)
{
    const struct index_quant_args *a = arg;
    const size_t row = (size_t)a->dim / 2 + (size_t)a->dim / FP4_GROUP;

    for (int r = r0; r < end; r++)
        index_quant_row(a->x + (size_t)r * a->dim, a->y + (size_t)r * row, a->dim);
}

void
avx512_index_quant(const struct index_quant_args *a)
{
    if (a->dim > MAX_HADAMARD || a->dim < FP4_GROUP) {
        reference_index_quant(a);
        return;
    }
    pool_run(a->rows, range_of((size_t)a->dim), index_quant_rows, a);
}

/* Sum of squares of n bf16, n a multiple of 16: two sums of 16 lanes in turn. */
INLINE float
squares(const uint16_t *x, int n)
{
    __m512 s[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};

    for (int i = 0; i < n; i += 16) {
        const __m512 v = load_bf16(x + i);

        s[i / 16 % 2] = _mm512_fmadd_ps(v, v, s[i / 16 % 2]);
    }
    return sum16(_mm512_add_ps(s[0], s[1]));
}

static void
rmsnorm_rows(const void *arg, int r0, int end)
{
    const struct rmsnorm_args *a = arg;

    for (int r = r0; r < end; r++) {
        const uint16_t *x = a->x + (size_t)r * a->dim;
        uint16_t *out = a->out + (size_t)r * a->dim;
        const __m512 scale =
            _mm512_set1_ps(1.0f / sqrtf(squares(x, a->dim) / (float)a->dim + a->eps));

        for (int i = 0; i < a->dim; i += 16)
            store_bf16(out + i, _mm512_mul_ps(_mm512_loadu_ps(a->w + i),
                                              _mm512_mul_ps(load_bf16(x + i), scale)));
    }
}

void
avx512_rmsnorm(const struct rmsnorm_args *a)
{
    if (a->dim % 16 != 0) {
        reference_rmsnorm(a);
        return;
    }
    pool_run(a->rows, range_of((size_t)a->dim), rmsnorm_rows, a);
}

static void
head_norm_rows(const void *arg, int r0, int end)
{
    const struct head_norm_args *a = arg;

    for (int r = r0; r < end; r++) {
        uint16_t *q = a->q + (size_t)r * a->dim;
        __m512 sum = _mm512_setzero_ps(), s;

        for (int i = 0; i < a->dim; i += 16) {
            const __m512 v = load_bf16(q + i);

            sum = _mm512_add_ps(sum, round_bf16(_mm512_mul_ps(v, v)));
        }
        s = round_bf16(_mm512_set1_ps(sum16(sum) / (float)a->dim));
        s = round_bf16(_mm512_add_ps(s, _mm512_set1_ps(a->eps)));
        s = round_bf16(_mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_sqrt_ps(s)));
        for (int i = 0; i < a->dim; i += 16)
            store_bf16(q + i, _mm512_mul_ps(load_bf16(q + i), s));
    }
}

void
avx512_head_norm(const struct head_norm_args *a)
{
    if (a->dim % 16 != 0) {
        reference_head_norm(a);
        return;
    }
    pool_run(a->rows, range_of((size_t)a->dim), head_norm_rows, a);
}

static void
rope_rows(const void *arg, int r0, int end)
{
    const struct rope_args *a = arg;
    const int nope = a->dim - a->rope_dim;
    const __m512i re_at =
        _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i im_at =
        _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    const __m512 flip = _mm512_set1_ps(a->inverse ? -0.0f : 0.0f);

    for (int r = r0; r < end; r++) {
        for (int i = 0; i < a->rope_dim; i += 32) {
            const float *cs = a->cs + (size_t)r * a->rope_dim + i;
            const __m512 lo = _mm512_loadu_ps(cs), hi = _mm512_loadu_ps(cs + 16);
            const __m512 c = _mm512_permutex2var_ps(lo, re_at, hi);
            const __m512 s = _mm512_xor_ps(_mm512_permutex2var_ps(lo, im_at, hi), flip);

            for (int h = 0; h < a->heads; h++) {
                uint16_t *x = a->x + ((size_t)r * a->heads + h) * a->dim + nope + i;
                const __m512i v = _mm512_loadu_si512(x);
                const __m512 re = _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
                const __m512 im = _mm512_castsi512_ps(
                    _mm512_and_si512(v, _mm512_set1_epi32((int)0xffff0000)));
                const __m512i a0 = _mm512_cvtepu16_epi32(
                    narrow(_mm512_fmsub_ps(re, c, _mm512_mul_ps(im, s))));
                const __m512i a1 = _mm512_cvtepu16_epi32(
                    narrow(_mm512_fmadd_ps(re, s, _mm512_mul_ps(im, c))));

                _mm512_storeu_si512(x, _mm512_or_si512(a0, _mm512_slli_epi32(a1, 16)));
            }
        }
    }
}

void
avx512_rope(const struct rope_args *a)
{
    if (a->rope_dim % 32 != 0) {
        reference_rope(a);
        return;
    }
    pool_run(a->rows, range_of((size_t)a->heads * (size_t)a->rope_dim), rope_rows, a);
}

static void
swiglu_rows(const void *arg, int r0, int end)
{
    const struct swiglu_args *a = arg;
    const __m512 limit = _mm512_set1_ps(a->limit), one = _mm512_set1_ps(1.0f);
    const __m512 below = _mm512_sub_ps(_mm512_setzero_ps(), limit);

    for (int r = r0; r < end; r++) {
        const size_t at = (size_t)r * a->dim;
        const __m512 w = _mm512_set1_ps(a->weight != NULL ? a->weight[r] : 1.0f);

        for (int i = 0; i < a->dim; i += 16) {
            const __m512 u =
                _mm512_min_ps(limit, _mm512_max_ps(below, load_bf16(a->up + at + i)));
            const __m512 g = _mm512_min_ps(limit, load_bf16(a->gate + at + i));
            const __m512 e = exp16(_mm512_sub_ps(_mm512_setzero_ps(), g));
            const __m512 silu = _mm512_div_ps(g, _mm512_add_ps(one, e));

            store_bf16(a->a + at + i, _mm512_mul_ps(w, _mm512_mul_ps(silu, u)));
        }
    }
}

void
avx512_swiglu(const struct swiglu_args *a)
{
    if (a->dim % 16 != 0) {
        reference_swiglu(a);
        return;
    }
    pool_run(a->rows, range_of((size_t)a->dim), swiglu_rows, a);
}

/* e^x of up to 16 numbers through memory. */
INLINE void
sigmoids(const float *m, float scale, const float *base, float *out, int n)
{
    const __mmask16 k = (__mmask16)((1u << n) - 1);
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 x =
        _mm512_add_ps(_mm512_mul_ps(_mm512_maskz_loadu_ps(k, m), _mm512_set1_ps(scale)),
                      _mm512_maskz_loadu_ps(k, base));

    _mm512_mask_storeu_ps(
        out, k,
        _mm512_div_ps(one,
                      _mm512_add_ps(one, exp16(_mm512_sub_ps(_mm512_setzero_ps(), x)))));
}

/* Sums over the four elements of each row (a quarter of the vector), in every lane. */
INLINE __m512
row_sums(__m512 c)
{
    return _mm512_add_ps(
        _mm512_add_ps(_mm512_add_ps(_mm512_permute_ps(c, 0x00), _mm512_permute_ps(c, 0x55)),
                      _mm512_permute_ps(c, 0xaa)),
        _mm512_permute_ps(c, 0xff));
}

INLINE __m512
column_sums(__m512 c)
{
    return _mm512_add_ps(_mm512_add_ps(_mm512_add_ps(_mm512_shuffle_f32x4(c, c, 0x00),
                                                     _mm512_shuffle_f32x4(c, c, 0x55)),
                                       _mm512_shuffle_f32x4(c, c, 0xaa)),
                         _mm512_shuffle_f32x4(c, c, 0xff));
}

/* The 4x4 mixing matrix is one vector. */
INLINE __m512
sinkhorn4(__m512 c, int iters, float hc_eps)
{
    const __m512 eps = _mm512_set1_ps(hc_eps);
    __m512 top = _mm512_max_ps(c, _mm512_permute_ps(c, 0xb1));

    top = _mm512_max_ps(top, _mm512_permute_ps(top, 0x4e));
    c = exp16(_mm512_sub_ps(c, top));
    c = _mm512_add_ps(_mm512_div_ps(c, row_sums(c)), eps);
    c = _mm512_div_ps(c, _mm512_add_ps(column_sums(c), eps));
    for (int i = 1; i < iters; i++) {
        c = _mm512_div_ps(c, _mm512_add_ps(row_sums(c), eps));
        c = _mm512_div_ps(c, _mm512_add_ps(column_sums(c), eps));
    }
    return c;
}

/* In the hyper-connections products are rounded before they are added, as the reference's
 * operations do one after the other; a fused form is as good but lands elsewhere. */
enum { HC = 4 };

static void
hc_pre_row(const struct hc_pre_args *a, int r)
{
    const int dim = a->dim;
    const uint16_t *x = a->x + (size_t)r * HC * dim;
    const float *row = a->m + (size_t)r * a->n_mix;
    const float scale = 1.0f /
                        sqrtf(squares(x, HC * dim) / (float)(HC * dim) + a->norm_eps);
    float m[2 * HC + HC * HC], pre[HC];

    for (int i = 0; i < a->n_mix; i++)
        m[i] = row[i] * scale;
    sigmoids(m, a->scale[0], a->base, pre, HC);
    for (int i = 0; i < HC; i++)
        pre[i] += a->hc_eps;
    if (a->n_mix > HC) {
        float *post = a->post + (size_t)r * HC;

        sigmoids(m + HC, a->scale[1], a->base + HC, post, HC);
        for (int i = 0; i < HC; i++)
            post[i] *= 2.0f;
        _mm512_storeu_ps(a->comb + (size_t)r * HC * HC,
                         sinkhorn4(_mm512_add_ps(_mm512_mul_ps(_mm512_loadu_ps(m + 2 * HC),
                                                               _mm512_set1_ps(a->scale[2])),
                                                 _mm512_loadu_ps(a->base + 2 * HC)),
                                   a->iters, a->hc_eps));
    }
    for (int i = 0; i < dim; i += 16) {
        __m512 sum = _mm512_setzero_ps();

        for (int j = 0; j < HC; j++)
            sum = _mm512_add_ps(sum, _mm512_mul_ps(_mm512_set1_ps(pre[j]),
                                                   load_bf16(x + (size_t)j * dim + i)));
        store_bf16(a->y + (size_t)r * dim + i, sum);
    }
}

static void
hc_pre_rows(const void *arg, int r0, int end)
{
    const struct hc_pre_args *a = arg;

    for (int r = r0; r < end; r++)
        hc_pre_row(a, r);
}

void
avx512_hc_pre(const struct hc_pre_args *a)
{
    if (a->hc != HC || a->dim % 16 != 0) {
        reference_hc_pre(a);
        return;
    }
    pool_run(a->rows, range_of((size_t)a->dim * HC), hc_pre_rows, a);
}

static void
hc_post_rows(const void *arg, int r0, int end)
{
    const struct hc_post_args *a = arg;
    const int dim = a->dim;

    for (int r = r0; r < end; r++) {
        const uint16_t *x = a->x + (size_t)r * HC * dim, *f = a->f + (size_t)r * dim;
        const float *post = a->post + (size_t)r * HC, *comb = a->comb + (size_t)r * HC * HC;
        uint16_t *out = a->out + (size_t)r * HC * dim;

        for (int i = 0; i < dim; i += 16) {
            const __m512 fi = load_bf16(f + i);
            __m512 old[HC];

            for (int s = 0; s < HC; s++)
                old[s] = load_bf16(x + (size_t)s * dim + i);
            for (int j = 0; j < HC; j++) {
                __m512 sum = _mm512_mul_ps(_mm512_set1_ps(comb[j]), old[0]);

                for (int s = 1; s < HC; s++)
                    sum = _mm512_add_ps(
                        sum, _mm512_mul_ps(_mm512_set1_ps(comb[s * HC + j]), old[s]));
                store_bf16(out + (size_t)j * dim + i,
                           _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(post[j]), fi), sum));
            }
        }
    }
}

void
avx512_hc_post(const struct hc_post_args *a)
{
    if (a->hc != HC || a->dim % 16 != 0) {
        reference_hc_post(a);
        return;
    }
    pool_run(a->rows, range_of((size_t)a->dim * HC), hc_post_rows, a);
}
