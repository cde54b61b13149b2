/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrix products on the device against sums in double precision, and the promise that a row's
 * bits depend on nothing but the row: alone, among others, in the experts' kernel. All of it for
 * matrices as a checkpoint has them and for packed ones.
 *
 * Tolerance: f32 sums in parts, |y - exact| <= (40 + in/32) 2^-24 sum|x w|; a bf16 result adds
 * half of its last place.
 */
#include "config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/fp.h"
#include "gpu/cuda/kernels.h"
#include "gpu/ops/moe.h"
#include "tests/kernels/cuda_test.h"
#include "tests/test.h"

struct shape {
    enum matrix_kind kind;
    int out, in;
};

struct weight {
    struct matrix m; /* host */
    struct matrix d; /* the same on the device */
};

static const struct shape shapes[] = {
    {MATRIX_BF16, 1, 32},     {MATRIX_BF16, 64, 384},   {MATRIX_BF16, 77, 160},
    {MATRIX_BF16, 130, 1024}, {MATRIX_BF16, 64, 4096},  {MATRIX_F32, 24, 1536},
    {MATRIX_F32, 4, 512},     {MATRIX_F32, 33, 32},     {MATRIX_FP8, 1, 32},
    {MATRIX_FP8, 128, 128},   {MATRIX_FP8, 300, 416},   {MATRIX_FP8, 17, 1056},
    {MATRIX_FP8, 64, 4096},   {MATRIX_FP8, 2100, 1024}, {MATRIX_FP4, 1, 32},
    {MATRIX_FP4, 128, 384},   {MATRIX_FP4, 50, 96},     {MATRIX_FP4, 209, 160},
    {MATRIX_FP4, 64, 4096},   {MATRIX_F32, 24, 16384},  {MATRIX_BF16, 16, 64},
    {MATRIX_FP8, 16, 64},     {MATRIX_FP8, 304, 448},   {MATRIX_FP8, 2112, 1024},
    {MATRIX_FP4, 16, 64},     {MATRIX_FP4, 208, 192},   {MATRIX_FP4, 1040, 2048},
};

static bool pack; /* what can be */

enum { N_SHAPES = sizeof shapes / sizeof shapes[0], MAX_ROWS = 75 };

static size_t
matrix_bytes(const struct matrix *m)
{
    const size_t n = (size_t)m->out * m->in;

    return m->kind == MATRIX_BF16  ? n * 2
           : m->kind == MATRIX_F32 ? n * 4
           : m->kind == MATRIX_FP8 ? n
                                   : n / 2;
}

static size_t
scale_bytes(const struct matrix *m)
{
    return m->kind == MATRIX_FP4
               ? (size_t)m->out * m->in / 32
               : ((size_t)m->out + 127) / 128 * (((size_t)m->in + 127) / 128);
}

static void
weight_send(struct weight *w)
{
    w->d = w->m;
    w->d.w = dev(w->m.w, matrix_bytes(&w->m));
    w->d.scale = w->m.scale != NULL ? dev(w->m.scale, scale_bytes(&w->m)) : NULL;
}

/* d becomes packed; whether a weight was no number. */
static int
weight_pack(struct weight *w)
{
    int *odd = dev(&(int){0}, sizeof *odd), *seen, bad;
    const size_t bytes = matrix_packed_bytes(&w->m);
    struct err e = {0};

    w->d.packed = dev_poison(bytes);
    if (w->m.kind == MATRIX_FP4)
        w->d.scale = (const uint8_t *)w->d.packed + matrix_bytes(&w->m);
    for (int at = 0, n; at < w->m.out; at += n) {
        const size_t line = matrix_bytes(&w->m) / (size_t)w->m.out;

        n = at == 0 && w->m.out > 32 ? 32 : w->m.out - at;
        done(matrix_pack_cuda(&rk, &w->d, at, n, (const uint8_t *)w->d.w + at * line,
                              w->m.kind == MATRIX_FP4
                                  ? (const uint8_t *)dev(w->m.scale, scale_bytes(&w->m)) +
                                        (size_t)at * w->m.in / 32
                                  : NULL,
                              odd, &e),
             &e);
    }
    free(fetch(w->d.packed, bytes));
    seen = fetch(odd, sizeof *odd);
    bad = *seen;
    free(seen);
    return bad;
}

