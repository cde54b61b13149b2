/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every operation on the device against its C twin (the reference table of the CPU backend):
 * odd shapes, extremes, infinities and NaN; outputs poisoned before.
 *
 * What may differ. act_quant, index_quant, kv_pack, index_scores, topk, rope: nothing,
 * each step is exact or rounds at the same places. Norms, swiglu, hc: sums of squares
 * are in double on both sides and exp is rounded once, so bits agree nearly always; one place of
 * bf16 (2^-7 of the value), in at most 1 of 500 elements; hc coefficients 1e-6. Attention: a
 * probability may round to the other side, as in cpu_ops_test.
 */
#include "config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/fp.h"
#include "gpu/cpu/cpu.h"
#include "gpu/cpu/kvrow.h"
#include "gpu/cpu/reference.h"
#include "gpu/cuda/kernels.h"
#include "gpu/ops/moe.h"
#include "model/synthetic.h"
#include "tests/kernels/cuda_test.h"
#include "tests/test.h"

/* Equal but for few elements, and those by one place. */
static void
nearly_equal(const char *what, const uint16_t *got, const uint16_t *want, size_t n)
{
    const int differ = far_bf16(got, want, n, 0.0f, 0.0f);

    if (differ > 0)
        print_message("# %s: %d of %zu not bit for bit\n", what, differ, n);
    assert_int_equal(far_bf16(got, want, n, 0x1p-7f, 1e-36f), 0);
    assert_true(differ <= 1 + (int)(n / 500));
}

static float
far_f32(const float *got, const float *want, size_t n)
{
    float most = 0.0f;

    for (size_t i = 0; i < n; i++)
        most = fabsf(got[i] - want[i]) <= most ? most : fabsf(got[i] - want[i]);
    return most;
}

static void
test_act_quant(void **state)
{
    static const int dims[] = {128, 16, 200, 384, 1000, 37, 1536, 65536};
    struct err e = {0};

    (void)state;
    for (int k = 0; k < 8; k++) {
        const int dim = dims[k], stride = dim + 3, rows = 9;
        const size_t n = (size_t)rows * stride;
        uint16_t *x = rnd_bf16(n, k % 2 ? 1e3f : 1e-3f), *want = poison(n * 2), *got;
        struct act_quant_args a = {
            .rows = rows, .dim = dim, .stride = stride, .group = k % 3 ? 128 : 64};

        x[5] = 0x7f80;
        x[stride + 7] = 0xffc0;
        /* All values, a few in each group; NaN quiet, which every computed one is. */
        for (int i = 0; dim == 65536 && i < dim; i++)
            x[i] = (uint16_t)(i * 257 |
                              ((i * 257 & 0x7f80) == 0x7f80 && (i * 257 & 0x7f) != 0 ? 0x40
                                                                                     : 0));
        a.x = x;
        a.y = want;
        reference_act_quant(&a);
        a.x = dev(x, n * 2);
        a.y = dev_poison(n * 2);
        done(act_quant_cuda(&rk, &a, &e), &e);
        got = fetch(a.y, n * 2);
        assert_int_equal(far_bf16(got, want, n, 0.0f, 0.0f), 0);
        a.y = (uint16_t *)(uintptr_t)a.x; /* in place */
        done(act_quant_cuda(&rk, &a, &e), &e);
        free(got);
        got = fetch(a.y, n * 2);
        for (int r = 0; r < rows; r++)
            assert_int_equal(far_bf16(got + (size_t)r * stride, want + (size_t)r * stride,
                                      (size_t)dim, 0.0f, 0.0f),
                             0);
        free(x);
        free(want);
        free(got);
    }
}

static void
test_index_quant(void **state)
{
    struct err e = {0};

    (void)state;
    for (int dim = 32; dim <= 1024; dim *= 2) {
        const size_t rows = 40, bytes = rows * (size_t)(dim / 2 + dim / 32);
        uint16_t *x = rnd_bf16(rows * (size_t)dim, 2.0f);
        uint8_t *want = poison(bytes), *got;
        struct index_quant_args a = {.x = x, .y = want, .rows = (int)rows, .dim = dim};

        memset(x, 0, (size_t)dim * 2); /* zeros, one of ties, one huge, one tiny */
        for (int i = 0; i < dim; i++) {
            x[dim + i] = i == 0 ? 0x3f80 : 0;
            x[2 * dim + i] = 0x7900 + (uint16_t)i % 64; /* sums stay finite */
            x[3 * dim + i] = 0x0080;
        }
        reference_index_quant(&a);
        a.x = dev(x, rows * (size_t)dim * 2);
        a.y = dev_poison(bytes);
        done(index_quant_cuda(&rk, &a, &e), &e);
        got = fetch(a.y, bytes);
        assert_memory_equal(got, want, bytes);
        free(x);
        free(want);
        free(got);
    }
}

