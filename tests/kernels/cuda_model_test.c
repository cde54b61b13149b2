/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CUDA backend: the acceptance that the CPU backend passes (acceptance.c: each layer alone,
 * whole prefill, draft, token by token, against the public reference's answers), and what
 * gpu/backend.h promises of bits: any split, company, rewind, fork, and running twice change
 * none, by memcmp of all rows of logits. Negative control: the lowest bit of one cached number
 * changed, which must show. Skipped where there is no device.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "gpu/cuda/cuda.h"
#include "tests/kernels/acceptance.h"
#include "tests/test.h"

enum { N = 620, SEQS = 3, CHUNK = CUDA_STEP_TOKENS };

static void
cuda_ok(cudaError_t err)
{
    if (err != cudaSuccess)
        fail_msg("%s", cudaGetErrorString(err));
}

/* A golden model with both backends; the state of its three tests. */
static int
golden_set_up(void **state)
{
    struct accepted *f = calloc(1, sizeof *f);
    int r;

    assert_non_null(f);
    r = golden_open(&f->g, *state);
    if (r == -1)
        return -1;
    f->isa = "cuda";
    if (r == 0) {
        golden_ops = &backend_cpu;
        f->cpu = golden_backend(&f->g, "auto", 1);
        golden_ops = &backend_cuda;
        f->b = golden_backend(&f->g, NULL, 1);
    }
    *state = f;
    return 0;
}

static int
golden_tear_down(void **state)
{
    struct accepted *f = *state;

    backend_cpu.close(f->cpu);
    backend_cuda.close(f->b);
    golden_close(&f->g);
    free(f);
    return 0;
}

/* Golden rows in, one layer, rows out, on the device. */
static void
each_layer_alone(void **state)
{
    const struct accepted *f = *state;
    struct backend *b = f->b;
    const struct tensor *t;
    struct step_seq share;
    const struct step step = {.n_seqs = 1, .seqs = &share};
    uint16_t *got;
    size_t bytes;
    bool ok = true;

    if (b == NULL)
        skip();
    share = (struct step_seq){.n_tokens = (uint32_t)f->g.n_tokens, .tokens = f->g.tokens};
    t = safetensors_find(f->g.answers, "layer_states");
    assert_non_null(t);
    bytes = (size_t)f->g.n_tokens * (size_t)f->g.c.hc_mult * (size_t)f->g.c.hidden * 2;
    got = malloc(bytes);
    for (int l = 0; l < f->g.c.n_layers; l++) {
        struct cuda_step p;
        struct err e = {0};

        backend_cuda.seq_close(b, 0);
        if (backend_cuda.seq_open(b, 0, &e) == -1 || cuda_reserve(b, &step, &e) == -1 ||
            upload_step(b, &step, &p, &e) == -1 || cuda_tables_send(b, &step, &e) == -1)
            fail_msg("%s", e.text);
        cuda_ok(cudaMemcpyAsync(b->s.x, (const uint8_t *)t->data + (size_t)l * bytes, bytes,
                                cudaMemcpyHostToDevice, b->rk.stream));
        if (cuda_layer_forward(b, &b->layers[l], &p.r, b->s.x, &e) == -1 ||
            rank_wait(&b->rk, &e) == -1)
            fail_msg("%s", e.text);
        cuda_ok(cudaMemcpy(got, b->s.x, bytes, cudaMemcpyDeviceToHost));
        ok &= layer_passes(f, l, got);
    }
    free(got);
    assert_true(ok);
}

static void
whole_prefill_and_draft(void **state)
{
    struct accepted *f = *state;

    if (f->b == NULL)
        skip();
    assert_true(prefill_and_draft_pass(f));
}

static void
token_by_token(void **state)
{
    struct accepted *f = *state;

    if (f->b == NULL)
        skip();
    assert_true(token_by_token_pass(f));
}

struct state {
    struct golden g;
    uint64_t random;
    size_t vocab;
    uint32_t tokens[SEQS][N];
    float *want[SEQS], *draft[SEQS]; /* f32 [N][vocab]: alone, in the largest steps */
    float *got[SEQS], *got_draft[SEQS];
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

    backend_cuda.seq_close(b, seq);
    if (backend_cuda.seq_open(b, seq, &e) == -1)
        fail_msg("%s", e.text);
}

/* Tokens from .. from + n - 1 of text `which` in sequence seq; rows to got[which]. */
static void
run(struct state *s, struct backend *b, uint32_t seq, int which, int from, int n)
{
    run_tokens(b, seq, s->tokens[which] + from, n, n,
               s->got[which] + (size_t)from * s->vocab,
               s->got_draft[which] + (size_t)from * s->vocab);
}

static bool
same(const struct state *s, int which, int from, int to)
{
    const size_t at = (size_t)from * s->vocab;
    const size_t n = (size_t)(to - from) * s->vocab * sizeof(float);

    return memcmp(s->got[which] + at, s->want[which] + at, n) == 0 &&
           memcmp(s->got_draft[which] + at, s->draft[which] + at, n) == 0;
}

static void
forget(struct state *s)
{
    for (int i = 0; i < SEQS; i++) {
        memset(s->got[i], 0xff, N * s->vocab * sizeof(float));
        memset(s->got_draft[i], 0xff, N * s->vocab * sizeof(float));
    }
}

static void
alone(struct state *s, struct backend *b, int which)
{
    open_seq(b, 0);
    for (int at = 0; at < N; at += CHUNK)
        run(s, b, 0, which, at, N - at < CHUNK ? N - at : CHUNK);
}

static struct state *made; /* once, for all tests of bits */

static int
bits_set_up(void **state)
{
    struct state *s = made;
    struct backend *b;

    golden_ops = &backend_cuda;
    *state = s;
    if (s != NULL)
        return 0;
    s = calloc(1, sizeof *s);
    assert_non_null(s);
    if (golden_open(&s->g, "flash-tiny") != 0)
        return -1;
    s->random = 0x9e3779b97f4a7c15;
    s->vocab = (size_t)s->g.c.vocab_size;
    b = golden_backend(&s->g, NULL, 1);
    for (int i = 0; i < SEQS; i++) {
        float **all[4] = {&s->want[i], &s->draft[i], &s->got[i], &s->got_draft[i]};

        for (int k = 0; k < 4; k++)
            *all[k] = calloc(N * s->vocab, sizeof(float));
        for (int t = 0; t < N; t++)
            s->tokens[i][t] = next(s, (uint32_t)s->vocab);
        alone(s, b, i);
        memcpy(s->want[i], s->got[i], N * s->vocab * sizeof(float));
        memcpy(s->draft[i], s->got_draft[i], N * s->vocab * sizeof(float));
    }
    backend_cuda.close(b);
    *state = made = s;
    return 0;
}

static void
forget_made(void)
{
    struct state *s = made;

    if (s == NULL)
        return;
    for (int i = 0; i < SEQS; i++) {
        free(s->want[i]);
        free(s->draft[i]);
        free(s->got[i]);
        free(s->got_draft[i]);
    }
    golden_close(&s->g);
    free(s);
}

static void
run_twice(void **state)
{
    struct state *s = *state;
    struct backend *b = golden_backend(&s->g, NULL, 1);

    for (int k = 0; k < 2; k++) {
        forget(s);
        alone(s, b, 0);
        assert_true(same(s, 0, 0, N));
    }
    backend_cuda.close(b);
}

static void
any_split(void **state)
{
    static const int most[] = {1, 70, 128, CHUNK};
    struct state *s = *state;
    struct backend *b = golden_backend(&s->g, NULL, 1);

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
    backend_cuda.close(b);
}

/* Three sequences in every step, each at a place of its own. */
static void
any_company(void **state)
{
    struct state *s = *state;
    struct backend *b = golden_backend(&s->g, NULL, SEQS);
    int at[SEQS] = {0};

    forget(s);
    for (uint32_t i = 0; i < SEQS; i++)
        open_seq(b, i);
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
                .logits = s->got[i] + (size_t)at[i] * s->vocab,
                .mtp_logits = s->got_draft[i] + (size_t)at[i] * s->vocab,
            };
            at[i] += n;
        }
        if (backend_cuda.step(b, &step, &e) == -1)
            fail_msg("%s", e.text);
    }
    for (int i = 0; i < SEQS; i++)
        assert_true(same(s, i, 0, N));
    backend_cuda.close(b);
}

