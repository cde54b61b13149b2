/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every operation but the matrix products, of every table that this processor runs, against the
 * reference table: odd shapes, extremes, infinities and NaN; outputs poisoned before.
 *
 * What may differ. act_quant, index_quant, index_scores and rope: nothing, each step is exact
 * or rounds at the same places. rmsnorm, head_norm, hc and swiglu sum or exponentiate in another
 * order, in f32: one place of bf16 (2^-8), two for head_norm, whose every step is rounded to
 * bf16; hc coefficients 1e-5. Attention: probabilities are rounded to bf16, and one of them may
 * fall to the other side: 2^-8 of the largest value under the softmax.
 */
#include "config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fp.h"
#include "gpu/cpu/kvrow.h"
#include "gpu/cpu/pool.h"
#include "tests/kernels/cpu_tables.h"

static const struct cpu_ops *const ref = &cpu_ops_reference;

static uint32_t
rnd(void)
{
    static uint64_t s = 88172645463325252ull;

    s ^= s << 13;
    s ^= s >> 7;
    s ^= s << 17;
    return (uint32_t)(s >> 16);
}

static float
rnd_float(float size)
{
    return size * (float)(int)(rnd() % 20001 - 10000) / 10000.0f;
}

static uint16_t *
rnd_bf16(size_t n, float size)
{
    uint16_t *x = malloc(n * 2);

    for (size_t i = 0; i < n; i++)
        x[i] = f32_to_bf16(rnd() % 16 == 0 ? ldexpf(rnd_float(size), (int)(rnd() % 24) - 22)
                                           : rnd_float(size));
    return x;
}

static float *
rnd_f32(size_t n, float size)
{
    float *x = malloc(n * 4);

    for (size_t i = 0; i < n; i++)
        x[i] = rnd_float(size);
    return x;
}

static void *
poison(size_t bytes)
{
    return memset(malloc(bytes), 0xa5, bytes);
}

/* Elements that differ by more than `rel` of the wanted value and `abs`; NaN equals NaN. */
static int
far_bf16(const uint16_t *got, const uint16_t *want, size_t n, float rel, float abs)
{
    int far = 0;

    for (size_t i = 0; i < n; i++) {
        const float g = bf16_to_f32(got[i]), w = bf16_to_f32(want[i]);

        if (isnan(g) || isnan(w) || isinf(w))
            far += isnan(w) ? !isnan(g) : g != w;
        else
            far += !(fabsf(g - w) <= rel * fabsf(w) + abs);
    }
    return far;
}

/* Attention's: a probability may round to the other side. */
static int
far_attention(const uint16_t *got, const uint16_t *want, size_t n)
{
    return far_bf16(got, want, n, 0x1p-7f, 0x1p-9f);
}

static int
far_f32(const float *got, const float *want, size_t n, float tolerance)
{
    int far = 0;

    for (size_t i = 0; i < n; i++)
        far += !(fabsf(got[i] - want[i]) <= tolerance);
    return far;
}

#define FOR_TABLES(t) for (int t = 1; t < cpu_tables_n(); t++)

/* All bf16 values, and groups of every size of numbers; bits equal, but for the bits of a NaN. */
static void
test_act_quant(void **state)
{
    static const int dims[] = {128, 16, 200, 384, 1000, 37, 1536};

    (void)state;
    FOR_TABLES(t)
    {
        uint16_t *all = malloc(65536 * 2), *got = poison(65536 * 2),
                 *want = poison(65536 * 2);
        struct act_quant_args a = {
            .x = all, .y = got, .rows = 4096, .dim = 16, .stride = 16, .group = 128};

        for (int i = 0; i < 65536; i++)
            all[i] = (uint16_t)((i & 0x7f80) == 0x7f80 && (i & 0x7f) != 0 ? i | 0x40 : i);
        cpu_table(t)->act_quant(&a);
        a.y = want;
        ref->act_quant(&a);
        assert_int_equal(far_bf16(got, want, 65536, 0.0f, 0.0f), 0);
        free(all);
        free(got);
        free(want);
        for (int k = 0; k < 14; k++) {
            const int dim = dims[k / 2], stride = dim + 3, rows = 9;
            uint16_t *x = rnd_bf16((size_t)rows * stride, k % 2 ? 1e3f : 1e-3f);

            got = poison((size_t)rows * stride * 2);
            want = poison((size_t)rows * stride * 2);
            x[5] = 0x7f80;
            x[stride + 7] = 0xffc0;
            a = (struct act_quant_args){.x = x,
                                        .y = got,
                                        .rows = rows,
                                        .dim = dim,
                                        .stride = stride,
                                        .group = k % 3 ? 128 : 64};
            cpu_table(t)->act_quant(&a);
            a.y = want;
            ref->act_quant(&a);
            assert_int_equal(far_bf16(got, want, (size_t)rows * stride, 0.0f, 0.0f), 0);
            a.x = a.y = x; /* in place */
            cpu_table(t)->act_quant(&a);
            for (int r = 0; r < rows; r++)
                assert_int_equal(
                    far_bf16(x + r * stride, want + r * stride, (size_t)dim, 0.0f, 0.0f),
                    0);
            free(x);
            free(got);
            free(want);
        }
    }
}

