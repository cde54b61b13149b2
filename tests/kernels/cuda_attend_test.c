/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention by clusters against its plain twin, over lists of all lengths: keys of rings, of the
 * step and of pages, all entries or those picked. Bits are the same whoever else is in the step,
 * whatever list it could be at most, and whether queries were normed before or not.
 */
#include "config.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/cpu/kvrow.h"
#include "gpu/cuda/kernels.h"
#include "gpu/ops/norm.h"
#include "model/kvsize.h"
#include "tests/kernels/cuda_test.h"
#include "tests/test.h"

enum {
    WINDOW = 128,
    SLOTS = WINDOW + 8,
    POOL = 23,
    MOST_ROWS = 8,
    TABLE = 1100,
    LONGEST = 8320
};

struct shape {
    int heads, dim, rope, ratio, topk; /* topk: 0: all entries */
    uint64_t pos[MOST_ROWS];           /* of each row; the last is followed by 0 */
};

/* Rows in a sequence of their own each, all on the device. */
struct world {
    struct attend_args a;
    uint16_t *raw; /* queries before norm and rotation */
    int longest;
};

static uint8_t *
key_rows(const struct shape *s, int n)
{
    const size_t bytes = kv_row_bytes(s->dim, s->rope);
    uint8_t *rows = malloc((size_t)n * bytes), *there;

    for (int i = 0; i < n; i++) {
        uint16_t *x = rnd_bf16((size_t)s->dim, 1.5f);

        kv_row_pack(KV_PACKED, x, s->dim, s->rope, rows + (size_t)i * bytes);
        free(x);
    }
    there = dev(rows, (size_t)n * bytes);
    free(rows);
    return there;
}

static int
list_length(const struct shape *s, uint64_t pos)
{
    const int window = pos + 1 < WINDOW ? (int)pos + 1 : WINDOW;
    const int entries = s->ratio > 0 ? (int)((pos + 1) / (uint64_t)s->ratio) : 0;

    return window + (s->topk > 0 && entries > s->topk ? s->topk : entries);
}

/* Some of what each row sees, ascending. */
static int *
picked_of(const struct shape *s, int n)
{
    int *picked = malloc((size_t)n * (size_t)s->topk * sizeof *picked), *there;

    for (int i = 0; i < n; i++) {
        const int step = (int)((s->pos[i] + 1) / (uint64_t)s->ratio) / s->topk;

        for (int k = 0; k < s->topk; k++)
            picked[i * s->topk + k] = step > 0 ? k * step + (int)(rnd() % (unsigned)step)
                                               : k;
    }
    there = dev(picked, (size_t)n * (size_t)s->topk * sizeof *picked);
    free(picked);
    return there;
}

/* Every second row's key of its own position is the step's; the others' step has begun earlier. */
static void
make_spans(const struct shape *s, struct world *w, int n)
{
    const size_t row = w->a.row_bytes;
    const int per_page = s->ratio > 0 ? KV_PAGE_TOKENS / s->ratio : 1;
    uint8_t *pool = key_rows(s, POOL * per_page);
    uint8_t **table = malloc(TABLE * sizeof *table);
    struct dev_span spans[MOST_ROWS];
    struct dev_row rows[MOST_ROWS];

    for (int i = 0; i < n; i++) {
        const int back = s->pos[i] > 2 && i % 2 == 1 ? 2 : 0;

        for (int p = 0; p < TABLE; p++)
            table[p] = pool + (size_t)((p + 7 * i) % POOL) * (size_t)per_page * row;
        spans[i] = (struct dev_span){.rings = key_rows(s, SLOTS),
                                     .pages = dev(table, TABLE * sizeof *table),
                                     .start = s->pos[i] - (uint64_t)back,
                                     .row0 = 3 * i,
                                     .n = back + 1};
        rows[i] = (struct dev_row){.pos = s->pos[i], .span = i};
        w->longest = list_length(s, s->pos[i]) > w->longest ? list_length(s, s->pos[i])
                                                            : w->longest;
    }
    w->a.rows = dev(rows, (size_t)n * sizeof *rows);
    w->a.spans = dev(spans, (size_t)n * sizeof *spans);
    free(table);
}

