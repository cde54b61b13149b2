/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the engine does when something is wrong: bad jobs, no room, too many, nonsense, a lost
 * device, a daemon that does not read or is gone; and that nobody waits for somebody else.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "engine/out.h"
#include "tests/engine_rig.h"
#include "tests/test.h"

static void
test_errors_leave_the_sequence_alone(void **state)
{
    struct peer *p = ((struct rig *)*state)->p;
    static uint32_t t[CONTEXT];
    struct sample_params params = rig_params(1, 5), bad = params;
    struct link_feed f = {.pos = 10, .n = 0};
    struct link_rewind back = {.len = 11};
    uint32_t token = VOCAB;
    int small = memfd_create("small", MFD_CLOEXEC), pipes[2];
    int unsealed = memfd_create("unsealed", MFD_CLOEXEC);

    struct {
        struct link_sample sample;
        struct sample_params params;
    } with_rows;

    assert_int_equal(pipe(pipes), 0);
    assert_int_equal(ftruncate(unsealed, (off_t)(4 * link_row_bytes(VOCAB))), 0);
    rig_tokens(t, CONTEXT, 10);
    peer_fails(p, peer_feed(p, 0, 0, t, 1, false), ERR_NOT_FOUND);
    peer_fails(p, peer_sample(p, 0, 0, 0, &params), ERR_NOT_FOUND);
    peer_fails(p, peer_rewind(p, 0, 0), ERR_NOT_FOUND);
    peer_fails(p, peer_close(p, 0), ERR_NOT_FOUND);
    peer_fails(p, peer_fork(p, 0, 1), ERR_NOT_FOUND);
    peer_fails(p, peer_open(p, SEQS, 1), ERR_INVALID);
    peer_fails(p, peer_fork(p, SEQS, 1), ERR_INVALID);

    peer_ok(p, peer_open(p, 0, 1));
    peer_fails(p, peer_open(p, 0, 1), ERR_EXISTS);
    peer_fails(p, peer_fork(p, 0, 0), ERR_EXISTS);
    peer_fails(p, peer_sample(p, 0, 0, 0, &params), ERR_INVALID); /* nothing fed */
    peer_ok(p, peer_feed(p, 0, 0, t, 10, false));

    peer_fails(p, peer_feed(p, 0, 9, t, 1, false), ERR_CONFLICT);
    peer_fails(p, peer_sample(p, 0, 11, 0, &params), ERR_CONFLICT);
    peer_fails(p, peer_send(p, LINK_REWIND, 0, &back, sizeof back, -1), ERR_CONFLICT);
    peer_fails(p, peer_feed(p, 0, 10, &token, 1, false), ERR_INVALID);
    peer_fails(p, peer_send(p, LINK_FEED, 0, &f, sizeof f, -1), ERR_INVALID);
    f.n = 2;
    peer_fails(p, peer_send(p, LINK_FEED, 0, &f, sizeof f, -1), ERR_PROTOCOL);
    f.n = UINT32_MAX;
    peer_fails(p, peer_send(p, LINK_FEED, 0, &f, sizeof f, -1), ERR_INVALID);
    peer_fails(p, peer_send(p, LINK_REWIND, 0, &back, 4, -1), ERR_PROTOCOL);
    peer_fails(p, peer_send(p, LINK_CLOSE, 0, &back, sizeof back, -1), ERR_PROTOCOL);
    peer_fails(p, peer_sample(p, 0, 10, 11, &params), ERR_INVALID);
    bad.top_p = 3;
    peer_fails(p, peer_sample(p, 0, 10, 0, &bad), ERR_INVALID);
    peer_fails(p, peer_send(p, LINK_SAMPLE, 0, &params, sizeof params - 1, -1),
               ERR_PROTOCOL);
    /* Slots for rows: with the descriptor or not at all, of the right size, sealed. */
    with_rows.sample =
        (struct link_sample){.pos = 10, .params_bytes = sizeof params, .rows = 4};
    with_rows.params = params;
    peer_fails(p, peer_send(p, LINK_SAMPLE, 0, &with_rows, sizeof with_rows, -1),
               ERR_PROTOCOL);
    peer_fails(p, peer_send(p, LINK_SAMPLE, 0, &with_rows, sizeof with_rows, small),
               ERR_INVALID);
    peer_fails(p, peer_send(p, LINK_SAMPLE, 0, &with_rows, sizeof with_rows, unsealed),
               ERR_INVALID);
    with_rows.sample.rows = 0;
    peer_fails(p, peer_send(p, LINK_SAMPLE, 0, &with_rows, sizeof with_rows, small),
               ERR_PROTOCOL);
    peer_fails(p, peer_logits(p, 0, small), ERR_INVALID);
    peer_fails(p, peer_logits(p, 0, pipes[1]), ERR_INVALID);
    rig_check_logits(p, 0, t, 10);

    /* To the end of the context and not past it: all of a feed or nothing. */
    for (uint32_t at = 10; at < CONTEXT; at += 5000)
        peer_feed(p, 0, at, t + at, at + 5000 > CONTEXT ? CONTEXT - 1 - at : 5000, false);
    peer_fails(p, peer_feed(p, 0, CONTEXT - 1, t, 2, false), ERR_CONTEXT_FULL);
    rig_check_logits(p, 0, t, CONTEXT - 1);
    uint32_t job = peer_sample(p, 0, CONTEXT - 1, 0, &params);

    peer_fails(p, job, ERR_CONTEXT_FULL);
    assert_int_equal(p->jobs[job].n_tokens, 1);
    assert_int_equal(p->jobs[job].end.pos, CONTEXT);
    close(small);
    close(unsealed);
    close(pipes[0]);
    close(pipes[1]);
}