static void
test_index_quant(void **state)
{
    (void)state;
    FOR_TABLES(t)
    {
        for (int dim = 32; dim <= 512; dim *= 2) {
            const size_t rows = 40, bytes = rows * (size_t)(dim / 2 + dim / 32);
            uint16_t *x = rnd_bf16(rows * (size_t)dim, 2.0f);
            uint8_t *got = poison(bytes), *want = poison(bytes);
            struct index_quant_args a = {.x = x, .y = got, .rows = (int)rows, .dim = dim};

            memset(x, 0,
                   (size_t)dim * 2); /* a row of zeros, one of ties, one huge, one tiny */
            for (int i = 0; i < dim; i++) {
                x[dim + i] = i == 0 ? 0x3f80 : 0;
                x[2 * dim + i] = 0x7e00 + (uint16_t)i % 64;
                x[3 * dim + i] = 0x0080;
            }
            cpu_table(t)->index_quant(&a);
            a.y = want;
            ref->index_quant(&a);
            assert_memory_equal(got, want, bytes);
            free(x);
            free(got);
            free(want);
        }
    }
}

static void
test_index_scores(void **state)
{
    static const struct {
        int rows, block, heads, dim;
    } c[] = {{1, 32, 1, 128},
             {15, 4, 4, 128},
             {33, 32, 64, 128},
             {257, 32, 3, 64},
             {40, 7, 5, 256}};

    (void)state;
    FOR_TABLES(t)
    {
        for (size_t k = 0; k < sizeof c / sizeof c[0]; k++) {
            const int row = c[k].dim / 2 + c[k].dim / 32;
            const int blocks = (c[k].rows + c[k].block - 1) / c[k].block;
            uint8_t *q = malloc((size_t)c[k].heads * row);
            uint8_t *keys = malloc((size_t)blocks * c[k].block * row);
            const uint8_t **at = malloc((size_t)blocks * sizeof *at);
            uint16_t *w = rnd_bf16((size_t)c[k].heads, 0.05f);
            float *got = poison(((size_t)c[k].rows + 4) * 4),
                  *want = poison((size_t)c[k].rows * 4);
            struct index_score_args a = {.q = q,
                                         .w = w,
                                         .blocks = at,
                                         .score = got,
                                         .n_rows = c[k].rows,
                                         .block_rows = c[k].block,
                                         .n_heads = c[k].heads,
                                         .dim = c[k].dim};
            uint8_t poisoned[16];

            memset(poisoned, 0xa5, sizeof poisoned);
            for (int i = 0; i < c[k].heads * row; i++)
                q[i] = (uint8_t)(i % row < c[k].dim / 2 ? rnd() : 120 + rnd() % 12);
            for (int i = 0; i < blocks * c[k].block * row; i++)
                keys[i] = (uint8_t)(i % row < c[k].dim / 2 ? rnd() : 120 + rnd() % 12);
            for (int i = 0; i < blocks; i++)
                at[i] = keys + (size_t)i * c[k].block * row;
            cpu_table(t)->index_scores(&a, 1);
            a.score = want;
            ref->index_scores(&a, 1);
            assert_memory_equal(got, want, (size_t)c[k].rows * 4);
            assert_memory_equal(got + c[k].rows, poisoned, sizeof poisoned);
            free(q);
            free(keys);
            free(at);
            free(w);
            free(got);
            free(want);
        }
    }
}

