/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What stands between the projections of attention (inputs.cu): the product that does it on the way,
 * for few rows, against the kernel of its own and the product behind it. All that either writes is
 * compared, bit for bit.
 */
#include "config.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/fp.h"
#include "gpu/cuda/kernels.h"
#include "model/kvsize.h"
#include "tests/kernels/cuda_test.h"
#include "tests/test.h"

enum { MOST = 8, RING = 24, PAGES = 4, HC = 4, MIX = 2 * HC + HC * HC, CHUNKS = 40 };

struct shape {
    enum matrix_kind kind;
    enum kv_fmt fmt;
    int q_dim, heads, dim, rope, index_heads, index_dim, ratio, rows;
};

/* What both ways read and do not write. */
struct world {
    struct inputs_args in;
    struct linear_args job[2];
    struct matrix w[2];
    uint16_t *qr; /* host */
    uint8_t *init;
    size_t bytes; /* of what they write */
    int row0[2], n[2], jobs;
    uint64_t start[2];
};

static void
make_matrix(struct matrix *m, enum matrix_kind kind, int out, int in)
{
    const size_t n = (size_t)out * (size_t)in;
    uint16_t *w = rnd_bf16(n, 0.7f);
    uint8_t *scale = malloc(n);
    struct err e = {0};

    if (kind == MATRIX_FP8)
        for (size_t i = 0; i < n; i++)
            ((uint8_t *)w)[i] = (uint8_t)rnd() & 0xbe;
    memset(scale, 121, n);
    *m = (struct matrix){.kind = kind, .out = out, .in = in, .scale = dev(scale, n)};
    m->packed = dev_poison(matrix_packed_bytes(m));
    done(matrix_pack_cuda(&rk, m, 0, out, dev(w, n * 2), NULL, dev(&(int){0}, sizeof(int)),
                          &e),
         &e);
    free(w);
    free(scale);
}

static void *
some(size_t n, float size)
{
    float *x = rnd_f32(n, size);
    void *there = dev(x, n * sizeof *x);

    free(x);
    return there;
}

static uint16_t *
some_bf16(size_t n, float size)
{
    uint16_t *x = rnd_bf16(n, size), *there = dev(x, n * sizeof *x);

    free(x);
    return there;
}

static struct compress_args
make_compressor(const struct world *w, const struct shape *s, int dim)
{
    const int overlap = s->ratio < 16, width = overlap ? 2 * dim : dim;
    struct compress_args k = {.raw = some((size_t)s->rows * 2 * (size_t)width, 3.0f),
                              .ape = some((size_t)s->ratio * (size_t)width, 1.0f),
                              .rows = w->in.rows,
                              .ratio = s->ratio,
                              .dim = dim,
                              .overlap = overlap,
                              .slots = (overlap ? 2 : 1) * s->ratio + MOST,
                              .norm = some((size_t)dim, 1.0f),
                              .cs = some((size_t)s->rows * (size_t)s->rope, 1.0f)};
    struct dev_entry entries[MOST];
    int n = 0;

    for (int i = 0; i < 2; i++)
        for (uint64_t j = w->start[i] / (uint64_t)s->ratio;
             j < (w->start[i] + (uint64_t)w->n[i]) / (uint64_t)s->ratio; j++)
            entries[n++] = (struct dev_entry){.j = j, .span = i};
    assert_true(n > 0 && n <= s->rows);
    k.entries = dev(entries, sizeof entries);
    k.count = dev(&n, sizeof n);
    return k;
}

/* One sequence has all rows but the last, another that one. Entries become complete. */
static void
make_rows(struct world *w, const struct shape *s)
{
    struct dev_row rows[MOST];

    w->n[0] = s->rows > 1 ? s->rows - 1 : 1;
    w->n[1] = s->rows - w->n[0];
    w->row0[1] = w->n[0];
    w->start[0] = s->ratio == 0 ? 77 : (uint64_t)s->ratio * (s->rows > 4 ? 1 : 2) - 1;
    w->start[1] = 130;
    for (int i = 0; i < s->rows; i++)
        rows[i] =
            (struct dev_row){.pos = i < w->n[0] ? w->start[0] + (uint64_t)i : w->start[1],
                             .span = i >= w->n[0]};
    w->in.rows = dev(rows, sizeof rows);
}

