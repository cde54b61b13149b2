/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the engine's jobs give: the model's own tokens, scores and rows, whatever the cuts, the
 * order, the company, rewinds, forks, cancels and restarts.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "tests/engine_rig.h"
#include "tests/test.h"

static uint32_t
argmax(const float *row)
{
    uint32_t best = 0;

    for (uint32_t i = 1; i < VOCAB; i++)
        if (row[i] > row[best])
            best = i;
    return best;
}

static void
test_greedy_tokens_are_the_models(void **state)
{
    struct peer *p = ((struct rig *)*state)->p;
    uint32_t t[40];
    float row[VOCAB];
    struct sample_params greedy;
    const struct peer_job *j;

    rig_tokens(t, 10, 1);
    sample_params_init(&greedy);
    greedy.temperature = 0;
    greedy.max_tokens = 30;
    peer_ok(p, peer_open(p, 3, 1));
    j = peer_ok(p, peer_feed(p, 3, 0, t, 10, false));
    assert_int_equal(j->end.pos, 10);
    j = peer_ok(p, peer_sample(p, 3, 10, 0, &greedy));
    assert_int_equal(j->end.reason, LINK_LIMIT);
    assert_int_equal(j->n_tokens, 30);
    for (size_t i = 10; i < 40; i++) {
        toy_row(t, i, VOCAB, row);
        t[i] = argmax(row);
        assert_int_equal(j->tokens[i - 10], t[i]);
    }
}

struct count {
    uint32_t draws, rows;
};

static int
count_draws(void *arg, uint64_t number, const struct step *s, struct err *e)
{
    struct count *c = arg;

    (void)number;
    (void)e;
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        c->draws += s->seqs[i].draw != NULL;
        c->rows += s->seqs[i].n_logits;
    }
    return 0;
}

/* Tokens come from the backend where it can draw them, and a row of logits only where it cannot:
 * they are the same. The row that a sample ends with is there when it is asked for. */
static void
test_the_backend_draws(void **state)
{
    struct peer *p = ((struct rig *)*state)->p;
    struct sample_params params = rig_params(7, 20);
    const struct peer_job *here, *there;
    struct count c = {0, 0};
    uint32_t t[31];

    rig_tokens(t, 11, 3);
    for (uint32_t seq = 0; seq < 2; seq++) {
        peer_open(p, seq, 1);
        peer_ok(p, peer_feed(p, seq, 0, t, 11, false));
    }
    toy_on_step(count_draws, &c);
    there = peer_ok(p, peer_sample(p, 0, 11, 0, &params));
    assert_int_equal(c.draws, 19); /* the first one comes from the row behind the FEED */
    assert_int_equal(c.rows, 0);
    memcpy(t + 11, there->tokens, 20 * sizeof *t);
    params.n_top = 2;
    here = peer_ok(p, peer_sample(p, 1, 11, 0, &params));
    assert_int_equal(c.draws, 19);
    assert_int_equal(c.rows, 19);
    assert_int_equal(there->n_tokens, 20);
    assert_memory_equal(here->tokens, there->tokens, 20 * sizeof *t);
    for (int i = 0; i < 20; i++)
        assert_true(here->choices[i].logprob == there->choices[i].logprob &&
                    here->choices[i].log_sum == there->choices[i].log_sum &&
                    here->choices[i].n_top == 2 && there->choices[i].n_top == 0);
    toy_on_step(NULL, NULL);
    rig_check_logits(p, 0, t, 31);
    /* The control: another seed. */
    params.seed = 9;
    peer_ok(p, peer_rewind(p, 1, 11));
    here = peer_ok(p, peer_sample(p, 1, 11, 0, &params));
    assert_memory_not_equal(here->tokens, t + 11, 20 * sizeof *t);
}