static void
test_quota_hits_one_job_only(void **state)
{
    static uint32_t t[4000];
    const struct sample_params params = rig_params(4, 200);
    struct rig r;
    struct peer *p;
    uint32_t feed, sample;
    const struct peer_job *j;
    struct peer_job free_run;
    uint64_t len;

    (void)state;
    rig_tokens(t, 4000, 11);
    rig_sample(t, 100, NULL, 0, &params, &free_run);
    /* Room for ten pages and two sequences. */
    rig_start(&r, rig_bytes(2, 10));
    p = r.p;
    peer_open(p, 0, 1);
    peer_open(p, 1, 2);
    peer_ok(p, peer_feed(p, 0, 0, t, 100, false));
    sample = peer_sample(p, 0, 100, 0, &params);
    feed = peer_feed(p, 1, 0, t, 4000, false);
    peer_fails(p, feed, ERR_QUOTA);
    len = p->jobs[feed].end.pos;
    assert_int_equal(len, p->jobs[feed].pos);
    assert_true(len > 0);
    /* The other needs one page more than is left by then: it too stops, where it is. */
    j = peer_wait(p, sample);
    if (j->end.reason == LINK_FAILED) {
        assert_int_equal(j->end.err.code, ERR_QUOTA);
        peer_ok(p, peer_close(p, 1));
        assert_memory_equal(j->tokens, free_run.tokens, j->n_tokens * sizeof *j->tokens);
        const size_t n = j->n_tokens;

        j = peer_ok(p, peer_sample(p, 0, 100 + n, (uint32_t)n, &params));
        assert_memory_equal(j->tokens, free_run.tokens + n,
                            j->n_tokens * sizeof *j->tokens);
        assert_int_equal(j->end.pos, free_run.end.pos);
    } else {
        assert_memory_equal(j->tokens, free_run.tokens, j->n_tokens * sizeof *j->tokens);
        rig_check_logits(p, 1, t, len);
    }
    free(free_run.tokens);
    free(free_run.choices);
    rig_stop(&r);
}

/* Fails the step that *arg counts down to. */
static int
refuse_one(void *arg, uint64_t number, const struct step *s, struct err *e)
{
    uint64_t *left = arg;

    (void)number;
    (void)s;
    return --*left == 0 ? err_set(e, ERR_QUOTA, 0, "full") : 0;
}

