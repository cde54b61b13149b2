/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The matrix products of every table of operations that this processor runs, against sums in
 * double precision, and the promise that a row's bits depend on nothing but the row.
 *
 * Tolerance: a sum in blocks of 128 rounds each term at most 128 + in/128 times, so
 * |y - exact| <= (130 + in/128) 2^-24 sum|x w|; a bf16 result adds half of its last place.
 */
#include "config.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/fp.h"
#include "gpu/cpu/pool.h"
#include "tests/kernels/cpu_tables.h"

struct shape {
    enum matrix_kind kind;
    int out, in;
};

static const struct shape shapes[] = {
    {MATRIX_BF16, 1, 2},    {MATRIX_BF16, 64, 384},  {MATRIX_BF16, 77, 130},
    {MATRIX_BF16, 16, 7},   {MATRIX_BF16, 130, 512}, {MATRIX_F32, 24, 1536},
    {MATRIX_F32, 4, 512},   {MATRIX_F32, 33, 130},   {MATRIX_F32, 5, 3},
    {MATRIX_FP8, 1, 4},     {MATRIX_FP8, 128, 128},  {MATRIX_FP8, 300, 388},
    {MATRIX_FP8, 17, 1000}, {MATRIX_FP8, 9, 101},    {MATRIX_FP4, 1, 32},
    {MATRIX_FP4, 128, 384}, {MATRIX_FP4, 50, 96},    {MATRIX_FP4, 209, 160},
    {MATRIX_FP8, 64, 4096}, {MATRIX_FP4, 64, 4096},  {MATRIX_BF16, 64, 4096},
};

enum { N_SHAPES = sizeof shapes / sizeof shapes[0], MAX_ROWS = 70, PAD = 5 };

struct weight {
    struct matrix m;
    uint8_t *w, *scale;
};

static uint32_t
rnd(void)
{
    static uint64_t s = 88172645463325252ull;

    s ^= s << 13;
    s ^= s >> 7;
    s ^= s << 17;
    return (uint32_t)(s >> 16);
}

/* About normal, of very different sizes now and then. */
static float
rnd_float(void)
{
    float f = (float)(int)(rnd() % 2001 - 1000) / 777.0f;

    return rnd() % 16 == 0 ? ldexpf(f, (int)(rnd() % 20) - 10) : f;
}

static size_t
row_bytes(const struct matrix *m)
{
    return m->kind == MATRIX_BF16  ? (size_t)m->in * 2
           : m->kind == MATRIX_F32 ? (size_t)m->in * 4
           : m->kind == MATRIX_FP8 ? (size_t)m->in
                                   : (size_t)m->in / 2;
}

static void
weight_make(struct weight *w, const struct shape *s)
{
    const size_t n = (size_t)s->out * s->in;
    const size_t n_scales = s->kind == MATRIX_FP4 ? n / 32
                                                  : ((size_t)s->out + 127) / 128 *
                                                        (((size_t)s->in + 127) / 128);

    *w = (struct weight){.m = {.kind = s->kind, .out = s->out, .in = s->in}};
    w->w = malloc(n * 4);
    w->scale = malloc(n_scales);
    for (size_t i = 0; i < n_scales; i++)
        w->scale[i] = (uint8_t)(120 + rnd() % 12);
    for (size_t i = 0; i < (size_t)s->out * row_bytes(&w->m); i++) {
        w->w[i] = (uint8_t)rnd();
        if (s->kind == MATRIX_FP8 && (w->w[i] & 0x7f) == 0x7f)
            w->w[i] ^= 1;
    }
    for (size_t i = 0; i < n; i++) {
        if (s->kind == MATRIX_BF16)
            ((uint16_t *)w->w)[i] = f32_to_bf16(rnd_float());
        if (s->kind == MATRIX_F32)
            ((float *)w->w)[i] = rnd_float();
    }
    w->m.w = w->w;
    w->m.scale = s->kind >= MATRIX_FP8 ? w->scale : NULL;
}

static void
weight_pack(struct weight *w, const struct cpu_ops *t)
{
    const size_t bytes = t->packed_bytes(&w->m);

    free(w->m.packed);
    w->m.packed = bytes > 0 ? aligned_alloc(64, (bytes + 63) / 64 * 64) : NULL;
    if (bytes > 0)
        t->pack(&w->m, w->m.packed);
}