/* As in speculation: wrong tokens, back, the right ones; now and then a block at once. */
static void
rewind_and_again(void **state)
{
    struct state *s = *state;
    struct backend *b = golden_backend(&s->g, NULL, 1);
    struct err e = {0};

    forget(s);
    open_seq(b, 0);
    for (int at = 0; at < N;) {
        const int wrong = (int)next(s, CUDA_REWIND + 1);
        const int n = 1 + (int)next(s, 20), right = n < N - at ? n : N - at;

        if (wrong > 0 && at + wrong <= N) {
            run(s, b, 0, 1, at, wrong);
            assert_int_equal(backend_cuda.seq_rewind(b, 0, (uint64_t)at, &e), 0);
        }
        run(s, b, 0, 0, at, right);
        at += right;
    }
    assert_true(same(s, 0, 0, N));
    assert_int_equal(backend_cuda.seq_rewind(b, 0, N - CUDA_REWIND - 1, &e), -1);
    assert_int_equal(e.code, ERR_CONFLICT);
    backend_cuda.close(b);
}

/* A fork within a page and one on its border; both sides go on, one with other tokens. */
static void
fork_and_go_on(void **state)
{
    static const int places[] = {130, 256};
    struct state *s = *state;
    struct backend *b = golden_backend(&s->g, NULL, 2);
    struct backend_info before, after;
    struct err e = {0};

    backend_cuda.info(b, &before);
    for (size_t i = 0; i < 2 * sizeof places / sizeof places[0]; i++) {
        const int at = places[i / 2], mine = i % 2, other = !mine;

        forget(s);
        open_seq(b, 0);
        run(s, b, 0, 0, 0, at);
        assert_int_equal(backend_cuda.seq_fork(b, 0, 1, &e), 0);
        assert_int_equal(backend_cuda.seq_len(b, 1), at);
        run(s, b, (uint32_t)other, 1, at, 150);
        run(s, b, (uint32_t)mine, 0, at, 300);
        assert_true(same(s, 0, 0, at + 300));
        backend_cuda.seq_close(b, 0);
        assert_int_equal(backend_cuda.seq_fork(b, 0, 1, &e), -1);
        assert_int_equal(e.code, ERR_NOT_FOUND);
        backend_cuda.seq_close(b, 1);
        backend_cuda.info(b, &after);
        assert_int_equal(after.kv_used, before.kv_used);
    }
    backend_cuda.close(b);
}