static void
test_kv_pack(void **state)
{
    static const struct {
        int dim, rope;
        enum kv_fmt fmt;
    } c[] = {{512, 64, KV_PACKED}, {128, 64, KV_PACKED}, {192, 64, KV_PACKED},
             {96, 32, KV_PACKED},  {80, 16, KV_PACKED},  {128, 64, KV_BF16}};
    struct err e = {0};

    (void)state;
    for (size_t k = 0; k < sizeof c / sizeof c[0]; k++) {
        const size_t row = kv_row_size(c[k].fmt, c[k].dim, c[k].rope), n = 33;
        uint16_t *x = rnd_bf16(n * (size_t)c[k].dim, k % 2 ? 300.0f : 2.0f);
        uint8_t *want = poison(n * row), *got;
        struct kv_pack_args a = {.row_bytes = row,
                                 .n = (int)n,
                                 .dim = c[k].dim,
                                 .rope_dim = c[k].rope,
                                 .fmt = c[k].fmt};

        memset(x, 0, (size_t)c[k].dim * 2);
        for (size_t i = 0; i < n; i++)
            kv_row_pack(c[k].fmt, x + i * (size_t)c[k].dim, c[k].dim, c[k].rope,
                        want + i * row);
        a.x = dev(x, n * (size_t)c[k].dim * 2);
        a.rows = dev_poison(n * row);
        done(kv_pack_cuda(&rk, &a, &e), &e);
        got = fetch(a.rows, n * row);
        assert_memory_equal(got, want, n * row);
        free(x);
        free(want);
        free(got);
    }
}

static void
test_norms(void **state)
{
    static const int dims[] = {8, 128, 384, 1000, 4096, 7168, 16384};
    struct err e = {0};

    (void)state;
    for (size_t k = 0; k < sizeof dims / sizeof dims[0]; k++) {
        const int dim = dims[k], rows = 11;
        const size_t n = (size_t)rows * dim;
        uint16_t *x = rnd_bf16(n, 3.0f), *want = poison(n * 2), *got;
        float *w = rnd_f32((size_t)dim, 2.0f);
        struct rmsnorm_args a = {
            .x = x, .w = w, .out = want, .rows = rows, .dim = dim, .eps = 1e-6f};
        struct head_norm_args h = {.rows = rows, .dim = dim, .eps = 1e-6f};

        memset(x, 0, (size_t)dim * 2);
        x[dim + 3] = 0x7fc0;
        reference_rmsnorm(&a);
        a.x = dev(x, n * 2);
        a.w = dev(w, (size_t)dim * 4);
        a.out = dev_poison(n * 2);
        done(rmsnorm_cuda(&rk, &a, &e), &e);
        got = fetch(a.out, n * 2);
        nearly_equal("rmsnorm", got, want, n);
        free(got);
        h.q = (uint16_t *)(uintptr_t)a.x;
        done(head_norm_cuda(&rk, &h, &e), &e);
        got = fetch(h.q, n * 2);
        h.q = x;
        reference_head_norm(&h);
        nearly_equal("head_norm", got, x, n);
        free(got);
        free(x);
        free(want);
        free(w);
    }
}

