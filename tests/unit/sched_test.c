/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The scheduler without an engine: tables of single picks, then what must hold over many. The
 * properties are also put to a first-come-first-served scheduler, which must fail them.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "engine/sched.h"
#include "tests/test.h"

enum { MAX_SEQS = 256 };

static struct sched *
fresh(void)
{
    struct sched *s = malloc(sizeof *s);
    struct err e;

    assert_non_null(s);
    assert_int_equal(sched_init(s, MAX_SEQS, &e), 0);
    return s;
}

static void
drop(struct sched *s)
{
    sched_done(s);
    free(s);
}

static void
test_single_picks(void **state)
{
    static const struct {
        const char *name;
        struct sched_limits limits;
        struct sched_item items[5];
        uint32_t take[5];
    } cases[] = {
        {"all that decode",
         {.step = 512, .prefill = 256, .scored = 64},
         {{1, 0, 10, 1, 0, 0, 0}, {1, 1, 20, 1, 0, 0, 0}, {2, 2, 30, 1, 0, 0, 0}},
         {1, 1, 1}},
        {"a chunk ends on a page",
         {.step = 512, .prefill = 256, .scored = 64},
         {{1, 0, 100, 1000, 0, 0, 0}},
         {156}},
        {"a chunk that is all there is does not",
         {.step = 512, .prefill = 256, .scored = 64},
         {{1, 0, 100, 200, 0, 0, 0}},
         {200}},
        {"nor one with no page's end in reach",
         {.step = 512, .prefill = 32, .scored = 64},
         {{1, 0, 130, 1000, 0, 0, 0}},
         {32}},
        {"decode beside prefill",
         {.step = 512, .prefill = 128, .scored = 64},
         {{1, 0, 9, 1, 0, 0, 0}, {1, 1, 0, 4000, 0, 0, 0}, {2, 2, 7, 1, 0, 0, 0}},
         {1, 128, 1}},
        {"some of a small step is kept for prefill",
         {.step = 4, .prefill = 256, .scored = 64},
         {{1, 0, 9, 1, 0, 0, 0},
          {1, 1, 9, 1, 0, 0, 0},
          {1, 2, 9, 1, 0, 0, 0},
          {1, 3, 0, 500, 0, 0, 0}},
         {1, 1, 0, 2}},
        {"not more of it than prefill needs",
         {.step = 6, .prefill = 256, .scored = 64},
         {{1, 0, 9, 1, 0, 0, 0},
          {1, 1, 9, 1, 0, 0, 0},
          {1, 2, 9, 1, 0, 0, 0},
          {1, 3, 9, 1, 0, 0, 0},
          {1, 4, 0, 2, 0, 0, 0}},
         {1, 1, 1, 1, 2}},
        {"two short feeds in one step",
         {.step = 512, .prefill = 256, .scored = 64},
         {{1, 0, 0, 100, 0, 0, 0}, {2, 1, 0, 100, 0, 0, 0}},
         {100, 100}},
        {"no crumbs behind a chunk",
         {.step = 512, .prefill = 256, .scored = 64},
         {{1, 0, 0, 200, 0, 0, 0}, {2, 1, 0, 100, 0, 0, 0}},
         {200, 0}},
        {"rows to be scored are few",
         {.step = 512, .prefill = 256, .scored = 64},
         {{1, 0, 0, 200, true, 0, 0}, {2, 1, 0, 50, true, 0, 0}, {3, 2, 0, 100, 0, 0, 0}},
         {64, 0, 100}},
        {"a single token to be scored is no decoding",
         {.step = 2, .prefill = 256, .scored = 64},
         {{1, 0, 9, 1, true, 0, 0}, {1, 1, 9, 1, 0, 0, 0}, {1, 2, 9, 1, 0, 0, 0}},
         {1, 1, 0}},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sched *s = fresh();
        struct sched_item items[5];
        size_t n = 0;

        memcpy(items, cases[i].items, sizeof items);
        while (n < 5 && items[n].tokens > 0)
            n++;
        sched_pick(s, &cases[i].limits, items, n);
        for (size_t k = 0; k < n; k++)
            if (items[k].take != cases[i].take[k])
                fail_msg("%s: item %zu gets %u, not %u", cases[i].name, k, items[k].take,
                         cases[i].take[k]);
        drop(s);
    }
}