/* The lowest bit of a rotated element of one window row. */
static void
one_bit_shows(void **state)
{
    struct state *s = *state;
    struct backend *b = golden_backend(&s->g, NULL, 1);
    const struct model_config *c = &s->g.c;
    uint8_t *at = b->rings + b->layers[0].ring_at + (size_t)(199 % b->ring_slots) * b->row +
                  (size_t)(c->head_dim - c->rope_dim);
    uint8_t byte;

    for (int flip = 0; flip < 2; flip++) {
        forget(s);
        open_seq(b, 0);
        run(s, b, 0, 0, 0, 200);
        cuda_ok(cudaMemcpy(&byte, at, 1, cudaMemcpyDeviceToHost));
        byte ^= (uint8_t)flip;
        cuda_ok(cudaMemcpy(at, &byte, 1, cudaMemcpyHostToDevice));
        cuda_ok(cudaDeviceSynchronize()); /* it is done beside our stream */
        run(s, b, 0, 0, 200, 50);
        assert_int_equal(same(s, 0, 0, 250), !flip);
    }
    backend_cuda.close(b);
}

/* Refused steps, for room or for length, change nothing. */
static void
refused_steps(void **state)
{
    struct state *s = *state;
    struct model_config c = s->g.c;
    struct backend_opts o = {.max_seqs = 2, .mtp = true, .kv_bytes = 64 << 20};
    struct backend_info info;
    struct err e = {0};
    struct backend *b;
    uint32_t bad = (uint32_t)s->vocab;
    struct step_seq share[2] = {{.seq = 0, .n_tokens = 80, .tokens = s->tokens[0] + 200},
                                {.seq = 1, .n_tokens = 80, .tokens = s->tokens[1]}};
    struct step step = {.n_seqs = 2, .seqs = share};

    c.max_positions = 300;
    b = backend_cuda.open(&c, s->g.w, &o, &e);
    assert_non_null(b);
    backend_cuda.info(b, &info);
    backend_cuda.close(b);
    o.kv_bytes = info.seq_fixed_bytes;
    assert_null(backend_cuda.open(&c, s->g.w, &o, &e));
    assert_int_equal(e.code, ERR_QUOTA);
    o.kv_bytes = 2 * info.seq_fixed_bytes + 3 * info.page_bytes;
    b = backend_cuda.open(&c, s->g.w, &o, &e);
    assert_non_null(b);
    open_seq(b, 0);
    open_seq(b, 1);
    forget(s);
    run(s, b, 0, 0, 0, 200);

    assert_int_equal(backend_cuda.step(b, &step, &e), -1); /* 3 pages and 1: one too many */
    assert_int_equal(e.code, ERR_QUOTA);
    share[1].n_tokens = 1;
    share[1].tokens = &bad;
    assert_int_equal(backend_cuda.step(b, &step, &e), -1);
    assert_int_equal(e.code, ERR_INVALID);
    share[1] = share[0];
    assert_int_equal(backend_cuda.step(b, &step, &e), -1);
    assert_int_equal(e.code, ERR_INVALID);
    step.n_seqs = 1;
    share[0].n_tokens = 101;
    assert_int_equal(backend_cuda.step(b, &step, &e), -1);
    assert_int_equal(e.code, ERR_CONTEXT_FULL);

    backend_cuda.info(b, &info);
    assert_int_equal(info.kv_used, 2 * info.seq_fixed_bytes + 2 * info.page_bytes);
    run(s, b, 0, 0, 200, 100);
    assert_true(same(s, 0, 0, 300));
    assert_int_equal(backend_cuda.seq_open(b, 1, &e), -1);
    assert_int_equal(e.code, ERR_EXISTS);
    assert_int_equal(backend_cuda.seq_open(b, 2, &e), -1);
    assert_int_equal(e.code, ERR_INVALID);
    backend_cuda.close(b);
}