static void
weight_make(struct weight *w, const struct shape *s)
{
    struct matrix m = {.kind = s->kind, .out = s->out, .in = s->in};
    uint8_t *codes = malloc(matrix_bytes(&m)), *scale = malloc(scale_bytes(&m));

    for (size_t i = 0; i < scale_bytes(&m); i++)
        scale[i] = (uint8_t)(120 + rnd() % 12);
    for (size_t i = 0; i < matrix_bytes(&m); i++) {
        codes[i] = (uint8_t)rnd();
        if (s->kind == MATRIX_FP8 && (codes[i] & 0x7f) == 0x7f)
            codes[i] ^= 1;
    }
    for (size_t i = 0; i < (size_t)s->out * s->in; i++) {
        if (s->kind == MATRIX_BF16)
            ((uint16_t *)(void *)codes)[i] = f32_to_bf16(rnd_float(1.3f));
        if (s->kind == MATRIX_F32)
            ((float *)(void *)codes)[i] = rnd_float(1.3f);
    }
    m.w = codes;
    m.scale = s->kind >= MATRIX_FP8 ? scale : NULL;
    if (m.scale == NULL)
        free(scale);
    *w = (struct weight){.m = m};
    weight_send(w);
    if (pack && matrix_packed_bytes(&m) > 0)
        assert_int_equal(weight_pack(w), 0);
}

static void
weight_free(struct weight *w)
{
    free((void *)(uintptr_t)w->m.w);
    free((void *)(uintptr_t)w->m.scale);
}

static double
element(const struct matrix *m, int o, int k)
{
    const size_t at = (size_t)o * m->in + k;
    const uint8_t *b = m->w;

    switch (m->kind) {
    case MATRIX_BF16: return (double)bf16_to_f32(((const uint16_t *)m->w)[at]);
    case MATRIX_F32: return (double)((const float *)m->w)[at];
    case MATRIX_FP8:
        return (double)e4m3_to_f32(b[at]) *
               (double)e8m0_to_f32(m->scale[o / 128 * ((m->in + 127) / 128) + k / 128]);
    case MATRIX_FP4:
        return (double)e2m1_to_f32((uint8_t)(b[at / 2] >> 4 * (k % 2))) *
               (double)e8m0_to_f32(m->scale[at / 32]);
    }
    return 0.0;
}

/* Elements of y [rows][stride] further from the exact sums than the tolerance. */
static int
count_wrong(const struct matrix *m, const uint16_t *x, int rows, int x_stride,
            const uint8_t *y, int y_stride, int f32)
{
    int wrong = 0;

    for (int r = 0; r < rows; r++) {
        for (int o = 0; o < m->out; o++) {
            const size_t at = (size_t)r * y_stride + o;
            const double v =
                f32 ? (double)((const float *)(const void *)y)[at]
                    : (double)bf16_to_f32(((const uint16_t *)(const void *)y)[at]);
            double exact = 0.0, size = 0.0, tolerance;

            for (int k = 0; k < m->in; k++) {
                const double p = element(m, o, k) *
                                 (double)bf16_to_f32(x[(size_t)r * x_stride + k]);

                exact += p;
                size += fabs(p);
            }
            tolerance = (40 + m->in / 32) * 0x1p-24 * size;
            if (!f32)
                tolerance += fabs(exact) * 0x1p-8;
            wrong += !(fabs(v - exact) <= tolerance);
        }
    }
    return wrong;
}

static void
test_linear_values(void **state)
{
    struct err e = {0};

    (void)state;
    for (int s = 0; s < N_SHAPES; s++) {
        const int out = shapes[s].out, in = shapes[s].in, pad = 5;
        const int rows = out * in > 1000000 ? 2 : 1 + s % 13, stride = in + 8;
        uint16_t *x = rnd_bf16((size_t)rows * stride, 1.3f);
        struct weight w;

        weight_make(&w, &shapes[s]);
        for (int f32 = 0; f32 < 2; f32++) {
            const size_t size = f32 ? 4 : 2, line = (size_t)(out + pad) * size;
            const struct linear_args a = {.w = &w.d,
                                          .x = dev(x, (size_t)rows * stride * 2),
                                          .y = dev_poison((size_t)rows * line),
                                          .rows = rows,
                                          .x_stride = stride,
                                          .y_stride = out + pad,
                                          .y_f32 = f32};
            uint8_t *y;

            done(linear_cuda(&rk, &a, 1, &e), &e);
            y = fetch(a.y, (size_t)rows * line);
            assert_int_equal(count_wrong(&w.m, x, rows, stride, y, out + pad, f32), 0);
            for (int r = 0; r < rows; r++) /* nothing behind a row's outputs is touched */
                for (size_t i = (size_t)out * size; i < line; i++)
                    assert_int_equal(y[(size_t)r * line + i], 0xa5);
            free(y);
        }
        free(x);
        weight_free(&w);
        tear_down(NULL);
    }
}