static void
test_how_a_feed_is_cut_changes_nothing(void **state)
{
    struct peer *p = ((struct rig *)*state)->p;
    static uint32_t t[3000];
    const struct sample_params params = rig_params(7, 20);
    const struct peer_job *whole, *parts;
    uint64_t at = 0;

    rig_tokens(t, 3000, 2);
    peer_open(p, 0, 1);
    peer_open(p, 1, 1);
    peer_feed(p, 0, 0, t, 3000, false);
    whole = peer_ok(p, peer_sample(p, 0, 3000, 0, &params));
    for (uint32_t n = 1; at < 3000; n = n * 3 % 700 + 1) {
        if (n > 3000 - at)
            n = (uint32_t)(3000 - at);
        peer_feed(p, 1, at, t + at, n, false);
        at += n;
    }
    /* Half of them, a rest, the other half. */
    struct sample_params half = params;
    uint32_t first[10];

    half.max_tokens = 10;
    parts = peer_ok(p, peer_sample(p, 1, 3000, 0, &half));
    memcpy(first, parts->tokens, sizeof first);
    assert_memory_equal(first, whole->tokens, sizeof first);
    parts = peer_ok(p, peer_sample(p, 1, 3010, 0, &half));
    assert_memory_equal(parts->tokens, whole->tokens + 10, sizeof first);
    assert_memory_equal(parts->choices, whole->choices + 10, 10 * sizeof *parts->choices);
}

static void
test_scores_are_the_models(void **state)
{
    struct peer *p = ((struct rig *)*state)->p;
    static uint32_t t[1400];
    float row[VOCAB];
    uint32_t jobs[4];
    uint64_t cut[] = {0, 1, 700, 703, 1400};
    const struct sample_params params = rig_params(1, 1);

    rig_tokens(t, 1400, 3);
    peer_open(p, 5, 1);
    for (int i = 0; i < 4; i++)
        jobs[i] =
            peer_feed(p, 5, cut[i], t + cut[i], (uint32_t)(cut[i + 1] - cut[i]), true);
    for (int i = 0; i < 4; i++) {
        const struct peer_job *j = peer_ok(p, jobs[i]);

        assert_int_equal(j->n_scores, cut[i + 1] - cut[i]);
        for (uint64_t at = cut[i]; at < cut[i + 1]; at++) {
            toy_row(t, at, VOCAB, row);
            assert_true(j->scores[at - cut[i]] ==
                        (at == 0 ? 0 : sampler_logprob(row, VOCAB, t[at])));
        }
    }
    /* Behind a drawn token, whose row is not there yet, and behind a rewind of one. */
    const struct peer_job *j = peer_ok(p, peer_sample(p, 5, 1400, 0, &params));
    uint32_t drawn = j->tokens[0];

    peer_ok(p, peer_rewind(p, 5, 1300));
    j = peer_ok(p, peer_feed(p, 5, 1300, t + 1300, 100, true));
    toy_row(t, 1300, VOCAB, row);
    assert_true(j->scores[0] == sampler_logprob(row, VOCAB, t[1300]));
    j = peer_ok(p, peer_sample(p, 5, 1400, 0, &params));
    assert_int_equal(j->tokens[0], drawn);
    j = peer_ok(p, peer_feed(p, 5, 1401, t, 2, true));
    static uint32_t all[1402];
    memcpy(all, t, sizeof t);
    all[1400] = drawn;
    toy_row(all, 1401, VOCAB, row);
    assert_true(j->scores[0] == sampler_logprob(row, VOCAB, t[0]));
}

