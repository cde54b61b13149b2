/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tokens drawn on the device are those that model/sampler.c draws from the same row, and their
 * log-probabilities too, to the last bit: all parameters that a device is given, rows that are flat,
 * peaked, full of equal logits, not numbers.
 */
#include "config.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "gpu/cuda/kernels.h"
#include "model/sampler.h"
#include "tests/kernels/cuda_test.h"
#include "tests/test.h"

enum { ROWS = 4 };

/* Rows of one length, their parameters, and where they are drawn. */
struct bench {
    int n, rows, room; /* room: rows that there is memory for */
    float *x;
    struct sample_params p[ROWS];
    struct dev_draw draw[ROWS];
    struct drawn got[ROWS];
    struct sampler *sampler;
    void *dev_x, *dev_draw, *dev_token, *dev_drawn, *work;
};

static uint32_t
below(uint32_t n)
{
    return rnd() % n;
}

/* About normal. */
static float
bell(void)
{
    float sum = 0;

    for (int i = 0; i < 6; i++)
        sum += rnd_float(1);
    return sum * 0.7071f;
}

enum kind { FLAT, PEAKED, WIDE, FEW_VALUES, EQUAL, NEAR, ODD, TINY, HUGE_ONES, KINDS };

static float
logit(enum kind kind, int i)
{
    switch (kind) {
    case FLAT: return bell();
    case PEAKED: return i % 97 == 3 ? 12 + 3 * bell() : 2 * bell();
    case WIDE: return 40 * bell();
    case FEW_VALUES: return (float)below(4) - 1;
    case EQUAL: return 3.25f;
    case NEAR:
        return ldexpf((float)(0x800000 + below(64)), -20); /* places of the last bit */
    case ODD:
        switch (below(6)) {
        case 0: return NAN;
        case 1: return -INFINITY;
        case 2: return below(100) == 0 ? INFINITY : 1;
        case 3: return below(2) ? 0.0f : -0.0f;
        default: return bell();
        }
    case TINY: return ldexpf(bell(), -140);
    default: return ldexpf(bell(), 126);
    }
}

static void
any_params(struct sample_params *p, int n)
{
    static const float hot[] = {1, 1, 0, 0.7f, 1.3f, 100, 0.01f, 1e-30f, 1e-44f};

    sample_params_init(p);
    p->seed = (uint64_t)rnd() << 32 | rnd();
    p->temperature = hot[below(9)];
    if (below(2) == 0)
        p->top_k = below(3) == 0 ? 1 + below(3) : 1 + below((uint32_t)n + 20);
    if (below(2) == 0)
        p->top_p = below(3) == 0 ? 0.95f : (float)(1 + below(1000)) / 1001;
    if (below(3) == 0)
        p->min_p = below(3) == 0 ? 0.99f : (float)below(1000) / 1000 * 0.2f;
}

static void
open_bench(struct bench *b, int n, int rows)
{
    struct err e = {0};

    *b = (struct bench){.n = n, .rows = rows, .room = rows};
    b->x = malloc((size_t)n * (size_t)rows * sizeof *b->x);
    b->sampler = sampler_new((uint32_t)n, &e);
    assert_non_null(b->sampler);
    b->dev_x = dev_poison((size_t)n * (size_t)rows * sizeof *b->x);
    b->dev_draw = dev_poison(sizeof b->draw);
    b->dev_token = dev_poison((size_t)rows * sizeof(uint32_t));
    b->dev_drawn = dev_poison((size_t)rows * sizeof *b->got);
    b->work = dev_poison((size_t)rows * sample_bytes(n));
}

static void
close_bench(struct bench *b)
{
    sampler_free(b->sampler);
    free(b->x);
}

static void
fill(struct bench *b, int row, enum kind kind)
{
    float *x = b->x + (size_t)row * (size_t)b->n;

    for (int i = 0; i < b->n; i++)
        x[i] = logit(kind, i);
    if (kind == ODD)
        x[below((uint32_t)b->n)] = 2;
}