/* The tolerance must notice one weight with the wrong sign. */
static void
test_linear_notices(void **state)
{
    static const struct shape small[] = {{MATRIX_BF16, 32, 64},
                                         {MATRIX_F32, 32, 64},
                                         {MATRIX_FP8, 32, 64},
                                         {MATRIX_FP4, 32, 64}};
    struct err e = {0};

    (void)state;
    for (int s = 0; s < 4; s++) {
        const size_t unit = s == 0 ? 2 : s == 1 ? 4 : 1;
        uint16_t *x = rnd_bf16(64, 1.0f);
        struct weight w;
        uint8_t *top, *y;
        struct linear_args a = {
            .w = &w.d, .rows = 1, .x_stride = 64, .y_stride = 32, .y_f32 = 1};

        weight_make(&w, &small[s]);
        x[s == 3 ? 7 : 3] = 0x3f80;
        top = (uint8_t *)(uintptr_t)w.m.w + matrix_bytes(&w.m) / 32 * 7 + 3 * unit + unit -
              1;
        *top = (uint8_t)(s == 3 ? 0x60 : 0x42);
        weight_send(&w);
        if (pack && matrix_packed_bytes(&w.m) > 0)
            weight_pack(&w);
        a.x = dev(x, 128);
        a.y = dev_poison(128);
        done(linear_cuda(&rk, &a, 1, &e), &e);
        y = fetch(a.y, 128);
        assert_int_equal(count_wrong(&w.m, x, 1, 64, y, 32, 1), 0);
        *top ^= 0x80;
        assert_int_equal(count_wrong(&w.m, x, 1, 64, y, 32, 1), 1);
        free(x);
        free(y);
        weight_free(&w);
    }
}

/* All rows at once, in two jobs, and alone: the same bits. */
static void
test_linear_bits(void **state)
{
    struct err e = {0};

    (void)state;
    for (int s = 0; s < N_SHAPES; s++) {
        const int out = shapes[s].out, in = shapes[s].in, rows = MAX_ROWS;
        const size_t bytes = (size_t)rows * out * 4;
        uint16_t *x = rnd_bf16((size_t)rows * in, 1.3f), *at;
        struct linear_args a[2];
        uint8_t *whole, *parts, *alone;
        struct weight w;

        weight_make(&w, &shapes[s]);
        at = dev(x, (size_t)rows * in * 2);
        a[0] = (struct linear_args){.w = &w.d,
                                    .x = at,
                                    .y = dev_poison(bytes),
                                    .rows = rows,
                                    .x_stride = in,
                                    .y_stride = out,
                                    .y_f32 = 1};
        done(linear_cuda(&rk, a, 1, &e), &e);
        whole = fetch(a[0].y, bytes);
        a[0].y = dev_poison(bytes);
        a[0].rows = 11;
        a[1] = a[0];
        a[1].x = at + (size_t)11 * in;
        a[1].y = (float *)a[0].y + (size_t)11 * out;
        a[1].rows = rows - 11;
        done(linear_cuda(&rk, a, 2, &e), &e);
        parts = fetch(a[0].y, bytes);
        a[0].y = dev_poison(bytes);
        a[0].rows = 1;
        for (int r = 0; r < rows; r++) {
            a[1] = a[0];
            a[1].x = at + (size_t)r * in;
            a[1].y = (float *)a[0].y + (size_t)r * out;
            done(linear_cuda(&rk, a + 1, 1, &e), &e);
        }
        alone = fetch(a[0].y, bytes);
        assert_memory_equal(whole, parts, bytes);
        assert_memory_equal(whole, alone, bytes);
        free(whole);
        free(parts);
        free(alone);
        free(x);
        weight_free(&w);
        tear_down(NULL);
    }
}

