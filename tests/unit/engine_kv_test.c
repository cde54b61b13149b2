/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Caches out of the engine and back, by the rules of proto/link.h, on the toy backend: it makes
 * up what leaves, checks every byte of what comes, and answers differently for ever if one was
 * wrong. Here every interleaving is the same in each run.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "model/kvsize.h"
#include "tests/engine_rig.h"
#include "tests/test.h"

/* Where the tests put things in the arena. */
enum { STATE_AT = 0, ROW_AT = 1 << 20, PAGES_AT = 2 << 20, MOST = 4000 };

static uint32_t t[MOST]; /* the tokens of nearly all tests */

static int
setup(void **state)
{
    rig_tokens(t, MOST, 77);
    return rig_setup(state);
}

static uint32_t
ask_save(struct peer *p, uint32_t seq, uint64_t pages)
{
    const struct link_kv_run run = {.first = 0, .n = pages, .at = PAGES_AT};

    return peer_kv_out(p, seq, STATE_AT, ROW_AT, &run, 1);
}

/* All whole pages, one behind the other, and the state: where the engine says it is. */
static uint64_t
save(struct rig *r, uint32_t seq, uint64_t pages)
{
    const struct peer_job *j = peer_ok(r->p, ask_save(r->p, seq, pages));

    assert_int_equal(j->saved.state_bytes, kv_state_bytes(&r->layout, j->saved.pos));
    return j->saved.pos;
}

/* Tokens and pages in portions of so many tokens; the last job. */
static uint32_t
bring(struct rig *r, uint32_t seq, const uint32_t *tokens, uint64_t n, uint32_t portion)
{
    uint32_t job = 0;

    for (uint64_t at = 0; at < n; at += portion) {
        const uint32_t some = n - at < portion ? (uint32_t)(n - at) : portion;

        job = peer_kv_in(r->p, seq, at, PAGES_AT + at / 128 * r->layout.page_bytes,
                         tokens + at, some);
    }
    return job;
}

static void
restore(struct rig *r, uint32_t seq, const uint32_t *tokens, uint64_t n, uint32_t portion)
{
    const struct peer_job *j;

    bring(r, seq, tokens, n, portion);
    j = peer_ok(r->p, peer_kv_set(r->p, seq, n, STATE_AT, ROW_AT));
    assert_int_equal(j->end.pos, n);
    assert_int_equal(j->end.computed, n);
}

static uint32_t
close_both(struct peer *p)
{
    peer_ok(p, peer_close(p, 0));
    return peer_ok(p, peer_close(p, 1))->end.reason;
}

/* Saved at a place, brought back under another number: draws and rows are the same. */
static void
test_there_and_back(void **state)
{
    static const uint32_t places[] = {1,   3,   4,   5,   127, 128,  129,
                                      130, 255, 256, 257, 511, 2047, 2048};
    struct rig *r = *state;
    struct peer *p = r->p;
    const struct sample_params params = rig_params(9, 30);

    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        const uint32_t n = places[i];
        const struct peer_job *a, *b;

        peer_open(p, 0, 1);
        peer_open(p, 1, 1);
        peer_feed(p, 0, 0, t, n, false);
        assert_int_equal(save(r, 0, n / 128), n);
        restore(r, 1, t, n, i % 2 == 0 ? 256 : LINK_MAX_FEED);
        rig_check_logits(p, 1, t, n);
        a = peer_ok(p, peer_sample(p, 0, n, 0, &params));
        b = peer_ok(p, peer_sample(p, 1, n, 0, &params));
        assert_int_equal(a->n_tokens, 30);
        assert_memory_equal(a->choices, b->choices, 30 * sizeof *a->choices);
        close_both(p);
    }
}