static void
test_a_failed_step_leaves_the_row(void **state)
{
    struct peer *p = ((struct rig *)*state)->p;
    uint32_t t[300];
    uint64_t left;

    rig_tokens(t, 300, 13);
    peer_open(p, 0, 1);
    peer_ok(p, peer_feed(p, 0, 0, t, 100, false));
    for (int score = 0; score <= 1; score++) {
        left = 1;
        toy_on_step(refuse_one, &left);
        peer_fails(p, peer_feed(p, 0, 100, t + 100, 50, score), ERR_QUOTA);
        rig_check_logits(p, 0, t, 100);
    }
    peer_ok(p, peer_feed(p, 0, 100, t + 100, 200, true));
    rig_check_logits(p, 0, t, 300);
}

/* Whatever step sequence 1 is in fails. */
static int
refuse_seq_1(void *arg, uint64_t number, const struct step *s, struct err *e)
{
    (void)arg;
    (void)number;
    for (uint32_t i = 0; i < s->n_seqs; i++)
        if (s->seqs[i].seq == 1)
            return err_set(e, ERR_QUOTA, 0, "not this one");
    return 0;
}

static void
test_who_spoils_a_step_fails_alone(void **state)
{
    struct peer *p = ((struct rig *)*state)->p;
    const struct sample_params params = rig_params(5, 20);
    struct peer_job want;
    uint32_t t[900], jobs[4];

    rig_tokens(t, 900, 14);
    rig_sample(t, 900, NULL, 0, &params, &want);
    for (uint32_t i = 0; i < 4; i++) {
        peer_open(p, i, i % 2);
        peer_ok(p, peer_feed(p, i, 0, t, 899, false));
    }
    toy_on_step(refuse_seq_1, NULL);
    for (uint32_t i = 0; i < 4; i++) {
        jobs[i] = peer_feed(p, i, 899, t + 899, 1, i == 2);
        if (i != 1)
            jobs[i] = peer_sample(p, i, 900, 0, &params);
    }
    peer_fails(p, jobs[1], ERR_QUOTA);
    for (uint32_t i = 0; i < 4; i++)
        if (i != 1)
            assert_memory_equal(peer_ok(p, jobs[i])->tokens, want.tokens,
                                want.n_tokens * sizeof *want.tokens);
    toy_on_step(NULL, NULL);
    rig_check_logits(p, 1, t, 899);
    free(want.tokens);
    free(want.choices);
}

static int
nonsense_for_seq_1(void *arg, uint64_t number, const struct step *s, struct err *e)
{
    (void)arg;
    (void)number;
    (void)e;
    return s->seqs[0].seq == 1 ? TOY_NONSENSE : 0;
}

static void
test_logits_that_are_none_fail_the_job(void **state)
{
    struct peer *p = ((struct rig *)*state)->p;
    const struct sample_params params = rig_params(5, 20);
    const uint32_t t[3] = {1, 2, 3};
    uint32_t bad;

    toy_on_step(nonsense_for_seq_1, NULL);
    peer_open(p, 1, 1);
    peer_ok(p, peer_feed(p, 1, 0, t, 3, false));
    bad = peer_sample(p, 1, 3, 0, &params);
    peer_fails(p, bad, ERR_INTERNAL);
    assert_int_equal(p->jobs[bad].end.pos, 3);
    peer_open(p, 0, 1);
    peer_feed(p, 0, 0, t, 3, false);
    peer_ok(p, peer_sample(p, 0, 3, 0, &params));
}

static void
test_too_many_jobs(void **state)
{
    struct rig *r = *state;
    struct peer *p = r->p;
    static uint32_t t[LINK_MAX_FEED];
    uint32_t first;

    rig_tokens(t, LINK_MAX_FEED, 12);
    peer_ok(p, peer_open(p, 0, 1));
    first = peer_feed(p, 0, 0, t, LINK_MAX_FEED, false);
    for (int i = 1; i < LINK_MAX_JOBS; i++)
        peer_rewind(p, 0, LINK_MAX_FEED);
    peer_fails(p, peer_rewind(p, 0, 0), ERR_BUSY);
    assert_false(p->jobs[first].ended);
    peer_ok(p, first);
    peer_ok(p, first + LINK_MAX_JOBS - 1);
    rig_check_logits(p, 0, t, LINK_MAX_FEED);
}

