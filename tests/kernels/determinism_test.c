/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu/backend.h promises: same tokens, same bits of logits, however they were cut into steps,
 * whatever was in the same step, after any rewind or fork, with any number of threads. Every
 * comparison here is memcmp of all rows against one sequence run alone in the largest steps.
 * Not for the reference operations: they take a row at a time, and would need minutes.
 * Negative control: the lowest bit of one cached number changed, which must show.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "gpu/cpu/cpu.h"
#include "tests/kernels/golden.h"
#include "tests/test.h"

enum { N = 620, SEQS = 3, CHUNK = MAX_STEP_TOKENS };

struct state {
    struct golden g;
    const char *isa;
    uint64_t random;
    size_t vocab;
    uint32_t tokens[SEQS][N];
    float *want[SEQS], *draft[SEQS]; /* f32 [N][vocab]: alone, in the largest steps */
    float *got, *got_draft;
};

static uint32_t
next(struct state *s, uint32_t below)
{
    s->random ^= s->random << 13;
    s->random ^= s->random >> 7;
    s->random ^= s->random << 17;
    return (uint32_t)(s->random >> 33) % below;
}

static void
open_seq(struct backend *b, uint32_t seq)
{
    struct err e = {0};

    backend_cpu.seq_close(b, seq);
    if (backend_cpu.seq_open(b, seq, &e) == -1)
        fail_msg("%s", e.text);
}

static void
run(struct state *s, struct backend *b, uint32_t seq, int which, int from, int n)
{
    run_tokens(b, seq, s->tokens[which] + from, n, n, s->got + (size_t)from * s->vocab,
               s->got_draft + (size_t)from * s->vocab);
}

static bool
same(const struct state *s, int which, int from, int to)
{
    const size_t at = (size_t)from * s->vocab,
                 n = (size_t)(to - from) * s->vocab * sizeof(float);

    return memcmp(s->got + at, s->want[which] + at, n) == 0 &&
           memcmp(s->got_draft + at, s->draft[which] + at, n) == 0;
}

static void
forget(struct state *s)
{
    memset(s->got, 0xff, N * s->vocab * sizeof *s->got);
    memset(s->got_draft, 0xff, N * s->vocab * sizeof *s->got);
}

static float *
rows(const struct state *s)
{
    float *p = calloc(N * s->vocab, sizeof *p);

    assert_non_null(p);
    return p;
}

static void
alone(struct state *s, struct backend *b, int which)
{
    open_seq(b, 0);
    for (int at = 0; at < N; at += CHUNK)
        run(s, b, 0, which, at, N - at < CHUNK ? N - at : CHUNK);
}

static struct state *made; /* for the tests of one table, which follow one another */

static void
forget_made(void)
{
    if (made == NULL)
        return;
    for (int i = 0; i < SEQS; i++) {
        free(made->want[i]);
        free(made->draft[i]);
    }
    free(made->got);
    free(made->got_draft);
    golden_close(&made->g);
    free(made);
    made = NULL;
}

static int
set_up(void **state)
{
    const char *isa = *state;
    struct backend *b;

    *state = made;
    if (made != NULL && made->isa == isa)
        return 0;
    forget_made();
    made = calloc(1, sizeof *made);
    assert_non_null(made);
    made->isa = isa;
    made->random = 0x9e3779b97f4a7c15;
    assert_int_equal(golden_open(&made->g, "flash-tiny"), 0);
    made->vocab = (size_t)made->g.c.vocab_size;
    b = golden_backend(&made->g, isa, 1);
    for (int i = 0; i < SEQS; i++) {
        for (int t = 0; t < N; t++)
            made->tokens[i][t] = next(made, (uint32_t)made->vocab);
        made->got = made->want[i] = rows(made);
        made->got_draft = made->draft[i] = rows(made);
        alone(made, b, i);
    }
    backend_cpu.close(b);
    made->got = rows(made);
    made->got_draft = rows(made);
    *state = made;
    return 0;
}

static void
any_split(void **state)
{
    static const int most[] = {1, 70, CHUNK};
    struct state *s = *state;
    struct backend *b = golden_backend(&s->g, s->isa, 1);

    for (size_t i = 0; i < sizeof most / sizeof most[0]; i++) {
        forget(s);
        open_seq(b, 0);
        for (int at = 0; at < N;) {
            const int n = 1 + (int)next(s, (uint32_t)most[i]);

            run(s, b, 0, 0, at, n < N - at ? n : N - at);
            at += n;
        }
        assert_true(same(s, 0, 0, N));
    }
    backend_cpu.close(b);
}