static void
test_rewind_and_fork(void **state)
{
    struct peer *p = ((struct rig *)*state)->p;
    static uint32_t t[1000], u[1000];
    static const uint64_t to[] = {1000, 999, 992, 991, 600, 128, 1, 1};

    rig_tokens(t, 1000, 4);
    rig_tokens(u, 1000, 5);
    peer_open(p, 0, 1);
    peer_feed(p, 0, 0, t, 1000, false);
    rig_check_logits(p, 0, t, 1000);
    /* Near and far, with and without a row at hand; a fork keeps what its origin loses. */
    peer_ok(p, peer_fork(p, 0, 9));
    for (size_t i = 0; i < sizeof to / sizeof *to; i++) {
        assert_int_equal(peer_ok(p, peer_rewind(p, 0, to[i]))->end.pos, to[i]);
        rig_check_logits(p, 0, t, to[i]);
    }
    rig_check_logits(p, 9, t, 1000);
    /* All the way, and something else in its place; all of it sent before any answer. */
    memcpy(u, t, 500 * sizeof *u);
    peer_rewind(p, 0, 0);
    peer_feed(p, 0, 0, u, 900, false);
    peer_fork(p, 0, 1);
    peer_rewind(p, 0, 400);
    peer_close(p, 9);
    peer_fork(p, 0, 9);
    peer_feed(p, 1, 900, u + 900, 100, false);
    peer_feed(p, 9, 400, t + 400, 600, false);
    peer_feed(p, 0, 400, u + 400, 1, false);
    rig_check_logits(p, 1, u, 1000);
    rig_check_logits(p, 9, t, 1000);
    rig_check_logits(p, 0, u, 401);
    /* A fork of a sequence whose last token is drawn but not computed. */
    const struct sample_params params = rig_params(3, 5);
    const struct peer_job *j = peer_ok(p, peer_sample(p, 0, 401, 0, &params));

    memcpy(u + 401, j->tokens, 5 * sizeof *u);
    peer_fork(p, 0, 2);
    rig_check_logits(p, 2, u, 406);
    peer_rewind(p, 2, 0);
    peer_fails(p, peer_logits(p, 2, -1), ERR_PROTOCOL);
}

/*
 * A script of jobs for one sequence; what comes of it is one list of tokens. `slow` decides
 * between which jobs to let the engine work, so that scripts can be put together anyhow.
 */
struct script {
    uint32_t seq, seed, at;
    uint64_t len;
    uint32_t jobs[64], n;
    bool spoil; /* the control: one fed token is another */
};

static bool
script_next(struct script *s, struct peer *p)
{
    uint32_t t[600], n = 40 + s->seed * 97 % 500;
    struct sample_params params = rig_params(s->seed, 12);

    switch (s->at++) {
    case 0: s->jobs[s->n++] = peer_open(p, s->seq, s->seed % 3); return true;
    case 1:
    case 3:
    case 6:
        rig_tokens(t, n, s->seed + s->at);
        if (s->spoil && s->at == 2)
            t[0] ^= 1;
        s->jobs[s->n++] = peer_feed(p, s->seq, s->len, t, n, s->seed % 4 == 0);
        s->len += n;
        return true;
    case 2:
    case 4:
    case 7:
        s->jobs[s->n++] = peer_sample(p, s->seq, s->len, 0, &params);
        s->len += 12;
        return true;
    case 5:
        s->len -= s->seed % 60;
        s->jobs[s->n++] = peer_rewind(p, s->seq, s->len);
        return true;
    default: return false;
    }
}

/* All that the jobs said, in one hash. */
static uint64_t
result(const struct script *s, struct peer *p)
{
    uint64_t h = 0;

    for (uint32_t i = 0; i < s->n; i++) {
        const struct peer_job *j = peer_ok(p, s->jobs[i]);

        for (size_t k = 0; k < j->n_tokens; k++)
            h = (h ^ j->tokens[k]) * UINT64_C(0x100000001b3) + 1;
        for (size_t k = 0; k < j->n_scores; k++) {
            uint32_t bits;

            memcpy(&bits, &j->scores[k], sizeof bits);
            h = (h ^ bits) * UINT64_C(0x100000001b3) + 1;
        }
    }
    return h;
}

static uint64_t
alone(uint32_t seed, bool spoil)
{
    struct script s = {.seq = seed % SEQS, .seed = seed, .spoil = spoil};
    struct rig r;
    uint64_t h;

    rig_start(&r, 0);
    while (script_next(&s, r.p))
        peer_ok(r.p, s.jobs[s.n - 1]);
    h = result(&s, r.p);
    rig_stop(&r);
    return h;
}