static void
weight_free(struct weight *w)
{
    free(w->m.packed);
    free(w->w);
    free(w->scale);
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

static uint16_t *
make_x(int rows, int stride)
{
    uint16_t *x = malloc((size_t)rows * stride * 2);

    for (size_t i = 0; i < (size_t)rows * stride; i++)
        x[i] = f32_to_bf16(rnd_float());
    return x;
}

/* How many elements of y are further from the exact sums than the tolerance. */
static int
count_wrong(const struct linear_args *a)
{
    int wrong = 0;

    for (int r = 0; r < a->rows; r++) {
        for (int o = 0; o < a->w->out; o++) {
            const size_t at = (size_t)r * a->y_stride + o;
            const double y = a->y_f32 ? (double)((float *)a->y)[at]
                                      : (double)bf16_to_f32(((uint16_t *)a->y)[at]);
            double exact = 0.0, size = 0.0, tolerance;

            for (int k = 0; k < a->w->in; k++) {
                const double p = element(a->w, o, k) *
                                 (double)bf16_to_f32(a->x[(size_t)r * a->x_stride + k]);

                exact += p;
                size += fabs(p);
            }
            tolerance = (130 + a->w->in / 128) * 0x1p-24 * size;
            if (!a->y_f32)
                tolerance += fabs(exact) * 0x1p-8;
            wrong += !(fabs(y - exact) <= tolerance);
        }
    }
    return wrong;
}

static void
test_values(void **state)
{
    (void)state;
    for (int t = 0; t < cpu_tables_n(); t++) {
        const struct cpu_ops *ops = cpu_table(t);

        for (int s = 0; s < N_SHAPES; s++) {
            struct weight w;
            const int out = shapes[s].out, in = shapes[s].in, rows = 1 + s % 13;
            uint16_t *x;
            uint8_t *y = malloc((size_t)rows * (out + PAD) * 4);

            weight_make(&w, &shapes[s]);
            weight_pack(&w, ops);
            x = make_x(rows, in + 3);
            for (int f32 = 0; f32 < 2; f32++) {
                const struct linear_args a = {.w = &w.m,
                                              .x = x,
                                              .y = y,
                                              .rows = rows,
                                              .x_stride = in + 3,
                                              .y_stride = out + PAD,
                                              .y_f32 = f32};
                const size_t size = f32 ? 4 : 2, line = (size_t)(out + PAD) * size;

                memset(y, 0xa5, (size_t)rows * line);
                ops->linear(&a, 1);
                assert_int_equal(count_wrong(&a), 0);
                for (int r = 0; r < rows;
                     r++) /* nothing behind a row's outputs is touched */
                    for (size_t i = (size_t)out * size; i < line; i++)
                        assert_int_equal(y[(size_t)r * line + i], 0xa5);
            }
            free(x);
            free(y);
            weight_free(&w);
        }
    }
}

/* The tolerance must notice one weight that is off by a bit of its code: a sum over few inputs,
 * of which that weight is one. */
static void
test_notices_a_wrong_weight(void **state)
{
    (void)state;
    for (int t = 0; t < cpu_tables_n(); t++) {
        static const struct shape small[] = {{MATRIX_BF16, 20, 32},
                                             {MATRIX_F32, 20, 32},
                                             {MATRIX_FP8, 20, 32},
                                             {MATRIX_FP4, 20, 32}};

        for (int s = 0; s < 4; s++) {
            struct weight w;
            uint16_t *x = make_x(1, 32);
            float y[20];
            struct linear_args a = {.w = &w.m,
                                    .x = x,
                                    .y = y,
                                    .rows = 1,
                                    .x_stride = 32,
                                    .y_stride = 20,
                                    .y_f32 = 1};
            const size_t unit = s == 0 ? 2 : s == 1 ? 4 : 1;
            uint8_t *top;

            weight_make(&w, &small[s]);
            weight_pack(&w, cpu_table(t));
            cpu_table(t)->linear(&a, 1);
            assert_int_equal(count_wrong(&a), 0);

            /* The matrix now differs from what was packed (or used) in the sign of one weight. */
            top = &w.w[7 * row_bytes(&w.m) + 3 * unit + unit - 1];
            x[s == 3 ? 7 : 3] = 0x3f80;
            *top = (uint8_t)(s == 3 ? 0x60 : 0x42);
            weight_pack(&w, cpu_table(t));
            cpu_table(t)->linear(&a, 1);
            assert_int_equal(count_wrong(&a), 0);
            *top ^= 0x80;
            assert_int_equal(count_wrong(&a), 1);
            free(x);
            weight_free(&w);
        }
    }
}

/* Rows 1..70 at once, alone, and among other jobs with 1, 2 and 3 threads: the same bits. */
static void
test_row_bits(void **state)
{
    (void)state;
    for (int t = 0; t < cpu_tables_n(); t++) {
        const struct cpu_ops *ops = cpu_table(t);

        for (int s = 0; s < N_SHAPES; s++) {
            const int out = shapes[s].out, in = shapes[s].in;
            const int f32 = s % 2, max = ops == cpu_table(0) || in > 2000 ? 19 : MAX_ROWS;
            const size_t line = (size_t)out * 4;
            uint16_t *x = make_x(max, in);
            uint8_t *alone = calloc((size_t)max, line), *y = calloc((size_t)max, line);
            struct weight w;

            weight_make(&w, &shapes[s]);
            weight_pack(&w, ops);
            pool_set_threads(1);
            for (int r = 0; r < max; r++)
                ops->linear(&(struct linear_args){.w = &w.m,
                                                  .x = x + (size_t)r * in,
                                                  .y = alone + (size_t)r * line,
                                                  .rows = 1,
                                                  .x_stride = in,
                                                  .y_stride = out * (2 - f32),
                                                  .y_f32 = f32},
                            1);
            for (int rows = 1; rows <= max; rows++) {
                const int first = (int)(rnd() % (uint32_t)(max - rows + 1));
                const int cut = (int)(rnd() % (uint32_t)(rows + 1));
                struct linear_args a[2] = {{.w = &w.m,
                                            .x = x + (size_t)first * in,
                                            .y = y,
                                            .rows = cut,
                                            .x_stride = in,
                                            .y_stride = out * (2 - f32),
                                            .y_f32 = f32}};

                a[1] = a[0];
                a[1].x += (size_t)cut * in;
                a[1].y = y + (size_t)cut * line;
                a[1].rows = rows - cut;
                memset(y, 0x5a, (size_t)max * line);
                pool_set_threads(1 + rows % 3);
                ops->linear(a, 2);
                for (int r = 0; r < rows; r++)
                    assert_memory_equal(y + (size_t)r * line,
                                        alone + (size_t)(first + r) * line,
                                        (size_t)out * (f32 ? 4 : 2));
            }
            pool_set_threads(2);
            free(x);
            free(y);
            free(alone);
            weight_free(&w);
        }
    }
}

/* Infinities and NaN stay in the row and the output that they belong to. */
static void
test_not_finite(void **state)
{
    (void)state;
    for (int t = 0; t < cpu_tables_n(); t++) {
        const struct cpu_ops *ops = cpu_table(t);
        const struct shape s = {MATRIX_FP8, 40, 256}, s4 = {MATRIX_FP4, 40, 256};
        struct weight w, w4;
        uint16_t *x = make_x(9, 256);
        float y[9 * 40], y4[9 * 40];
        const struct linear_args a[2] = {{.w = &w.m,
                                          .x = x,
                                          .y = y,
                                          .rows = 9,
                                          .x_stride = 256,
                                          .y_stride = 40,
                                          .y_f32 = 1},
                                         {.w = &w4.m,
                                          .x = x,
                                          .y = y4,
                                          .rows = 9,
                                          .x_stride = 256,
                                          .y_stride = 40,
                                          .y_f32 = 1}};

        weight_make(&w, &s);
        weight_make(&w4, &s4);
        w.w[17 * 256 + 200] = 0xff;    /* NaN */
        w4.scale[21 * 8 + 3] = 255;    /* NaN */
        w4.scale[22 * 8 + 3] = 0;      /* 2^-127: subnormal in f32 */
        memset(w.w + 5 * 256, 1, 256); /* subnormal codes */
        x[2 * 256 + 9] = 0x7f80;       /* inf */
        x[4 * 256 + 9] = 0x7fc0;       /* NaN */
        w.w[3 * 256 + 9] = 0x38;
        weight_pack(&w, ops);
        weight_pack(&w4, ops);
        ops->linear(a, 2);
        for (int r = 0; r < 9; r++) {
            for (int o = 0; o < 40; o++) {
                const bool row_ok = r != 2 && r != 4;

                if (row_ok || r == 4)
                    assert_int_equal(isnan(y[r * 40 + o]) != 0, r == 4 || o == 17);
                if (row_ok)
                    assert_int_equal(isnan(y4[r * 40 + o]) != 0, o == 21);
            }
        }
        assert_true(isinf(y[2 * 40 + 3]));
        x[2 * 256 + 9] = x[4 * 256 + 9] = 0;
        w.w[17 * 256 + 200] = 0;
        w4.scale[21 * 8 + 3] = 127;
        weight_pack(&w, ops);
        weight_pack(&w4, ops);
        ops->linear(a, 2);
        assert_int_equal(count_wrong(&a[0]), 0);
        assert_int_equal(count_wrong(&a[1]), 0);
        free(x);
        weight_free(&w);
        weight_free(&w4);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_notices_a_wrong_weight),
        cmocka_unit_test(test_row_bits),
        cmocka_unit_test(test_not_finite),
    };

    return cmocka_run_group_tests_name("cpu_linear", tests, NULL, NULL);
}