/* Behind a FEED and behind a SAMPLE the row is there: nothing is computed for the save. */
static void
test_saving_needs_no_step(void **state)
{
    struct rig *r = *state;
    struct peer *p = r->p;
    const struct sample_params params = rig_params(3, 30);
    uint32_t all[400 + 30];
    uint64_t steps;

    peer_open(p, 0, 1);
    peer_open(p, 1, 1);
    memcpy(all, t, sizeof all);
    peer_ok(p, peer_feed(p, 0, 0, t, 400, false));
    steps = r->status.steps;
    assert_int_equal(save(r, 0, 3), 400);
    assert_int_equal(r->status.steps, steps);
    memcpy(all + 400, peer_ok(p, peer_sample(p, 0, 400, 0, &params))->tokens,
           30 * sizeof *all);
    steps = r->status.steps;
    /* The last token is drawn and has not run: the state is in front of it. */
    assert_int_equal(save(r, 0, 3), 429);
    assert_int_equal(r->status.steps, steps);
    restore(r, 1, all, 429, 256);
    rig_check_logits(p, 1, all, 429);
    peer_ok(p, peer_feed(p, 1, 429, all + 429, 1, false));
    rig_check_logits(p, 1, all, 430);
    rig_check_logits(p, 0, all, 430);
}

/* Behind a rewind it is not: the last token runs again, or all, if that was far. */
static void
test_saving_behind_a_rewind(void **state)
{
    static const uint64_t to[] = {398, 391, 100, 1};
    struct rig *r = *state;
    struct peer *p = r->p;

    peer_open(p, 0, 1);
    peer_feed(p, 0, 0, t, 400, false);
    for (size_t i = 0; i < sizeof to / sizeof *to; i++) {
        peer_ok(p, peer_rewind(p, 0, to[i]));
        assert_int_equal(save(r, 0, to[i] / 128), to[i]);
        peer_open(p, 1, 1);
        restore(r, 1, t, to[i], 128);
        rig_check_logits(p, 1, t, to[i]);
        peer_ok(p, peer_close(p, 1));
    }
    peer_ok(p, peer_rewind(p, 0, 0));
    peer_fails(p, ask_save(p, 0, 0), ERR_INVALID);
}

/* Pages alone; one whose last token was drawn and has not run is made whole first. */
static void
test_pages_only(void **state)
{
    const struct link_kv_run parts[] = {{.first = 2, .n = 1, .at = PAGES_AT + (1 << 20)},
                                        {.first = 0, .n = 0, .at = 0}};
    struct rig *r = *state;
    struct peer *p = r->p;
    const struct sample_params params = rig_params(3, 10);
    const struct peer_job *j;
    uint32_t all[384];

    peer_open(p, 0, 1);
    peer_feed(p, 0, 0, t, 374, false);
    peer_fails(p, peer_kv_out(p, 0, LINK_NOWHERE, 0, parts, 2), ERR_INVALID);
    memcpy(all, t, 374 * sizeof *t);
    memcpy(all + 374, peer_ok(p, peer_sample(p, 0, 374, 0, &params))->tokens,
           10 * sizeof *all);
    j = peer_ok(p, peer_kv_out(p, 0, LINK_NOWHERE, 7, parts, 2));
    assert_int_equal(j->saved.pos, 0);
    assert_int_equal(j->saved.state_bytes, 0);
    assert_int_equal(j->end.computed, 384);
    assert_int_equal(r->arena[STATE_AT], 0xee);
    assert_int_equal(r->arena[PAGES_AT], 0xee);
    /* It is the page that a save of everything has. */
    assert_int_equal(save(r, 0, 3), 384);
    assert_memory_equal(r->arena + parts[0].at,
                        r->arena + PAGES_AT + 2 * r->layout.page_bytes,
                        r->layout.page_bytes);
    peer_open(p, 1, 1);
    restore(r, 1, all, 384, 128);
    rig_check_logits(p, 1, all, 384);
    /* Nothing asked for is nothing done. */
    peer_ok(p, peer_kv_out(p, 0, LINK_NOWHERE, 0, NULL, 0));
}

