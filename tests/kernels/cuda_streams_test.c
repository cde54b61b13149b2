/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hyper-connections between sublayers on the device (streams.cu): against the C twins of their
 * parts, and a row alone against the same row in company. Parts are added up in double here: the mix
 * may differ in its last places, and few elements of the input by one place of bf16.
 */
#include "config.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/fp.h"
#include "gpu/cpu/reference.h"
#include "gpu/cuda/kernels.h"
#include "gpu/ops/mhc.h"
#include "gpu/ops/norm.h"
#include "gpu/ops/quant.h"
#include "tests/kernels/cuda_test.h"
#include "tests/test.h"

enum { ROWS = 19, USED = 6 };

struct streams {
    int hc, dim, n_mix;
    uint16_t *x, *f, *routed, *shared; /* host; routed by row and choice */
    float *post, *comb, *fn, *base, *norm;
    int *slot;
    size_t row; /* elements of a row of x */
};

static void
make(struct streams *s, int hc, int dim)
{
    *s = (struct streams){.hc = hc, .dim = dim, .n_mix = 2 * hc + hc * hc};
    s->row = (size_t)hc * dim;
    s->x = rnd_bf16(ROWS * s->row, 2.0f);
    s->f = rnd_bf16((size_t)ROWS * dim, 2.0f);
    s->routed = rnd_bf16((size_t)ROWS * USED * dim, 2.0f);
    s->shared = rnd_bf16((size_t)ROWS * dim, 2.0f);
    s->post = rnd_f32((size_t)ROWS * hc, 2.0f);
    s->comb = rnd_f32((size_t)ROWS * hc * hc, 1.0f);
    s->fn = rnd_f32(s->n_mix * s->row, 0.5f);
    s->base = rnd_f32((size_t)s->n_mix, 1.0f);
    s->norm = rnd_f32((size_t)dim, 1.0f);
    s->slot = malloc(sizeof *s->slot * ROWS * USED);
    for (int i = 0; i < ROWS * USED; i++)
        s->slot[i] = i * 5 % (ROWS * USED); /* 114 and 5 share no factor */
}

static void
drop(struct streams *s)
{
    free(s->x);
    free(s->f);
    free(s->routed);
    free(s->shared);
    free(s->post);
    free(s->comb);
    free(s->fn);
    free(s->base);
    free(s->norm);
    free(s->slot);
}

/* What streams_mix and streams_in leave of rows row0 .. row0 + n - 1, on the device. */
struct left {
    struct streams_mix_args mix;
    struct streams_in_args in;
    uint16_t *x, *y, *yq; /* host */
    float *part;
};

static size_t
parts(const struct streams *s, int n)
{
    return (size_t)n * (s->n_mix + 1) * streams_chunks(s->hc, s->dim);
}

static void
run_mix(const struct streams *s, int row0, int n, bool experts, bool through,
        struct left *l)
{
    static const float scale[3] = {0.7f, 0.4f, 1.5f};
    const size_t d = (size_t)s->dim, hc = (size_t)s->hc, r0 = (size_t)row0;
    uint16_t *routed = malloc((size_t)n * USED * d * sizeof *routed);
    int *slot = malloc(sizeof *slot * (size_t)n * USED);
    struct err e = {0};

    for (int i = 0; i < n * USED; i++) {
        slot[i] = n == ROWS ? s->slot[i] : i; /* one row: in order */
        memcpy(routed + (size_t)slot[i] * d, s->routed + (r0 * USED + (size_t)i) * d,
               d * sizeof *routed);
    }
    l->mix = (struct streams_mix_args){
        .x = dev(s->x + r0 * s->row, (size_t)n * s->row * 2),
        .post = dev(s->post + r0 * hc, (size_t)n * hc * 4),
        .comb = dev(s->comb + r0 * hc * hc, (size_t)n * hc * hc * 4),
        .f = experts ? NULL : dev(s->f + r0 * d, (size_t)n * d * 2),
        .routed = dev(routed, (size_t)n * USED * d * 2),
        .shared = dev(s->shared + r0 * d, (size_t)n * d * 2),
        .slot = dev(slot, sizeof *slot * (size_t)n * USED),
        .fn = dev(s->fn, (size_t)s->n_mix * s->row * 4),
        .through = through ? dev_poison((size_t)n * d * 2) : NULL,
        .part = dev_poison(parts(s, n) * 4),
        .rows = n,
        .hc = s->hc,
        .dim = s->dim,
        .n_mix = s->n_mix,
        .k = USED};
    l->in = (struct streams_in_args){.x = l->mix.x,
                                     .part = l->mix.part,
                                     .scale = dev(scale, sizeof scale),
                                     .base = dev(s->base, (size_t)s->n_mix * 4),
                                     .norm = dev(s->norm, d * 4),
                                     .y = dev_poison((size_t)n * d * 2),
                                     .yq = dev_poison((size_t)n * d * 2),
                                     .rows = n,
                                     .hc = s->hc,
                                     .dim = s->dim,
                                     .n_mix = s->n_mix,
                                     .iters = 20,
                                     .chunks = streams_chunks(s->hc, s->dim),
                                     .norm_eps = 1e-6f,
                                     .hc_eps = 1e-6f};
    free(routed);
    free(slot);
    done(streams_mix_cuda(&rk, &l->mix, &e), &e);
}