/* Kernels for more and more rows: what a row gets is what it gets alone. */
static void
test_linear_rows(void **state)
{
    static const struct shape kinds[] = {
        {MATRIX_FP8, 304, 448}, {MATRIX_FP4, 208, 1024}, {MATRIX_BF16, 144, 384}};
    static const int rows[] = {9, 17, 33, 65, 130, 197};

    enum { MOST = 197 };

    struct err e = {0};

    (void)state;
    for (int s = 0; s < 3; s++) {
        const int out = kinds[s].out, in = kinds[s].in;
        const size_t row = (size_t)out * 2;
        uint16_t *x = rnd_bf16((size_t)MOST * in, 1.3f);
        uint8_t *alone, *got;
        struct weight w;

        weight_make(&w, &kinds[s]);
        struct linear_args a = {.w = &w.d,
                                .x = dev(x, (size_t)MOST * in * 2),
                                .y = dev_poison(MOST * row),
                                .rows = 1,
                                .x_stride = in,
                                .y_stride = out},
                           one = a;

        for (int r = 0; r < MOST; r++) {
            one.x = a.x + (size_t)r * in;
            one.y = (uint16_t *)a.y + (size_t)r * out;
            done(linear_cuda(&rk, &one, 1, &e), &e);
        }
        alone = fetch(a.y, MOST * row);
        for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
            a.rows = rows[i];
            a.y = dev_poison(MOST * row);
            done(linear_cuda(&rk, &a, 1, &e), &e);
            got = fetch(a.y, MOST * row);
            assert_memory_equal(got, alone, (size_t)a.rows * row);
            for (size_t b = (size_t)a.rows * row; b < MOST * row; b++)
                assert_int_equal(got[b], 0xa5); /* poison: nothing behind them */
            free(got);
        }
        free(alone);
        free(x);
        weight_free(&w);
        tear_down(NULL);
    }
}

/* NaN and infinity stay in the row and the output that they belong to. */
static void
test_linear_not_finite(void **state)
{
    static const struct shape s = {MATRIX_FP8, 40, 256}, s4 = {MATRIX_FP4, 40, 256};
    struct err e = {0};
    uint16_t *x = rnd_bf16(9 * 256, 1.0f);
    struct weight w, w4;
    uint8_t *codes, *scale;
    float *y, *y4;

    (void)state;
    weight_make(&w, &s);
    weight_make(&w4, &s4);
    codes = (uint8_t *)(uintptr_t)w.m.w;
    scale = (uint8_t *)(uintptr_t)w4.m.scale;
    codes[17 * 256 + 200] = 0xff;    /* NaN */
    memset(codes + 5 * 256, 1, 256); /* subnormal codes */
    codes[3 * 256 + 9] = 0x38;
    scale[21 * 8 + 3] = 255; /* NaN */
    scale[22 * 8 + 3] = 0;   /* 2^-127: subnormal in f32 */
    x[2 * 256 + 9] = 0x7f80; /* inf */
    x[4 * 256 + 9] = 0x7fc0; /* NaN */
    weight_send(&w);
    weight_send(&w4);

    struct linear_args a[2] = {{.w = &w.d, .rows = 9, .x_stride = 256, .y_stride = 40}};

    a[0].y_f32 = 1;
    a[0].x = dev(x, 9 * 256 * 2);
    a[1] = a[0];
    a[1].w = &w4.d;
    a[0].y = dev_poison(9 * 40 * 4);
    a[1].y = dev_poison(9 * 40 * 4);
    done(linear_cuda(&rk, a, 2, &e), &e);
    y = fetch(a[0].y, 9 * 40 * 4);
    y4 = fetch(a[1].y, 9 * 40 * 4);
    for (int r = 0; r < 9; r++) {
        for (int o = 0; o < 40; o++) {
            if (r != 2)
                assert_int_equal(isnan(y[r * 40 + o]) != 0, r == 4 || o == 17);
            if (r != 2 && r != 4)
                assert_int_equal(isnan(y4[r * 40 + o]) != 0, o == 21);
        }
    }
    assert_true(isinf(y[2 * 40 + 3]));
    free(x);
    free(y);
    free(y4);
    weight_free(&w);
    weight_free(&w4);
}

/* Packing says when a weight is no number: such a matrix is not run. */
static void
test_pack_not_finite(void **state)
{
    static const struct shape s[] = {{MATRIX_FP8, 32, 128}, {MATRIX_FP4, 32, 128}};

    (void)state;
    for (int i = 0; i < 2; i++) {
        struct weight w;

        weight_make(&w, &s[i]);
        assert_int_equal(weight_pack(&w), 0);
        if (i == 0)
            ((uint8_t *)(uintptr_t)w.m.w)[31 * 128 + 127] = 0xff;
        else
            ((uint8_t *)(uintptr_t)w.m.scale)[31 * 4 + 3] = 255;
        weight_send(&w);
        assert_int_equal(weight_pack(&w), 1);
        weight_free(&w);
    }
}