static void
set(struct bench *b, int row, uint64_t pos)
{
    b->draw[row].pos = pos;
    assert_true(sampler_draw(&b->p[row], 0, &b->draw[row].d));
}

static void
run(struct bench *b)
{
    const struct sample_args a = {.x = b->dev_x,
                                  .draw = b->dev_draw,
                                  .token = b->dev_token,
                                  .drawn = b->dev_drawn,
                                  .work = b->work,
                                  .row_bytes = sample_bytes(b->n),
                                  .rows = b->rows,
                                  .n = b->n};
    struct err e = {0};
    struct drawn *got;
    uint32_t *token;

    cuda_ok(cudaMemcpy(b->dev_x, b->x, (size_t)b->n * (size_t)b->rows * sizeof *b->x,
                       cudaMemcpyHostToDevice));
    cuda_ok(cudaMemcpy(b->dev_draw, b->draw, sizeof b->draw, cudaMemcpyHostToDevice));
    cuda_ok(cudaDeviceSynchronize());
    done(sample_cuda(&rk, &a, &e), &e);
    got = fetch(b->dev_drawn, (size_t)b->room * sizeof *b->got);
    token = fetch(b->dev_token, (size_t)b->room * sizeof *token);
    free(fetch(b->work, (size_t)b->room * sample_bytes(b->n)));
    for (int i = 0; i < b->rows; i++) {
        b->got[i] = got[i];
        assert_int_equal(token[i], got[i].token);
    }
    free(got);
    free(token);
}

static void
check(struct bench *b, int row, enum kind kind)
{
    const float *x = b->x + (size_t)row * (size_t)b->n;
    const struct sample_params *p = &b->p[row];
    struct sample_choice want = {0}, got = {0};
    struct err e = {0};

    assert_int_equal(
        sampler_choose(b->sampler, p, x, NULL, 0, b->draw[row].pos, 0, &want, &e), 0);
    sampler_drawn(&b->got[row], &got);
    if (memcmp(&want, &got, sizeof want) != 0)
        fail_msg(
            "%d logits of kind %d, temperature %g, top_k %u, top_p %g, min_p %g: token %u "
            "(%.9g of %.17g), the host's is %u (%.9g of %.17g)",
            b->n, (int)kind, (double)p->temperature, p->top_k, (double)p->top_p,
            (double)p->min_p, got.id, (double)got.logprob, got.log_sum, want.id,
            (double)want.logprob, want.log_sum);
    assert_int_equal(b->got[row].odd, !logits_finite(x, (uint32_t)b->n));
}

static void
test_the_hosts_token(void **state)
{
    static const int sizes[][2] = {{1, 40},     {2, 60},     {31, 400},  {1000, 400},
                                   {1024, 100}, {1025, 100}, {8192, 60}, {129280, 12}};

    (void)state;
    for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
        struct bench b;

        open_bench(&b, sizes[k][0], ROWS);
        for (int round = 0; round < sizes[k][1]; round++) {
            enum kind kind[ROWS];

            b.rows = round % 2 ? ROWS : ROWS - 1; /* many, and a few */
            for (int i = 0; i < b.rows; i++) {
                kind[i] = (enum kind)((round + i * 2) % KINDS);
                any_params(&b.p[i], b.n);
                fill(&b, i, kind[i]);
                set(&b, i, (uint64_t)round << (i * 15));
            }
            run(&b);
            for (int i = 0; i < b.rows; i++)
                check(&b, i, kind[i]);
        }
        close_bench(&b);
    }
}

