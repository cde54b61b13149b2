/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sampler against a reference of thirty lines that sorts everything, on random logits with
 * NaN, infinities and ties; its draws against exact probabilities. Each comparison is also run
 * against deliberately wrong references, which it must tell apart.
 */
#include "config.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "model/sampler.h"
#include "tests/test.h"

enum { MAX_VOCAB = 64 };

static uint64_t rng_state;

/* splitmix64: a stream of test data that is the same everywhere */
static uint64_t
rng(void)
{
    uint64_t z = (rng_state += 0x9E3779B97F4A7C15);

    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
}

static uint32_t
below(uint32_t n)
{
    return (uint32_t)(rng() % n);
}

static void
test_philox_known_answers(void **state)
{
    static const struct {
        uint32_t key[2], counter[4], out[4];
    } kat[] = {
        {{0}, {0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0xa4093822, 0x299f31d0},
         {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };

    (void)state;
    for (size_t i = 0; i < sizeof kat / sizeof *kat; i++) {
        uint32_t out[4];

        philox4x32(kat[i].key, kat[i].counter, out);
        assert_memory_equal(out, kat[i].out, sizeof out);
    }
}

enum mutant {
    RIGHT,
    TIES_BY_HIGH_ID,
    NAN_AS_ZERO,
    BIAS_AFTER_PENALTIES,
    REPETITION_DIVIDES_ALWAYS,
    WINDOW_FROM_THE_FRONT,
    COUNT_IGNORED,
    FILTERS_BEFORE_TEMPERATURE,
    TOP_P_OF_EVERYTHING,
    TOP_P_WITHOUT_THE_CROSSING,
    MIN_P_ABSOLUTE,
    NO_MIN_TOKENS,
    N_MUTANTS
};

static const float *sort_x;
static bool sort_high;

static int
by_rank(const void *a, const void *b)
{
    const uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;

    if (sort_x[i] != sort_x[j])
        return sort_x[i] > sort_x[j] ? -1 : 1;
    return (i < j) == sort_high ? 1 : -1;
}

static void
ref_adjust(const struct sample_params *p, const float *l, uint32_t n, const uint32_t *hist,
           size_t n_hist, uint32_t drawn, enum mutant m, float *x)
{
    const size_t win = n_hist < p->penalty_window ? n_hist : p->penalty_window;
    const uint32_t *h = m == WINDOW_FROM_THE_FRONT || win == 0 ? hist
                                                               : hist + (n_hist - win);

    for (uint32_t i = 0; i < n; i++) {
        float bias = 0, c = 0;

        x[i] = isnan(l[i]) ? (m == NAN_AS_ZERO ? 0 : -INFINITY) : fminf(l[i], FLT_MAX);
        for (uint32_t b = 0; b < p->n_bias; b++)
            bias += p->bias[b].id == i ? p->bias[b].bias : 0;
        if (m != BIAS_AFTER_PENALTIES)
            x[i] += bias;
        for (size_t k = 0; k < win; k++)
            c += h[k] == i;
        if (c > 0) {
            x[i] = x[i] > 0 || m == REPETITION_DIVIDES_ALWAYS ? x[i] / p->repetition
                                                              : x[i] * p->repetition;
            x[i] -= p->presence + p->frequency * (m == COUNT_IGNORED ? 1 : c);
        }
        if (m == BIAS_AFTER_PENALTIES)
            x[i] += bias;
        x[i] = fminf(x[i], FLT_MAX);
        for (uint32_t k = 0; k < p->n_stop_tokens && m != NO_MIN_TOKENS; k++)
            x[i] = p->stop_tokens[k] == i && drawn < p->min_tokens ? -INFINITY : x[i];
    }
}

/* The order of the candidates, and how many of them survive with which probabilities. */
static uint32_t
ref_distribution(const struct sample_params *p, const float *x, uint32_t n, enum mutant m,
                 uint32_t *order, double *prob)
{
    const double t = m == FILTERS_BEFORE_TEMPERATURE ? 1 : (double)p->temperature;
    double all = 0, run = 0, left = 0;
    uint32_t keep = 0, k = 0;

    for (uint32_t i = 0; i < n; i++)
        order[i] = i;
    sort_x = x;
    sort_high = m == TIES_BY_HIGH_ID;
    qsort(order, n, sizeof *order, by_rank);
    while (k < n && x[order[k]] > -INFINITY && (p->top_k == 0 || k < p->top_k))
        k++;
    for (uint32_t i = 0; i < n; i++) {
        prob[i] = exp(((double)x[order[i]] - (double)x[order[0]]) / t);
        if (x[order[i]] > -INFINITY && (i < k || m == TOP_P_OF_EVERYTHING))
            all += prob[i];
    }
    for (; keep < k && (keep == 0 || run < (double)p->top_p * all); keep++)
        run += prob[keep];
    if (m == TOP_P_WITHOUT_THE_CROSSING && keep > 1 && keep < k)
        keep--;
    for (; keep > 1; keep--) {
        const double limit = (double)p->min_p * (m == MIN_P_ABSOLUTE ? all : 1);

        if (prob[keep - 1] >= limit)
            break;
    }
    for (uint32_t i = 0; i < keep; i++)
        left += prob[i] =
            exp(((double)x[order[i]] - (double)x[order[0]]) / (double)p->temperature);
    for (uint32_t i = 0; i < keep; i++)
        prob[i] /= left;
    return keep;
}

/* -1: nothing can be chosen */
static int64_t
ref_choose(const struct sample_params *p, const float *l, uint32_t n, const uint32_t *hist,
           size_t n_hist, uint64_t pos, uint32_t drawn, enum mutant m)
{
    const uint32_t key[2] = {(uint32_t)p->seed, (uint32_t)(p->seed >> 32)};
    const uint32_t counter[4] = {(uint32_t)pos, (uint32_t)(pos >> 32), 0, 0};
    float *x = calloc(n, sizeof *x);
    double *prob = calloc(n, sizeof *prob), run = 0, u;
    uint32_t *order = calloc(n, sizeof *order), word[4], keep, i = 0;
    int64_t id;

    assert_true(x != NULL && prob != NULL && order != NULL);
    ref_adjust(p, l, n, hist, n_hist, drawn, m, x);
    philox4x32(key, counter, word);
    u = ldexp((double)(((uint64_t)word[1] << 32 | word[0]) >> 11), -53);
    keep = ref_distribution(p, x, n, m, order, prob);
    id = order[0];
    if (x[id] == -INFINITY) {
        id = -1;
    } else if (p->temperature > 0) {
        while (i + 1 < keep && prob[i + 1] > 0 && (run += prob[i]) <= u)
            i++;
        id = order[i];
    }
    free(x);
    free(prob);
    free(order);
    return id;
}

struct sample_case {
    struct sample_params p;
    uint32_t vocab, drawn, history[32];
    size_t n_history;
    uint64_t pos;
    float logits[MAX_VOCAB];
};

static float
random_logit(void)
{
    static const float odd[] = {NAN,      -INFINITY, INFINITY, FLT_MAX,
                                -FLT_MAX, 0,         -0.0F,    1e-40F};

    if (below(40) == 0)
        return odd[below(8)];
    return below(2) == 0 ? (float)below(9) - 4 /* ties */ : (float)below(100000) / 1e4F - 5;
}

static void
random_case(struct sample_case *c)
{
    struct sample_params *p = &c->p;

    memset(c, 0, sizeof *c);
    sample_params_init(p);
    c->vocab = 1 + below(below(3) == 0 ? 3 : MAX_VOCAB);
    for (uint32_t i = 0; i < c->vocab; i++)
        c->logits[i] = random_logit();
    p->seed = rng();
    c->pos = below(2) == 0 ? below(1000) : rng();
    p->temperature = below(4) == 0 ? 0 : (float)(1 + below(200)) / 100;
    p->top_k = below(2) == 0 ? 0 : below(20);
    p->top_p = below(2) == 0 ? 1 : (float)(1 + below(100)) / 100;
    p->min_p = below(2) == 0 ? 0 : (float)below(60) / 100;
    if (below(2) == 0) {
        p->repetition = (float)(50 + below(200)) / 100;
        p->presence = (float)below(400) / 100 - 2;
        p->frequency = (float)below(400) / 100 - 2;
    }
    p->penalty_window = below(20);
    c->n_history = below(32);
    for (size_t i = 0; i < c->n_history; i++)
        c->history[i] = below(c->vocab);
    for (uint32_t i = 0; i < c->vocab && p->n_bias < 16; i++) {
        if (below(8) == 0) {
            p->bias[p->n_bias].id = i;
            p->bias[p->n_bias++].bias = below(3) == 0 ? -INFINITY : (float)below(9) - 4;
        }
    }
    p->n_stop_tokens = below(3);
    for (uint32_t i = 0; i < p->n_stop_tokens; i++)
        p->stop_tokens[i] = below(c->vocab);
    p->min_tokens = below(4);
    c->drawn = below(4);
}

static void
test_equals_the_reference(void **state)
{
    size_t differ[N_MUTANTS] = {0}, none = 0;
    struct sample_case c;

    (void)state;
    rng_state = 1;
    for (int i = 0; i < 20000; i++) {
        struct err e = {0};
        struct sample_choice got = {0};
        struct sampler *s;
        int64_t id;

        random_case(&c);
        if (sample_params_check(&c.p, c.vocab, &e) == -1)
            fail_msg("case %d: %s", i, e.text);
        s = sampler_new(c.vocab, &e);
        assert_non_null(s);
        if (sampler_choose(s, &c.p, c.logits, c.history, c.n_history, c.pos, c.drawn, &got,
                           &e) == -1) {
            assert_int_equal(e.code, ERR_INVALID);
            id = -1;
            none++;
        } else {
            id = got.id;
            assert_true(isfinite(got.logprob) && got.logprob <= 0);
        }
        for (enum mutant m = 0; m < N_MUTANTS; m++)
            differ[m] += id != ref_choose(&c.p, c.logits, c.vocab, c.history, c.n_history,
                                          c.pos, c.drawn, m);
        if (differ[RIGHT] > 0)
            fail_msg("case %d of %u tokens: token %lld", i, c.vocab, (long long)id);
        sampler_free(s);
    }
    assert_true(none > 0);
    for (enum mutant m = RIGHT + 1; m < N_MUTANTS; m++) {
        if (differ[m] == 0)
            fail_msg("mutant %d was not told apart", m);
    }
}

static void
test_full_vocabulary(void **state)
{
    enum { N = 129280 };

    static const struct {
        float temperature, top_p, min_p;
        uint32_t top_k;
    } cases[] = {{1, 1, 0, 0},     {0.6F, 1, 0, 0},     {1, 0.95F, 0, 0},
                 {1, 1, 0.05F, 0}, {1, 0.9F, 0.1F, 50}, {0, 1, 0, 0}};
    struct err e = {0};
    struct sampler *s = sampler_new(N, &e);
    float *l = calloc(N, sizeof *l);
    struct sample_params p;

    (void)state;
    assert_true(s != NULL && l != NULL);
    rng_state = 2;
    for (uint32_t i = 0; i < N; i++)
        l[i] = (float)below(1 << 20) / (1 << 16);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sample_choice got;

        sample_params_init(&p);
        p.temperature = cases[i].temperature;
        p.top_p = cases[i].top_p;
        p.min_p = cases[i].min_p;
        p.top_k = cases[i].top_k;
        for (uint64_t pos = 0; pos < 4; pos++) {
            assert_int_equal(sampler_choose(s, &p, l, NULL, 0, pos, 0, &got, &e), 0);
            assert_int_equal(got.id, ref_choose(&p, l, N, NULL, 0, pos, 0, RIGHT));
        }
    }
    sampler_free(s);
    free(l);
}

/*
 * Chi-square of n draws against prob, both by id. The figures are fixed by the seeds, so the
 * limit (mean + 5 standard deviations of chi-square) is no gamble.
 */
static bool
fits(const uint32_t *count, const double *prob, uint32_t vocab, uint32_t n)
{
    double chi = 0, degrees = -1;

    for (uint32_t i = 0; i < vocab; i++) {
        const double want = prob[i] * n;

        if (want == 0 && count[i] > 0)
            return false;
        if (want > 0) {
            chi += (count[i] - want) * (count[i] - want) / want;
            degrees++;
        }
    }
    return chi <= degrees + 5 * sqrt(2 * fmax(degrees, 1));
}

enum { DRAWS = 100000 };

static void
count_draws(const struct sample_params *p, const float *l, uint32_t vocab,
            const uint32_t *hist, size_t n_hist, bool over_seeds, uint32_t *count)
{
    struct err e = {0};
    struct sampler *s = sampler_new(vocab, &e);
    struct sample_params q = *p;

    assert_non_null(s);
    memset(count, 0, vocab * sizeof *count);
    for (uint32_t i = 0; i < DRAWS; i++) {
        struct sample_choice got;

        q.seed = over_seeds ? i : p->seed;
        assert_int_equal(
            sampler_choose(s, &q, l, hist, n_hist, over_seeds ? 77 : i, 0, &got, &e), 0);
        count[got.id]++;
    }
    sampler_free(s);
}

static void
test_draws_have_the_right_frequencies(void **state)
{
    enum { N = 16 };

    static const struct {
        float temperature, top_p, min_p, frequency;
        uint32_t top_k;
        bool over_seeds;
    } cases[] = {
        {1, 1, 0, 0, 0, false},    {1, 1, 0, 0, 0, true},
        {0.7F, 1, 0, 0, 8, false}, {1.5F, 0.8F, 0, 0, 0, false},
        {1, 1, 0.1F, 0, 0, false}, {1, 0.9F, 0.05F, 0.5F, 12, true},
    };

    const uint32_t hist[] = {1, 2, 2, 3, 3, 3};
    uint32_t order[N], count[N];
    float l[N], x[N];

    (void)state;
    rng_state = 3;
    for (uint32_t i = 0; i < N; i++)
        l[i] = (float)below(4000) / 1000;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sample_params p;
        double ranked[N], prob[N] = {0};
        uint32_t keep;

        sample_params_init(&p);
        p.seed = 1000 + i;
        p.temperature = cases[i].temperature;
        p.top_p = cases[i].top_p;
        p.min_p = cases[i].min_p;
        p.top_k = cases[i].top_k;
        p.frequency = cases[i].frequency;
        ref_adjust(&p, l, N, hist, 6, 0, RIGHT, x);
        keep = ref_distribution(&p, x, N, RIGHT, order, ranked);
        for (uint32_t r = 0; r < keep; r++)
            prob[order[r]] = ranked[r];
        count_draws(&p, l, N, hist, 6, cases[i].over_seeds, count);
        if (!fits(count, prob, N, DRAWS))
            fail_msg("case %zu: the draws do not fit", i);

        /* The same check must notice a distribution that is off by 5 % of the temperature. */
        p.temperature *= 1.05F;
        count_draws(&p, l, N, hist, 6, cases[i].over_seeds, count);
        if (fits(count, prob, N, DRAWS))
            fail_msg("case %zu: wrong draws fit", i);
    }
}