static void
test_norms(void **state)
{
    static const int dims[] = {16, 128, 384, 1000, 129, 4096};

    (void)state;
    FOR_TABLES(t)
    {
        for (size_t k = 0; k < sizeof dims / sizeof dims[0]; k++) {
            const int dim = dims[k], rows = 11;
            const size_t n = (size_t)rows * dim;
            uint16_t *x = rnd_bf16(n, 3.0f), *y = malloc(n * 2);
            uint16_t *got = poison(n * 2), *want = poison(n * 2);
            float *w = rnd_f32((size_t)dim, 2.0f);
            struct rmsnorm_args a = {
                .x = x, .w = w, .out = got, .rows = rows, .dim = dim, .eps = 1e-6f};
            struct head_norm_args h = {.q = x, .rows = rows, .dim = dim, .eps = 1e-6f};

            memset(x, 0, (size_t)dim * 2);
            x[dim + 3] = 0x7fc0;
            cpu_table(t)->rmsnorm(&a);
            a.out = want;
            ref->rmsnorm(&a);
            assert_int_equal(far_bf16(got, want, n, 0x1p-7f, 0.0f), 0);
            memcpy(y, x, n * 2);
            cpu_table(t)->head_norm(&h);
            h.q = y;
            ref->head_norm(&h);
            assert_int_equal(far_bf16(x, y, n, 0x1.8p-7f, 0.0f), 0);
            free(x);
            free(y);
            free(got);
            free(want);
            free(w);
        }
    }
}

static void
test_rope(void **state)
{
    static const int ropes[] = {64, 32, 2, 34};

    (void)state;
    FOR_TABLES(t)
    {
        for (int k = 0; k < 8; k++) {
            const int rows = 5, heads = 3, rope = ropes[k / 2], dim = rope + 64;
            const size_t n = (size_t)rows * heads * dim;
            uint16_t *x = rnd_bf16(n, 4.0f), *y = malloc(n * 2);
            float *cs = malloc((size_t)rows * rope * 4);
            struct rope_args a = {.x = x,
                                  .cs = cs,
                                  .rows = rows,
                                  .heads = heads,
                                  .dim = dim,
                                  .rope_dim = rope,
                                  .inverse = k % 2};

            for (int i = 0; i < rows * rope; i += 2) {
                const float angle = rnd_float(1e3f);

                cs[i] = cosf(angle);
                cs[i + 1] = sinf(angle);
            }
            memcpy(y, x, n * 2);
            cpu_table(t)->rope(&a);
            a.x = y;
            ref->rope(&a);
            assert_int_equal(far_bf16(x, y, n, 0.0f, 0x1p-126f), 0);
            free(x);
            free(y);
            free(cs);
        }
    }
}

static void
test_swiglu(void **state)
{
    (void)state;
    FOR_TABLES(t)
    {
        for (int k = 0; k < 4; k++) {
            const int rows = 300, dim = k == 3 ? 130 : 256;
            const size_t n = (size_t)rows * dim;
            uint16_t *g = rnd_bf16(n, k == 1 ? 100.0f : 4.0f), *u = rnd_bf16(n, 20.0f);
            uint16_t *got = poison(n * 2), *want = poison(n * 2);
            float *w = rnd_f32((size_t)rows, 1.0f);
            struct swiglu_args a = {.gate = g,
                                    .up = u,
                                    .weight = k == 2 ? NULL : w,
                                    .a = got,
                                    .rows = rows,
                                    .dim = dim,
                                    .limit = 10.0f};

            if (k == 0) /* all gates there are */
                for (size_t i = 0; i < 65536; i++)
                    g[i] = (uint16_t)i;
            cpu_table(t)->swiglu(&a);
            a.a = want;
            ref->swiglu(&a);
            /* -inf / (1 + inf) is NaN in both; below 1e-37 e^-g has overflowed to inf. */
            assert_int_equal(far_bf16(got, want, n, 0x1p-7f, 1e-36f), 0);
            free(g);
            free(u);
            free(got);
            free(want);
            free(w);
        }
    }
}