static void
test_rope(void **state)
{
    static const int ropes[] = {64, 32, 2, 34};
    struct err e = {0};

    (void)state;
    for (int k = 0; k < 8; k++) {
        const int rows = 5, heads = 3, rope = ropes[k / 2], dim = rope + 64;
        const size_t n = (size_t)rows * heads * dim;
        uint16_t *x = rnd_bf16(n, 4.0f), *got;
        float *cs = malloc((size_t)rows * rope * 4);
        struct rope_args a = {
            .rows = rows, .heads = heads, .dim = dim, .rope_dim = rope, .inverse = k % 2};

        for (int i = 0; i < rows * rope; i += 2) {
            const float angle = rnd_float(1e3f);

            cs[i] = cosf(angle);
            cs[i + 1] = sinf(angle);
        }
        a.x = dev(x, n * 2);
        a.cs = dev(cs, (size_t)rows * rope * 4);
        done(rope_cuda(&rk, &a, &e), &e);
        got = fetch(a.x, n * 2);
        a.x = x;
        a.cs = cs;
        reference_rope(&a);
        assert_memory_equal(got, x, n * 2);
        free(x);
        free(cs);
        free(got);
    }
}

static void
test_swiglu(void **state)
{
    struct err e = {0};

    (void)state;
    for (int k = 0; k < 4; k++) {
        const int rows = 300, dim = k == 3 ? 130 : 256;
        const size_t n = (size_t)rows * dim;
        uint16_t *g = rnd_bf16(n, k == 1 ? 100.0f : 4.0f), *u = rnd_bf16(n, 20.0f);
        uint16_t *want = poison(n * 2), *got;
        float *w = rnd_f32((size_t)rows, 1.0f);
        struct swiglu_args a = {.gate = g,
                                .up = u,
                                .weight = k == 2 ? NULL : w,
                                .a = want,
                                .rows = rows,
                                .dim = dim,
                                .limit = 10.0f};

        for (size_t i = 0; k == 0 && i < 65536; i++) /* all gates there are */
            g[i] = (uint16_t)i;
        reference_swiglu(&a);
        a.gate = dev(g, n * 2);
        a.up = dev(u, n * 2);
        a.weight = k == 2 ? NULL : dev(w, (size_t)rows * 4);
        a.a = dev_poison(n * 2);
        done(swiglu_cuda(&rk, &a, &e), &e);
        got = fetch(a.a, n * 2);
        nearly_equal("swiglu", got, want, n);
        free(g);
        free(u);
        free(want);
        free(w);
        free(got);
    }
}

static void
test_hc(void **state)
{
    static const int dims[] = {16, 128, 384, 4096}, hcs[] = {4, 4, 1, 8};
    static const float scale[3] = {0.3f, 0.4f, 1.5f};
    struct err e = {0};

    (void)state;
    for (int k = 0; k < 8; k++) {
        const int rows = 13, dim = dims[k / 2], hc = hcs[k % 4];
        const int mix = k % 2 ? hc : 2 * hc + hc * hc;
        const size_t n = (size_t)rows * dim, all = n * (size_t)hc;
        uint16_t *x = rnd_bf16(all, 2.0f), *f = rnd_bf16(n, 2.0f);
        uint16_t *y = poison(n * 2), *out = poison(all * 2), *got;
        float *m = rnd_f32((size_t)rows * mix, 40.0f), *base = rnd_f32((size_t)mix, 3.0f);
        float *post = poison(13 * 8 * 4), *comb = poison(13 * 64 * 4), *g;
        struct hc_pre_args a = {.x = x,
                                .m = m,
                                .scale = scale,
                                .base = base,
                                .y = y,
                                .post = mix > hc ? post : NULL,
                                .comb = mix > hc ? comb : NULL,
                                .rows = rows,
                                .hc = hc,
                                .dim = dim,
                                .n_mix = mix,
                                .iters = 20,
                                .norm_eps = 1e-6f,
                                .hc_eps = 1e-6f};
        struct hc_post_args p = {.rows = rows, .hc = hc, .dim = dim};

        reference_hc_pre(&a);
        a.x = dev(x, all * 2);
        a.m = dev(m, (size_t)rows * mix * 4);
        a.scale = dev(scale, sizeof scale);
        a.base = dev(base, (size_t)mix * 4);
        a.y = dev_poison(n * 2);
        a.post = mix > hc ? dev_poison((size_t)rows * hc * 4) : NULL;
        a.comb = mix > hc ? dev_poison((size_t)rows * hc * hc * 4) : NULL;
        done(hc_pre_cuda(&rk, &a, &e), &e);
        got = fetch(a.y, n * 2);
        nearly_equal("hc_pre", got, y, n);
        free(got);
        if (mix > hc) {
            g = fetch(a.post, (size_t)rows * hc * 4);
            assert_true(far_f32(g, post, (size_t)rows * hc) <= 1e-6f);
            free(g);
            g = fetch(a.comb, (size_t)rows * hc * hc * 4);
            assert_true(far_f32(g, comb, (size_t)rows * hc * hc) <= 1e-6f);
            free(g);
            p.x = x;
            p.f = f;
            p.post = post;
            p.comb = comb;
            p.out = out;
            reference_hc_post(&p);
            p.x = a.x;
            p.f = dev(f, n * 2);
            p.post = dev(post, (size_t)rows * hc * 4);
            p.comb = dev(comb, (size_t)rows * hc * hc * 4);
            p.out = (uint16_t *)(uintptr_t)a.x; /* in place */
            done(hc_post_cuda(&rk, &p, &e), &e);
            got = fetch(p.out, all * 2);
            assert_memory_equal(got, out, all * 2);
            free(got);
        }
        free(x);
        free(f);
        free(y);
        free(out);
        free(m);
        free(base);
        free(post);
        free(comb);
    }
}

