/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The indexer on tensor cores (gpu/cuda/choose.cu): scores as the C twin has them, bit for bit,
 * and the best of them, ties included. Rows alone, in groups of one sequence and of several, and
 * as many keys as need a cluster.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/fp.h"
#include "gpu/cpu/cpu.h"
#include "gpu/cpu/reference.h"
#include "gpu/cuda/kernels.h"
#include "gpu/index.h"
#include "gpu/index/choose.h"
#include "gpu/index/indexer.h"
#include "gpu/index/rows.h"
#include "model/kvsize.h"
#include "tests/kernels/cuda_test.h"
#include "tests/test.h"

enum {
    RATIO = MODEL_CSA_RATIO,
    PER_PAGE = KV_PAGE_TOKENS / RATIO,
    PAGE_AT = 24,
    SPANS = 3,
    ROWS = 70
};

struct shape {
    int heads, dim, topk, n_spans;

    struct {
        int start, n;
    } span[SPANS];
};

/* Codes and scales of n rows; some are as rows of zeros are packed. */
static void
random_rows(uint8_t *to, size_t n, int dim)
{
    for (size_t i = 0; i < n; i++, to += fp4_row(dim)) {
        for (int b = 0; b < dim / 2; b++)
            to[b] = (uint8_t)rnd();
        for (int g = 0; g < dim / FP4_GROUP; g++) {
            const bool zero = rnd() % 16 == 0;

            to[dim / 2 + g] = (uint8_t)(zero ? 1 : 120 + rnd() % 12);
            if (zero)
                memset(to + g * FP4_GROUP / 2, 0, FP4_GROUP / 2);
        }
    }
}

/* A sequence's pages, in descending order; as the host and as the device sees their keys. */
static struct dev_span
make_span(const struct shape *c, int i, int row0, const uint8_t **keys)
{
    const size_t n = (size_t)(c->span[i].start + c->span[i].n) / KV_PAGE_TOKENS + 1;
    const size_t page = PAGE_AT + (size_t)PER_PAGE * (size_t)fp4_row(c->dim);
    uint8_t *all = malloc(n * page), **pages = malloc(n * sizeof *pages), *there;

    for (size_t p = 0; p < n; p++) {
        memset(all + p * page, 0xff, PAGE_AT);
        random_rows(all + p * page + PAGE_AT, PER_PAGE, c->dim);
        keys[p] = all + (n - 1 - p) * page + PAGE_AT;
    }
    there = dev(all, n * page);
    for (size_t p = 0; p < n; p++)
        pages[p] = there + (n - 1 - p) * page;
    const struct dev_span s = {.pages = dev(pages, n * sizeof *pages),
                               .start = (uint64_t)c->span[i].start,
                               .row0 = row0,
                               .n = c->span[i].n};

    free(pages);
    return s;
}

/* Behind n scores: 0s up to a whole unit, and the largest of each unit, by eight; all else of a
 * row that could have `most` is as it was. */
static void
check_tops(const uint16_t *score, int n, int most)
{
    const uint16_t *tops = score + choose_tops(most);

    for (int j = n; j < choose_tops(most); j++)
        assert_int_equal(score[j], j < choose_tops(n) ? 0 : 0xa5a5);
    for (int u = 0; u < choose_stride(most) - choose_tops(most); u++) {
        uint16_t top = u < (choose_units(n) + 7) / 8 * 8 ? 0 : 0xa5a5;

        for (int j = u * CHOOSE_UNIT; u < choose_units(n) && j < (u + 1) * CHOOSE_UNIT; j++)
            top = score[j] > top ? score[j] : top;
        assert_int_equal(tops[u], top);
    }
}