/* The model's name is the state at first; nobody writes to it. */
#define GOLDEN(name, fn)                                                            \
    {                                                                               \
        name ": " #fn, fn, golden_set_up, golden_tear_down, (void *)(uintptr_t)name \
    }
#define BITS(fn) cmocka_unit_test_setup(fn, bits_set_up)

int
main(void)
{
    static const struct CMUnitTest tests[] = {
        GOLDEN("flash-tiny", each_layer_alone),
        GOLDEN("flash-tiny", whole_prefill_and_draft),
        GOLDEN("flash-tiny", token_by_token),
        GOLDEN("pro-tiny", each_layer_alone),
        GOLDEN("pro-tiny", whole_prefill_and_draft),
        GOLDEN("pro-tiny", token_by_token),
        GOLDEN("bf16-tiny", each_layer_alone),
        GOLDEN("bf16-tiny", whole_prefill_and_draft),
        GOLDEN("bf16-tiny", token_by_token),
        BITS(run_twice),
        BITS(any_split),
        BITS(any_company),
        BITS(rewind_and_again),
        BITS(fork_and_go_on),
        BITS(one_bit_shows),
        BITS(refused_steps),
    };
    int failed;

    if (!backend_cuda_present()) {
        puts("1..0 # SKIP no CUDA device that the kernels are for");
        return 0;
    }
    failed = cmocka_run_group_tests_name("cuda_model", tests, NULL, NULL);
    forget_made();
    return failed;
}