/* A pool of packed rows and jobs that pick from it, on both sides. */
struct problem {
    int heads, dim, rope, n_jobs, n_rows;
    enum kv_fmt fmt;
};

static int
far_attention(const uint16_t *got, const uint16_t *want, size_t n)
{
    return far_bf16(got, want, n, 0x1p-7f, 0x1p-9f);
}

static void
test_attention(void **state)
{
    static const int n_keys[] = {1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 130, 200, 700, 33};
    static const struct problem shapes_[] = {
        {6, 128, 64, 14, 300, KV_PACKED}, {64, 512, 64, 3, 100, KV_PACKED},
        {8, 192, 64, 14, 300, KV_PACKED}, {5, 96, 32, 5, 90, KV_PACKED},
        {70, 80, 16, 3, 90, KV_PACKED},   {3, 128, 64, 14, 200, KV_BF16},
        {2, 1024, 64, 2, 50, KV_PACKED},
    };
    struct err e = {0};

    (void)state;
    for (size_t s = 0; s < sizeof shapes_ / sizeof shapes_[0]; s++) {
        const struct problem *p = &shapes_[s];
        const size_t row = kv_row_size(p->fmt, p->dim, p->rope);
        const size_t size = (size_t)p->heads * p->dim, all = size * (size_t)p->n_jobs;
        uint8_t *rows = malloc(row * (size_t)p->n_rows), *rows_at;
        uint16_t *q = rnd_bf16(all, 1.5f), *want = poison(all * 2), *got, *q_at, *o_at;
        float *sink = rnd_f32((size_t)p->heads, 3.0f), *sink_at, *score;
        struct attention_args job[14], send[14], like = {0}, *jobs;
        const uint8_t *keys[14][700];
        size_t bytes;

        for (int i = 0; i < p->n_rows; i++) {
            uint16_t *x = rnd_bf16((size_t)p->dim, 1.5f);

            kv_row_pack(p->fmt, x, p->dim, p->rope, rows + (size_t)i * row);
            free(x);
        }
        rows_at = dev(rows, row * (size_t)p->n_rows);
        q_at = dev(q, all * 2);
        o_at = dev_poison(all * 2);
        sink_at = dev(sink, (size_t)p->heads * 4);
        for (int j = 0; j < p->n_jobs; j++) {
            const uint8_t *there[700];

            for (int i = 0; i < n_keys[j]; i++) {
                const size_t at =
                    row * (size_t)((i < 128 ? j + i : (int)(rnd() >> 1)) % p->n_rows);

                keys[j][i] = rows + at;
                there[i] = rows_at + at;
            }
            job[j] = (struct attention_args){.q = q + size * (size_t)j,
                                             .keys = keys[j],
                                             .sink = sink,
                                             .o = want + size * (size_t)j,
                                             .n_keys = n_keys[j],
                                             .n_heads = p->heads,
                                             .dim = p->dim,
                                             .rope_dim = p->rope,
                                             .fmt = p->fmt};
            send[j] = job[j];
            send[j].q = q_at + size * (size_t)j;
            send[j].o = o_at + size * (size_t)j;
            send[j].sink = sink_at;
            send[j].keys = dev(there, (size_t)n_keys[j] * sizeof *there);
            like = n_keys[j] > like.n_keys ? send[j] : like;
        }
        reference_attention(job, p->n_jobs);
        jobs = dev(send, (size_t)p->n_jobs * sizeof *send);
        bytes = attention_scratch(&like) * (size_t)p->n_jobs * sizeof(float);
        score = dev_poison(bytes);
        done(attention_cuda(&rk, jobs, p->n_jobs, &like, score, &e), &e);
        got = fetch(o_at, all * 2);
        free(fetch(score, bytes));
        print_message("# attention %d x %d: %d of %zu not bit for bit\n", p->heads, p->dim,
                      far_bf16(got, want, all, 0.0f, 0.0f), all);
        assert_int_equal(far_attention(got, want, all), 0);

        /* Alone, with a longer scratch than needed: the same bits. */
        cuda_ok(cudaMemset(o_at, 0xa5, all * 2));
        cuda_ok(cudaDeviceSynchronize());
        for (int j = 0; j < p->n_jobs; j++)
            done(attention_cuda(&rk, jobs + j, 1, &like, score, &e), &e);
        free(want);
        want = fetch(o_at, all * 2);
        assert_memory_equal(got, want, all * 2);
        cuda_ok(cudaMemset(o_at, 0xa5, all * 2));
        cuda_ok(cudaDeviceSynchronize());
        for (int j = 0; j < p->n_jobs; j++) {
            like.n_keys = n_keys[j];
            done(attention_cuda(&rk, jobs + j, 1, &like, score, &e), &e);
        }
        free(want);
        want = fetch(o_at, all * 2);
        assert_memory_equal(got, want, all * 2);

        /* The tolerance notices a key that is missing. */
        for (int j = 0; j < p->n_jobs; j++)
            send[j].n_keys = n_keys[j] > 1 ? n_keys[j] - 1 : 1;
        jobs = dev(send, (size_t)p->n_jobs * sizeof *send);
        like.n_keys = 700;
        score = dev_poison(attention_scratch(&like) * (size_t)p->n_jobs * sizeof(float));
        done(attention_cuda(&rk, jobs, p->n_jobs, &like, score, &e), &e);
        free(want);
        want = fetch(o_at, all * 2);
        assert_true(far_attention(want, got, all) > (int)size / 3);
        free(rows);
        free(q);
        free(want);
        free(got);
        free(sink);
        tear_down(NULL);
    }
}