/* What the arena does not have, in all ways in which sums can go wrong. */
static void
test_places_outside_the_arena(void **state)
{
    struct rig *r = *state;
    struct peer *p = r->p;
    const uint64_t page = r->layout.page_bytes, huge = UINT64_MAX - 7;
    const uint64_t state_bytes = kv_state_bytes(&r->layout, 300);
    const struct link_kv_run good = {.first = 0, .n = 2, .at = PAGES_AT},
                             bad[] = {{0, 2, ARENA - 2 * page + 8},
                                      {0, 1, huge},
                                      {0, 1, ARENA},
                                      {0, 2, PAGES_AT + 4},
                                      {1, UINT64_MAX, PAGES_AT},
                                      {UINT64_MAX, 2, PAGES_AT},
                                      {0, UINT64_MAX / page + 2, 0},
                                      {0, 3, PAGES_AT}};
    const uint64_t bad_at[][2] = {{ARENA - state_bytes + 8, ROW_AT},
                                  {huge, ROW_AT},
                                  {ARENA, ROW_AT},
                                  {STATE_AT + 1, ROW_AT},
                                  {STATE_AT, ARENA - VOCAB * 4 + 8},
                                  {STATE_AT, huge},
                                  {STATE_AT, LINK_NOWHERE},
                                  {STATE_AT, ROW_AT + 4}};

    peer_open(p, 0, 1);
    peer_feed(p, 0, 0, t, 300, false);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const struct link_kv_run runs[2] = {good, bad[i]};

        peer_fails(p, peer_kv_out(p, 0, STATE_AT, ROW_AT, runs, 2), ERR_INVALID);
    }
    for (size_t i = 0; i < sizeof bad_at / sizeof *bad_at; i++)
        peer_fails(p, peer_kv_out(p, 0, bad_at[i][0], bad_at[i][1], &good, 1), ERR_INVALID);
    /* Not a byte was written for any of them. */
    for (size_t i = 0; i < ARENA; i++)
        assert_int_equal(r->arena[i], 0xee);

    assert_int_equal(save(r, 0, 2), 300);
    peer_open(p, 1, 1);
    for (size_t i = 0; i < 4; i++)
        peer_fails(p, peer_kv_in(p, 1, 0, bad[i].at, t, 256), ERR_INVALID);
    bring(r, 1, t, 300, 256);
    for (size_t i = 0; i < sizeof bad_at / sizeof *bad_at; i++)
        peer_fails(p, peer_kv_set(p, 1, 300, bad_at[i][0], bad_at[i][1]), ERR_INVALID);
    /* At the very end of the arena there is room. */
    peer_ok(p, peer_kv_set(p, 1, 300, STATE_AT, ROW_AT));
    rig_check_logits(p, 1, t, 300);
    peer_ok(p, peer_kv_out(p, 0, STATE_AT, ARENA - VOCAB * 4 / 8 * 8, &good, 1));
}

static void
test_packets_of_wrong_size(void **state)
{
    static struct link_kv_run runs[LINK_KV_RUNS + 1];
    struct rig *r = *state;
    struct peer *p = r->p;
    const struct link_kv_out out = {.state_at = LINK_NOWHERE, .n_runs = 2};
    const struct link_kv_in in = {.n = 3};

    peer_open(p, 0, 1);
    peer_feed(p, 0, 0, t, 300, false);
    peer_fails(p, peer_kv_out(p, 0, LINK_NOWHERE, 0, runs, LINK_KV_RUNS + 1), ERR_INVALID);
    peer_ok(p, peer_kv_out(p, 0, LINK_NOWHERE, 0, runs, LINK_KV_RUNS));
    peer_fails(p, peer_send(p, LINK_KV_OUT, 0, &out, sizeof out, -1), ERR_PROTOCOL);
    peer_fails(p, peer_send(p, LINK_KV_OUT, 0, &out, sizeof out - 8, -1), ERR_PROTOCOL);
    peer_open(p, 1, 1);
    peer_fails(p, peer_send(p, LINK_KV_IN, 1, &in, sizeof in, -1), ERR_PROTOCOL);
    peer_fails(p, peer_kv_in(p, 1, 0, 0, t, 0), ERR_INVALID);
    peer_fails(p, peer_kv_in(p, 1, 0, 0, t, 0), ERR_INVALID);
    peer_fails(p, peer_send(p, LINK_KV_SET, 1, runs, sizeof(struct link_kv_set) + 8, -1),
               ERR_PROTOCOL);
    peer_fails(p, peer_kv_in(p, SEQS - 1, 0, PAGES_AT, t, 128), ERR_NOT_FOUND);
    peer_fails(p, peer_kv_set(p, SEQS - 1, 0, 0, 0), ERR_NOT_FOUND);
    peer_fails(p, ask_save(p, SEQS - 1, 0), ERR_NOT_FOUND);
    peer_fails(p, peer_kv_in(p, SEQS, 0, PAGES_AT, t, 128), ERR_INVALID);
}