static void
test_company_and_order_change_nothing(void **state)
{
    uint64_t want[12];
    uint32_t x = 12345;

    (void)state;
    for (uint32_t i = 0; i < 12; i++)
        want[i] = alone(i, false);
    assert_int_not_equal(alone(5, true), want[5]); /* the comparison can fail */
    for (int round = 0; round < 20; round++) {
        struct script s[12];
        struct rig r;
        uint32_t left = 12;

        rig_start(&r, 0);
        for (uint32_t i = 0; i < 12; i++)
            s[i] = (struct script){.seq = (i + (uint32_t)round) % SEQS, .seed = i};
        while (left > 0) {
            x = x * 1664525 + 1013904223;
            left -= !script_next(&s[(x >> 16) % 12], r.p) && s[(x >> 16) % 12].at == 9;
            for (uint32_t n = x >> 29; n > 2; n--)
                peer_wait_some(r.p);
        }
        for (uint32_t i = 0; i < 12; i++)
            if (result(&s[i], r.p) != want[i])
                fail_msg("round %d: sequence %u draws other tokens than alone", round, i);
        rig_stop(&r);
    }
}

static void
check_restarts(const struct sample_params *params, enum link_reason reason)
{
    uint32_t prompt[50];
    struct peer_job whole, part;

    rig_tokens(prompt, 50, 6);
    rig_sample(prompt, 50, NULL, 0, params, &whole);
    assert_int_equal(whole.end.reason, reason);
    assert_true(whole.n_tokens > 3);
    /* The last round: all was received but the end. */
    for (uint32_t n = 0; n <= whole.n_tokens; n++) {
        rig_sample(prompt, 50, whole.tokens, n, params, &part);
        assert_int_equal(part.n_tokens, whole.n_tokens - n);
        if (part.n_tokens > 0)
            assert_memory_equal(part.tokens, whole.tokens + n,
                                part.n_tokens * sizeof *part.tokens);
        assert_int_equal(part.end.reason, reason);
        assert_int_equal(part.end.stop_at, whole.end.stop_at);
        assert_int_equal(part.end.pos, whole.end.pos);
        free(part.tokens);
        free(part.choices);
    }
    /* The control: one token that was received is another, and what follows is, too. */
    whole.tokens[0] ^= 1;
    rig_sample(prompt, 50, whole.tokens, 1, params, &part);
    assert_true(
        part.n_tokens != whole.n_tokens - 1 ||
        memcmp(part.tokens, whole.tokens + 1, part.n_tokens * sizeof *part.tokens) != 0);
    free(part.tokens);
    free(part.choices);
    free(whole.tokens);
    free(whole.choices);
}

static void
test_a_restart_draws_the_same(void **state)
{
    struct sample_params p = rig_params(11, 24);
    uint32_t prompt[50];
    struct peer_job whole;
    char text[128] = "";
    size_t at = 0, len;

    (void)state;
    check_restarts(&p, LINK_LIMIT);

    rig_tokens(prompt, 50, 6);
    rig_sample(prompt, 50, NULL, 0, &p, &whole);
    /* Stop tokens that are banned at first: n_drawn must count on. */
    p.max_tokens = 400;
    p.min_tokens = 9;
    p.n_stop_tokens = SAMPLER_MAX_STOP_TOKENS;
    for (uint32_t i = 0; i < SAMPLER_MAX_STOP_TOKENS; i++)
        p.stop_tokens[i] = 16 * i;
    check_restarts(&p, LINK_STOP_TOKEN);

    /* A string over the border of its 11th and 12th token. */
    p = rig_params(11, 24);
    for (int i = 0; i < 13; i++) {
        const char *s = rig_text(NULL, whole.tokens[i], &len);

        memcpy(text + at, s, len);
        at += len;
    }
    p.n_stops = 1;
    p.stops[0].len = 6;
    memcpy(p.stops[0].s, text + at - 9, 6);
    check_restarts(&p, LINK_STOP_STRING);
    free(whole.tokens);
    free(whole.choices);
}