static void
test_hc(void **state)
{
    static const int dims[] = {16, 128, 384, 100};

    (void)state;
    FOR_TABLES(t)
    {
        for (int k = 0; k < 8; k++) {
            const int rows = 13, dim = dims[k / 2], hc = 4, mix = k % 2 ? 4 : 24;
            const size_t n = (size_t)rows * dim;
            uint16_t *x = rnd_bf16(n * 4, 2.0f), *f = rnd_bf16(n, 2.0f);
            uint16_t *y = poison(n * 2), *y_ref = poison(n * 2);
            uint16_t *out = poison(n * 8), *out_ref = poison(n * 8);
            float *m = rnd_f32((size_t)rows * mix, 40.0f), *base = rnd_f32(24, 3.0f);
            float post[13 * 4], comb[13 * 16], post_ref[13 * 4], comb_ref[13 * 16];
            const float scale[3] = {0.3f, 0.4f, 1.5f};
            struct hc_pre_args a = {.x = x,
                                    .m = m,
                                    .scale = scale,
                                    .base = base,
                                    .y = y,
                                    .post = mix > 4 ? post : NULL,
                                    .comb = mix > 4 ? comb : NULL,
                                    .rows = rows,
                                    .hc = hc,
                                    .dim = dim,
                                    .n_mix = mix,
                                    .iters = 20,
                                    .norm_eps = 1e-6f,
                                    .hc_eps = 1e-6f};
            struct hc_post_args p = {.x = x,
                                     .f = f,
                                     .post = post_ref,
                                     .comb = comb_ref,
                                     .out = out,
                                     .rows = rows,
                                     .hc = hc,
                                     .dim = dim};

            cpu_table(t)->hc_pre(&a);
            a.y = y_ref;
            a.post = mix > 4 ? post_ref : NULL;
            a.comb = mix > 4 ? comb_ref : NULL;
            ref->hc_pre(&a);
            assert_int_equal(far_bf16(y, y_ref, n, 0x1p-7f, 1e-5f), 0);
            if (mix > 4) {
                assert_int_equal(far_f32(post, post_ref, 13 * 4, 1e-5f), 0);
                assert_int_equal(far_f32(comb, comb_ref, 13 * 16, 1e-5f), 0);
                cpu_table(t)->hc_post(&p);
                p.out = out_ref;
                ref->hc_post(&p);
                assert_int_equal(far_bf16(out, out_ref, n * 4, 0x1p-7f, 1e-5f), 0);
                p.out = x; /* in place */
                cpu_table(t)->hc_post(&p);
                assert_memory_equal(x, out, n * 8);
            }
            free(x);
            free(f);
            free(y);
            free(y_ref);
            free(out);
            free(out_ref);
            free(m);
            free(base);
        }
    }
}

/* Attention problems: a pool of packed rows and jobs that pick from it. */
struct problem {
    int heads, dim, rope, n_jobs, n_rows;
    enum kv_fmt fmt;
    uint8_t *rows;
    const uint8_t **keys;
    uint16_t *q, *o;
    float *sink;
    struct attention_args *jobs;
};

static void
problem_make(struct problem *p, const int *n_keys)
{
    const size_t row = kv_row_size(p->fmt, p->dim, p->rope);
    const size_t o_size = (size_t)p->heads * p->dim;
    size_t keys = 0;

    p->rows = malloc(row * (size_t)p->n_rows);
    for (int i = 0; i < p->n_rows; i++) {
        uint16_t *x = rnd_bf16((size_t)p->dim, 1.5f);

        kv_row_pack(p->fmt, x, p->dim, p->rope, p->rows + (size_t)i * row);
        free(x);
    }
    for (int j = 0; j < p->n_jobs; j++)
        keys += (size_t)n_keys[j];
    p->keys = malloc(keys * sizeof *p->keys);
    p->q = rnd_bf16(o_size * (size_t)p->n_jobs, 1.5f);
    p->o = poison(o_size * (size_t)p->n_jobs * 2);
    p->sink = rnd_f32((size_t)p->heads, 3.0f);
    p->jobs = malloc((size_t)p->n_jobs * sizeof *p->jobs);
    keys = 0;
    for (int j = 0; j < p->n_jobs; j++) {
        const int start = (int)(rnd() % (uint32_t)p->n_rows);

        for (int i = 0; i < n_keys[j]; i++) /* runs, as windows are, and single rows */
            p->keys[keys + (size_t)i] =
                p->rows +
                row * (size_t)((i < 128 ? start + i : (int)(rnd() >> 1)) % p->n_rows);
        p->jobs[j] = (struct attention_args){.q = p->q + o_size * (size_t)j,
                                             .keys = p->keys + keys,
                                             .sink = p->sink,
                                             .o = p->o + o_size * (size_t)j,
                                             .n_keys = n_keys[j],
                                             .n_heads = p->heads,
                                             .dim = p->dim,
                                             .rope_dim = p->rope,
                                             .fmt = p->fmt};
        keys += (size_t)n_keys[j];
    }
}

