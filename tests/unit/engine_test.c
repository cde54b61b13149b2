/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine's loop on the toy backend, turn by turn in this thread, so that every interleaving
 * is the same in every run. The toy's logits hash all tokens in front of them: a token lost,
 * doubled or out of place anywhere changes what is drawn behind it.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "engine/engine.h"
#include "engine/out.h"
#include "tests/link_peer.h"
#include "tests/test.h"
#include "tests/toy_backend.h"

enum { VOCAB = 300, SEQS = 16, CONTEXT = 20000 };

/* An engine and the daemon's end of its link. */
struct rig {
    struct backend *backend;
    struct engine *en;
    struct link_status status;
    int sock, exit;
    struct peer *p;
};

/* Texts of the toy's tokens: one to three letters, so that stop strings cross their borders. */
static const char *
text_of(const void *arg, uint32_t id, size_t *len)
{
    static char text[4];

    (void)arg;
    *len = 1 + id % 3;
    snprintf(text, sizeof text, "%c%c%c", 'a' + id % 7, 'a' + id / 7 % 5, 'a' + id % 4);
    return text;
}

static int
turn(void *arg)
{
    struct rig *r = arg;

    if (r->exit == ENGINE_GOES_ON)
        r->exit = engine_turn(r->en, 0);
    return r->exit;
}

static void
start(struct rig *r, uint64_t kv_bytes)
{
    const struct model_config c = {.vocab_size = VOCAB, .max_positions = CONTEXT};
    const struct backend_opts o = {.max_seqs = SEQS, .kv_bytes = kv_bytes};
    struct engine_model m = {.ops = &backend_toy, .token_bytes = text_of};
    struct err e;
    int sock[2];

    memset(r, 0, sizeof *r);
    r->exit = ENGINE_GOES_ON;
    assert_int_equal(link_pair(sock, &e), 0);
    r->backend = backend_toy.open(&c, NULL, &o, &e);
    assert_non_null(r->backend);
    m.backend = r->backend;
    r->sock = sock[1];
    r->en = engine_new(&m, sock[1], &r->status, &e);
    assert_non_null(r->en);
    r->p = malloc(sizeof *r->p);
    assert_non_null(r->p);
    peer_init(r->p, sock[0]);
    r->p->turn = turn;
    r->p->turn_arg = r;
}

static void
stop(struct rig *r)
{
    toy_on_step(NULL, NULL);
    engine_free(r->en);
    backend_toy.close(r->backend);
    close(r->sock);
    peer_done(r->p);
    free(r->p);
}

static struct rig rig;

static int
setup(void **state)
{
    start(&rig, 0);
    *state = &rig;
    return 0;
}

static int
teardown(void **state)
{
    stop(*state);
    return 0;
}

/* Tokens that look like nothing, the same for the same seed. */
static void
fill(uint32_t *tokens, size_t n, uint32_t seed)
{
    uint64_t x = seed * UINT64_C(2654435761) + 1;

    for (size_t i = 0; i < n; i++) {
        x = x * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        tokens[i] = (uint32_t)(x >> 33) % VOCAB;
    }
}

static struct sample_params
lively(uint64_t seed, uint32_t max_tokens)
{
    struct sample_params p;

    sample_params_init(&p);
    p.seed = seed;
    p.temperature = 1.5f;
    p.top_k = 50;
    p.repetition = 1.1f;
    p.penalty_window = 40;
    p.n_top = 3;
    p.max_tokens = max_tokens;
    return p;
}

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

    fill(t, 10, 1);
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