static int
run_out(struct rig *r)
{
    while (peer_wait_some(r->p))
        ;
    return r->exit;
}

static void
test_how_it_ends(void **state)
{
    static const uint8_t old[16] = {1, 0, LINK_CLOSE, 0, 16};
    const uint32_t t[2] = {1, 2};
    struct rig r;

    (void)state;
    rig_start(&r, 0);
    peer_quit(r.p);
    assert_int_equal(run_out(&r), LINK_EXIT_OK);
    assert_false(r.p->is_fatal);
    rig_stop(&r);

    rig_start(&r, 0); /* the daemon dies */
    peer_open(r.p, 0, 1);
    close(r.p->sock);
    r.p->sock = -1;
    for (int i = 0; i < 3 && r.exit == ENGINE_GOES_ON; i++)
        rig_turn(&r);
    assert_int_equal(r.exit, LINK_EXIT_OK);
    rig_stop(&r);

    rig_start(&r, 0); /* a number twice */
    peer_open(r.p, 0, 1);
    peer_feed(r.p, 0, 0, t, 2, false);
    r.p->n_jobs--;
    peer_feed(r.p, 0, 2, t, 2, false);
    assert_int_equal(run_out(&r), LINK_EXIT_PROTOCOL);
    assert_int_equal(r.p->fatal.code, ERR_PROTOCOL);
    rig_stop(&r);

    rig_start(&r, 0); /* a type that only the engine sends */
    peer_send(r.p, LINK_TOKENS, 0, NULL, 0, -1);
    assert_int_equal(run_out(&r), LINK_EXIT_PROTOCOL);
    rig_stop(&r);

    rig_start(&r, 0); /* another build */
    assert_int_equal(write(r.p->sock, old, sizeof old), sizeof old);
    assert_int_equal(run_out(&r), LINK_EXIT_PROTOCOL);
    assert_true(r.p->is_fatal);
    rig_stop(&r);
}

/* Packets that are nearly right, with no sense in them. */
static size_t
scribble(uint16_t type, uint8_t *body, uint32_t (*random)(void))
{
    static const size_t sizes[] = {
        [LINK_OPEN] = sizeof(struct link_open),
        [LINK_FORK] = sizeof(struct link_fork),
        [LINK_REWIND] = sizeof(struct link_rewind),
        [LINK_FEED] = sizeof(struct link_feed) + 50 * sizeof(uint32_t),
        [LINK_SAMPLE] = sizeof(struct link_sample) + sizeof(struct sample_params),
        [LINK_LOGITS] = 0,
        [LINK_KV_OUT] = sizeof(struct link_kv_out) + 2 * sizeof(struct link_kv_run),
        [LINK_KV_IN] = sizeof(struct link_kv_in) + 50 * sizeof(uint32_t),
        [LINK_KV_SET] = sizeof(struct link_kv_set),
    };
    struct link_feed *f = (void *)body;
    struct link_sample *s = (void *)body;
    size_t len = sizes[type];

    memset(body, 0, len);
    if (type == LINK_SAMPLE) {
        struct sample_params p = rig_params(random(), random() % 30);

        *s = (struct link_sample){random() % 100, random() % 3, sizeof p, random() % 8 == 0,
                                  0};
        if (random() % 4 == 0)
            ((uint8_t *)&p)[random() % sizeof p] ^= (uint8_t)random();
        memcpy(s + 1, &p, sizeof p);
    } else if (type == LINK_FEED) {
        *f = (struct link_feed){random() % 3 == 0 ? random() % 200 : 0, 50, random() % 2};
        rig_tokens((uint32_t *)(f + 1), 50, random());
    } else if (type == LINK_KV_OUT) {
        struct link_kv_out *k = (void *)body;
        struct link_kv_run *run = (void *)(k + 1);

        *k = (struct link_kv_out){random() % 2 ? 4096 : LINK_NOWHERE, 8192, 2, 0};
        run[0].n = random() % 3 == 0;
        run[1].at = random() % (2 * ARENA) / 8 * 8;
    } else if (type == LINK_KV_IN) {
        *(struct link_kv_in *)(void *)body = (struct link_kv_in){.n = 50};
        rig_tokens((uint32_t *)(void *)(body + sizeof(struct link_kv_in)), 50, random());
    } else if (type == LINK_KV_SET) {
        *(struct link_kv_set *)(void *)body = (struct link_kv_set){50, 4096, 8192};
    } else if (len > 0) {
        *(uint32_t *)body = random() % (SEQS + 2);
    }
    if (len > 0 && random() % 8 == 0)
        body[random() % (len < 24 ? len : 24)] ^= (uint8_t)random();
    return random() % 10 == 0 ? random() % (len + 8) : len;
}