static void
make_world(const struct shape *s, struct world *w)
{
    const size_t size = (size_t)s->heads * (size_t)s->dim;
    uint16_t *raw;
    float *x;
    int n = 0;

    *w = (struct world){.a = {.row_bytes = kv_row_bytes(s->dim, s->rope),
                              .n_heads = s->heads,
                              .dim = s->dim,
                              .rope_dim = s->rope,
                              .window = WINDOW,
                              .ring_slots = SLOTS,
                              .ratio = s->ratio,
                              .topk = s->topk,
                              .per_dim = 1.0 / s->dim,
                              .scale = 1.0 / sqrt(s->dim),
                              .eps = 1e-6f}};
    while (n < MOST_ROWS && (n == 0 || s->pos[n] != 0))
        n++;
    w->a.n = n;
    make_spans(s, w, n);
    w->a.step_rows = key_rows(s, 3 * n);
    w->a.picked = s->topk > 0 ? picked_of(s, n) : NULL;
    raw = rnd_bf16(size * (size_t)n, 1.5f);
    w->raw = dev(raw, size * (size_t)n * 2);
    free(raw);
    x = rnd_f32((size_t)s->heads, 3.0f);
    w->a.sink = dev(x, (size_t)s->heads * 4);
    free(x);
    x = rnd_f32((size_t)n * (size_t)s->rope, 1.0f);
    w->a.cs = dev(x, (size_t)n * (size_t)s->rope * 4);
    free(x);
}

/* Queries as attention wants them, by the kernel for many rows. */
static uint16_t *
normed(const struct world *w)
{
    const size_t bytes = (size_t)w->a.n * (size_t)w->a.n_heads * (size_t)w->a.dim * 2;
    uint16_t *host = fetch(w->raw, bytes);
    const struct queries_args q = {.q = dev(host, bytes),
                                   .cs = w->a.cs,
                                   .rows = w->a.n,
                                   .n_heads = w->a.n_heads,
                                   .dim = w->a.dim,
                                   .rope_dim = w->a.rope_dim,
                                   .per_dim = w->a.per_dim,
                                   .eps = w->a.eps};
    struct err e = {0};

    done(queries_cuda(&rk, &q, &e), &e);
    free(host);
    return q.q;
}

/* attn.c's way without clusters. */
static uint16_t *
plain(const struct world *w)
{
    const struct attend_args *a = &w->a;
    const size_t bytes = (size_t)a->n * (size_t)a->n_heads * (size_t)a->dim * 2;
    const struct attention_args like = {.q = a->q,
                                        .sink = a->sink,
                                        .o = dev_poison(bytes),
                                        .n_keys = w->longest,
                                        .n_heads = a->n_heads,
                                        .dim = a->dim,
                                        .rope_dim = a->rope_dim,
                                        .fmt = KV_PACKED};
    struct keys_args k = {.rows = a->rows,
                          .spans = a->spans,
                          .step_rows = a->step_rows,
                          .picked = a->picked,
                          .like = like,
                          .row_bytes = a->row_bytes,
                          .n = a->n,
                          .max_keys = w->longest,
                          .window = a->window,
                          .ring_slots = a->ring_slots,
                          .ratio = a->ratio,
                          .topk = a->topk};
    const struct rope_args back = {.x = like.o,
                                   .cs = a->cs,
                                   .rows = a->n,
                                   .heads = a->n_heads,
                                   .dim = a->dim,
                                   .rope_dim = a->rope_dim,
                                   .inverse = 1};
    struct err e = {0};

    k.keys = dev_poison((size_t)a->n * (size_t)w->longest * sizeof *k.keys);
    k.jobs = dev_poison((size_t)a->n * sizeof *k.jobs);
    done(list_keys_cuda(&rk, &k, &e), &e);
    done(attention_cuda(&rk, k.jobs, a->n, &like,
                        dev_poison(attention_scratch(&like) * (size_t)a->n * 4), &e),
         &e);
    done(rope_cuda(&rk, &back, &e), &e);
    return fetch(like.o, bytes);
}

static uint16_t *
run(struct attend_args a)
{
    const size_t bytes = (size_t)a.n * (size_t)a.n_heads * (size_t)a.dim * 2;
    struct err e = {0};

    a.o = dev_poison(bytes);
    done(attend_cuda(&rk, &a, &e), &e);
    return fetch(a.o, bytes);
}

