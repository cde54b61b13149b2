/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CUDA backend: the acceptance that the CPU backend passes (acceptance.c: each layer alone,
 * whole prefill, draft, token by token, against the public reference's answers), and what
 * gpu/backend.h promises of bits: any split, company, rewind, fork, leaving the device and coming
 * back, and running twice change none, by memcmp of all rows of logits. Negative control: the lowest bit of one cached number
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

enum { MOST = 620, SEQS = 3, CHUNK = 512 };

/* Tokens of a text. Fewer, and fewer tests, where the device is emulated (tests/simt) by day. */
static int length = MOST;

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

        if (length < MOST && l != 0 && l != 2 && l != 3) /* one of each kind */
            continue;
        backend_cuda.seq_close(b, 0);
        if (backend_cuda.seq_open(b, 0, &e) == -1 || cuda_reserve(b, &step, &e) == -1 ||
            upload_step(b, &step, &p, 0, &e) == -1 || cuda_tables_send(b, &step, &e) == -1)
            fail_msg("%s", e.text);
        cuda_ok(cudaMemcpyAsync(b->s.x, (const uint8_t *)t->data + (size_t)l * bytes, bytes,
                                cudaMemcpyHostToDevice, b->rk.stream));
        if (cuda_layer_forward(b, &b->net.layers[l], &p.r, b->s.x, &e) == -1 ||
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
    uint32_t tokens[SEQS][MOST];
    float *want[SEQS], *draft[SEQS]; /* f32 [length][vocab]: alone, in the largest steps */
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
        memset(s->got[i], 0xff, (size_t)length * s->vocab * sizeof(float));
        memset(s->got_draft[i], 0xff, (size_t)length * s->vocab * sizeof(float));
    }
}