static int
set_packed(void **state)
{
    (void)state;
    pack = true;
    return 0;
}

static int
set_plain(void **state)
{
    pack = false;
    return tear_down(state);
}

/* Experts' matrices on gathered rows have the bits of linear on each row alone. */
static void
test_experts(void **state)
{
    static const struct shape kinds[] = {
        {MATRIX_FP4, 96, 128}, {MATRIX_BF16, 48, 1024}, {MATRIX_FP8, 144, 256}};

    enum { EXPERTS = 8, ROWS = 40, PLACES = 199 };

    static const int first[EXPERTS + 1] = {0, 1, 1, 10, 27, 27, 35, 135, 199};
    static const int active[EXPERTS + 1] = {6, 0, 2, 3, 5, 6, 7};
    static const int many[] = {0, 2, 12, 25}; /* a hint: no part of the result */

    enum { WAYS = sizeof many / sizeof many[0] };

    struct err e = {0};

    (void)state;
    for (int s = 0; s < 3; s++) {
        const int in = kinds[s].in, out = kinds[s].out;
        const size_t bytes = (size_t)PLACES * out * 2;
        uint16_t *x = rnd_bf16((size_t)ROWS * in, 1.0f), *got[WAYS][2], *want;
        struct weight w[2][EXPERTS];
        struct matrix list[2][EXPERTS];
        struct expert_args a;
        int source[PLACES];

        for (int i = 0; i < PLACES; i++)
            source[i] = (int)(rnd() % ROWS);
        for (int m = 0; m < 2; m++)
            for (int i = 0; i < EXPERTS; i++) {
                weight_make(&w[m][i], &kinds[s]);
                list[m][i] = w[m][i].d;
            }
        a = (struct expert_args){
            .shape = list[0][0],
            .w = {dev(list[0], sizeof list[0]), dev(list[1], sizeof list[1])},
            .first = dev(first, sizeof first),
            .source = dev(source, sizeof source),
            .active = dev(active, sizeof active),
            .x = dev(x, (size_t)ROWS * in * 2),
            .n_mats = 2,
            .max_active = EXPERTS};
        for (int i = 0; i < WAYS; i++) {
            a.many = many[i];
            for (int m = 0; m < 2; m++)
                a.y[m] = dev_poison(bytes);
            done(expert_linear_cuda(&rk, &a, &e), &e);
            for (int m = 0; m < 2; m++)
                got[i][m] = fetch(a.y[m], bytes);
        }
        for (int m = 0; m < 2; m++) {
            uint16_t *y = dev_poison(bytes);

            for (int i = 0; i < EXPERTS; i++)
                for (int p = first[i]; p < first[i + 1]; p++)
                    done(
                        linear_cuda(&rk,
                                    &(struct linear_args){.w = &list[m][i],
                                                          .x = a.x + (size_t)source[p] * in,
                                                          .y = y + (size_t)p * out,
                                                          .rows = 1,
                                                          .x_stride = in,
                                                          .y_stride = out},
                                    1, &e),
                        &e);
            want = fetch(y, bytes);
            for (int i = 0; i < WAYS; i++) {
                assert_memory_equal(got[i][m], want, bytes);
                free(got[i][m]);
            }
            free(want);
            for (int i = 0; i < EXPERTS; i++)
                weight_free(&w[m][i]);
        }
        free(x);
        tear_down(NULL);
    }
}