static void
make_world(struct world *w, const struct shape *s)
{
    const size_t n = (size_t)s->rows;
    float *part = rnd_f32(n * (MIX + 1) * CHUNKS, 0.3f);

    *w = (struct world){.jobs = 1 + (s->index_heads > 0)};
    make_rows(w, s);
    for (size_t i = 0; i < n * (MIX + 1) * CHUNKS; i++)
        part[i] = i / CHUNKS % (MIX + 1) == MIX ? fabsf(part[i]) : part[i];
    w->in.n = s->rows;
    w->in.q_dim = s->q_dim;
    w->in.dim = s->dim;
    w->in.rope_dim = s->rope;
    w->in.fmt = s->fmt;
    w->in.row_bytes = s->fmt == KV_BF16 ? 2 * s->dim : (int)kv_row_bytes(s->dim, s->rope);
    w->in.ring_slots = RING;
    w->in.keep = 1;
    w->in.eps = 1e-6f;
    w->in.weight_scale = 0.03f;
    w->in.n_weights = s->index_heads;
    w->in.q_norm = some((size_t)s->q_dim, 1.0f);
    w->in.kv_norm = some((size_t)s->dim, 1.0f);
    w->in.cs = some(n * (size_t)s->rope, 1.0f);
    w->in.kv = some_bf16(n * (size_t)s->dim, 2.0f);
    w->qr = rnd_bf16(n * (size_t)s->q_dim, 2.0f);
    if (s->ratio > 0)
        w->in.comp = make_compressor(w, s, s->dim);
    if (s->index_heads > 0)
        w->in.index = make_compressor(w, s, s->index_dim);
    w->in.back = (struct streams_in_args){.part = dev(part, n * (MIX + 1) * CHUNKS * 4),
                                          .scale = some(3, 1.0f),
                                          .base = some(MIX, 1.0f),
                                          .rows = s->rows,
                                          .hc = HC,
                                          .dim = 64,
                                          .n_mix = MIX,
                                          .iters = 20,
                                          .chunks = CHUNKS,
                                          .norm_eps = 1e-6f,
                                          .hc_eps = 1e-6f};
    free(part);
    make_matrix(&w->w[0], s->kind, s->heads * s->dim, s->q_dim);
    if (w->jobs > 1)
        make_matrix(&w->w[1], s->kind, s->index_heads * s->index_dim, s->q_dim);
}

/* The next n bytes of what is written, from base on. */
static uint8_t *
place(uint8_t *base, size_t *used, size_t n)
{
    uint8_t *at = base + *used;

    *used += (n + 255) / 256 * 256;
    return at;
}

/* Pointers to all that is written; the bytes that it takes. */
static size_t
place_all(struct world *w, const struct shape *s, uint8_t *base)
{
    struct inputs_args *in = &w->in;
    const size_t n = (size_t)s->rows, per_page = s->ratio > 0 ? 128 / (size_t)s->ratio : 0;
    const size_t main_page = per_page * (size_t)in->row_bytes;
    struct dev_span spans[2];
    size_t used = 0;

    in->keys = place(base, &used, n * (size_t)in->row_bytes);
    in->weights = (uint16_t *)place(base, &used, n * (size_t)s->index_heads * 2);
    in->back.post = (float *)place(base, &used, n * HC * 4);
    in->back.comb = (float *)place(base, &used, n * HC * HC * 4);
    for (int i = 0; i < w->jobs; i++)
        w->job[i] =
            (struct linear_args){.w = &w->w[i],
                                 .y = place(base, &used, n * (size_t)w->w[i].out * 2),
                                 .rows = s->rows,
                                 .x_stride = s->q_dim,
                                 .y_stride = w->w[i].out};
    for (int i = 0; i < 2; i++) {
        const uint8_t *pages[PAGES];
        size_t at = 0;

        spans[i] =
            (struct dev_span){.start = w->start[i], .row0 = w->row0[i], .n = w->n[i]};
        place(NULL, &at, RING * (size_t)in->row_bytes);
        in->comp.ring_at = at;
        place(NULL, &at, (size_t)in->comp.slots * 4 * (size_t)s->dim * 4);
        in->index.ring_at = at;
        place(NULL, &at, (size_t)in->index.slots * 4 * (size_t)s->index_dim * 4);
        spans[i].rings = place(base, &used, at);
        for (int p = 0; p < PAGES; p++)
            pages[p] = place(base, &used, main_page + per_page * (size_t)s->index_dim);
        spans[i].pages = base != NULL ? dev(pages, sizeof pages) : NULL;
    }
    in->index.page_at = main_page;
    if (base != NULL)
        in->spans = in->comp.spans = in->index.spans = dev(spans, sizeof spans);
    return used;
}