static void
problem_free(struct problem *p)
{
    free(p->rows);
    free(p->keys);
    free(p->q);
    free(p->o);
    free(p->sink);
    free(p->jobs);
}

static void
test_attention(void **state)
{
    static const int n_keys[] = {1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 130, 200, 257, 33};
    static const int many_keys[] = {3000, 64, 1, 1216, 2049};
    static const struct problem shapes[] = {
        {.heads = 6, .dim = 128, .rope = 64, .n_jobs = 14, .n_rows = 300},
        {.heads = 64, .dim = 512, .rope = 64, .n_jobs = 3, .n_rows = 100},
        {.heads = 8, .dim = 192, .rope = 64, .n_jobs = 14, .n_rows = 300},
        {.heads = 5, .dim = 96, .rope = 32, .n_jobs = 5, .n_rows = 90},
        {.heads = 70, .dim = 80, .rope = 16, .n_jobs = 3, .n_rows = 90},
        {.heads = 3, .dim = 128, .rope = 64, .n_jobs = 14, .n_rows = 200, .fmt = KV_BF16},
        {.heads = 40, .dim = 64, .rope = 32, .n_jobs = 5, .n_rows = 500}, /* many_keys */
    };

    (void)state;
    FOR_TABLES(t)
    {
        for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
            struct problem p = shapes[s];
            size_t n;
            uint16_t *want, *whole;

            problem_make(&p, p.heads == 40 ? many_keys : n_keys);
            n = (size_t)p.heads * p.dim * (size_t)p.n_jobs;
            want = malloc(n * 2);
            whole = malloc(n * 2);
            ref->attention(p.jobs, p.n_jobs);
            memcpy(want, p.o, n * 2);
            memset(p.o, 0xa5, n * 2);
            cpu_table(t)->attention(p.jobs, p.n_jobs);
            memcpy(whole, p.o, n * 2);
            assert_int_equal(far_attention(whole, want, n), 0);
            /* Alone, in small companies, with other thread counts: the same bits. */
            for (int k = 1; k <= p.n_jobs; k += 1 + k / 2) {
                memset(p.o, 0xa5, n * 2);
                pool_set_threads(1 + k % 3);
                for (int j = 0; j < p.n_jobs; j += k)
                    cpu_table(t)->attention(p.jobs + j,
                                            j + k <= p.n_jobs ? k : p.n_jobs - j);
                assert_memory_equal(p.o, whole, n * 2);
            }
            pool_set_threads(2);
            free(want);
            free(whole);
            problem_free(&p);
        }
    }
}

/* The tolerance of the attention test must notice: one key missing, the sink in the numerator's
 * maximum being irrelevant but its absence from the denominator not, keys in the wrong place. */
static void
test_attention_notices(void **state)
{
    (void)state;
    FOR_TABLES(t)
    {
        static const int n_keys[] = {40};
        struct problem p = {.heads = 6, .dim = 128, .rope = 64, .n_jobs = 1, .n_rows = 100};
        uint16_t want[6 * 128];
        float *sink;

        problem_make(&p, n_keys);
        for (int h = 0; h < 6; h++)
            p.sink[h] = 2.0f;
        ref->attention(p.jobs, 1);
        memcpy(want, p.o, sizeof want);
        p.jobs[0].n_keys--;
        cpu_table(t)->attention(p.jobs, 1);
        assert_true(far_attention(p.o, want, 6 * 128) > 300);
        p.jobs[0].n_keys++;
        sink = p.sink;
        for (int h = 0; h < 6; h++)
            sink[h] = -50.0f;
        cpu_table(t)->attention(p.jobs, 1);
        assert_true(far_attention(p.o, want, 6 * 128) > 300);
        problem_free(&p);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_act_quant),
        cmocka_unit_test(test_index_quant),
        cmocka_unit_test(test_index_scores),
        cmocka_unit_test(test_norms),
        cmocka_unit_test(test_rope),
        cmocka_unit_test(test_swiglu),
        cmocka_unit_test(test_hc),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_attention_notices),
    };

    return cmocka_run_group_tests_name("cpu_ops", tests, NULL, NULL);
}