static void
alone(struct state *s, struct backend *b, int which)
{
    open_seq(b, 0);
    for (int at = 0; at < length; at += CUDA_STEP_TOKENS)
        run(s, b, 0, which, at,
            length - at < CUDA_STEP_TOKENS ? length - at : CUDA_STEP_TOKENS);
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
            *all[k] = calloc((size_t)length * s->vocab, sizeof(float));
        for (int t = 0; t < length; t++)
            s->tokens[i][t] = next(s, (uint32_t)s->vocab);
        alone(s, b, i);
        memcpy(s->want[i], s->got[i], (size_t)length * s->vocab * sizeof(float));
        memcpy(s->draft[i], s->got_draft[i], (size_t)length * s->vocab * sizeof(float));
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
        assert_true(same(s, 0, 0, length));
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
        for (int at = 0; at < length;) {
            const int n = 1 + (int)next(s, (uint32_t)most[i]);

            run(s, b, 0, 0, at, n < length - at ? n : length - at);
            at += n;
        }
        assert_true(same(s, 0, 0, length));
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
    while (at[0] < length || at[1] < length || at[2] < length) {
        struct step_seq share[SEQS];
        struct step step = {.seqs = share};
        struct err e = {0};

        for (uint32_t i = SEQS; i-- > 0;) {
            const int most = i == 0 ? 1 + (int)next(s, 100) : 1 + (int)next(s, 12);
            const int n = most < length - at[i] ? most : length - at[i];

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
        assert_true(same(s, i, 0, length));
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
    for (int at = 0; at < length;) {
        const int wrong = (int)next(s, MAX_REWIND + 1);
        const int n = 1 + (int)next(s, 20), right = n < length - at ? n : length - at;

        if (wrong > 0 && at + wrong <= length) {
            run(s, b, 0, 1, at, wrong);
            assert_int_equal(backend_cuda.seq_rewind(b, 0, (uint64_t)at, &e), 0);
        }
        run(s, b, 0, 0, at, right);
        at += right;
    }
    assert_true(same(s, 0, 0, length));
    assert_int_equal(backend_cuda.seq_rewind(b, 0, length - MAX_REWIND - 1, &e), -1);
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
    uint8_t *at = b->rings + b->net.layers[0].ring_at +
                  (size_t)(199 % b->at.ring_slots) * b->at.row +
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

/* The indexer by its plain kernels has the same bits; attention by its own is as near as sums in
 * another order are. */
static void
plain_kernels(void **state)
{
    struct state *s = *state;
    struct backend *b = golden_backend(&s->g, NULL, 1);
    struct gaps g;

    assert_false(b->plain_index || b->plain_attention);
    b->plain_index = true;
    forget(s);
    alone(s, b, 0);
    assert_true(same(s, 0, 0, length));
    b->plain_attention = true;
    alone(s, b, 0);
    assert_false(same(s, 0, 0, length));
    logit_gaps(s->got[0], s->want[0], length, (int)s->vocab, &g);
    print_message("# plain attention: %.2e off, KL %.1e\n", g.rel_median, g.kl_median);
    assert_true(g.rel_median < 1.3 * s->g.floor_rel[FLOOR_PREFILL]);
    assert_true(g.kl_median < 1.6 * s->g.floor_kl[FLOOR_PREFILL]);
    backend_cuda.close(b);
}

/* Steps of one token, alone and with company that comes and goes: with graphs and without. The
 * draft's logits are not asked for, as such steps are not captured. */
static void
graph_or_not(void **state)
{
    struct state *s = *state;
    struct backend *b = golden_backend(&s->g, NULL, SEQS);
    struct err e = {0};

    for (int plain = 0; plain < 2; plain++) {
        int at[SEQS] = {length / 6, 1, length * 2 / 5};
        uint64_t captured = 0;

        forget(s);
        b->no_graphs = plain;
        for (int i = 0; i < SEQS; i++) {
            open_seq(b, (uint32_t)i);
            run(s, b, (uint32_t)i, i, 0, at[i]);
        }
        for (int k = 0; k < (length < MOST ? 30 : 300); k++) {
            struct step_seq share[SEQS];
            struct step step = {.seqs = share};

            for (uint32_t i = 0; i < SEQS; i++)
                if (i == 0 || (k / 7 + (int)i) % 3 != 0) {
                    share[step.n_seqs++] = (struct step_seq){
                        .seq = i,
                        .n_tokens = 1,
                        .tokens = s->tokens[i] + at[i],
                        .n_logits = 1,
                        .logits = s->got[i] + (size_t)at[i] * s->vocab,
                    };
                    at[i]++;
                }
            if (backend_cuda.step(b, &step, &e) == -1)
                fail_msg("%s", e.text);
        }
        for (int i = 0; i < SEQS; i++)
            assert_memory_equal(s->got[i], s->want[i],
                                (size_t)at[i] * s->vocab * sizeof(float));
        for (int i = 0; i < CUDA_GRAPHS; i++)
            captured += b->graphs[i].exec != NULL;
        if (!plain)
            assert_true(captured >= 2); /* for two and for three */
    }
    backend_cuda.close(b);
}

static void
wait_for(struct backend *b, uint32_t seq)
{
    struct err e = {0};
    int r;

    while ((r = backend_cuda.kv_busy(b, seq, &e)) == 1)
        ;
    assert_int_equal(r, 0);
}

struct image {
    uint8_t *pages, *state;
    size_t n, page_bytes, state_bytes;
};

static struct image
image_of(const struct backend_ops *ops, struct backend *b, uint32_t seq)
{
    struct kv_layout l;
    struct backend_info info;
    struct image m;
    struct err e = {0};

    ops->info(b, &info);
    assert_int_equal(kv_layout_init(&l, &made->g.c, true, &e), 0);
    m.n = (size_t)(ops->seq_len(b, seq) / 128);
    m.page_bytes = (size_t)info.page_bytes;
    m.state_bytes = (size_t)kv_state_bytes(&l, ops->seq_len(b, seq));
    m.pages = malloc(m.n * m.page_bytes + 1);
    m.state = malloc(m.state_bytes + 1);
    memset(m.pages, 0xee, m.n * m.page_bytes);
    memset(m.state, 0xee, m.state_bytes);
    if (ops->kv_out(b, seq, 0, m.n / 2, m.pages, NULL, &e) == -1 ||
        ops->kv_out(b, seq, m.n / 2, m.n - m.n / 2, m.pages + m.n / 2 * m.page_bytes,
                    m.state, &e) == -1)
        fail_msg("%s", e.text);
    wait_for(b, seq);
    kv_layout_done(&l);
    return m;
}

static void
bring_in(struct backend *b, uint32_t seq, const struct image *m, int at)
{
    struct err e = {0};

    open_seq(b, seq);
    if (backend_cuda.kv_in(b, seq, m->n / 3, m->pages, &e) == -1 ||
        backend_cuda.kv_in(b, seq, m->n - m->n / 3, m->pages + m->n / 3 * m->page_bytes,
                           &e) == -1)
        fail_msg("%s", e.text);
    if (m->n > 0) {
        assert_int_equal(backend_cuda.seq_fork(b, seq, SEQS - 1, &e), -1);
        assert_int_equal(e.code, ERR_CONFLICT);
    }
    if (backend_cuda.kv_set(b, seq, (uint64_t)at, m->state, &e) == -1)
        fail_msg("%s", e.text);
    wait_for(b, seq);
}

/* Out, in under another number, on: the bits of one that never left. The image that comes out
 * again is the same. Any part of it changed shows. */
static void
out_and_in(void **state)
{
    static const int places[] = {1,   5,   127, 128, 129, 130, 255, 256, 257,
                                 300, 383, 384, 385, 511, 512, 513, 600};
    struct state *s = *state;
    struct backend *b = golden_backend(&s->g, NULL, SEQS);
    struct err e = {0};

    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        const int at = places[i], n = length - at < 20 ? length - at : 20;
        struct image m, again;

        if (length < MOST && at != 129)
            continue;
        forget(s);
        open_seq(b, 0);
        open_seq(b, 2); /* takes pages in between, so that runs of pages have gaps */
        for (int k = 0; k < at; k += 128) {
            run(s, b, 0, 0, k, at - k < 128 ? at - k : 128);
            run(s, b, 2, 1, k, 1 + k % 3);
        }
        m = image_of(&backend_cuda, b, 0);
        bring_in(b, 1, &m, at);
        again = image_of(&backend_cuda, b, 1);
        assert_memory_equal(m.pages, again.pages, m.n * m.page_bytes);
        assert_memory_equal(m.state, again.state, m.state_bytes);
        assert_int_equal(backend_cuda.seq_rewind(b, 1, (uint64_t)at - 1, &e), -1);
        assert_int_equal(e.code, ERR_CONFLICT);
        run(s, b, 1, 0, at, n);
        assert_true(same(s, 0, 0, at + n));
        backend_cuda.seq_close(b, 1);

        /* mutants: a bit of the last state byte (streams of the draft), of the first page */
        m.state[m.state_bytes - 1] ^= 0x40;
        bring_in(b, 1, &m, at);
        run(s, b, 1, 0, at, n);
        assert_false(same(s, 0, 0, at + n));
        m.state[m.state_bytes - 1] ^= 0x40;
        if (m.n > 0) {
            m.pages[m.page_bytes - 20] ^= 0x44;
            m.pages[9] ^= 0x20;
            bring_in(b, 1, &m, at);
            run(s, b, 1, 0, at, n);
            assert_false(same(s, 0, 0, at + n));
        }
        free(m.pages);
        free(m.state);
        free(again.pages);
        free(again.state);
    }
    backend_cuda.close(b);
}

/* What the CPU wrote the device goes on from: logits as near as those of one text on both. */
static void
image_of_the_cpu(void **state)
{
    struct state *s = *state;
    struct backend *b = golden_backend(&s->g, NULL, SEQS), *cpu;
    float *row = malloc(3 * s->vocab * sizeof *row);
    struct err e = {0};
    struct image m;
    double gap[2];

    golden_ops = &backend_cpu;
    cpu = golden_backend(&s->g, "auto", 1);
    assert_int_equal(backend_cpu.seq_open(cpu, 0, &e), 0);
    run_tokens(cpu, 0, s->tokens[0], 300, 0, NULL, NULL);
    m = image_of(&backend_cpu, cpu, 0);
    run_tokens(cpu, 0, s->tokens[0] + 300, 1, 1, row, NULL);
    golden_ops = &backend_cuda;
    for (int wrong = 0; wrong < 2; wrong++) {
        for (size_t i = 0; wrong && i < m.state_bytes / 8; i++)
            m.state[i] ^= 0x80;
        bring_in(b, 1, &m, 300);
        run_tokens(b, 1, s->tokens[0] + 300, 1, 1, row + s->vocab, NULL);
        gap[wrong] = row_gap(row + s->vocab, row, s->vocab);
    }
    print_message("# on from the CPU's caches: %.2e off, wrong ones %.2e\n", gap[0],
                  gap[1]);
    assert_true(gap[0] < 0.1);
    assert_false(gap[1] <= 2 * gap[0] + 1e-3); /* it may well be no number */
    backend_cpu.close(cpu);
    backend_cuda.close(b);
    free(m.pages);
    free(m.state);
    free(row);
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
        BITS(plain_kernels),
        BITS(graph_or_not),
        BITS(out_and_in),
        BITS(image_of_the_cpu),
        BITS(refused_steps),
    };
    static const struct CMUnitTest some[] = {
        GOLDEN("flash-tiny", each_layer_alone),
        BITS(graph_or_not),
        BITS(out_and_in),
    };
    int failed;

    if (!backend_cuda_present()) {
        puts("1..0 # SKIP no CUDA device that the kernels are for");
        return 0;
    }
#ifdef SIMT
    length = getenv("FATHOM_NIGHTLY") != NULL ? MOST : 136;
#endif
    failed = length < MOST ? cmocka_run_group_tests_name("cuda_model", some, NULL, NULL)
                           : cmocka_run_group_tests_name("cuda_model", tests, NULL, NULL);
    forget_made();
    return failed;
}