static void
test_how_a_feed_is_cut_changes_nothing(void **state)
{
    struct peer *p = ((struct rig *)*state)->p;
    static uint32_t t[3000];
    const struct sample_params params = lively(7, 20);
    const struct peer_job *whole, *parts;
    uint64_t at = 0;

    fill(t, 3000, 2);
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
    const struct sample_params params = lively(1, 1);

    fill(t, 1400, 3);
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

/* What a job's end leaves: the row behind the sequence's tokens. */
static void
check_logits(struct peer *p, uint32_t seq, const uint32_t *tokens, size_t n)
{
    float want[VOCAB], have[VOCAB];
    int fd = memfd_create("row", MFD_CLOEXEC);

    assert_int_equal(ftruncate(fd, sizeof have), 0);
    assert_int_equal(peer_ok(p, peer_logits(p, seq, fd))->end.pos, n);
    assert_int_equal(pread(fd, have, sizeof have, 0), sizeof have);
    close(fd);
    toy_row(tokens, n, VOCAB, want);
    assert_memory_equal(have, want, sizeof want);
}

static void
test_rewind_and_fork(void **state)
{
    struct peer *p = ((struct rig *)*state)->p;
    static uint32_t t[1000], u[1000];
    static const uint64_t to[] = {1000, 999, 992, 991, 600, 128, 1, 1};

    fill(t, 1000, 4);
    fill(u, 1000, 5);
    peer_open(p, 0, 1);
    peer_feed(p, 0, 0, t, 1000, false);
    check_logits(p, 0, t, 1000);
    /* Near and far, with and without a row at hand; a fork keeps what its origin loses. */
    peer_ok(p, peer_fork(p, 0, 9));
    for (size_t i = 0; i < sizeof to / sizeof *to; i++) {
        assert_int_equal(peer_ok(p, peer_rewind(p, 0, to[i]))->end.pos, to[i]);
        check_logits(p, 0, t, to[i]);
    }
    check_logits(p, 9, t, 1000);
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
    check_logits(p, 1, u, 1000);
    check_logits(p, 9, t, 1000);
    check_logits(p, 0, u, 401);
    /* A fork of a sequence whose last token is drawn but not computed. */
    const struct sample_params params = lively(3, 5);
    const struct peer_job *j = peer_ok(p, peer_sample(p, 0, 401, 0, &params));

    memcpy(u + 401, j->tokens, 5 * sizeof *u);
    peer_fork(p, 0, 2);
    check_logits(p, 2, u, 406);
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
    struct sample_params params = lively(s->seed, 12);

    switch (s->at++) {
    case 0: s->jobs[s->n++] = peer_open(p, s->seq, s->seed % 3); return true;
    case 1:
    case 3:
    case 6:
        fill(t, n, s->seed + s->at);
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

    start(&r, 0);
    while (script_next(&s, r.p))
        peer_ok(r.p, s.jobs[s.n - 1]);
    h = result(&s, r.p);
    stop(&r);
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

        start(&r, 0);
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
        stop(&r);
    }
}

/* A sample in an engine of its own, the first n_before tokens of which are there already. */
static void
sample_again(const uint32_t *prompt, uint32_t n_prompt, const uint32_t *before,
             uint32_t n_before, const struct sample_params *params, struct peer_job *out)
{
    struct rig r;

    start(&r, 0);
    peer_open(r.p, 0, 1);
    peer_feed(r.p, 0, 0, prompt, n_prompt, false);
    if (n_before > 0)
        peer_feed(r.p, 0, n_prompt, before, n_before, false);
    *out = *peer_ok(r.p, peer_sample(r.p, 0, n_prompt + n_before, n_before, params));
    /* The lists outlive the rig. */
    for (uint32_t i = 1; i <= r.p->n_jobs; i++)
        if (r.p->jobs[i].tokens == out->tokens)
            r.p->jobs[i] = (struct peer_job){.ended = true};
    stop(&r);
}

static void
check_restarts(const struct sample_params *params, enum link_reason reason)
{
    uint32_t prompt[50];
    struct peer_job whole, part;

    fill(prompt, 50, 6);
    sample_again(prompt, 50, NULL, 0, params, &whole);
    assert_int_equal(whole.end.reason, reason);
    assert_true(whole.n_tokens > 3);
    /* The last round: all was received but the end. */
    for (uint32_t n = 0; n <= whole.n_tokens; n++) {
        sample_again(prompt, 50, whole.tokens, n, params, &part);
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
    free(whole.tokens);
    free(whole.choices);
}

static void
test_a_restart_draws_the_same(void **state)
{
    struct sample_params p = lively(11, 24);
    uint32_t prompt[50];
    struct peer_job whole;
    char text[128] = "";
    size_t at = 0, len;

    (void)state;
    check_restarts(&p, LINK_LIMIT);

    fill(prompt, 50, 6);
    sample_again(prompt, 50, NULL, 0, &p, &whole);
    /* Stop tokens that are banned at first: n_drawn must count on. */
    p.max_tokens = 400;
    p.min_tokens = 9;
    p.n_stop_tokens = SAMPLER_MAX_STOP_TOKENS;
    for (uint32_t i = 0; i < SAMPLER_MAX_STOP_TOKENS; i++)
        p.stop_tokens[i] = 16 * i;
    check_restarts(&p, LINK_STOP_TOKEN);

    /* A string over the border of its 11th and 12th token. */
    p = lively(11, 24);
    for (int i = 0; i < 13; i++) {
        const char *s = text_of(NULL, whole.tokens[i], &len);

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
    struct sample_params params = lively(2, 400);
    uint32_t prompt[20];
    const struct peer_job *j;
    char text[2000];
    size_t at = 0, len;

    fill(prompt, 20, 8);
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
        const char *s = text_of(NULL, j->tokens[i], &len);

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
    const struct sample_params params = lively(1, 1000000);
    uint32_t feed, behind, sample;
    const struct peer_job *j;
    static uint32_t all[LINK_MAX_FEED + 1000];
    uint64_t len;

    fill(t, LINK_MAX_FEED, 9);
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
    check_logits(p, 0, all, len);

    sample = peer_sample(p, 0, len, 0, &params);
    while (p->jobs[sample].n_tokens < 20)
        peer_wait_some(p);
    peer_cancel(p, sample);
    peer_fails(p, sample, ERR_CANCELLED);
    j = &p->jobs[sample];
    assert_int_equal(j->end.pos, len + j->n_tokens);
    memcpy(all + len, j->tokens, j->n_tokens * sizeof *all);
    check_logits(p, 0, all, j->end.pos);

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

static void
test_errors_leave_the_sequence_alone(void **state)
{
    struct peer *p = ((struct rig *)*state)->p;
    static uint32_t t[CONTEXT];
    struct sample_params params = lively(1, 5), bad = params;
    struct link_feed f = {.pos = 10, .n = 0};
    struct link_rewind back = {.len = 11};
    uint32_t token = VOCAB;
    int small = memfd_create("small", MFD_CLOEXEC), pipes[2];

    assert_int_equal(pipe(pipes), 0);
    fill(t, CONTEXT, 10);
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
    peer_fails(p, peer_logits(p, 0, small), ERR_INVALID);
    peer_fails(p, peer_logits(p, 0, pipes[1]), ERR_INVALID);
    check_logits(p, 0, t, 10);

    /* To the end of the context and not past it: all of a feed or nothing. */
    for (uint32_t at = 10; at < CONTEXT; at += 5000)
        peer_feed(p, 0, at, t + at, at + 5000 > CONTEXT ? CONTEXT - 1 - at : 5000, false);
    peer_fails(p, peer_feed(p, 0, CONTEXT - 1, t, 2, false), ERR_CONTEXT_FULL);
    check_logits(p, 0, t, CONTEXT - 1);
    uint32_t job = peer_sample(p, 0, CONTEXT - 1, 0, &params);

    peer_fails(p, job, ERR_CONTEXT_FULL);
    assert_int_equal(p->jobs[job].n_tokens, 1);
    assert_int_equal(p->jobs[job].end.pos, CONTEXT);
    close(small);
    close(pipes[0]);
    close(pipes[1]);
}

static void
test_quota_hits_one_job_only(void **state)
{
    static uint32_t t[4000];
    const struct sample_params params = lively(4, 200);
    struct rig r;
    struct peer *p;
    uint32_t feed, sample;
    const struct peer_job *j;
    struct peer_job free_run;
    uint64_t len;

    (void)state;
    fill(t, 4000, 11);
    sample_again(t, 100, NULL, 0, &params, &free_run);
    /* Room for ten pages and two sequences. */
    start(&r, 2 * TOY_FIXED_BYTES + 10 * TOY_PAGE_BYTES);
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
        check_logits(p, 1, t, len);
    }
    free(free_run.tokens);
    free(free_run.choices);
    stop(&r);
}

static void
test_too_many_jobs(void **state)
{
    struct rig *r = *state;
    struct peer *p = r->p;
    static uint32_t t[LINK_MAX_FEED];
    uint32_t first;

    fill(t, LINK_MAX_FEED, 12);
    peer_ok(p, peer_open(p, 0, 1));
    first = peer_feed(p, 0, 0, t, LINK_MAX_FEED, false);
    for (int i = 1; i < LINK_MAX_JOBS; i++)
        peer_rewind(p, 0, LINK_MAX_FEED);
    peer_fails(p, peer_rewind(p, 0, 0), ERR_BUSY);
    assert_false(p->jobs[first].ended);
    peer_ok(p, first);
    peer_ok(p, first + LINK_MAX_JOBS - 1);
    check_logits(p, 0, t, LINK_MAX_FEED);
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
    start(&r, 0);
    peer_quit(r.p);
    assert_int_equal(run_out(&r), LINK_EXIT_OK);
    assert_false(r.p->is_fatal);
    stop(&r);

    start(&r, 0); /* the daemon dies */
    peer_open(r.p, 0, 1);
    close(r.p->sock);
    r.p->sock = -1;
    for (int i = 0; i < 3 && r.exit == ENGINE_GOES_ON; i++)
        turn(&r);
    assert_int_equal(r.exit, LINK_EXIT_OK);
    stop(&r);

    start(&r, 0); /* a number twice */
    peer_open(r.p, 0, 1);
    peer_feed(r.p, 0, 0, t, 2, false);
    r.p->n_jobs--;
    peer_feed(r.p, 0, 2, t, 2, false);
    assert_int_equal(run_out(&r), LINK_EXIT_PROTOCOL);
    assert_int_equal(r.p->fatal.code, ERR_PROTOCOL);
    stop(&r);

    start(&r, 0); /* a type that only the engine sends */
    peer_send(r.p, LINK_TOKENS, 0, NULL, 0, -1);
    assert_int_equal(run_out(&r), LINK_EXIT_PROTOCOL);
    stop(&r);

    start(&r, 0); /* another build */
    assert_int_equal(write(r.p->sock, old, sizeof old), sizeof old);
    assert_int_equal(run_out(&r), LINK_EXIT_PROTOCOL);
    assert_true(r.p->is_fatal);
    stop(&r);
}

static int
fail_at(void *arg, uint64_t number, const struct step *s, struct err *e)
{
    (void)s;
    if (number < *(uint64_t *)arg)
        return 0;
    return err_set(e, ERR_INTERNAL, 0, "the device is lost");
}

static void
test_a_lost_device_ends_the_process(void **state)
{
    struct rig *r = *state;
    const struct sample_params params = lively(4, 100);
    const uint32_t t[2] = {1, 2};
    uint64_t at = 21;
    uint32_t job;

    toy_on_step(fail_at, &at);
    peer_open(r->p, 0, 1);
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
    struct sample_params params = lively(4, 1000000);
    uint32_t t[10], jobs[SEQS];
    uint64_t steps = 0;
    int still = 0;

    fill(t, 10, 1);
    for (uint32_t i = 0; i < SEQS; i++) {
        peer_open(p, i, i);
        peer_feed(p, i, 0, t, 10, false);
        jobs[i] = peer_sample(p, i, 10, 0, &params);
    }
    /* Its steps come to a rest, and so does its memory (OUT_MAX would end it). */
    for (int i = 0; i < 20000 && still < 100; i++) {
        assert_int_equal(turn(r), ENGINE_GOES_ON);
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
    struct sample_params params = lively(4, 1000000);
    uint32_t stream, other, first, last;
    uint64_t steps;

    fill(t, 2 * LINK_MAX_FEED, 1);
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
    assert_true(r->status.kv_used >= 128 * TOY_PAGE_BYTES);
}

int
main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_greedy_tokens_are_the_models),
        T(test_how_a_feed_is_cut_changes_nothing),
        T(test_scores_are_the_models),
        T(test_rewind_and_fork),
        cmocka_unit_test(test_company_and_order_change_nothing),
        cmocka_unit_test(test_a_restart_draws_the_same),
        T(test_stop_strings_say_where),
        T(test_cancel),
        T(test_errors_leave_the_sequence_alone),
        cmocka_unit_test(test_quota_hits_one_job_only),
        T(test_too_many_jobs),
        cmocka_unit_test(test_how_it_ends),
        T(test_a_lost_device_ends_the_process),
        T(test_a_daemon_that_does_not_read),
        T(test_streams_go_on_beside_a_document),
    };
#undef T

    log_init("engine_test", 0);
    return cmocka_run_group_tests_name("engine", tests, NULL, NULL);
}