/* Scores bit for bit; the best of them as the CPU's topk_rows has it, ties included. */
static void
test_index(void **state)
{
    static const struct {
        int rows, block, heads, dim, topk;
    } c[] = {{1, 32, 1, 128, 1},       {15, 4, 4, 128, 8},   {33, 32, 64, 128, 16},
             {257, 32, 3, 64, 128},    {40, 7, 5, 256, 39},  {5000, 32, 64, 128, 512},
             {1025, 32, 8, 128, 1024}, {3000, 32, 1, 32, 7}, {70, 8, 4, 1024, 24}};
    struct err e = {0};

    (void)state;
    for (size_t k = 0; k < sizeof c / sizeof c[0]; k++) {
        const int row = c[k].dim / 2 + c[k].dim / 32, pad = 24;
        const int blocks = (c[k].rows + c[k].block - 1) / c[k].block;
        const size_t block = (size_t)c[k].block * row + pad, n = (size_t)c[k].rows;
        uint8_t *q = malloc((size_t)c[k].heads * row),
                *keys = malloc((size_t)blocks * block);
        const uint8_t **at = malloc((size_t)blocks * sizeof *at), *keys_at;
        uint16_t *w = rnd_bf16((size_t)c[k].heads, 0.05f);
        float *want = poison(n * 4), *got;
        int *picked = malloc((size_t)c[k].topk * sizeof *picked), *p_at, *p;
        struct index_score_args a = {.q = q,
                                     .w = w,
                                     .blocks = at,
                                     .score = want,
                                     .n_rows = c[k].rows,
                                     .block_rows = c[k].block,
                                     .n_heads = c[k].heads,
                                     .dim = c[k].dim},
                                jobs[2];

        for (int i = 0; i < c[k].heads * row; i++)
            q[i] = (uint8_t)(i % row < c[k].dim / 2 ? rnd() : 120 + rnd() % 12);
        for (size_t i = 0; i < (size_t)blocks * block; i++)
            keys[i] = (uint8_t)rnd();
        for (int j = 0; j < c[k].rows; j++)
            for (int g = 0; g < c[k].dim / 32; g++)
                keys[(size_t)(j / c[k].block) * block + pad +
                     (size_t)(j % c[k].block) * row + c[k].dim / 2 + g] =
                    (uint8_t)(120 + rnd() % 12);
        for (int i = 0; i < blocks; i++)
            at[i] = keys + (size_t)i * block + pad;
        reference_index_scores(&a, 1);
        keys_at = dev(keys, (size_t)blocks * block);
        for (int i = 0; i < blocks; i++)
            at[i] = keys_at + (size_t)i * block;
        a.q = dev(q, (size_t)c[k].heads * row);
        a.w = dev(w, (size_t)c[k].heads * 2);
        a.blocks = dev(at, (size_t)blocks * sizeof *at);
        jobs[0] = jobs[1] = a;
        jobs[0].score = dev_poison(n * 4);
        jobs[1].score = dev_poison(n * 4);
        jobs[0].n_rows = 0; /* as rows that see few entries are sent */
        struct index_score_args *jobs_at = dev(jobs, sizeof jobs);
        done(index_scores_cuda(&rk, jobs_at, 2, &a, pad, &e), &e);
        got = fetch(jobs[1].score, n * 4);
        assert_memory_equal(got, want, n * 4);

        p_at = dev_poison(2 * (size_t)c[k].topk * sizeof *p);
        done(topk_cuda(&rk, jobs_at, 2, c[k].topk, p_at, &e), &e);
        p = fetch(p_at, 2 * (size_t)c[k].topk * sizeof *p);
        assert_int_equal(p[0], (int)0xa5a5a5a5);
        if (c[k].rows > c[k].topk) {
            topk_rows(want, c[k].rows, c[k].topk, picked);
            assert_memory_equal(p + c[k].topk, picked, (size_t)c[k].topk * sizeof *p);
        }
        /* Nearly all equal: ties go to the lower index. */
        for (size_t i = 0; i < n; i++)
            want[i] = i % 7 == 3 ? 1.0f : i % 11 == 0 ? -2.0f : 0.5f;
        cuda_ok(cudaMemcpy(jobs[1].score, want, n * 4, cudaMemcpyHostToDevice));
        cuda_ok(cudaDeviceSynchronize());
        done(topk_cuda(&rk, jobs_at, 2, c[k].topk, p_at, &e), &e);
        free(p);
        p = fetch(p_at, 2 * (size_t)c[k].topk * sizeof *p);
        if (c[k].rows > c[k].topk) {
            topk_rows(want, c[k].rows, c[k].topk, picked);
            assert_memory_equal(p + c[k].topk, picked, (size_t)c[k].topk * sizeof *p);
        }
        free(q);
        free(keys);
        free(at);
        free(w);
        free(want);
        free(got);
        free(picked);
        free(p);
        tear_down(NULL);
    }
}