/* Three sequences in every step, each at a place of its own. */
static void
any_company(void **state)
{
    struct state *s = *state;
    struct backend *b = golden_backend(&s->g, s->isa, SEQS);
    float *got[SEQS], *draft[SEQS];
    int at[SEQS] = {0};

    for (uint32_t i = 0; i < SEQS; i++) {
        open_seq(b, i);
        got[i] = rows(s);
        draft[i] = rows(s);
    }
    while (at[0] < N || at[1] < N || at[2] < N) {
        struct step_seq share[SEQS];
        struct step step = {.seqs = share};
        struct err e = {0};

        for (uint32_t i = SEQS; i-- > 0;) {
            const int most = i == 0 ? 1 + (int)next(s, 100) : 1 + (int)next(s, 12);
            const int n = most < N - at[i] ? most : N - at[i];

            if (n == 0)
                continue;
            share[step.n_seqs++] = (struct step_seq){
                .seq = i,
                .n_tokens = (uint32_t)n,
                .tokens = s->tokens[i] + at[i],
                .n_logits = (uint32_t)n,
                .logits = got[i] + (size_t)at[i] * s->vocab,
                .mtp_logits = draft[i] + (size_t)at[i] * s->vocab,
            };
            at[i] += n;
        }
        if (backend_cpu.step(b, &step, &e) == -1)
            fail_msg("%s", e.text);
    }
    for (int i = 0; i < SEQS; i++) {
        const size_t n = N * s->vocab * sizeof(float);

        assert_memory_equal(got[i], s->want[i], n);
        assert_memory_equal(draft[i], s->draft[i], n);
        free(got[i]);
        free(draft[i]);
    }
    backend_cpu.close(b);
}

/* As in speculation: wrong tokens, back, the right ones; now and then a block at once. */
static void
rewind_and_again(void **state)
{
    struct state *s = *state;
    struct backend *b = golden_backend(&s->g, s->isa, 1);
    struct err e = {0};

    forget(s);
    open_seq(b, 0);
    for (int at = 0; at < N;) {
        const int wrong = (int)next(s, MAX_REWIND + 1);
        const int n = 1 + (int)next(s, 20), right = n < N - at ? n : N - at;

        if (wrong > 0 && at + wrong <= N) {
            run(s, b, 0, 1, at, wrong);
            assert_int_equal(backend_cpu.seq_rewind(b, 0, (uint64_t)at, &e), 0);
        }
        run(s, b, 0, 0, at, right);
        at += right;
    }
    assert_true(same(s, 0, 0, N));
    backend_cpu.close(b);
}

static void
too_far_back(void **state)
{
    struct state *s = *state;
    struct backend *b = golden_backend(&s->g, s->isa, 1);
    struct err e = {0};

    forget(s);
    open_seq(b, 0);
    run(s, b, 0, 0, 0, 200);
    assert_int_equal(backend_cpu.seq_rewind(b, 0, 201, &e), -1);
    assert_int_equal(e.code, ERR_INVALID);
    assert_int_equal(backend_cpu.seq_rewind(b, 0, 200 - MAX_REWIND - 1, &e), -1);
    assert_int_equal(e.code, ERR_CONFLICT);
    assert_int_equal(backend_cpu.seq_len(b, 0), 200);
    assert_int_equal(backend_cpu.seq_rewind(b, 0, 200 - MAX_REWIND, &e), 0);
    run(s, b, 0, 0, 200 - MAX_REWIND, 100);
    assert_true(same(s, 0, 0, 300 - MAX_REWIND));
    backend_cpu.close(b);
}

/* A fork within a page and one on its border; both sides go on, one with other tokens. */
static void
fork_and_go_on(void **state)
{
    static const int places[] = {130, 256};
    struct state *s = *state;
    struct backend *b = golden_backend(&s->g, s->isa, 2);
    struct err e = {0};
    struct backend_info info;

    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        const int at = places[i];

        forget(s);
        open_seq(b, 0);
        run(s, b, 0, 0, 0, at);
        assert_int_equal(backend_cpu.seq_fork(b, 0, 1, &e), 0);
        assert_int_equal(backend_cpu.seq_len(b, 1), at);
        run(s, b, 1, 1, at, 150);
        run(s, b, 0, 0, at, 40);
        assert_true(same(s, 0, 0, at + 40));
        backend_cpu.seq_close(b, 0);
        assert_int_equal(backend_cpu.seq_fork(b, 0, 1, &e), -1);
        assert_int_equal(e.code, ERR_NOT_FOUND);
        backend_cpu.seq_close(b, 1);
        backend_cpu.info(b, &info);
        assert_int_equal(info.kv_used, 0);
    }
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        const int at = places[i];

        forget(s);
        open_seq(b, 0);
        run(s, b, 0, 0, 0, at);
        assert_int_equal(backend_cpu.seq_fork(b, 0, 1, &e), 0);
        run(s, b, 0, 1, at, 150);
        backend_cpu.seq_close(b, 0);
        run(s, b, 1, 0, at, N - at < CHUNK ? N - at : CHUNK);
        assert_true(same(s, 0, 0, at + (N - at < CHUNK ? N - at : CHUNK)));
        backend_cpu.seq_close(b, 1);
    }
    backend_cpu.close(b);
}

static void
any_number_of_threads(void **state)
{
    struct state *s = *state;

    for (int n = 1; n <= 2; n++) {
        const struct backend_opts o = {
            .isa = s->isa, .n_threads = n, .max_seqs = 1, .mtp = true};
        struct err e = {0};
        struct backend *b = backend_cpu.open(&s->g.c, s->g.w, &o, &e);

        assert_non_null(b);
        forget(s);
        alone(s, b, 2);
        assert_true(same(s, 2, 0, N));
        backend_cpu.close(b);
    }
}

