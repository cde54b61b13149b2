/* SPDX-License-Identifier: Apache-2.0 */
/* The hash that plays a model; toy_backend.h says what for. One thread, as any backend. */
#include "config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "tests/toy_backend.h"

struct toy_seq {
    bool open;
    uint64_t len, high;
    uint64_t *state; /* [room]: behind each token */
    size_t room;
};

struct backend {
    struct backend_opts opts;
    uint32_t vocab;
    uint64_t max_positions, steps;
    struct toy_seq *seqs; /* [max_seqs] */
};

static toy_step_fn *on_step;
static void *on_step_arg;

void
toy_on_step(toy_step_fn *fn, void *arg)
{
    on_step = fn;
    on_step_arg = arg;
}

/* For what only a bug of the caller can bring about. */
#define CONTRACT(ok, what)                                               \
    do {                                                                 \
        if (!(ok)) {                                                     \
            fprintf(stderr, "toy backend: contract broken: %s\n", what); \
            abort();                                                     \
        }                                                                \
    } while (0)

/* The finalizer of splitmix64: a bijection that leaves no pattern. */
static uint64_t
mix(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

/* Uniform in [-4, 4), and one token that greedy decoding takes. */
static void
fill_row(uint64_t state, uint32_t vocab, float *row)
{
    for (uint32_t id = 0; id < vocab; id++)
        row[id] = (float)(mix(state ^ ((uint64_t)id << 20)) >> 40) / (float)(1 << 21) - 4;
    row[mix(state) % vocab] += 8;
}

void
toy_row(const uint32_t *tokens, size_t n, uint32_t vocab, float *row)
{
    uint64_t state = 0;

    for (size_t i = 0; i < n; i++)
        state = mix(state ^ mix(tokens[i]));
    fill_row(state, vocab, row);
}

static struct backend *
toy_open(const struct model_config *c, const struct weights *w,
         const struct backend_opts *o, struct err *e)
{
    struct backend *b = calloc(1, sizeof *b);

    (void)w;
    if (b == NULL || (b->seqs = calloc(o->max_seqs, sizeof *b->seqs)) == NULL) {
        free(b);
        err_set(e, ERR_QUOTA, 0, "no memory for the toy");
        return NULL;
    }
    b->opts = *o;
    if (b->opts.kv_bytes == 0)
        b->opts.kv_bytes = UINT64_C(1) << 30;
    b->vocab = (uint32_t)c->vocab_size;
    b->max_positions = (uint64_t)c->max_positions;
    return b;
}

static void
toy_seq_close(struct backend *b, uint32_t seq)
{
    CONTRACT(seq < b->opts.max_seqs && b->seqs[seq].open, "close of a sequence not open");
    free(b->seqs[seq].state);
    b->seqs[seq] = (struct toy_seq){0};
}

static void
toy_close(struct backend *b)
{
    if (b == NULL)
        return;
    for (uint32_t i = 0; i < b->opts.max_seqs; i++)
        if (b->seqs[i].open)
            toy_seq_close(b, i);
    free(b->seqs);
    free(b);
}

static uint64_t
bytes_for(uint64_t tokens)
{
    return TOY_FIXED_BYTES +
           (tokens + TOY_PAGE_TOKENS - 1) / TOY_PAGE_TOKENS * TOY_PAGE_BYTES;
}

static uint64_t
toy_seq_bytes(const struct backend *b, uint32_t seq)
{
    return bytes_for(b->seqs[seq].len);
}

static uint64_t
toy_seq_len(const struct backend *b, uint32_t seq)
{
    return b->seqs[seq].len;
}

static uint64_t
used(const struct backend *b)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < b->opts.max_seqs; i++)
        if (b->seqs[i].open)
            sum += toy_seq_bytes(b, i);
    return sum;
}

static void
toy_info(const struct backend *b, struct backend_info *out)
{
    *out = (struct backend_info){.name = "toy",
                                 .detail = "a hash of the tokens",
                                 .vocab = b->vocab,
                                 .max_positions = b->max_positions,
                                 .page_bytes = TOY_PAGE_BYTES,
                                 .seq_fixed_bytes = TOY_FIXED_BYTES,
                                 .kv_limit = b->opts.kv_bytes,
                                 .kv_used = used(b),
                                 .max_seqs = b->opts.max_seqs,
                                 .max_step_tokens = TOY_STEP_TOKENS,
                                 .max_rewind = TOY_MAX_REWIND};
}

static int
grow(struct toy_seq *s, uint64_t len, struct err *e)
{
    uint64_t *p;

    if (len <= s->room)
        return 0;
    p = realloc(s->state, 2 * len * sizeof *p);
    if (p == NULL)
        return err_set(e, ERR_QUOTA, 0, "no memory for %llu states",
                       (unsigned long long)len);
    s->state = p;
    s->room = 2 * len;
    return 0;
}

static int
toy_seq_open(struct backend *b, uint32_t seq, struct err *e)
{
    CONTRACT(seq < b->opts.max_seqs && !b->seqs[seq].open, "open of a sequence in use");
    if (used(b) + bytes_for(0) > b->opts.kv_bytes)
        return err_set(e, ERR_QUOTA, 0, "no room for another sequence");
    b->seqs[seq].open = true;
    return 0;
}