/* The choice of one row, the plain way. */
static void
choose(const float *gate, const float *bias, int n, int k, int *chosen)
{
    bool taken[1024] = {false};
    int count = 0;

    for (int i = 0; i < k; i++) {
        int best = -1;
        float top = 0;

        for (int x = 0; x < n; x++) {
            const float l = gate[x];
            float s = sqrtf(l > 20.0f ? l : log1pf(expf(l))) + bias[x];

            s = isnan(s) ? -INFINITY : s;
            if (!taken[x] && (best == -1 || s > top)) {
                best = x;
                top = s;
            }
        }
        taken[best] = true;
    }
    for (int x = 0; x < n; x++)
        if (taken[x])
            chosen[count++] = x;
}

static void
test_route(void **state)
{
    enum { ANY, EQUAL, ODD, NONE };

    static const struct {
        int rows, experts, k, what;
    } c[] = {{1, 8, 3, ANY},      {37, 16, 4, ANY},   {300, 256, 6, ANY},
             {1024, 384, 8, ANY}, {9, 5, 5, ANY},     {3, 256, 6, ANY},
             {8, 64, 4, ANY},     {1, 256, 6, EQUAL}, {37, 256, 6, EQUAL},
             {8, 384, 8, EQUAL},  {1, 500, 32, ODD},  {20, 333, 7, ODD},
             {1, 256, 6, ODD},    {1, 256, 6, NONE},  {9, 33, 8, NONE}};
    struct err e = {0};

    (void)state;
    for (size_t t = 0; t < sizeof c / sizeof c[0]; t++) {
        const int rows = c[t].rows, n = c[t].experts, k = c[t].k, all = rows * k;
        float *gate = rnd_f32((size_t)rows * n, 3.0f), *bias = rnd_f32((size_t)n, 0.3f);
        int *chosen, *slot, *first, *source, *active, at = 0, live = 0, wrong = 0;
        float *weight, *slot_weight;

        for (int i = 0; i < rows * n; i++) {
            const uint32_t v = rnd();

            if (c[t].what == EQUAL)
                gate[i] = (float)(v % 3);
            if (c[t].what == NONE || (c[t].what == ODD && v % 3 == 0))
                gate[i] = v % 2 != 0 ? NAN : -INFINITY;
            if (c[t].what == EQUAL || c[t].what == NONE)
                bias[i % n] = v % 2 != 0 ? 0.0f : -0.0f;
        }
        struct route_args a = {.gate = dev(gate, (size_t)rows * n * 4),
                               .bias = dev(bias, (size_t)n * 4),
                               .chosen = dev_poison((size_t)all * 4),
                               .slot = dev_poison((size_t)all * 4),
                               .first = dev_poison((size_t)(n + 1) * 4),
                               .source = dev_poison((size_t)all * 4),
                               .active = dev_poison((size_t)(n + 1) * 4),
                               .weight = dev_poison((size_t)all * 4),
                               .slot_weight = dev_poison((size_t)all * 4),
                               .rows = rows,
                               .n_experts = n,
                               .k = k,
                               .scale = 1.5f};

        done(route_cuda(&rk, &a, &e), &e);
        chosen = fetch(a.chosen, (size_t)all * 4);
        slot = fetch(a.slot, (size_t)all * 4);
        first = fetch(a.first, (size_t)(n + 1) * 4);
        source = fetch(a.source, (size_t)all * 4);
        active = fetch(a.active, (size_t)(n + 1) * 4);
        weight = fetch(a.weight, (size_t)all * 4);
        slot_weight = fetch(a.slot_weight, (size_t)all * 4);
        for (int r = 0; r < rows; r++) {
            int want[32];
            float sum = 0.0f;

            choose(gate + (size_t)r * n, bias, n, k, want);
            wrong += memcmp(want, chosen + r * k, (size_t)k * 4) != 0;
            for (int i = 0; i < k; i++)
                sum += weight[r * k + i];
            assert_true(c[t].what == NONE || fabsf(sum - 1.5f) < 1e-5f);
        }
        assert_int_equal(wrong, 0);
        for (int x = 0; x < n; x++) { /* by expert, then by row */
            const int begin = at;

            assert_int_equal(first[x], at);
            for (int i = 0; i < all; i++) {
                if (chosen[i] != x)
                    continue;
                assert_int_equal(slot[i], at);
                assert_int_equal(source[at], i / k);
                assert_memory_equal(&slot_weight[at], &weight[i], sizeof *weight);
                at++;
            }
            if (at > begin)
                assert_int_equal(active[++live], x);
        }
        assert_int_equal(first[n], all);
        assert_int_equal(active[0], live);
        free(gate);
        free(bias);
        free(chosen);
        free(slot);
        free(first);
        free(source);
        free(active);
        free(weight);
        free(slot_weight);
        tear_down(NULL);
    }
}