/* The lowest bit of a rotated element of one window row. */
static void
one_bit_shows(void **state)
{
    struct state *s = *state;
    struct backend *b = golden_backend(&s->g, s->isa, 1);
    const struct model_config *c = &s->g.c;

    for (int flip = 0; flip < 2; flip++) {
        forget(s);
        open_seq(b, 0);
        run(s, b, 0, 0, 0, 200);
        if (flip)
            b->seqs[0].rings[b->net.layers[0].ring_at +
                             (size_t)(199 % b->at.ring_slots) * b->at.row +
                             (size_t)(c->head_dim - c->rope_dim)] ^= 1;
        run(s, b, 0, 0, 200, 50);
        assert_int_equal(same(s, 0, 0, 250), !flip);
    }
    backend_cpu.close(b);
}

/* Refused steps, for room or for length, change nothing. */
static void
refused_steps(void **state)
{
    struct state *s = *state;
    struct model_config c = s->g.c;
    struct backend_opts o = {.isa = s->isa, .max_seqs = 2, .mtp = true};
    struct backend_info info;
    struct err e = {0};
    struct backend *b;
    uint32_t bad = (uint32_t)s->vocab;
    struct step_seq share[2] = {{.seq = 0, .n_tokens = 80, .tokens = s->tokens[0] + 200},
                                {.seq = 1, .n_tokens = 80, .tokens = s->tokens[1]}};
    struct step step = {.n_seqs = 2, .seqs = share};

    c.max_positions = 300;
    b = backend_cpu.open(&c, s->g.w, &o, &e);
    assert_non_null(b);
    backend_cpu.info(b, &info);
    backend_cpu.close(b);
    o.kv_bytes = 2 * info.seq_fixed_bytes + 3 * info.page_bytes;
    b = backend_cpu.open(&c, s->g.w, &o, &e);
    assert_non_null(b);
    open_seq(b, 0);
    open_seq(b, 1);
    forget(s);
    run(s, b, 0, 0, 0, 200);

    assert_int_equal(backend_cpu.step(b, &step, &e), -1); /* 3 pages and 1: one too many */
    assert_int_equal(e.code, ERR_QUOTA);
    share[1].n_tokens = 1;
    share[1].tokens = &bad;
    assert_int_equal(backend_cpu.step(b, &step, &e), -1);
    assert_int_equal(e.code, ERR_INVALID);
    share[1] = share[0];
    assert_int_equal(backend_cpu.step(b, &step, &e), -1);
    assert_int_equal(e.code, ERR_INVALID);
    step.n_seqs = 1;
    share[0].n_tokens = 101;
    assert_int_equal(backend_cpu.step(b, &step, &e), -1);
    assert_int_equal(e.code, ERR_CONTEXT_FULL);
    share[0].n_tokens = 0;
    assert_int_equal(backend_cpu.step(b, &step, &e), -1);
    assert_int_equal(e.code, ERR_INVALID);

    backend_cpu.info(b, &info);
    assert_int_equal(info.kv_used, 2 * info.seq_fixed_bytes + 2 * info.page_bytes);
    run(s, b, 0, 0, 200, 100);
    assert_true(same(s, 0, 0, 300));
    assert_int_equal(backend_cpu.seq_open(b, 1, &e), -1);
    assert_int_equal(e.code, ERR_EXISTS);
    assert_int_equal(backend_cpu.seq_open(b, 2, &e), -1);
    assert_int_equal(e.code, ERR_INVALID);
    backend_cpu.close(b);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(any_split),        cmocka_unit_test(any_company),
    cmocka_unit_test(rewind_and_again), cmocka_unit_test(too_far_back),
    cmocka_unit_test(fork_and_go_on),   cmocka_unit_test(any_number_of_threads),
    cmocka_unit_test(one_bit_shows),    cmocka_unit_test(refused_steps),
};

int
main(void)
{
    static const char *const tables[] = {"portable", "avx2", "avx512"};

    enum { TABLES = 3, TESTS = sizeof tests / sizeof tests[0] };
    struct CMUnitTest all[TABLES * TESTS];
    static char names[TABLES * TESTS][64];
    int n = 0;

    for (int t = 0; t < TABLES; t++) {
        struct err e = {0};

        if (cpu_ops_find(tables[t], &e) == NULL) {
            print_message("# %s\n", e.text);
            continue;
        }
        for (int i = 0; i < TESTS; i++, n++) {
            snprintf(names[n], sizeof names[n], "%s: %s", tables[t], tests[i].name);
            all[n] = tests[i];
            all[n].name = names[n];
            all[n].initial_state = (void *)(uintptr_t)tables[t];
            all[n].setup_func = set_up;
        }
    }
    n = _cmocka_run_group_tests("determinism", all, (size_t)n, NULL, NULL);
    forget_made();
    return n;
}