/* The shared expert's product beside the others': of each row as by linear, and so are they. */
static void
test_expert_beside(void **state)
{
    static const struct shape kinds[][2] = {
        {{MATRIX_FP4, 272, 128}, {MATRIX_FP8, 144, 256}},
        {{MATRIX_FP8, 48, 256}, {MATRIX_FP8, 400, 128}},
        {{MATRIX_BF16, 64, 192}, {MATRIX_BF16, 272, 64}}};
    static const int first[] = {0, 0, 37}, active[] = {1, 1, 0}, many[] = {0, 2, 12, 25};

    enum { ROWS = 45, PLACES = 37 };

    struct err e = {0};

    (void)state;
    for (int s = 0; s < 3; s++) {
        const struct shape *k = kinds[s];
        const size_t bytes[] = {(size_t)PLACES * k[0].out * 2, (size_t)ROWS * k[1].out * 2};
        struct weight w[2];
        uint16_t *x[2], *y[2], *want[2], *got;

        for (int i = 0; i < 2; i++) {
            const int rows = i == 0 ? PLACES : ROWS;
            uint16_t *rows_of = rnd_bf16((size_t)rows * k[i].in, 1.0f);

            weight_make(&w[i], &k[i]);
            x[i] = dev(rows_of, (size_t)rows * k[i].in * 2);
            y[i] = dev_poison(bytes[i]);
            for (int r = 0; r < rows; r++)
                done(linear_cuda(&rk,
                                 &(struct linear_args){.w = &w[i].d,
                                                       .x = x[i] + (size_t)r * k[i].in,
                                                       .y = y[i] + (size_t)r * k[i].out,
                                                       .rows = 1,
                                                       .x_stride = k[i].in,
                                                       .y_stride = k[i].out},
                                 1, &e),
                     &e);
            want[i] = fetch(y[i], bytes[i]);
            free(rows_of);
        }
        const struct matrix list[2] = {w[0].d, w[0].d};
        struct expert_args a = {.shape = w[0].d,
                                .w = {dev(list, sizeof list)},
                                .first = dev(first, sizeof first),
                                .active = dev(active, sizeof active),
                                .x = x[0],
                                .n_mats = 1,
                                .max_active = 2,
                                .one = w[1].d,
                                .x_one = x[1],
                                .rows_one = ROWS};

        for (size_t i = 0; i < sizeof many / sizeof many[0]; i++) {
            a.many = many[i];
            a.y[0] = dev_poison(bytes[0]);
            a.y_one = dev_poison(bytes[1]);
            done(expert_linear_cuda(&rk, &a, &e), &e);
            got = fetch(a.y[0], bytes[0]);
            assert_memory_equal(got, want[0], bytes[0]);
            free(got);
            got = fetch(a.y_one, bytes[1]);
            assert_memory_equal(got, want[1], bytes[1]);
            free(got);
        }
        for (int i = 0; i < 2; i++) {
            free(want[i]);
            weight_free(&w[i]);
        }
        tear_down(NULL);
    }
}

/* So many outputs that blocks have 128 rows each: the bits of 64 at a time. */
static void
test_linear_wide(void **state)
{
    static const struct shape kinds[] = {
        {MATRIX_FP8, 8720, 128}, {MATRIX_FP4, 8720, 64}, {MATRIX_BF16, 8720, 64}};

    enum { ROWS = 197, PART = 64 };

    struct err e = {0};

    (void)state;
    for (int s = 0; s < 3; s++) {
        const int out = kinds[s].out, in = kinds[s].in;
        const size_t bytes = (size_t)ROWS * out * 2;
        uint16_t *x = rnd_bf16((size_t)ROWS * in, 1.3f), *got, *want;
        struct weight w;

        weight_make(&w, &kinds[s]);
        struct linear_args a = {.w = &w.d,
                                .x = dev(x, (size_t)ROWS * in * 2),
                                .y = dev_poison(bytes),
                                .rows = ROWS,
                                .x_stride = in,
                                .y_stride = out},
                           part = a;

        uint16_t *parts = dev_poison(bytes);

        done(linear_cuda(&rk, &a, 1, &e), &e);
        for (int r = 0; r < ROWS; r += PART) {
            part.x = a.x + (size_t)r * in;
            part.y = parts + (size_t)r * out;
            part.rows = ROWS - r < PART ? ROWS - r : PART;
            done(linear_cuda(&rk, &part, 1, &e), &e);
        }
        got = fetch(a.y, bytes);
        want = fetch(parts, bytes);
        assert_memory_equal(got, want, bytes);
        free(got);
        free(want);
        free(x);
        weight_free(&w);
        tear_down(NULL);
    }
}

enum { USED = 4, FEW = 6, TABLE = 3 };

/* Experts of one row: the arguments of all in one, and what the operations one by one make of the
 * same in `gate`; `last`: what both find in it. */