/* Positions next to each other, and seeds next to each other, must not go together. */
static void
test_draws_are_independent(void **state)
{
    enum { N = 4, PAIRS = N * N };

    const float l[N] = {0, 0.5F, 1, 1.5F};
    struct err e = {0};
    struct sampler *s = sampler_new(N, &e);
    uint32_t position[PAIRS] = {0}, seed[PAIRS] = {0}, stuck[PAIRS] = {0};
    double one[N], pair[PAIRS], sum = 0;
    struct sample_choice a, b, c;
    struct sample_params p;

    (void)state;
    assert_non_null(s);
    sample_params_init(&p);
    for (int i = 0; i < N; i++)
        sum += one[i] = exp((double)l[i]);
    for (int i = 0; i < PAIRS; i++)
        pair[i] = one[i / N] * one[i % N] / (sum * sum);
    for (uint32_t i = 0; i < DRAWS; i++) {
        p.seed = i;
        assert_int_equal(sampler_choose(s, &p, l, NULL, 0, i, 0, &a, &e), 0);
        assert_int_equal(sampler_choose(s, &p, l, NULL, 0, i + 1, 0, &b, &e), 0);
        p.seed = i + 1;
        assert_int_equal(sampler_choose(s, &p, l, NULL, 0, i, 0, &c, &e), 0);
        position[a.id * N + b.id]++;
        seed[a.id * N + c.id]++;
        stuck[a.id * N + (below(50) == 0 ? a.id : b.id)]++;
    }
    assert_true(fits(position, pair, PAIRS, DRAWS));
    assert_true(fits(seed, pair, PAIRS, DRAWS));
    assert_false(fits(stuck, pair, PAIRS, DRAWS)); /* one draw in fifty repeated */
    sampler_free(s);
}