/* While it comes a sequence takes nothing else but CLOSE. */
static void
test_the_order_of_coming_back(void **state)
{
    struct rig *r = *state;
    struct peer *p = r->p;
    const struct sample_params params = rig_params(5, 10);
    const uint32_t beyond[128] = {VOCAB};
    const int fd = memfd_create("row", MFD_CLOEXEC);

    peer_open(p, 0, 1);
    peer_feed(p, 0, 0, t, 300, false);
    save(r, 0, 2);
    peer_fails(p, peer_kv_in(p, 0, 300, PAGES_AT, t, 128), ERR_CONFLICT);
    peer_fails(p, peer_kv_in(p, 0, 0, PAGES_AT, t, 128), ERR_CONFLICT);
    peer_fails(p, peer_kv_set(p, 0, 300, STATE_AT, ROW_AT), ERR_CONFLICT);

    peer_open(p, 1, 1);
    peer_fails(p, peer_kv_set(p, 1, 0, STATE_AT, ROW_AT), ERR_CONFLICT);
    peer_fails(p, peer_kv_in(p, 1, 128, PAGES_AT, t, 128), ERR_CONFLICT);
    peer_fails(p, peer_kv_in(p, 1, 0, PAGES_AT, beyond, 128), ERR_INVALID);
    peer_ok(p, peer_kv_in(p, 1, 0, PAGES_AT, t, 256));
    peer_fails(p, peer_kv_in(p, 1, 0, PAGES_AT, t, 256), ERR_CONFLICT);
    peer_fails(p, peer_kv_in(p, 1, 128, PAGES_AT, t, 128), ERR_CONFLICT);
    peer_fails(p, peer_feed(p, 1, 256, t, 10, false), ERR_CONFLICT);
    peer_fails(p, peer_sample(p, 1, 256, 0, &params), ERR_CONFLICT);
    peer_fails(p, peer_logits(p, 1, fd), ERR_CONFLICT);
    peer_fails(p, peer_rewind(p, 1, 0), ERR_CONFLICT);
    peer_fails(p, peer_fork(p, 1, 2), ERR_CONFLICT);
    peer_fails(p, ask_save(p, 1, 2), ERR_CONFLICT);
    peer_fails(p, peer_kv_set(p, 1, 300, STATE_AT, ROW_AT), ERR_CONFLICT);
    peer_ok(p, peer_kv_in(p, 1, 256, PAGES_AT, t + 256, 44)); /* no whole page in it */
    peer_fails(p, peer_kv_in(p, 1, 300, PAGES_AT, t + 300, 128), ERR_CONFLICT);
    /* Closed on the way, and all over again. */
    peer_ok(p, peer_close(p, 1));
    peer_ok(p, peer_open(p, 1, 1));
    restore(r, 1, t, 300, 128);
    rig_check_logits(p, 1, t, 300);
    /* One that was rewound to nothing may be filled as well. */
    peer_ok(p, peer_rewind(p, 1, 0));
    restore(r, 1, t, 300, 256);
    rig_check_logits(p, 1, t, 300);
    close(fd);
}

/* Behind a restore, a rewind below it computes from the start and is right again. */
static void
test_rewind_below_the_restore(void **state)
{
    static const uint64_t to[] = {300, 299, 200, 1};
    struct rig *r = *state;
    struct peer *p = r->p;
    uint64_t steps;

    peer_open(p, 0, 1);
    peer_feed(p, 0, 0, t, 300, false);
    save(r, 0, 2);
    peer_open(p, 1, 1);
    restore(r, 1, t, 300, 256);
    /* To where it was set it costs nothing: that row is kept, for its forks too. */
    peer_ok(p, peer_feed(p, 1, 300, t + 300, 5, false));
    peer_ok(p, peer_fork(p, 1, 2));
    steps = r->status.steps;
    for (uint32_t seq = 1; seq <= 2; seq++) {
        peer_ok(p, peer_rewind(p, seq, 300));
        assert_int_equal(save(r, seq, 2), 300);
        rig_check_logits(p, seq, t, 300);
    }
    assert_int_equal(r->status.steps, steps);
    peer_ok(p, peer_feed(p, 1, 300, t + 300, 5, false));
    peer_ok(p, peer_feed(p, 2, 300, t + 300, 5, false));
    for (size_t i = 0; i < sizeof to / sizeof *to; i++) {
        peer_ok(p, peer_rewind(p, 1, to[i]));
        rig_check_logits(p, 1, t, to[i]);
    }
    rig_check_logits(p, 2, t, 305);
    peer_ok(p, peer_rewind(p, 2, 298));
    rig_check_logits(p, 2, t, 298);
}