static void
test_stop_strings_say_where(void **state)
{
    struct peer *p = ((struct rig *)*state)->p;
    struct sample_params params = rig_params(2, 400);
    uint32_t prompt[20];
    const struct peer_job *j;
    char text[2000];
    size_t at = 0, len;

    rig_tokens(prompt, 20, 8);
    params.n_stops = 2;
    params.stops[0].len = 3;
    memcpy(params.stops[0].s, "bab", 3);
    params.stops[1].len = 4;
    memcpy(params.stops[1].s, "acdc", 4);
    peer_open(p, 0, 1);
    peer_feed(p, 0, 0, prompt, 20, false);
    j = peer_ok(p, peer_sample(p, 0, 20, 0, &params));
    assert_int_equal(j->end.reason, LINK_STOP_STRING);
    for (size_t i = 0; i < j->n_tokens; i++) {
        const char *s = rig_text(NULL, j->tokens[i], &len);

        memcpy(text + at, s, len);
        at += len;
    }
    text[at] = '\0';
    assert_true(strncmp(text + j->end.stop_at, "bab", 3) == 0 ||
                strncmp(text + j->end.stop_at, "acdc", 4) == 0);
    text[j->end.stop_at + 2] = '\0';
    assert_null(strstr(text, "bab"));
    assert_null(strstr(text, "acdc"));
}

static void
test_cancel(void **state)
{
    struct peer *p = ((struct rig *)*state)->p;
    static uint32_t t[LINK_MAX_FEED];
    const struct sample_params params = rig_params(1, 1000000);
    uint32_t feed, behind, sample;
    const struct peer_job *j;
    static uint32_t all[LINK_MAX_FEED + 1000];
    uint64_t len;

    rig_tokens(t, LINK_MAX_FEED, 9);
    peer_open(p, 0, 1);
    feed = peer_feed(p, 0, 0, t, LINK_MAX_FEED, false);
    behind = peer_feed(p, 0, LINK_MAX_FEED, t, 5, false);
    while (p->jobs[feed].n_fed < 3)
        peer_wait_some(p);
    peer_cancel(p, feed);
    peer_fails(p, feed, ERR_CANCELLED);
    j = &p->jobs[feed];
    assert_int_equal(j->end.pos, j->pos);
    assert_in_range(j->end.pos, 1, LINK_MAX_FEED - 1);
    /* What was sent for behind it does not fit any more, and says so. */
    peer_fails(p, behind, ERR_CONFLICT);
    len = j->end.pos;
    memcpy(all, t, sizeof t);
    rig_check_logits(p, 0, all, len);

    sample = peer_sample(p, 0, len, 0, &params);
    while (p->jobs[sample].n_tokens < 20)
        peer_wait_some(p);
    peer_cancel(p, sample);
    peer_fails(p, sample, ERR_CANCELLED);
    j = &p->jobs[sample];
    assert_int_equal(j->end.pos, len + j->n_tokens);
    memcpy(all + len, j->tokens, j->n_tokens * sizeof *all);
    rig_check_logits(p, 0, all, j->end.pos);

    /* One that waits for its turn; one that is over; one that cannot be; one that never was. */
    sample = peer_sample(p, 0, j->end.pos, 0, &params);
    behind = peer_sample(p, 0, 77, 0, &params);
    peer_cancel(p, behind);
    peer_fails(p, behind, ERR_CANCELLED);
    assert_false(p->jobs[sample].ended);
    peer_cancel(p, behind);
    peer_cancel(p, sample);
    peer_fails(p, sample, ERR_CANCELLED);
    behind = peer_close(p, 0);
    peer_cancel(p, behind);
    peer_ok(p, behind);
    p->jobs[0].seq = 0;
    peer_cancel(p, 0);
    peer_ok(p, peer_open(p, 0, 1));
}

int
main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, rig_setup, rig_teardown)
    const struct CMUnitTest tests[] = {
        T(test_greedy_tokens_are_the_models),
        T(test_the_backend_draws),
        T(test_how_a_feed_is_cut_changes_nothing),
        T(test_scores_are_the_models),
        T(test_rewind_and_fork),
        cmocka_unit_test(test_company_and_order_change_nothing),
        cmocka_unit_test(test_a_restart_draws_the_same),
        T(test_stop_strings_say_where),
        T(test_cancel),
    };
#undef T

    log_init("engine_test", 0);
    return cmocka_run_group_tests_name("engine", tests, NULL, NULL);
}