static void
test_greedy(void **state)
{
    const float l[] = {1, NAN, 3, 3, -INFINITY, 2.5F};
    const uint32_t hist[] = {3, 2, 2};
    struct err e = {0};
    struct sampler *s = sampler_new(6, &e);
    struct sample_choice got;
    struct sample_params p;

    (void)state;
    assert_non_null(s);
    sample_params_init(&p);
    p.temperature = 0;
    p.n_top = 20;
    assert_int_equal(sampler_choose(s, &p, l, hist, 3, 9, 0, &got, &e), 0);
    assert_int_equal(got.id, 2);
    assert_int_equal(got.n_top, 4); /* NaN and -inf are not listed */
    assert_int_equal(got.top[0].id, 2);
    assert_int_equal(got.top[1].id, 3);
    assert_int_equal(got.top[2].id, 5);
    assert_int_equal(got.top[3].id, 0);

    p.frequency = 0.1F; /* 2 was there twice, 3 once */
    assert_int_equal(sampler_choose(s, &p, l, hist, 3, 9, 0, &got, &e), 0);
    assert_int_equal(got.id, 3);
    p.frequency = 0.3F;
    assert_int_equal(sampler_choose(s, &p, l, hist, 3, 9, 0, &got, &e), 0);
    assert_int_equal(got.id, 3);
    p.frequency = 0.6F;
    assert_int_equal(sampler_choose(s, &p, l, hist, 3, 9, 0, &got, &e), 0);
    assert_int_equal(got.id, 5);
    p.penalty_window = 2; /* and 3 is out of sight */
    assert_int_equal(sampler_choose(s, &p, l, hist, 3, 9, 0, &got, &e), 0);
    assert_int_equal(got.id, 3);
    sampler_free(s);
}