static int
toy_seq_fork(struct backend *b, uint32_t from, uint32_t to, struct err *e)
{
    struct toy_seq *f, *t;

    CONTRACT(from < b->opts.max_seqs && b->seqs[from].open, "fork of a sequence not open");
    CONTRACT(to < b->opts.max_seqs && !b->seqs[to].open, "fork to a sequence in use");
    f = &b->seqs[from];
    t = &b->seqs[to];
    if (used(b) + bytes_for(f->len) > b->opts.kv_bytes)
        return err_set(e, ERR_QUOTA, 0, "no room for a fork");
    if (grow(t, f->len, e) == -1)
        return -1;
    if (f->len > 0)
        memcpy(t->state, f->state, f->len * sizeof *t->state);
    t->open = true;
    t->len = f->len;
    t->high = f->high;
    return 0;
}

static int
toy_seq_rewind(struct backend *b, uint32_t seq, uint64_t len, struct err *e)
{
    struct toy_seq *s = &b->seqs[seq];

    CONTRACT(seq < b->opts.max_seqs && s->open && len <= s->len, "rewind");
    if (s->high - len > TOY_MAX_REWIND)
        return err_set(e, ERR_CONFLICT, 0, "rewind of %llu tokens",
                       (unsigned long long)(s->high - len));
    s->len = len;
    return 0;
}

static void
check_step(const struct backend *b, const struct step *st)
{
    uint64_t tokens = 0;

    CONTRACT(st->n_seqs > 0, "empty step");
    for (uint32_t i = 0; i < st->n_seqs; i++) {
        const struct step_seq *s = &st->seqs[i];

        CONTRACT(s->seq < b->opts.max_seqs && b->seqs[s->seq].open, "step of one not open");
        CONTRACT(s->n_tokens > 0 && s->n_logits <= s->n_tokens, "counts");
        CONTRACT(s->n_logits == 0 || s->logits != NULL, "rows with no room");
        CONTRACT(s->mtp_logits == NULL, "draft rows without opts.mtp");
        for (uint32_t k = 0; k < i; k++)
            CONTRACT(st->seqs[k].seq != s->seq, "a sequence twice in a step");
        for (uint32_t k = 0; k < s->n_tokens; k++)
            CONTRACT(s->tokens[k] < b->vocab, "token beyond the vocabulary");
        tokens += s->n_tokens;
    }
    CONTRACT(tokens <= TOY_STEP_TOKENS, "too many tokens in a step");
}

static int
check_room(struct backend *b, const struct step *st, struct err *e)
{
    uint64_t more = 0;

    for (uint32_t i = 0; i < st->n_seqs; i++) {
        struct toy_seq *s = &b->seqs[st->seqs[i].seq];
        const uint64_t len = s->len + st->seqs[i].n_tokens;

        if (len > b->max_positions)
            return err_set(e, ERR_CONTEXT_FULL, 0, "position %llu",
                           (unsigned long long)len);
        more += bytes_for(len) - bytes_for(s->len);
        if (grow(s, len, e) == -1)
            return -1;
    }
    if (used(b) + more > b->opts.kv_bytes)
        return err_set(e, ERR_QUOTA, 0, "no room for the caches");
    return 0;
}

/* A step that fails may have written anything into the rows that it was to fill. */
static int
spoil_rows(const struct step *st)
{
    for (uint32_t i = 0; i < st->n_seqs; i++)
        if (st->seqs[i].n_logits > 0)
            st->seqs[i].logits[0] = 1e30f;
    return -1;
}

static int
toy_step(struct backend *b, const struct step *st, struct err *e)
{
    int r = 0;

    check_step(b, st);
    b->steps++;
    if (on_step != NULL)
        r = on_step(on_step_arg, b->steps, st, e);
    if (r == -1 || check_room(b, st, e) == -1)
        return spoil_rows(st);
    for (uint32_t i = 0; i < st->n_seqs; i++) {
        const struct step_seq *sh = &st->seqs[i];
        struct toy_seq *s = &b->seqs[sh->seq];

        for (uint32_t k = 0; k < sh->n_tokens; k++, s->len++)
            s->state[s->len] =
                mix((s->len > 0 ? s->state[s->len - 1] : 0) ^ mix(sh->tokens[k]));
        for (uint32_t k = 0; k < sh->n_logits; k++)
            fill_row(s->state[s->len - sh->n_logits + k], b->vocab,
                     sh->logits + (size_t)k * b->vocab);
        if (r == TOY_NONSENSE && sh->n_logits > 0)
            sh->logits[(size_t)sh->n_logits * b->vocab - 1] = NAN;
        if (s->high < s->len)
            s->high = s->len;
    }
    return 0;
}

const struct backend_ops backend_toy = {
    .name = "toy",
    .open = toy_open,
    .close = toy_close,
    .info = toy_info,
    .seq_open = toy_seq_open,
    .seq_fork = toy_seq_fork,
    .seq_close = toy_seq_close,
    .seq_len = toy_seq_len,
    .seq_bytes = toy_seq_bytes,
    .seq_rewind = toy_seq_rewind,
    .step = toy_step,
};