/* Row r as the C twin has it. */
static void
check_row(const struct choose_args *a, struct index_score_args *like, const uint16_t *score,
          const int *picked)
{
    const size_t n = (size_t)like->n_rows;
    float *want = poison(n * sizeof *want);
    int *best = poison((size_t)a->topk * sizeof *best);

    if (like->n_rows > a->topk) {
        like->score = want;
        reference_index_scores(like, 1);
        for (size_t j = 0; j < n; j++)
            assert_int_equal(score[j], fpbits_bf16_order(f32_to_bf16(want[j])));
        topk_rows(want, like->n_rows, a->topk, best);
    }
    assert_memory_equal(picked, best, (size_t)a->topk * sizeof *best);
    check_tops(score, like->n_rows > a->topk ? like->n_rows : 0, a->max_rows);
    free(want);
    free(best);
}

static void
check_shape(const struct shape *c)
{
    const size_t q_bytes = (size_t)c->heads * (size_t)fp4_row(c->dim);
    const uint8_t *keys[SPANS][512];
    struct dev_span spans[SPANS];
    struct dev_row rows[ROWS];
    struct choose_args a = {.page_at = PAGE_AT,
                            .n_spans = c->n_spans,
                            .n_heads = c->heads,
                            .dim = c->dim,
                            .topk = c->topk};
    struct err e = {0};

    for (int i = 0; i < c->n_spans; i++) {
        const int end = c->span[i].start + c->span[i].n;

        spans[i] = make_span(c, i, a.n, keys[i]);
        for (int r = 0; r < c->span[i].n; r++)
            rows[a.n++] = (struct dev_row){(uint64_t)(c->span[i].start + r), 0, i};
        a.max_rows = end / RATIO > a.max_rows ? end / RATIO : a.max_rows;
    }
    uint8_t *q = malloc(q_bytes * (size_t)a.n);
    uint16_t *w = rnd_bf16((size_t)(a.n * c->heads), 0.05f), *score;
    const size_t stride = (size_t)choose_stride(a.max_rows);
    int *picked;

    random_rows(q, (size_t)(a.n * c->heads), c->dim);
    a.q = dev(q, q_bytes * (size_t)a.n);
    a.w = dev(w, (size_t)(a.n * c->heads) * 2);
    a.rows = dev(rows, (size_t)a.n * sizeof *rows);
    a.spans = dev(spans, (size_t)c->n_spans * sizeof *spans);
    a.score = dev_poison((size_t)a.n * stride * 2);
    a.picked = dev_poison((size_t)(a.n * c->topk) * sizeof *picked);
    assert_true(
        choose_can(c->heads, c->dim, c->topk, (uint64_t)a.max_rows, rk.shared_bytes));
    done(choose_cuda(&rk, &a, &e), &e);
    score = fetch(a.score, (size_t)a.n * stride * 2);
    picked = fetch(a.picked, (size_t)(a.n * c->topk) * sizeof *picked);
    for (int r = 0; r < a.n; r++) {
        struct index_score_args like = {
            .q = q + q_bytes * (size_t)r,
            .w = w + r * c->heads,
            .blocks = keys[rows[r].span],
            .n_rows = (int)entries_visible(rows[r].pos, (uint64_t)RATIO),
            .block_rows = PER_PAGE,
            .n_heads = c->heads,
            .dim = c->dim};

        check_row(&a, &like, score + (size_t)r * stride, picked + r * c->topk);
    }
    for (int i = 0; i < c->n_spans; i++)
        free((void *)(keys[i][(c->span[i].start + c->span[i].n) / KV_PAGE_TOKENS] -
                      PAGE_AT));
    free(q);
    free(w);
    free(score);
    free(picked);
    tear_down(NULL);
}

/* Scores of many kinds: 16 bits that need not come of anything. */
enum kind { ANY, EQUAL, NEAR_TOP, TWO, FAR_APART, RISING, KINDS };

static uint16_t
score_of(enum kind kind, int j, int n)
{
    switch (kind) {
    case EQUAL: return 0x9000;
    case NEAR_TOP: return (uint16_t)(0xc000 + rnd() % 300);
    case TWO: return rnd() % 64 == 0 ? 0xffff : 0;
    case FAR_APART: return (uint16_t)(0xffff >> rnd() % 16);
    case RISING: return (uint16_t)((uint64_t)j * 0xffff / (uint64_t)n);
    default: return (uint16_t)rnd();
    }
}