static uint32_t
next_random(void)
{
    static uint64_t x = 1;

    x = x * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(x >> 33);
}

static void
test_nonsense_is_answered_job_by_job(void **state)
{
    struct peer *p = ((struct rig *)*state)->p;
    static const uint16_t types[] = {LINK_OPEN,   LINK_OPEN,   LINK_FORK,  LINK_CLOSE,
                                     LINK_REWIND, LINK_FEED,   LINK_FEED,  LINK_SAMPLE,
                                     LINK_LOGITS, LINK_KV_OUT, LINK_KV_IN, LINK_KV_SET};
    static _Alignas(8)
        uint8_t body[sizeof(struct link_sample) + sizeof(struct sample_params) + 8];
    uint32_t good = 0;

    for (int i = 0; i < 4000; i++) {
        const uint16_t type = types[next_random() % (sizeof types / sizeof *types)];
        const uint32_t seq = next_random() % (SEQS + 1);
        const size_t len = type == LINK_CLOSE ? 0 : scribble(type, body, next_random);
        const int fd = type == LINK_LOGITS && next_random() % 2 ? memfd_create("x", 0) : -1;
        const uint32_t job = peer_send(p, type, seq, body, len, fd);

        if ((type == LINK_FEED || type == LINK_SAMPLE) && len >= 8)
            memcpy(&p->jobs[job].pos, body, 8);
        if (fd != -1)
            close(fd);
        if (next_random() % 8 == 0)
            peer_cancel(p, 1 + next_random() % p->n_jobs);
        if (next_random() % 4 == 0)
            peer_wait_some(p);
        if (i % 200 == 199)
            peer_wait(p, job);
    }
    for (uint32_t i = 1; i <= p->n_jobs; i++)
        good += peer_wait(p, i)->end.reason != LINK_FAILED;
    /* Many do make sense, or this would test the first check only. */
    assert_in_range(good, 400, 3600);
}

static int
fail_at(void *arg, uint64_t number, const struct step *s, struct err *e)
{
    (void)s;
    if (number != *(uint64_t *)arg)
        return 0;
    return err_set(e, ERR_INTERNAL, 0, "the device is lost");
}

static void
test_a_lost_device_ends_the_process(void **state)
{
    struct rig *r = *state;
    const struct sample_params params = rig_params(4, 100);
    const uint32_t t[2] = {1, 2};
    uint64_t at = 21;
    uint32_t job;

    /* Once, in a step of two: trying each alone would hide it. */
    toy_on_step(fail_at, &at);
    peer_open(r->p, 0, 1);
    peer_open(r->p, 1, 1);
    peer_feed(r->p, 1, 0, t, 2, false);
    peer_sample(r->p, 1, 2, 0, &params);
    peer_feed(r->p, 0, 0, t, 2, false);
    job = peer_sample(r->p, 0, 2, 0, &params);
    assert_int_equal(run_out(r), LINK_EXIT_FAULT);
    assert_true(r->p->is_fatal);
    assert_int_equal(r->p->fatal.code, ERR_INTERNAL);
    /* What was drawn before is told; the job has no end, so that the daemon starts it again. */
    assert_int_equal(r->p->jobs[job].n_tokens, 20);
    assert_false(r->p->jobs[job].ended);
}