/* One wrong byte anywhere: what is drawn from then on is something else. */
static void
test_mutants(void **state)
{
    struct rig *r = *state;
    struct peer *p = r->p;
    const struct sample_params params = rig_params(6, 12);
    const uint64_t page = r->layout.page_bytes;
    const uint64_t spots[] = {STATE_AT,
                              STATE_AT + 8,
                              STATE_AT + 17,
                              STATE_AT + kv_state_bytes(&r->layout, 300) - 1,
                              PAGES_AT,
                              PAGES_AT + 9,
                              PAGES_AT + page - 1,
                              PAGES_AT + page + page / 2};
    const struct peer_job *good, *j;
    float row[VOCAB];

    peer_open(p, 0, 1);
    peer_feed(p, 0, 0, t, 300, false);
    save(r, 0, 2);
    good = peer_ok(p, peer_sample(p, 0, 300, 0, &params));
    peer_open(p, 1, 1);
    for (size_t i = 0; i < sizeof spots / sizeof *spots; i++) {
        r->arena[spots[i]] ^= 0x10;
        restore(r, 1, t, 300, 256);
        /* The first token comes from the row that was saved. */
        j = peer_ok(p, peer_sample(p, 1, 300, 0, &params));
        assert_int_equal(j->tokens[0], good->tokens[0]);
        assert_memory_not_equal(j->tokens + 1, good->tokens + 1, 11 * sizeof *j->tokens);
        peer_ok(p, peer_rewind(p, 1, 0));
        r->arena[spots[i]] ^= 0x10;
    }
    /* A page of another position; the row of another one. */
    memcpy(r->arena + PAGES_AT + 4 * page, r->arena + PAGES_AT + page, page);
    memcpy(r->arena + PAGES_AT + page, r->arena + PAGES_AT, page);
    restore(r, 1, t, 300, 256);
    j = peer_ok(p, peer_sample(p, 1, 300, 0, &params));
    assert_memory_not_equal(j->tokens + 1, good->tokens + 1, 11 * sizeof *j->tokens);
    peer_ok(p, peer_rewind(p, 1, 0));
    memcpy(r->arena + PAGES_AT + page, r->arena + PAGES_AT + 4 * page, page);
    memcpy(row, r->arena + ROW_AT, sizeof row);
    toy_row(t, 299, VOCAB, (float *)(void *)(r->arena + ROW_AT));
    restore(r, 1, t, 300, 256);
    j = peer_ok(p, peer_sample(p, 1, 300, 0, &params));
    assert_memory_not_equal(j->choices, good->choices, sizeof *j->choices);
    peer_ok(p, peer_rewind(p, 1, 0));
    memcpy(r->arena + ROW_AT, row, sizeof row);
    restore(r, 1, t, 300, 256);
    j = peer_ok(p, peer_sample(p, 1, 300, 0, &params));
    assert_memory_equal(j->choices, good->choices, 12 * sizeof *j->choices);
}

/* Copies that take a while. */
struct slow {
    int left;     /* kv_busy says 1 that often more */
    int asked;    /* calls */
    int fail_at;  /* that call fails; 0: none */
    bool is_lost; /* kv_busy fails */
};

static int
slowly(void *arg, enum toy_kv what, uint64_t number, uint32_t seq, struct err *e)
{
    struct slow *s = arg;

    (void)number;
    (void)seq;
    if (what == TOY_KV_BUSY && s->is_lost)
        return err_set(e, ERR_INTERNAL, 0, "the device is lost");
    if (what == TOY_KV_BUSY)
        return s->left > 0 && s->left-- > 0;
    if (++s->asked == s->fail_at)
        return err_set(e, ERR_QUOTA, 0, "no");
    return TOY_LATER;
}