/* The same choice by counting: of equal ones the first. */
static void
plain_best(const uint16_t *score, int n, int topk, int *best)
{
    static int count[65536 + 1];
    int limit = 65535, above = 0, at = 0;

    memset(count, 0, sizeof count);
    for (int j = 0; j < n; j++)
        count[score[j]]++;
    while (above + count[limit] < topk)
        above += count[limit--];
    for (int j = 0, equal = topk - above; j < n; j++)
        if (score[j] > limit || (score[j] == limit && equal-- > 0))
            best[at++] = j;
    assert_int_equal(at, topk);
}

/* best_cuda of rows that see `most` entries, one fewer, and topk. */
static void
check_best(enum kind kind, int most, int topk)
{
    const struct dev_row rows[] = {{(uint64_t)most * RATIO - 1, 0, 0},
                                   {(uint64_t)most * RATIO - 2, 0, 0},
                                   {(uint64_t)topk * RATIO, 0, 0}};
    struct choose_args a = {
        .n = 3, .n_heads = 1, .dim = 32, .topk = topk, .max_rows = most};
    const size_t stride = (size_t)choose_stride(most);
    uint16_t *score = poison(3 * stride * sizeof *score);
    int *want = poison(3 * (size_t)topk * sizeof *want), *got;
    struct err e = {0};

    for (int r = 0; r < 2; r++) {
        uint16_t *s = score + (size_t)r * stride, *tops = s + choose_tops(most);
        const int n = (int)entries_visible(rows[r].pos, RATIO);

        for (int j = 0; j < choose_tops(n); j++)
            s[j] = j < n ? score_of(kind, j, n) : 0;
        for (int j = 0; j < choose_stride(n) - choose_tops(n); j++)
            tops[j] = 0;
        for (int j = 0; j < choose_tops(n); j++)
            if (s[j] > tops[j / CHOOSE_UNIT])
                tops[j / CHOOSE_UNIT] = s[j];
        if (n > topk)
            plain_best(s, n, topk, want + r * topk);
    }
    a.rows = dev(rows, sizeof rows);
    a.score = dev(score, 3 * stride * sizeof *score);
    a.picked = dev_poison(3 * (size_t)topk * sizeof *want);
    done(best_cuda(&rk, &a, &e), &e);
    got = fetch(a.picked, 3 * (size_t)topk * sizeof *want);
    assert_memory_equal(got, want, 3 * (size_t)topk * sizeof *want);
    free(score);
    free(want);
    free(got);
    tear_down(NULL);
}

void
test_best(void **state)
{
    static const struct {
        int most, topk;
    } shapes[] = {{17, 16},      {40, 3},        {600, 512},    {8192, 512},
                  {8209, 512},   {20000, 512},   {20001, 1024}, {70001, 100},
                  {40000, 4095}, {262144, 1024}, {524288, 512}, {300, 1}};

    (void)state;
    for (size_t k = 0; k < sizeof shapes / sizeof shapes[0]; k++)
        for (enum kind kind = ANY; kind < KINDS; kind++)
            check_best(kind, shapes[k].most, shapes[k].topk);
}

/* Queries as their product left them: numbers of very different sizes, whole groups of zeros. */
static uint16_t *
raw_queries(int n, int dim)
{
    uint16_t *q = rnd_bf16((size_t)(n * dim), 3.0f);

    for (int i = 0; i < n * dim; i++)
        if (i / dim % 7 == 3)
            q[i] = 0;
        else if (rnd() % 32 == 0)
            q[i] = (uint16_t)(rnd() % 2 * 0x8000 + 0x3f80 + rnd() % 8 * 0x80);
    return q;
}

/* choose_cuda of queries that it rotates and packs itself, and of those that queries_cuda has
 * packed: scores and choices to the last bit. flip: one number of the former's is another one. */