static void
one_by_one(const struct experts_row_args *a, const uint16_t *last)
{
    const int k = a->route.k, dim = a->shape.out;
    const size_t bytes = (size_t)dim * 2;
    struct err e = {0};
    struct expert_args w = {.shape = a->shape,
                            .w = {a->w[0], a->w[1]},
                            .first = a->route.first,
                            .source = a->route.source,
                            .active = a->route.active,
                            .x = a->x,
                            .y = {a->gate, (uint16_t *)(uintptr_t)a->up},
                            .n_mats = 2,
                            .max_active = k,
                            .one_row = 1};
    const struct swiglu_args s = {.gate = a->gate,
                                  .up = a->up,
                                  .weight = a->route.slot_weight,
                                  .a = a->gate,
                                  .rows = k + 1,
                                  .weighted = k,
                                  .dim = dim,
                                  .limit = a->limit};

    cuda_ok(cudaMemcpy(a->gate + (size_t)k * dim, last, bytes, cudaMemcpyHostToDevice));
    done(route_cuda(&rk, &a->route, &e), &e);
    done(expert_linear_cuda(&rk, &w, &e), &e);
    done(swiglu_cuda(&rk, &s, &e), &e);
}

static void
in_one(const struct experts_row_args *a, const uint16_t *last)
{
    struct err e = {0};

    cuda_ok(cudaMemcpy(a->gate + (size_t)a->route.k * a->shape.out, last,
                       (size_t)a->shape.out * 2, cudaMemcpyHostToDevice));
    done(experts_row_cuda(&rk, a, &e), &e);
}

/* Whether two that have run left the same. */
static bool
same_left(const struct experts_row_args *a, const struct experts_row_args *b)
{
    const size_t k = (size_t)a->route.k, n = (size_t)a->route.n_experts;

    const struct {
        const void *a, *b;
        size_t bytes;
    } of[] = {{a->gate, b->gate, (k + 1) * (size_t)a->shape.out * 2},
              {a->route.chosen, b->route.chosen, k * 4},
              {a->route.slot, b->route.slot, k * 4},
              {a->route.source, b->route.source, k * 4},
              {a->route.first, b->route.first, (n + 1) * 4},
              {a->route.active, b->route.active, (k + 1) * 4},
              {a->route.weight, b->route.weight, k * 4},
              {a->route.slot_weight, b->route.slot_weight, k * 4}};

    bool same = true;

    for (size_t i = 0; i < sizeof of / sizeof of[0]; i++) {
        void *x = fetch(of[i].a, of[i].bytes), *y = fetch(of[i].b, of[i].bytes);

        same &= memcmp(x, y, of[i].bytes) == 0;
        free(x);
        free(y);
    }
    return same;
}

static struct experts_row_args
with_outputs(struct experts_row_args a)
{
    const size_t k = (size_t)a.route.k;

    a.gate = dev_poison((k + 1) * (size_t)a.shape.out * 2);
    a.route.chosen = dev_poison(k * 4);
    a.route.slot = dev_poison(k * 4);
    a.route.source = dev_poison(k * 4);
    a.route.first = dev_poison(((size_t)a.route.n_experts + 1) * 4);
    a.route.active = dev_poison(((size_t)a.route.n_experts + 1) * 4);
    a.route.weight = dev_poison(k * 4);
    a.route.slot_weight = dev_poison(k * 4);
    a.second = dev_poison(k * sizeof *a.second);
    return a;
}

/* Products of a matrix of each chosen expert with k rows, found by place or by the order of rows. */
static void *
second_ones(const struct experts_row_args *a, bool by_place)
{
    const size_t bytes = (size_t)a->route.k * (size_t)a->shape.out * 2;
    struct err e = {0};
    struct expert_args w = {.shape = a->shape,
                            .w = {a->w2},
                            .first = a->route.first,
                            .active = a->route.active,
                            .place = by_place ? a->second : NULL,
                            .x = a->x,
                            .y = {dev_poison(bytes)},
                            .n_mats = 1,
                            .max_active = a->route.k,
                            .one_row = 1};

    done(expert_linear_cuda(&rk, &w, &e), &e);
    return fetch(w.y[0], bytes);
}

/* The experts of a row in one kernel have the bits of route, products and swiglu one by one, for
 * all kinds of gates; a logit that is another gives others. */