static void
test_combine(void **state)
{
    enum { ROWS = 19, K = 4, DIM = 200 };

    uint16_t *routed = rnd_bf16((size_t)ROWS * K * DIM, 2.0f);
    uint16_t *shared = rnd_bf16((size_t)ROWS * DIM, 2.0f), *got;
    struct err e = {0};
    int slot[ROWS * K];

    (void)state;
    for (int i = 0; i < ROWS * K; i++)
        slot[i] = (i * 7) % (ROWS * K);

    const struct combine_args a = {.routed = dev(routed, (size_t)ROWS * K * DIM * 2),
                                   .shared = dev(shared, (size_t)ROWS * DIM * 2),
                                   .slot = dev(slot, sizeof slot),
                                   .f = dev_poison((size_t)ROWS * DIM * 2),
                                   .rows = ROWS,
                                   .k = K,
                                   .dim = DIM};

    done(combine_cuda(&rk, &a, &e), &e);
    got = fetch(a.f, (size_t)ROWS * DIM * 2);
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < DIM; c++) {
            float sum = 0.0f;

            for (int i = 0; i < K; i++)
                sum += bf16_to_f32(routed[slot[r * K + i] * DIM + c]);
            assert_int_equal(got[r * DIM + c],
                             f32_to_bf16(sum + bf16_to_f32(shared[r * DIM + c])));
        }
    free(routed);
    free(shared);
    free(got);
}