static void
test_nothing_left(void **state)
{
    const float l[] = {0, 1}, bad[] = {NAN, -INFINITY};
    struct err e = {0};
    struct sampler *s = sampler_new(2, &e);
    struct sample_choice got = {.id = 7};
    struct sample_params p;

    (void)state;
    assert_non_null(s);
    sample_params_init(&p);
    assert_int_equal(sampler_choose(s, &p, bad, NULL, 0, 41, 0, &got, &e), -1);
    assert_int_equal(e.code, ERR_INVALID);
    assert_non_null(strstr(e.text, "no logit"));
    assert_non_null(strstr(e.text, "position 41"));

    p.n_bias = 1;
    p.bias[0].id = 0;
    p.bias[0].bias = -INFINITY;
    p.n_stop_tokens = 1;
    p.stop_tokens[0] = 1;
    p.min_tokens = 3;
    assert_int_equal(sampler_choose(s, &p, l, NULL, 0, 41, 2, &got, &e), -1);
    assert_non_null(strstr(e.text, "bans"));
    assert_int_equal(got.id, 7);
    assert_int_equal(sampler_choose(s, &p, l, NULL, 0, 41, 3, &got, &e), 0);
    assert_int_equal(got.id, 1);

    assert_int_equal(
        sampler_choose(
            s,
            &(struct sample_params){.temperature = 0, .repetition = 2, .penalty_window = 1},
            l, (const uint32_t[]){2}, 1, 0, 0, &got, &e),
        -1);
    assert_non_null(strstr(e.text, "token 2 of 2"));
    sampler_free(s);
}