static void
run(const struct streams *s, int row0, int n, bool experts, bool through, struct left *l)
{
    struct err e = {0};

    run_mix(s, row0, n, experts, through, l);
    done(streams_in_cuda(&rk, &l->in, &e), &e);
    l->x = fetch(l->mix.x, (size_t)n * s->row * 2);
    l->y = fetch(l->in.y, (size_t)n * (size_t)s->dim * 2);
    l->yq = fetch(l->in.yq, (size_t)n * (size_t)s->dim * 2);
    l->part = fetch(l->mix.part, parts(s, n) * 4);
}

static void
left_free(struct left *l)
{
    free(l->x);
    free(l->y);
    free(l->yq);
    free(l->part);
}

/* The sublayer's output as combine_cuda says. */
static void
output(const struct streams *s, bool experts, uint16_t *f)
{
    for (size_t i = 0; i < (size_t)ROWS * s->dim; i++) {
        const size_t r = i / s->dim, c = i % s->dim;
        float sum = 0.0f;

        for (size_t n = 0; n < USED; n++)
            sum += bf16_to_f32(s->routed[(r * USED + n) * s->dim + c]);
        f[i] = experts ? f32_to_bf16(sum + bf16_to_f32(s->shared[i])) : s->f[i];
    }
}

/* All rows against the C twins: what the streams are, what becomes of them. */
static void
against_twins(const struct streams *s, bool experts, const struct left *l)
{
    static const float scale[3] = {0.7f, 0.4f, 1.5f};
    const size_t n = (size_t)ROWS * s->dim;
    const int chunks = streams_chunks(s->hc, s->dim);
    uint16_t *f = malloc(n * 2), *x = malloc(ROWS * s->row * 2), *y = malloc(n * 2),
             *yq = malloc(n * 2);
    float *m = malloc(sizeof *m * (size_t)ROWS * s->n_mix);
    float *post = malloc(sizeof *post * ROWS * 8), *comb = malloc(sizeof *comb * ROWS * 64);

    output(s, experts, f);
    if (l->mix.through != NULL) {
        uint16_t *sent = fetch(l->mix.through, n * 2);

        assert_memory_equal(sent, f, n * 2);
        free(sent);
    }
    reference_hc_post(
        &(struct hc_post_args){s->x, f, s->post, s->comb, x, ROWS, s->hc, s->dim});
    assert_memory_equal(l->x, x, ROWS * s->row * 2);
    for (int i = 0; i < ROWS * s->n_mix; i++) {
        const uint16_t *row = x + (size_t)(i / s->n_mix) * s->row;
        const float *w = s->fn + (size_t)(i % s->n_mix) * s->row;
        double sum = 0.0, size = 0.0, got = 0.0;

        for (size_t c = 0; c < s->row; c++) {
            sum += (double)bf16_to_f32(row[c]) * (double)w[c];
            size += fabs((double)bf16_to_f32(row[c]) * (double)w[c]);
        }
        for (int c = 0; c < chunks; c++)
            got += (double)l->part[((size_t)(i / s->n_mix) * (s->n_mix + 1) +
                                    (size_t)(i % s->n_mix)) *
                                       chunks +
                                   c];
        assert_true(fabs(got - sum) <= 12 * 0x1p-24 * size);
        m[i] = (float)sum;
    }
    reference_hc_pre(&(struct hc_pre_args){x, m, scale, s->base, y, post, comb, ROWS, s->hc,
                                           s->dim, s->n_mix, 20, 1e-6f, 1e-6f});
    reference_rmsnorm(&(struct rmsnorm_args){y, s->norm, y, ROWS, s->dim, 1e-6f});
    assert_int_equal(far_bf16(l->y, y, n, 0x1p-6f, 1e-3f), 0);
    assert_true(far_bf16(l->y, y, n, 0.0f, 0.0f) <= 2 + (int)(n / 100));
    reference_act_quant(&(struct act_quant_args){l->y, yq, ROWS, s->dim, s->dim, 128});
    assert_memory_equal(l->yq, yq, n * 2);
    free(f);
    free(x);
    free(y);
    free(yq);
    free(m);
    free(post);
    free(comb);
}

void
test_streams(void **state)
{
    static const int shapes[][2] = {{4, 128}, {4, 1032}, {4, 4352},
                                    {1, 64},  {3, 104},  {8, 72}};

    for (int k = 0; k < 12; k++) {
        const bool experts = k % 2;
        struct left all, one;
        struct streams s;

        make(&s, shapes[k / 2][0], shapes[k / 2][1]);
        run(&s, 0, ROWS, experts, k % 3 == 0, &all);
        against_twins(&s, experts, &all);
        for (int r = 0; r < ROWS; r += 6) {
            const size_t d = (size_t)s.dim, at = (size_t)r;

            run(&s, r, 1, experts, r % 12 == 0, &one);
            assert_memory_equal(one.x, all.x + at * s.row, s.row * 2);
            assert_memory_equal(one.part, all.part + parts(&s, r), parts(&s, 1) * 4);
            assert_memory_equal(one.y, all.y + at * d, d * 2);
            assert_memory_equal(one.yq, all.yq + at * d, d * 2);
            left_free(&one);
        }
        left_free(&all);
        drop(&s);
        tear_down(state);
    }
}