typedef void pick_fn(struct sched *s, const struct sched_limits *l,
                     struct sched_item *items, size_t n);

/* The negative control: as they come, while there is room. */
static void
pick_fifo(struct sched *s, const struct sched_limits *l, struct sched_item *items, size_t n)
{
    uint32_t room = l->step;

    (void)s;
    for (size_t i = 0; i < n; i++) {
        items[i].take = items[i].tokens < room ? items[i].tokens : room;
        room -= items[i].take;
    }
}

/* A crowd: owner o has n_seqs[o] sequences, all of a kind, that never run dry. */
struct crowd {
    uint32_t owners;
    uint32_t n_seqs[8];
    uint32_t tokens; /* that each has to run at any time */
    struct sched_limits limits;
};

/*
 * Over `picks` picks, nobody may get less than an equal share of what was given out, less
 * `slack`, unless it got all that it could use. Owners first, then the sequences of each.
 */
static bool
is_fair(pick_fn *pick, const struct crowd *c, int picks, uint64_t slack)
{
    struct sched *s = fresh();
    struct sched_item items[MAX_SEQS];
    uint64_t by_owner[8] = {0}, by_seq[MAX_SEQS] = {0}, all = 0;
    uint32_t seq = 0;
    bool fair = true;

    for (int p = 0; p < picks; p++) {
        size_t n = 0;

        for (uint32_t o = 0; o < c->owners; o++)
            for (uint32_t k = 0; k < c->n_seqs[o]; k++, n++)
                items[n] = (struct sched_item){.owner = 1000 + o,
                                               .seq = (uint32_t)n,
                                               .pos = by_seq[n],
                                               .tokens = c->tokens};
        pick(s, &c->limits, items, n);
        for (size_t i = 0; i < n; i++) {
            by_owner[items[i].owner - 1000] += items[i].take;
            by_seq[items[i].seq] += items[i].take;
            all += items[i].take;
        }
    }
    for (uint32_t o = 0; o < c->owners; o++) {
        const uint64_t could = (uint64_t)c->n_seqs[o] * c->tokens * (uint64_t)picks;

        fair &= by_owner[o] + slack >= all / c->owners || by_owner[o] == could;
        for (uint32_t k = 0; k < c->n_seqs[o]; k++, seq++)
            fair &= by_seq[seq] + slack >= by_owner[o] / c->n_seqs[o];
    }
    drop(s);
    return fair;
}

static void
test_nobody_gets_less_than_its_share(void **state)
{
    static const struct crowd crowds[] = {
        {2, {30, 1}, 1, {.step = 8, .prefill = 128, .scored = 8}},
        {3, {30, 20, 10}, 1, {.step = 7, .prefill = 128, .scored = 8}},
        {4, {1, 40, 40, 40}, 1, {.step = 16, .prefill = 128, .scored = 8}},
        {2, {10, 1}, 5000, {.step = 512, .prefill = 256, .scored = 8}},
        {5, {1, 2, 3, 4, 5}, 9000, {.step = 512, .prefill = 200, .scored = 8}},
        {3, {8, 8, 8}, 90, {.step = 512, .prefill = 256, .scored = 8}},
    };

    (void)state;
    for (size_t i = 0; i < sizeof crowds / sizeof *crowds; i++) {
        if (!is_fair(sched_pick, &crowds[i], 3000, 2 * 256))
            fail_msg("crowd %zu: somebody gets less than its share", i);
        if (is_fair(pick_fifo, &crowds[i], 3000, 2 * 256))
            fail_msg("crowd %zu: first come, first served passes for fair", i);
    }
}