static bool
same_raw(int heads, int dim, int rope_dim, int n, bool flip)
{
    const struct shape c = {heads, dim, 20, 1, {{400, n}}};
    const uint8_t *keys[512];
    struct dev_span span = make_span(&c, 0, 0, keys);
    struct dev_row rows[CHOOSE_RAW_ROWS];
    struct choose_args a = {.page_at = PAGE_AT,
                            .n = n,
                            .n_spans = 1,
                            .n_heads = heads,
                            .dim = dim,
                            .topk = c.topk,
                            .rope_dim = rope_dim,
                            .max_rows = (400 + n) / RATIO};
    const size_t stride = (size_t)choose_stride(a.max_rows) * 2 * (size_t)n;
    const size_t chosen = (size_t)(n * c.topk) * sizeof(int);
    uint16_t *q = raw_queries(n * heads, dim), *w = rnd_bf16((size_t)(n * heads), 0.05f);
    float *cs = rnd_f32((size_t)(n * rope_dim), 1.0f);
    uint8_t *packed = dev_poison((size_t)(n * heads * fp4_row(dim)));
    struct err e = {0};
    void *score[2], *picked[2];

    for (int r = 0; r < n; r++)
        rows[r] = (struct dev_row){(uint64_t)(400 + r), 0, 0};
    a.rows = dev(rows, (size_t)n * sizeof *rows);
    a.spans = dev(&span, sizeof span);
    a.w = dev(w, (size_t)(n * heads) * 2);
    a.cs = dev(cs, (size_t)(n * rope_dim) * sizeof *cs);
    const struct queries_args pack = {.iq = dev(q, (size_t)(n * heads * dim) * 2),
                                      .iqp = packed,
                                      .cs = a.cs,
                                      .rows = n,
                                      .dim = dim,
                                      .n_index = heads,
                                      .index_dim = dim,
                                      .rope_dim = rope_dim};

    q[(n * heads - 1) * dim + 1] ^= flip ? 0x4000 : 0;
    assert_true(choose_takes_raw(n, dim, rope_dim));
    done(queries_cuda(&rk, &pack, &e), &e);
    for (int i = 0; i < 2; i++) {
        a.q = packed;
        a.raw = i == 0 ? NULL : dev(q, (size_t)(n * heads * dim) * 2);
        a.score = dev_poison(stride);
        a.picked = dev_poison(chosen);
        done(choose_cuda(&rk, &a, &e), &e);
        score[i] = fetch(a.score, stride);
        picked[i] = fetch(a.picked, chosen);
    }
    const bool same = memcmp(score[0], score[1], stride) == 0 &&
                      memcmp(picked[0], picked[1], chosen) == 0;

    for (int i = 0; i < 2; i++) {
        free(score[i]);
        free(picked[i]);
    }
    free((void *)(keys[(400 + n) / KV_PAGE_TOKENS] - PAGE_AT));
    free(q);
    free(w);
    free(cs);
    tear_down(NULL);
    return same;
}

void
test_raw(void **state)
{
    (void)state;
    assert_true(same_raw(64, 128, 64, 1, false));
    assert_true(same_raw(64, 128, 64, 4, false));
    assert_true(same_raw(17, 128, 16, 2, false));
    assert_true(same_raw(5, 64, 24, 3, false));
    assert_true(same_raw(9, 32, 32, 1, false));
    assert_false(same_raw(64, 128, 64, 1, true));
    assert_false(choose_takes_raw(1, 128, 12));
    assert_false(choose_takes_raw(CHOOSE_RAW_ROWS + 1, 128, 64));
}

void
test_choose(void **state)
{
    static const struct shape shapes[] = {
        {64, 128, 16, 1, {{1203, 1}}},
        {64, 128, 32, 2, {{300, 5}, {90, 3}}},
        {3, 64, 24, 1, {{640, 19}}},
        {17, 128, 40, 3, {{130, 18}, {700, 7}, {400, 11}}},
        {1, 32, 512, 2, {{33100, 2}, {1, 1}}},
        {2, 32, 100, 3, {{33020, 3}, {20, 61}, {33100, 2}}},
        {1, 32, 512, 1, {{65533, 1}}},
    };

    (void)state;
    for (size_t k = 0; k < sizeof shapes / sizeof shapes[0]; k++)
        check_shape(&shapes[k]);
}