static void
test_logprobs(void **state)
{
    enum { N = 1000 };

    struct err e = {0};
    struct sampler *s = sampler_new(N, &e);
    struct sample_choice got;
    struct sample_params p;
    float l[N];
    double sum = 0;

    (void)state;
    assert_non_null(s);
    rng_state = 4;
    for (uint32_t i = 0; i < N; i++)
        l[i] = i % 50 == 7 ? NAN : (float)below(3000) / 100 + 500;
    for (uint32_t i = 0; i < N; i++)
        sum += exp((double)sampler_logprob(l, N, i));
    assert_true(fabs(sum - 1) < 1e-5);
    assert_true(sampler_logprob(l, N, 7) == -INFINITY);
    assert_true(sampler_logprob(l, N, N) == -INFINITY);

    sample_params_init(&p);
    p.n_top = 20;
    p.temperature = 0.3F; /* what is reported does not depend on it */
    assert_int_equal(sampler_choose(s, &p, l, NULL, 0, 0, 0, &got, &e), 0);
    assert_int_equal(got.n_top, 20);
    assert_true(got.logprob == sampler_logprob(l, N, got.id));
    for (uint32_t i = 0; i < 20; i++) {
        uint32_t better = 0;

        assert_true(got.top[i].logprob == sampler_logprob(l, N, got.top[i].id));
        for (uint32_t j = 0; j < N; j++)
            better += l[j] > l[got.top[i].id] ||
                      (l[j] == l[got.top[i].id] && j < got.top[i].id);
        assert_int_equal(better, i);
    }
    sampler_free(s);
}