/* Weights that are made up: the host's bytes, from any place on, and none behind the last. */
static void
test_synthetic(void **state)
{
    static const size_t size[] = {
        [SYNTHETIC_FP4] = 1,  [SYNTHETIC_FP8] = 1, [SYNTHETIC_E8M0] = 1,
        [SYNTHETIC_BF16] = 2, [SYNTHETIC_F32] = 4, [SYNTHETIC_IDS] = 8};
    static const uint64_t n[] = {1, 7, 2048, 5003}, first[] = {0, 3, UINT64_C(1) << 40};
    struct err e = {0};

    (void)state;
    for (int k = 0; k < 6 * 4 * 3; k++) {
        const struct synthetic s = {.key = 0x123456789abcdef0 + (uint64_t)k,
                                    .kind = (enum synthetic_kind)(k / 12),
                                    .exponent = 117,
                                    .row = 6,
                                    .most = 256,
                                    .offset = k % 2 ? 1.0f : 0.0f,
                                    .size = 0.05f};
        const size_t bytes = n[k % 4] * size[s.kind];
        uint8_t *want = malloc(bytes), *got;
        void *at = dev_poison(bytes);

        synthetic_fill(&s, first[k / 4 % 3], n[k % 4], want);
        done(synthetic_cuda(&rk, &s, first[k / 4 % 3], n[k % 4], at, &e), &e);
        got = fetch(at, bytes);
        assert_memory_equal(got, want, bytes);
        free(got);
        free(want);
    }
}

/* What a kernel cannot do is refused by its wrapper, and nothing runs. */
static void
test_refused(void **state)
{
    struct matrix m = {.kind = MATRIX_BF16, .out = 4, .in = 40};
    struct err e = {0};

    (void)state;
    assert_int_equal(rmsnorm_cuda(&rk, &(struct rmsnorm_args){.rows = 1, .dim = 12}, &e),
                     -1);
    assert_int_equal(e.code, ERR_INTERNAL);
    assert_int_equal(
        linear_cuda(&rk, &(struct linear_args){.w = &m, .rows = 1, .x_stride = 40}, 1, &e),
        -1);
    assert_int_equal(
        index_quant_cuda(&rk, &(struct index_quant_args){.rows = 1, .dim = 96}, &e), -1);
    assert_int_equal(cu_is_fatal(cudaErrorIllegalAddress), 1);
    assert_int_equal(cu_is_fatal(cudaErrorMemoryAllocation), 0);
}

#define TEST(fn) cmocka_unit_test_teardown(fn, tear_down)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_act_quant), TEST(test_index_quant), TEST(test_kv_pack),
        TEST(test_norms),     TEST(test_rope),        TEST(test_swiglu),
        TEST(test_hc),        TEST(test_attention),   TEST(test_index),
        TEST(test_route),     TEST(test_moe_twice),   TEST(test_combine),
        TEST(test_synthetic), TEST(test_refused),     TEST(test_choose),
        TEST(test_best),      TEST(test_raw),         TEST(test_attend),
        TEST(test_inputs),    TEST(test_streams),
    };
    struct err e = {0};
    int failed;

    if (rank_open(&rk, &e) == -1) {
        printf("1..0 # SKIP %s\n", e.text);
        return 0;
    }
    failed = cmocka_run_group_tests_name("cuda_ops", tests, NULL, NULL);
    rank_close(&rk);
    return failed;
}