/* Many draws from one row: each seed and position its own, and all that may come do. */
static void
test_draws_differ(void **state)
{
    struct bench b;
    bool seen[31] = {false};
    int differ = 0, others = 0, kept = 0;

    (void)state;
    open_bench(&b, 31, ROWS);
    for (int i = 0; i < ROWS; i++) {
        sample_params_init(&b.p[i]);
        for (int k = 0; k < 31; k++)
            b.x[i * 31 + k] = (float)k * 0.01f;
    }
    for (int i = 0; i < 31; i++) {
        b.p[3].top_p = 0.5f;
        for (int row = 0; row < ROWS; row++)
            set(&b, row, (uint64_t)i + 1000);
        b.draw[1].d.seed++;
        b.draw[2].pos++;
        run(&b);
        check(&b, 0, FLAT);
        check(&b, 3, FLAT);
        differ += b.got[1].token != b.got[0].token;
        others += b.got[2].token != b.got[0].token;
        kept += b.got[3].token > 14;
        seen[b.got[0].token] = true;
    }
    assert_true(differ > 20 && others > 20 && kept == 31);
    for (int i = kept = 0; i < 31; i++)
        kept += seen[i];
    assert_true(kept > 12);
    close_bench(&b);
}

/* What the comparison would notice: one place of the last bit of one logit. */
static void
test_a_bit_counts(void **state)
{
    struct bench b;
    struct drawn before;

    (void)state;
    open_bench(&b, 8192, 1);
    sample_params_init(&b.p[0]);
    fill(&b, 0, FLAT);
    set(&b, 0, 7);
    run(&b);
    before = b.got[0];
    b.x[before.token] = nextafterf(b.x[before.token], 100);
    run(&b);
    assert_true(b.got[0].weights != before.weights);
    check(&b, 0, FLAT);
    b.p[0].temperature = 0;
    set(&b, 0, 7);
    b.x[5000] = b.x[6000] = 50;
    run(&b);
    assert_int_equal(b.got[0].token, 5000);
    b.x[6000] = nextafterf(50, 100);
    run(&b);
    assert_int_equal(b.got[0].token, 6000);
    close_bench(&b);
}

/* No number at all: a token that there is, and word that something is wrong. */
static void
test_nothing_to_draw(void **state)
{
    struct bench b;

    (void)state;
    open_bench(&b, 3000, 2);
    for (int i = 0; i < 6000; i++)
        b.x[i] = i < 3000 || i % 2 ? NAN : -INFINITY;
    for (int i = 0; i < 2; i++) {
        sample_params_init(&b.p[i]);
        b.p[i].temperature = i == 0 ? 1 : 0;
        b.p[i].top_p = 0.9f;
        set(&b, i, 1);
    }
    run(&b);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(b.got[i].odd, 1);
        assert_true(b.got[i].token < 3000 && b.got[i].weights == 0);
    }
    close_bench(&b);
}

/* What depends on more than the row stays with the host. */
static void
test_not_for_a_device(void **state)
{
    struct sample_params good, p;
    struct draw d;

    (void)state;
    sample_params_init(&good);
    good.n_stop_tokens = 1;
    assert_true(sampler_draw(&good, 0, &d));
#define STAYS(change)                          \
    do {                                       \
        p = good;                              \
        change;                                \
        assert_false(sampler_draw(&p, 2, &d)); \
    } while (0)
    STAYS(p.n_bias = 1);
    STAYS(p.repetition = 1.1f);
    STAYS(p.presence = 0.5f);
    STAYS(p.frequency = -0.5f);
    STAYS(p.n_top = 1);
    STAYS(p.min_tokens = 3);
#undef STAYS
    p = good;
    p.min_tokens = 3;
    assert_true(sampler_draw(&p, 3, &d));
    p.repetition = 2;
    p.penalty_window = 0;
    assert_true(sampler_draw(&p, 3, &d));
}

#define TEST(fn) cmocka_unit_test_teardown(fn, tear_down)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_the_hosts_token), TEST(test_draws_differ),     TEST(test_a_bit_counts),
        TEST(test_nothing_to_draw), TEST(test_not_for_a_device),
    };
    struct err e = {0};
    int failed;

    if (rank_open(&rk, &e) == -1) {
        printf("1..0 # SKIP %s\n", e.text);
        return 0;
    }
    failed = cmocka_run_group_tests_name("cuda_sample", tests, NULL, NULL);
    rank_close(&rk);
    return failed;
}