static void
test_experts_row(void **state)
{
    enum { ANY, EQUAL, ODD, NONE, BY_TABLE, WHATS };

    static const struct {
        struct shape shape;
        int experts;
    } c[] = {{{MATRIX_FP4, 112, 128}, 256},
             {{MATRIX_FP8, 304, 448}, 77},
             {{MATRIX_BF16, 64, 896}, 8},
             {{MATRIX_FP4, 1040, 2048}, 384},
             {{MATRIX_FP4, 16, 64}, 500}};

    (void)state;
    for (size_t t = 0; t < sizeof c / sizeof c[0]; t++) {
        const int in = c[t].shape.in, out = c[t].shape.out, n = c[t].experts;
        uint16_t *x = rnd_bf16((size_t)USED * (size_t)in, 1.0f),
                 *last = rnd_bf16((size_t)out, 3.0f);
        uint16_t *up = rnd_bf16((size_t)(USED + 1) * (size_t)out, 3.0f);
        struct matrix *list[2] = {malloc((size_t)n * sizeof **list),
                                  malloc((size_t)n * sizeof **list)};
        struct weight w[2][FEW];
        struct experts_row_args a;

        for (int m = 0; m < 2; m++) {
            for (int i = 0; i < FEW; i++)
                weight_make(&w[m][i], &c[t].shape);
            for (int i = 0; i < n; i++)
                list[m][i] = w[m][i % FEW].d;
        }
        a = (struct experts_row_args){
            .shape = list[0][0],
            .w = {dev(list[0], (size_t)n * sizeof **list),
                  dev(list[1], (size_t)n * sizeof **list)},
            .x = dev(x, (size_t)USED * (size_t)in * 2),
            .up = dev(up, (size_t)(USED + 1) * (size_t)out * 2),
            .route = {.rows = 1, .n_experts = n, .k = USED, .scale = 1.5f},
            .limit = 2.0f};
        a.w2 = a.w[0];
        assert_true(experts_row_can(&a.shape, 1, n, USED));
        for (int what = 0; what < WHATS; what++) {
            float *gate = rnd_f32((size_t)n, 3.0f), *bias = rnd_f32((size_t)n, 0.3f);
            const int32_t table[TABLE * USED] = {1, 2, 3, 4, n - 1, 0, 5, 2, 5, 6, 3, 1};
            const struct dev_row row = {.token = 1};
            struct experts_row_args one, all;
            void *by_order, *by_place;

            for (int i = 0; i < n; i++) {
                if (what == EQUAL)
                    gate[i] = (float)(i % 3);
                if (what == NONE || (what == ODD && i % 3 == 0))
                    gate[i] = i % 2 != 0 ? NAN : -INFINITY;
                bias[i] = what == EQUAL ? 0.0f : bias[i];
            }
            a.route.gate = dev(gate, (size_t)n * 4);
            a.route.bias = what == BY_TABLE ? NULL : dev(bias, (size_t)n * 4);
            a.route.table = dev(table, sizeof table);
            a.route.token = dev(&row, sizeof row);
            one = with_outputs(a);
            all = with_outputs(a);
            in_one(&all, last);
            one_by_one(&one, last);
            assert_true(same_left(&all, &one));
            by_order = second_ones(&one, false);
            by_place = second_ones(&all, true);
            assert_memory_equal(by_place, by_order, (size_t)USED * (size_t)out * 2);
            free(by_order);
            free(by_place);
            for (int i = 0; i < n && what != NONE; i++)
                gate[i] += 0.25f * (float)(i % 5);
            all.route.gate = dev(gate, (size_t)n * 4);
            in_one(&all, last);
            assert_true(what == NONE || !same_left(&all, &one));
            free(gate);
            free(bias);
        }
        for (int m = 0; m < 2; m++) {
            for (int i = 0; i < FEW; i++)
                weight_free(&w[m][i]);
            free(list[m]);
        }
        free(x);
        free(last);
        free(up);
        tear_down(NULL);
    }
}

#define PACKED(fn)                                      \
    {                                                   \
        "packed: " #fn, fn, set_packed, set_plain, NULL \
    }
#define TEST(fn) cmocka_unit_test_teardown(fn, tear_down)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_linear_values),   TEST(test_linear_notices),
        TEST(test_linear_bits),     TEST(test_linear_not_finite),
        TEST(test_experts),         PACKED(test_linear_rows),
        PACKED(test_linear_values), PACKED(test_linear_notices),
        PACKED(test_linear_bits),   PACKED(test_experts),
        PACKED(test_experts_row),   TEST(test_pack_not_finite),
        PACKED(test_expert_beside), PACKED(test_linear_wide),
    };
    struct err e = {0};
    int failed;

    if (rank_open(&rk, &e) == -1) {
        printf("1..0 # SKIP %s\n", e.text);
        return 0;
    }
    failed = cmocka_run_group_tests_name("cuda_linear", tests, NULL, NULL);
    rank_close(&rk);
    return failed;
}