/* Copies under way hold up their own sequence only; nobody is told too early. */
static void
test_others_go_on_beside_copies(void **state)
{
    struct rig *r = *state;
    struct peer *p = r->p;
    struct slow s = {.left = 40};
    const struct sample_params params = rig_params(7, 200);
    uint32_t job, feed, other;
    size_t n;

    for (uint32_t i = 0; i < 3; i++) {
        peer_open(p, i, i);
        peer_ok(p, peer_feed(p, i, 0, t + i, 300, false));
    }
    peer_open(p, 3, 3);
    other = peer_sample(p, 1, 300, 0, &params);
    while (p->jobs[other].n_tokens < 5)
        peer_wait_some(p);
    toy_on_kv(slowly, &s);
    job = ask_save(p, 0, 2);
    feed = peer_feed(p, 0, 300, t + 300, 10, false);
    peer_cancel(p, job); /* no job that can be cancelled */
    n = p->jobs[other].n_tokens;
    while (s.left > 1) {
        assert_false(p->jobs[job].ended);
        assert_false(p->jobs[feed].ended);
        assert_int_equal(r->arena[STATE_AT], 0xee);
        peer_wait_some(p);
    }
    assert_true(p->jobs[other].n_tokens >= n + 30);
    assert_int_equal(peer_ok(p, job)->saved.pos, 300);
    peer_ok(p, feed);
    /* Back in, all packets at once: they do not wait for each other. */
    s = (struct slow){.left = 40};
    job = bring(r, 3, t, 300, 128);
    feed = peer_kv_set(p, 3, 300, STATE_AT, ROW_AT);
    n = peer_logits(p, 3, -1); /* behind it in the line */
    peer_wait_some(p);
    peer_wait_some(p);
    assert_int_equal(s.asked, 4);
    assert_false(p->jobs[job - 2].ended);
    peer_ok(p, job - 2);
    peer_ok(p, feed);
    peer_wait(p, (uint32_t)n);
    rig_check_logits(p, 3, t, 300);
    peer_ok(p, other);
}

/* It fails in the middle, and says so when what it began is over. */
static void
test_a_call_that_fails(void **state)
{
    struct link_kv_run runs[3];
    struct rig *r = *state;
    struct peer *p = r->p;
    struct slow s = {.left = 5, .fail_at = 3};
    uint32_t job;

    for (uint32_t i = 0; i < 3; i++)
        runs[i] = (struct link_kv_run){
            .first = i, .n = 1, .at = PAGES_AT + i * r->layout.page_bytes};
    peer_open(p, 0, 1);
    peer_ok(p, peer_feed(p, 0, 0, t, 400, false));
    toy_on_kv(slowly, &s);
    job = peer_kv_out(p, 0, STATE_AT, ROW_AT, runs, 3);
    for (int i = 0; i < 4; i++) {
        peer_wait_some(p);
        assert_false(p->jobs[job].ended);
    }
    peer_fails(p, job, ERR_QUOTA);
    assert_int_equal(s.asked, 3);
    assert_int_equal(s.left, 0);
    s = (struct slow){.left = 0};
    assert_int_equal(save(r, 0, 3), 400);
    /* The second of three portions: the third comes to the wrong place. */
    s = (struct slow){.left = 5, .fail_at = 2};
    peer_open(p, 1, 1);
    job = bring(r, 1, t, 384, 128);
    peer_fails(p, job - 1, ERR_QUOTA);
    peer_fails(p, job, ERR_CONFLICT);
    assert_int_equal(peer_ok(p, job - 2)->end.pos, 128);
    /* On from where it is. */
    peer_ok(p, peer_kv_in(p, 1, 128, PAGES_AT + r->layout.page_bytes, t + 128, 272));
    s = (struct slow){.left = 3, .fail_at = 1};
    peer_fails(p, peer_kv_set(p, 1, 400, STATE_AT, ROW_AT), ERR_QUOTA);
    peer_ok(p, peer_kv_set(p, 1, 400, STATE_AT, ROW_AT));
    rig_check_logits(p, 1, t, 400);
}

static void
test_a_lost_device(void **state)
{
    struct rig *r = *state;
    struct peer *p = r->p;
    struct slow s = {.left = 5, .is_lost = true};

    peer_open(p, 0, 1);
    peer_ok(p, peer_feed(p, 0, 0, t, 400, false));
    toy_on_kv(slowly, &s);
    ask_save(p, 0, 3);
    while (peer_wait_some(p))
        ;
    assert_int_equal(r->exit, LINK_EXIT_FAULT);
    assert_true(p->is_fatal);
}