/* All that is written, on the host; caller frees. */
static uint8_t *
run(struct world *w, const struct shape *s, bool fused, int rows)
{
    const size_t q_bytes = (size_t)s->rows * (size_t)s->q_dim * 2;
    uint16_t *rounded = dev_poison(q_bytes);
    uint8_t *base = dev(w->init, w->bytes);
    struct err e = {0};

    place_all(w, s, base);
    w->in.qr = dev(w->qr, q_bytes);
    w->in.qrq = rounded;
    w->in.n = rows;
    for (int i = 0; i < w->jobs; i++) {
        w->job[i].rows = rows;
        w->job[i].x = fused || s->kind == MATRIX_BF16 ? w->in.qr : rounded;
        w->job[i].quant = fused && s->kind != MATRIX_BF16;
    }
    if (fused) {
        assert_true(packed_inputs_can(w->job, w->jobs, &w->in));
        done(packed_inputs_cuda(&rk, w->job, w->jobs, &w->in, &e), &e);
    } else {
        done(inputs_cuda(&rk, &w->in, &e), &e);
        done(linear_cuda(&rk, w->job, w->jobs, &e), &e);
        done(queries_cuda(&rk, &(struct queries_args){.back = &w->in.back, .rows = rows},
                          &e),
             &e);
    }
    return fetch(base, w->bytes);
}

void
test_inputs(void **state)
{
    static const struct shape shapes[] = {
        {MATRIX_FP8, KV_PACKED, 1024, 2, 512, 64, 4, 128, 4, 1}, /* Flash */
        {MATRIX_FP8, KV_PACKED, 1024, 1, 512, 64, 0, 0, 128, 1},
        {MATRIX_FP8, KV_PACKED, 1024, 1, 512, 64, 2, 128, 4, 8},
        {MATRIX_FP8, KV_PACKED, 1536, 1, 512, 64, 1, 128, 4, 7}, /* Pro */
        {MATRIX_FP8, KV_PACKED, 256, 2, 192, 64, 8, 128, 4, 5},  /* pro-tiny */
        {MATRIX_BF16, KV_PACKED, 128, 4, 128, 64, 4, 128, 4, 4}, /* bf16-tiny */
        {MATRIX_BF16, KV_BF16, 128, 4, 128, 64, 4, 128, 128, 3},
        {MATRIX_BF16, KV_BF16, 320, 2, 136, 20, 1, 32, 2, 6},
        {MATRIX_FP8, KV_PACKED, 192, 1, 128, 128, 0, 0, 0, 2},
    };

    (void)state;
    for (size_t k = 0; k < sizeof shapes / sizeof shapes[0]; k++) {
        const struct shape *s = &shapes[k];
        struct world w;
        uint8_t *plain, *fused, *one;
        size_t q_at;

        make_world(&w, s);
        w.bytes = place_all(&w, s, NULL);
        w.init = malloc(w.bytes);
        for (size_t i = 0; i < w.bytes / 2;
             i++) /* rings are read as f32, weights as bf16 */
            ((uint16_t *)w.init)[i] = f32_to_bf16(rnd_float(2.0f));
        plain = run(&w, s, false, s->rows);
        fused = run(&w, s, true, s->rows);
        assert_memory_equal(plain, fused, w.bytes);
        q_at = (size_t)((uint8_t *)w.job[0].y - w.in.keys); /* keys come first */
        assert_true(memcmp(plain + q_at, w.init + q_at, (size_t)w.w[0].out * 2) != 0);
        one = run(&w, s, true, 1); /* the first row alone */
        assert_memory_equal(plain + q_at, one + q_at, (size_t)w.w[0].out * 2);
        assert_memory_equal(plain, one, (size_t)w.in.row_bytes);
        free(fused);
        w.qr[s->q_dim / 2] = f32_to_bf16(40.0f); /* one input of a query's row shows */
        fused = run(&w, s, true, s->rows);
        assert_true(memcmp(plain + q_at, fused + q_at, (size_t)w.w[0].out * 2) != 0);
        free(plain);
        free(fused);
        free(one);
        free(w.qr);
        free(w.init);
        tear_down(NULL);
    }
}