/* Row i by itself, its list at most `most` keys. */
static struct attend_args
one_row(const struct attend_args *all, int i, int most)
{
    struct attend_args a = *all;

    a.rows += i;
    a.q += (size_t)i * (size_t)a.n_heads * (size_t)a.dim;
    a.cs += i * a.rope_dim;
    a.picked = a.picked == NULL ? NULL : a.picked + i * a.topk;
    a.n = 1;
    a.max_keys = most;
    return a;
}

static void
rows_alone(const struct shape *s, const struct world *w, const uint16_t *want)
{
    const size_t size = (size_t)s->heads * (size_t)s->dim;

    for (int i = 0; i < w->a.n; i++) {
        const int n = list_length(s, s->pos[i]);
        struct attend_args a = one_row(&w->a, i, n);
        uint16_t *got = run(a);

        assert_memory_equal(got, want + (size_t)i * size, size * 2);
        free(got);
        a = one_row(&w->a, i, n < 300 ? 3 * n : n + 100);
        got = run(a);
        assert_memory_equal(got, want + (size_t)i * size, size * 2);
        free(got);
        a.q = w->raw + (size_t)i * size;
        a.raw = true;
        a.max_keys = LONGEST; /* in pieces, one to a block */
        got = run(a);
        assert_memory_equal(got, want + (size_t)i * size, size * 2);
        free(got);
        a.window--; /* without the oldest key */
        got = run(a);
        assert_int_equal(memcmp(got, want + (size_t)i * size, size * 2) == 0,
                         s->pos[i] + 1 < WINDOW);
        free(got);
    }
}

/* A block a row and clusters have the same bits, whichever a device of that size would take. */
static void
forms_agree(const struct world *w, const uint16_t *want)
{
    static const int sizes[] = {0, 1 << 20};
    const size_t bytes = (size_t)w->a.n * (size_t)w->a.n_heads * (size_t)w->a.dim * 2;
    const int sms = rk.sms;

    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        struct attend_args a = w->a;
        uint16_t *got;

        rk.sms = sizes[i];
        got = run(a);
        assert_memory_equal(got, want, bytes);
        free(got);
        a.window--;
        got = run(a);
        assert_int_not_equal(memcmp(got, want, bytes), 0);
        free(got);
    }
    rk.sms = sms;
}

void
test_attend(void **state)
{
    static const struct shape shapes[] = {
        {20, 128, 64, 0, 0, {0, 126, 127, 300, 47}},
        {20, 512, 64, 128, 0, {1023, 131071, 129, 40, 255}},
        {20, 128, 64, 4, 0, {1023, 32767, 2047, 3, 511, 33}},
        {18, 192, 64, 4, 48, {1023, 200, 160, 4000, 191}},
        {40, 64, 32, 4, 16, {1023, 7, 80, 95, 63, 64}},
        {20, 512, 64, 4, 512, {4095, 2047, 2303}},
        {33, 512, 64, 0, 0, {0, 1, 15, 16, 47, 63, 200}},
        {5, 512, 64, 4, 80, {64, 67, 190, 319, 900}},
    };

    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        struct world w;
        uint16_t *got, *want;
        size_t all;

        make_world(&shapes[i], &w);
        all = (size_t)w.a.n * (size_t)w.a.n_heads * (size_t)w.a.dim;
        w.a.q = normed(&w);
        w.a.max_keys = w.longest;
        want = plain(&w);
        got = run(w.a); /* in clusters: there is no scratch */
        forms_agree(&w, got);
        w.a.scratch_bytes = (size_t)16 << 20;
        w.a.scratch = dev_poison(w.a.scratch_bytes);
        print_message("# attend %d x %d, lists of %d: %d of %zu not bit for bit\n",
                      w.a.n_heads, w.a.dim, w.longest, far_bf16(got, want, all, 0.0f, 0.0f),
                      all);
        assert_int_equal(far_bf16(got, want, all, 0x1p-7f, 0x1p-8f), 0);
        rows_alone(&shapes[i], &w, got);
        free(want);
        w.a.max_keys = LONGEST;
        w.a.scratch_bytes *= 4;
        w.a.scratch = dev_poison(w.a.scratch_bytes);
        want = run(w.a);
        assert_memory_equal(got, want, all * 2);
        free(got);
        free(want);
        tear_down(NULL);
    }
}