static void
test_params_that_are_refused(void **state)
{
    struct sample_params good, p;
    struct err e = {0};

    (void)state;
    sample_params_init(&good);
    assert_int_equal(sample_params_check(&good, 10, &e), 0);
#define REFUSED(change, name)                                  \
    do {                                                       \
        p = good;                                              \
        change;                                                \
        e = (struct err){0};                                   \
        assert_int_equal(sample_params_check(&p, 10, &e), -1); \
        assert_int_equal(e.code, ERR_INVALID);                 \
        if (strstr(e.text, name) == NULL)                      \
            fail_msg("%s: %s", name, e.text);                  \
    } while (0)
    REFUSED(p.temperature = -0.1F, "temperature");
    REFUSED(p.temperature = NAN, "temperature");
    REFUSED(p.temperature = INFINITY, "temperature");
    REFUSED(p.top_p = 0, "top_p");
    REFUSED(p.top_p = 1.1F, "top_p");
    REFUSED(p.min_p = 1, "min_p");
    REFUSED(p.min_p = -1, "min_p");
    REFUSED(p.repetition = 0, "repetition");
    REFUSED(p.presence = 2.5F, "presence");
    REFUSED(p.frequency = NAN, "frequency");
    REFUSED(p.penalty_window = SAMPLER_MAX_WINDOW + 1, "penalty_window");
    REFUSED(p.n_top = 21, "n_top");
    REFUSED(p.min_tokens = 257, "min_tokens");
    REFUSED(p.n_bias = SAMPLER_MAX_BIAS + 1, "logit bias");
    REFUSED((p.n_bias = 1, p.bias[0].id = 10),
            "logit bias or ban: token 10; the vocabulary has 10");
    REFUSED((p.n_bias = 1, p.bias[0].bias = NAN), "logit bias of token");
    REFUSED((p.n_bias = 1, p.bias[0].bias = INFINITY), "logit bias of token");
    REFUSED(p.n_bias = 2, "comes twice");
    REFUSED(p.n_stop_tokens = 17, "stop tokens");
    REFUSED((p.n_stop_tokens = 1, p.stop_tokens[0] = 10), "stop token 0");
    REFUSED(p.n_stops = 17, "stop strings");
    REFUSED(p.n_stops = 1, "stop string 0");
    REFUSED((p.n_stops = 1, p.stops[0].len = 65), "stop string 0");
#undef REFUSED
}

static void
add_stop(struct sample_params *p, const char *s)
{
    p->stops[p->n_stops].len = (uint8_t)strlen(s);
    memcpy(p->stops[p->n_stops++].s, s, strlen(s));
}