static void
test_the_end_while_copies_are_under_way(void **state)
{
    struct rig *r = *state;
    struct peer *p = r->p;
    struct slow s = {.left = 1 << 30};
    uint32_t job;

    peer_open(p, 0, 1);
    peer_ok(p, peer_feed(p, 0, 0, t, 400, false));
    toy_on_kv(slowly, &s);
    job = ask_save(p, 0, 3);
    peer_close(p, 0);
    peer_wait_some(p);
    peer_quit(p);
    while (peer_wait_some(p))
        ;
    assert_int_equal(r->exit, LINK_EXIT_OK);
    assert_false(p->jobs[job].ended);
}

/* Room for six pages and two sequences. */
static void
test_quota(void **state)
{
    const struct link_kv_run run = {.first = 0, .n = 4, .at = PAGES_AT};
    struct rig r;
    struct peer *p;
    uint32_t job;

    (void)state;
    rig_tokens(t, MOST, 77);
    rig_start(&r, rig_bytes(2, 6));
    p = r.p;
    peer_open(p, 0, 1);
    peer_ok(p, peer_feed(p, 0, 0, t, 520, false));
    peer_ok(p, peer_kv_out(p, 0, STATE_AT, ROW_AT, &run, 1));
    peer_open(p, 1, 1);
    job = bring(&r, 1, t, 520, 128);
    peer_fails(p, job - 3, ERR_QUOTA); /* the second page */
    peer_fails(p, job, ERR_CONFLICT);
    assert_int_equal(p->jobs[job].end.pos, 128);
    peer_fails(p, peer_kv_in(p, 1, 128, PAGES_AT + r.layout.page_bytes, t + 128, 128),
               ERR_QUOTA);
    peer_ok(p, peer_close(p, 0));
    peer_ok(p, peer_kv_in(p, 1, 128, PAGES_AT + r.layout.page_bytes, t + 128, 392));
    peer_ok(p, peer_kv_set(p, 1, 520, STATE_AT, ROW_AT));
    rig_check_logits(p, 1, t, 520);
    rig_stop(&r);
}

/* Without an arena all of it is refused, and the rest works. */
static void
test_no_arena(void **state)
{
    struct rig r;
    struct peer *p;

    (void)state;
    rig_start_without_arena(&r);
    p = r.p;
    peer_open(p, 0, 1);
    peer_ok(p, peer_feed(p, 0, 0, t, 300, false));
    peer_fails(p, ask_save(p, 0, 2), ERR_UNAVAILABLE);
    peer_open(p, 1, 1);
    peer_fails(p, peer_kv_in(p, 1, 0, PAGES_AT, t, 128), ERR_UNAVAILABLE);
    peer_fails(p, peer_kv_set(p, 1, 0, STATE_AT, ROW_AT), ERR_UNAVAILABLE);
    rig_check_logits(p, 0, t, 300);
    rig_stop(&r);
}

static void
test_what_ready_says(void **state)
{
    struct rig *r = *state;
    struct peer *p = r->p;

    peer_wait_ready(p);
    assert_true(p->ready.layout == r->layout.hash);
    assert_int_equal(p->ready.draft, 0);
    assert_int_equal(p->ready.page_bytes, r->layout.page_bytes);
}

int
main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, rig_teardown)
    const struct CMUnitTest tests[] = {
        T(test_there_and_back),
        T(test_saving_needs_no_step),
        T(test_saving_behind_a_rewind),
        T(test_pages_only),
        T(test_places_outside_the_arena),
        T(test_packets_of_wrong_size),
        T(test_the_order_of_coming_back),
        T(test_rewind_below_the_restore),
        T(test_mutants),
        T(test_others_go_on_beside_copies),
        T(test_a_call_that_fails),
        T(test_a_lost_device),
        T(test_the_end_while_copies_are_under_way),
        cmocka_unit_test(test_quota),
        cmocka_unit_test(test_no_arena),
        T(test_what_ready_says),
    };
#undef T

    log_init("engine_kv_test", 0);
    return cmocka_run_group_tests_name("engine kv", tests, NULL, NULL);
}