/* Both kinds wait in every pick: picks in which one of them got nothing. */
static int
starved(pick_fn *pick, uint32_t n_decode, uint32_t step)
{
    const struct sched_limits l = {.step = step, .prefill = 256, .scored = 8};
    struct sched *s = fresh();
    struct sched_item items[MAX_SEQS];
    int bad = 0;

    for (int p = 0; p < 500; p++) {
        uint32_t decode = 0;

        items[0] = (struct sched_item){.owner = 1, .seq = 0, .tokens = 100000};
        for (uint32_t i = 1; i <= n_decode; i++)
            items[i] = (struct sched_item){.owner = 1, .seq = i, .tokens = 1};
        pick(s, &l, items, 1 + n_decode);
        for (uint32_t i = 1; i <= n_decode; i++)
            decode += items[i].take;
        bad += decode == 0 || items[0].take == 0;
    }
    drop(s);
    return bad;
}

static void
test_neither_kind_starves(void **state)
{
    (void)state;
    assert_int_equal(starved(sched_pick, 3, 512), 0);
    assert_int_equal(starved(sched_pick, 200, 64), 0);
    assert_int_equal(starved(sched_pick, 200, 2), 0);
    assert_int_equal(starved(pick_fifo, 3, 512), 500);
}

/* What the second owner gets in `picks` picks beside a first that always wants. */
static uint64_t
gets(struct sched *s, int picks, int every, uint64_t *other)
{
    const struct sched_limits l = {.step = 512, .prefill = 128, .scored = 8};
    uint64_t got = 0;

    *other = 0;
    for (int p = 0; p < picks; p++) {
        struct sched_item items[2] = {{.owner = 1, .seq = 0, .tokens = 10000},
                                      {.owner = 2, .seq = 1, .tokens = 10000}};

        sched_pick(s, &l, items, p % every == 0 ? 2 : 1);
        *other += items[0].take;
        got += p % every == 0 ? items[1].take : 0;
    }
    return got;
}

static void
test_silence_earns_nothing_and_forgives_nothing(void **state)
{
    struct sched *s = fresh();
    const struct sched_limits l = {.step = 512, .prefill = 128, .scored = 8};
    uint64_t got, other;

    (void)state;
    /* The first works alone for long; who comes then shares from then on, no more. */
    for (int p = 0; p < 1000; p++) {
        struct sched_item one = {.owner = 1, .seq = 0, .tokens = 10000};

        sched_pick(s, &l, &one, 1);
    }
    got = gets(s, 100, 1, &other);
    assert_in_range(got, 128 * 49, 128 * 51);
    assert_in_range(other, 128 * 49, 128 * 51);

    /* Being away in every second pick does not get more than being there. */
    got = gets(s, 1000, 2, &other);
    assert_true(got <= other + 2 * 128);
    assert_true(got >= 1000 / 4 * 128);
    drop(s);
}

static void
test_more_owners_than_places(void **state)
{
    struct sched *s = fresh();
    const struct sched_limits l = {.step = 512, .prefill = 128, .scored = 8};

    (void)state;
    for (uint32_t o = 0; o < 5 * SCHED_MAX_OWNERS; o++) {
        struct sched_item items[2] = {{.owner = 7, .seq = 0, .tokens = 1},
                                      {.owner = 100 + o, .seq = 1 + o % 200, .tokens = 1}};

        sched_pick(s, &l, items, 2);
        assert_int_equal(items[0].take, 1);
        assert_int_equal(items[1].take, 1);
    }
    assert_int_equal(s->n_owners, SCHED_MAX_OWNERS);
    drop(s);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_single_picks),
        cmocka_unit_test(test_nobody_gets_less_than_its_share),
        cmocka_unit_test(test_neither_kind_starves),
        cmocka_unit_test(test_silence_earns_nothing_and_forgives_nothing),
        cmocka_unit_test(test_more_owners_than_places),
    };

    return cmocka_run_group_tests_name("sched", tests, NULL, NULL);
}