/* Where a stop string starts, the first to end, of those the longest; -1: nowhere. */
static int
naive_stop(const struct sample_params *p, const char *text, size_t len)
{
    for (size_t end = 1; end <= len; end++) {
        int at = -1;

        for (uint32_t i = 0; i < p->n_stops; i++) {
            const size_t n = p->stops[i].len;

            if (n <= end && memcmp(text + end - n, p->stops[i].s, n) == 0 &&
                (at == -1 || end - n < (size_t)at))
                at = (int)(end - n);
        }
        if (at >= 0)
            return at;
    }
    return -1;
}

static size_t
naive_held(const struct sample_params *p, const char *text, size_t len)
{
    for (size_t n = len; n > 0; n--) {
        for (uint32_t i = 0; i < p->n_stops; i++) {
            if (p->stops[i].len > n && memcmp(text + len - n, p->stops[i].s, n) == 0)
                return n;
        }
    }
    return 0;
}

/* Bit i of split: a border between bytes i and i + 1. */
static void
check_split(const struct sample_params *p, const char *text, size_t len, unsigned split,
            int want)
{
    struct stop_matcher m;
    size_t from = 0;

    stop_matcher_init(&m, p);
    for (size_t i = 0; i < len; i++) {
        uint64_t at = UINT64_MAX;

        if (i + 1 < len && (split & 1U << i) == 0)
            continue;
        if (stop_matcher_feed(&m, text + from, i + 1 - from, &at)) {
            assert_int_equal(at, want);
            return;
        }
        from = i + 1;
        assert_int_equal(stop_matcher_held(&m), naive_held(p, text, from));
        /* Whatever was released stays in front of a stop that is found later. */
        assert_true(want == -1 || from - stop_matcher_held(&m) <= (size_t)want);
    }
    assert_int_equal(want, -1);
}

static void
test_stop_strings_on_every_split(void **state)
{
    static const char *const sets[][4] = {
        {"ab"}, {"aab", "ab"}, {"abab", "bb"}, {"aaaa", "aaa"}, {"abb", "bba", "aba"},
    };
    size_t found = 0;

    (void)state;
    for (size_t k = 0; k < sizeof sets / sizeof *sets; k++) {
        struct sample_params p;

        sample_params_init(&p);
        for (size_t i = 0; i < 4 && sets[k][i] != NULL; i++)
            add_stop(&p, sets[k][i]);
        for (unsigned word = 0; word < 1U << 9; word++) {
            char text[10] = "";
            int at;

            for (int i = 0; i < 9; i++)
                text[i] = word & 1U << i ? 'b' : 'a';
            at = naive_stop(&p, text, 9);
            found += at >= 0;
            for (unsigned split = 0; split < 1U << 8; split += 5)
                check_split(&p, text, 9, split, at);
        }
    }
    assert_true(found > 0);
}

static void
test_long_stop_string_far_in(void **state)
{
    struct sample_params p;
    struct stop_matcher m;
    char stop[65] = "";
    uint64_t at = 0;

    (void)state;
    sample_params_init(&p);
    memset(stop, 'x', 64);
    stop[63] = 'y';
    add_stop(&p, stop);
    stop_matcher_init(&m, &p);
    for (int i = 0; i < 1000; i++)
        assert_false(stop_matcher_feed(&m, "x", 1, &at));
    assert_int_equal(stop_matcher_held(&m), 63);
    assert_true(stop_matcher_feed(&m, "yz", 2, &at));
    assert_int_equal(at, 1001 - 64);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_known_answers),
        cmocka_unit_test(test_equals_the_reference),
        cmocka_unit_test(test_full_vocabulary),
        cmocka_unit_test(test_draws_have_the_right_frequencies),
        cmocka_unit_test(test_draws_are_independent),
        cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_nothing_left),
        cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_params_that_are_refused),
        cmocka_unit_test(test_stop_strings_on_every_split),
        cmocka_unit_test(test_long_stop_string_far_in),
    };

    return cmocka_run_group_tests_name("sampler", tests, NULL, NULL);
}