static void
test_a_daemon_that_does_not_read(void **state)
{
    struct rig *r = *state;
    struct peer *p = r->p;
    struct sample_params params = rig_params(4, 1000000);
    uint32_t t[10], jobs[SEQS];
    uint64_t steps = 0;
    int still = 0;

    rig_tokens(t, 10, 1);
    for (uint32_t i = 0; i < SEQS; i++) {
        peer_open(p, i, i);
        peer_feed(p, i, 0, t, 10, false);
        jobs[i] = peer_sample(p, i, 10, 0, &params);
    }
    /* Its steps come to a rest, and so does its memory (OUT_MAX would end it). */
    for (int i = 0; i < 20000 && still < 100; i++) {
        assert_int_equal(rig_turn(r), ENGINE_GOES_ON);
        still = r->status.steps == steps ? still + 1 : 0;
        steps = r->status.steps;
    }
    assert_int_equal(still, 100);
    assert_true(steps < 10 * OUT_NO_STEP / (SEQS * sizeof(struct sample_choice)));
    /* Nothing is lost (the peer checks positions), and it goes on. */
    for (uint32_t i = 0; i < SEQS; i++)
        while (p->jobs[jobs[i]].n_tokens < steps + 50)
            peer_wait_some(p);
    for (uint32_t i = 0; i < SEQS; i++)
        peer_cancel(p, jobs[i]);
    for (uint32_t i = 0; i < SEQS; i++)
        peer_fails(p, jobs[i], ERR_CANCELLED);
}

static void
test_streams_go_on_beside_a_document(void **state)
{
    struct rig *r = *state;
    struct peer *p = r->p;
    static uint32_t t[2 * LINK_MAX_FEED];
    struct sample_params params = rig_params(4, 1000000);
    uint32_t stream, other, first, last;
    uint64_t steps;

    rig_tokens(t, 2 * LINK_MAX_FEED, 1);
    peer_open(p, 0, 1);
    peer_open(p, 1, 2);
    peer_open(p, 2, 3);
    peer_feed(p, 0, 0, t, 10, false);
    peer_feed(p, 1, 0, t, 20, false);
    stream = peer_sample(p, 0, 10, 0, &params);
    other = peer_sample(p, 1, 20, 0, &params);
    while (p->jobs[other].n_tokens < 3)
        peer_wait_some(p);
    steps = r->status.steps;
    first = peer_feed(p, 2, 0, t, LINK_MAX_FEED, false);
    last = peer_feed(p, 2, LINK_MAX_FEED, t + LINK_MAX_FEED, LINK_MAX_FEED, false);
    peer_ok(p, first);
    peer_ok(p, last);
    steps = r->status.steps - steps;
    assert_true(steps >= 2 * LINK_MAX_FEED / TOY_STEP_TOKENS);
    /* A token a step, whatever else is in it. */
    assert_true(p->jobs[stream].n_tokens >= steps);
    assert_true(p->jobs[other].n_tokens >= steps);
    assert_true(r->status.prefill_tokens >= 2 * LINK_MAX_FEED);
    assert_true(r->status.beat_ns > 0 && r->status.step_began_ns == 0);
    assert_int_equal(r->status.load_permille, 1000);
    assert_true(r->status.kv_used >= 128 * r->layout.page_bytes);
}

int
main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, rig_setup, rig_teardown)
    const struct CMUnitTest tests[] = {
        T(test_errors_leave_the_sequence_alone),
        cmocka_unit_test(test_quota_hits_one_job_only),
        T(test_a_failed_step_leaves_the_row),
        T(test_who_spoils_a_step_fails_alone),
        T(test_logits_that_are_none_fail_the_job),
        T(test_too_many_jobs),
        cmocka_unit_test(test_how_it_ends),
        T(test_nonsense_is_answered_job_by_job),
        T(test_a_lost_device_ends_the_process),
        T(test_a_daemon_that_does_not_read),
        T(test_streams_go_on_beside_a_document),
    };
#undef T

    log_init("engine_limits_test", 0);
    return cmocka_run_group_tests_name("engine limits", tests, NULL, NULL);
}
