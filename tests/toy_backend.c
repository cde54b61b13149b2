/* SPDX-License-Identifier: Apache-2.0 */
/* The hash that plays a model; toy_backend.h says what for. One thread, as any backend. */
#include "config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "model/kvlayout.h"
#include "model/sampler.h"
#include "tests/toy_backend.h"

struct toy_seq {
    bool open, coming;
    uint64_t len, high, floor;
    uint64_t n_come; /* pages, while it is coming */
    uint64_t spoilt; /* not 0: what came was wrong, and how */
    bool drawn;      /* in the last step, and nothing since */
    uint64_t *state; /* [room]: behind each token; below floor only where a page ends */
    size_t room;
};

/* Something of kv_out, kv_in or kv_set that is done later. */
struct copy {
    struct copy *next;
    enum toy_kv what;
    uint32_t seq;
    bool spoil;
    uint64_t first, n; /* pages */
    const uint8_t *from;
    uint8_t *to, *state_to;
};

struct backend {
    struct backend_opts opts;
    struct kv_layout layout;
    uint32_t vocab;
    uint64_t max_positions, steps, copies;
    struct toy_seq *seqs; /* [max_seqs] */
    struct copy *later;
    struct sampler *sampler;
    float *row; /* f32 [vocab] */
};

static toy_step_fn *on_step;
static toy_kv_fn *on_kv;
static void *on_step_arg, *on_kv_arg;

void
toy_on_kv(toy_kv_fn *fn, void *arg)
{
    on_kv = fn;
    on_kv_arg = arg;
}

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

static void toy_close(struct backend *b);

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
    if (kv_layout_init(&b->layout, c, o->mtp, e) == -1) {
        free(b->seqs);
        free(b);
        return NULL;
    }
    b->sampler = sampler_new((uint32_t)c->vocab_size, e);
    b->row = calloc((size_t)c->vocab_size, sizeof *b->row);
    if (b->sampler == NULL || b->row == NULL) {
        toy_close(b);
        return NULL;
    }
    b->vocab = (uint32_t)c->vocab_size;
    b->opts = *o;
    if (b->opts.kv_bytes == 0)
        b->opts.kv_bytes = UINT64_C(1) << 40; /* none of it is held */
    b->max_positions = (uint64_t)c->max_positions;
    return b;
}

static bool
has_copies(const struct backend *b, uint32_t seq)
{
    for (const struct copy *c = b->later; c != NULL; c = c->next)
        if (c->seq == seq)
            return true;
    return false;
}

/* It may take steps: open, all of it there, and nothing of it on the way. */
static bool
is_free(const struct backend *b, uint32_t seq)
{
    return seq < b->opts.max_seqs && b->seqs[seq].open && !b->seqs[seq].coming &&
           !has_copies(b, seq);
}

static void do_copy(struct backend *b, const struct copy *c);

static void
end_copies(struct backend *b, uint32_t seq)
{
    struct copy **at = &b->later;

    while (*at != NULL) {
        struct copy *c = *at;

        if (c->seq != seq) {
            at = &c->next;
            continue;
        }
        do_copy(b, c);
        *at = c->next;
        free(c);
    }
}

static void
toy_seq_close(struct backend *b, uint32_t seq)
{
    CONTRACT(seq < b->opts.max_seqs && b->seqs[seq].open, "close of a sequence not open");
    end_copies(b, seq); /* waits for them, as it must */
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
    kv_layout_done(&b->layout);
    sampler_free(b->sampler);
    free(b->row);
    free(b->seqs);
    free(b);
}

static uint64_t
bytes_for(const struct backend *b, uint64_t tokens)
{
    return b->layout.state_most +
           (tokens + TOY_PAGE_TOKENS - 1) / TOY_PAGE_TOKENS * b->layout.page_bytes;
}

static uint64_t
toy_seq_bytes(const struct backend *b, uint32_t seq)
{
    const struct toy_seq *s = &b->seqs[seq];

    return bytes_for(b, s->coming ? s->n_come * TOY_PAGE_TOKENS : s->len);
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
                                 .page_bytes = b->layout.page_bytes,
                                 .seq_fixed_bytes = b->layout.state_most,
                                 .kv_limit = b->opts.kv_bytes,
                                 .kv_used = used(b),
                                 .max_seqs = b->opts.max_seqs,
                                 .max_step_tokens = TOY_STEP_TOKENS,
                                 .max_rewind = TOY_MAX_REWIND,
                                 .draws = true};
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
    if (used(b) + bytes_for(b, 0) > b->opts.kv_bytes)
        return err_set(e, ERR_QUOTA, 0, "no room for another sequence");
    b->seqs[seq].open = true;
    return 0;
}

static int
toy_seq_fork(struct backend *b, uint32_t from, uint32_t to, struct err *e)
{
    struct toy_seq *f, *t;

    CONTRACT(is_free(b, from), "fork of a sequence that is not open or not at rest");
    CONTRACT(to < b->opts.max_seqs && !b->seqs[to].open, "fork to a sequence in use");
    f = &b->seqs[from];
    t = &b->seqs[to];
    if (used(b) + bytes_for(b, f->len) > b->opts.kv_bytes)
        return err_set(e, ERR_QUOTA, 0, "no room for a fork");
    if (grow(t, f->len, e) == -1)
        return -1;
    if (f->len > 0)
        memcpy(t->state, f->state, f->len * sizeof *t->state);
    t->open = true;
    t->len = f->len;
    t->high = f->high;
    t->floor = f->floor;
    return 0;
}

static int
toy_seq_rewind(struct backend *b, uint32_t seq, uint64_t len, struct err *e)
{
    struct toy_seq *s = &b->seqs[seq];

    CONTRACT(is_free(b, seq) && len <= s->len, "rewind");
    if (s->high - len > TOY_MAX_REWIND || len < s->floor)
        return err_set(e, ERR_CONFLICT, 0, "rewind of %llu tokens",
                       (unsigned long long)(s->high - len));
    s->drawn = s->drawn && s->len == len;
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

        CONTRACT(is_free(b, s->seq), "step of one that is not open or not at rest");
        CONTRACT(s->n_tokens > 0 && s->n_logits <= s->n_tokens, "counts");
        CONTRACT(s->n_logits == 0 || s->logits != NULL, "rows with no room");
        CONTRACT(s->draw == NULL || (s->n_logits == 0 && s->drawn != NULL), "a draw");
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
        more += bytes_for(b, len) - bytes_for(b, s->len);
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
    for (uint32_t i = 0; i < st->n_seqs; i++) {
        if (st->seqs[i].n_logits > 0)
            st->seqs[i].logits[0] = 1e30f;
        if (st->seqs[i].draw != NULL)
            st->seqs[i].drawn->odd = 1;
    }
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
    for (uint32_t i = 0; i < b->opts.max_seqs; i++)
        b->seqs[i].drawn = false;
    for (uint32_t i = 0; i < st->n_seqs; i++) {
        const struct step_seq *sh = &st->seqs[i];
        struct toy_seq *s = &b->seqs[sh->seq];

        for (uint32_t k = 0; k < sh->n_tokens; k++, s->len++)
            s->state[s->len] =
                mix((s->len > 0 ? s->state[s->len - 1] : 0) ^ mix(sh->tokens[k]));
        for (uint32_t k = 0; k < sh->n_logits; k++)
            fill_row(s->state[s->len - sh->n_logits + k], b->vocab,
                     sh->logits + (size_t)k * b->vocab);
        s->drawn = sh->draw != NULL;
        if (s->drawn) {
            fill_row(s->state[s->len - 1], b->vocab, b->row);
            if (r == TOY_NONSENSE)
                b->row[b->vocab - 1] = NAN;
            sampler_draw_row(b->sampler, sh->draw, s->len, b->row, sh->drawn);
        }
        if (r == TOY_NONSENSE && sh->n_logits > 0)
            sh->logits[(size_t)sh->n_logits * b->vocab - 1] = NAN;
        if (s->high < s->len)
            s->high = s->len;
    }
    return 0;
}

static int
toy_seq_row(struct backend *b, uint32_t seq, float *row, struct err *e)
{
    const struct toy_seq *s = &b->seqs[seq];

    CONTRACT(seq < b->opts.max_seqs && s->open, "the row of a sequence that is not open");
    if (!s->drawn)
        return err_set(e, ERR_NOT_FOUND, 0, "the row is gone");
    fill_row(s->state[s->len - 1], b->vocab, row);
    return 0;
}

/*
 * Caches. A page begins with the states behind its last token and in front of its first; the
 * state image with the state behind the last token, the position, and the state where the last
 * whole page ends. Everything else follows from the first word, by a generator simple enough to
 * run at memory speed.
 */
enum { PAGE_WORDS = 2, STATE_WORDS = 3 };

static uint64_t
word_of(uint64_t seed, uint64_t at)
{
    const uint64_t x = (seed + at * UINT64_C(0x9e3779b97f4a7c15)) *
                       UINT64_C(0xbf58476d1ce4e5b9);

    return x ^ (x >> 32);
}

static void
make_bytes(uint8_t *to, uint64_t bytes, const uint64_t *words, uint64_t n_words)
{
    const uint64_t whole = bytes / sizeof *words;

    CONTRACT(n_words * sizeof *words <= bytes, "a model with layers");
    memcpy(to, words, n_words * sizeof *words);
    for (uint64_t i = n_words; i < whole; i++) {
        const uint64_t w = word_of(words[0], i);

        memcpy(to + i * sizeof w, &w, sizeof w);
    }
    memset(to + whole * sizeof *words, (int)(words[0] & 255), bytes % sizeof *words);
}

/* 0 if these are the bytes that make_bytes makes of its own first words; else how they are not. */
static uint64_t
wrong_bytes(const uint8_t *from, uint64_t bytes, uint64_t n_words)
{
    const uint64_t whole = bytes / sizeof(uint64_t);
    uint64_t seed, bad = 0;

    memcpy(&seed, from, sizeof seed);
    for (uint64_t i = n_words; i < whole; i++) {
        uint64_t w;

        memcpy(&w, from + i * sizeof w, sizeof w);
        bad |= w ^ word_of(seed, i);
    }
    for (uint64_t i = whole * sizeof seed; i < bytes; i++)
        bad |= from[i] ^ (uint8_t)seed;
    return bad == 0 ? 0 : mix(bad) | 1;
}

static uint64_t
state_at(const struct toy_seq *s, uint64_t len)
{
    return len > 0 ? s->state[len - 1] : 0;
}

static void
pages_out(const struct backend *b, const struct toy_seq *s, const struct copy *c)
{
    for (uint64_t i = 0; i < c->n; i++) {
        const uint64_t from = (c->first + i) * TOY_PAGE_TOKENS;
        const uint64_t words[PAGE_WORDS] = {state_at(s, from + TOY_PAGE_TOKENS),
                                            state_at(s, from)};

        make_bytes(c->to + i * b->layout.page_bytes, b->layout.page_bytes, words,
                   PAGE_WORDS);
    }
    if (c->n > 0 && c->spoil)
        c->to[c->n * b->layout.page_bytes / 2] ^= 1;
}

static void
state_out(const struct backend *b, const struct toy_seq *s, const struct copy *c)
{
    const uint64_t bytes = kv_state_bytes(&b->layout, s->len);
    const uint64_t words[STATE_WORDS] = {
        state_at(s, s->len), s->len,
        state_at(s, s->len / TOY_PAGE_TOKENS * TOY_PAGE_TOKENS)};

    if (s->len == 0 || c->state_to == NULL)
        return;
    make_bytes(c->state_to, bytes, words, STATE_WORDS);
    if (c->spoil)
        c->state_to[bytes / 2] ^= 1;
}

static void
pages_come(const struct backend *b, struct toy_seq *s, const struct copy *c)
{
    for (uint64_t i = 0; i < c->n; i++) {
        const uint8_t *page = c->from + i * b->layout.page_bytes;
        const uint64_t from = (c->first + i) * TOY_PAGE_TOKENS;
        uint64_t words[PAGE_WORDS], bad;

        memcpy(words, page, sizeof words);
        bad = wrong_bytes(page, b->layout.page_bytes, PAGE_WORDS) |
              (words[1] ^ state_at(s, from));
        if (bad != 0)
            s->spoilt ^= mix(bad + i) | 1;
        s->state[from + TOY_PAGE_TOKENS - 1] = words[0];
    }
}

static void
state_comes(const struct backend *b, struct toy_seq *s, const struct copy *c)
{
    uint64_t words[STATE_WORDS], bad;

    if (s->len == 0)
        return;
    memcpy(words, c->from, sizeof words);
    bad = wrong_bytes(c->from, kv_state_bytes(&b->layout, s->len), STATE_WORDS) |
          (words[1] ^ s->len) |
          (words[2] ^ state_at(s, s->len / TOY_PAGE_TOKENS * TOY_PAGE_TOKENS));
    if (s->len % TOY_PAGE_TOKENS == 0)
        bad |= words[0] ^ words[2];
    s->state[s->len - 1] =
        bad == 0 && s->spoilt == 0 ? words[0] : mix(words[0] ^ s->spoilt ^ mix(bad));
}

static void
do_copy(struct backend *b, const struct copy *c)
{
    struct toy_seq *s = &b->seqs[c->seq];

    switch (c->what) {
    case TOY_KV_OUT:
        pages_out(b, s, c);
        state_out(b, s, c);
        break;
    case TOY_KV_IN: pages_come(b, s, c); break;
    default: state_comes(b, s, c); break;
    }
}

/* Asked for, allowed, and there is room: now or later. */
static int
copy_or_queue(struct backend *b, const struct copy *c, int when)
{
    struct copy **at = &b->later, *own;

    if (when != TOY_LATER && !has_copies(b, c->seq)) { /* in order */
        do_copy(b, c);
        return 0;
    }
    own = malloc(sizeof *own);
    CONTRACT(own != NULL, "memory for a test");
    *own = *c;
    own->next = NULL;
    while (*at != NULL)
        at = &(*at)->next;
    *at = own;
    return 0;
}

static int
ask(struct backend *b, enum toy_kv what, uint32_t seq, struct err *e)
{
    b->copies += what != TOY_KV_BUSY;
    return on_kv == NULL ? 0 : on_kv(on_kv_arg, what, b->copies, seq, e);
}

static int
toy_kv_out(struct backend *b, uint32_t seq, uint64_t first, uint64_t n, uint8_t *pages,
           uint8_t *state, struct err *e)
{
    const int when = ask(b, TOY_KV_OUT, seq, e);

    CONTRACT(seq < b->opts.max_seqs && b->seqs[seq].open && !b->seqs[seq].coming,
             "kv_out of one that is not open or not whole");
    CONTRACT(first <= b->seqs[seq].len / TOY_PAGE_TOKENS &&
                 n <= b->seqs[seq].len / TOY_PAGE_TOKENS - first,
             "kv_out of pages that are not whole");
    if (when == -1)
        return -1;
    return copy_or_queue(b,
                         &(struct copy){.what = TOY_KV_OUT,
                                        .seq = seq,
                                        .first = first,
                                        .n = n,
                                        .to = pages,
                                        .state_to = state,
                                        .spoil = when == TOY_SPOIL},
                         when);
}

static int
toy_kv_in(struct backend *b, uint32_t seq, uint64_t n, const uint8_t *pages, struct err *e)
{
    const int when = ask(b, TOY_KV_IN, seq, e);
    struct toy_seq *s = &b->seqs[seq];
    uint64_t first;

    CONTRACT(seq < b->opts.max_seqs && s->open && s->len == 0, "kv_in to one with tokens");
    if (when == -1)
        return -1;
    first = s->coming ? s->n_come : 0;
    if (n > b->max_positions / TOY_PAGE_TOKENS - first)
        return err_set(e, ERR_CONTEXT_FULL, 0, "page %llu", (unsigned long long)first + n);
    if (used(b) + n * b->layout.page_bytes > b->opts.kv_bytes)
        return err_set(e, ERR_QUOTA, 0, "no room for %llu pages", (unsigned long long)n);
    if (grow(s, (first + n) * TOY_PAGE_TOKENS, e) == -1)
        return -1;
    if (!s->coming)
        s->spoilt = 0;
    s->coming = true;
    s->n_come = first + n;
    return copy_or_queue(
        b,
        &(struct copy){
            .what = TOY_KV_IN, .seq = seq, .first = first, .n = n, .from = pages},
        when);
}

static int
toy_kv_set(struct backend *b, uint32_t seq, uint64_t len, const uint8_t *state,
           struct err *e)
{
    const int when = ask(b, TOY_KV_SET, seq, e);
    struct toy_seq *s = &b->seqs[seq];
    uint64_t come;

    CONTRACT(seq < b->opts.max_seqs && s->open && s->len == 0, "kv_set of one with tokens");
    come = s->coming ? s->n_come : 0;
    CONTRACT(len / TOY_PAGE_TOKENS == come && len <= b->max_positions, "kv_set at another "
                                                                       "page");
    if (when == -1)
        return -1;
    if (used(b) + bytes_for(b, len) - bytes_for(b, come * TOY_PAGE_TOKENS) >
        b->opts.kv_bytes)
        return err_set(e, ERR_QUOTA, 0, "no room for the last page");
    if (grow(s, len, e) == -1)
        return -1;
    s->coming = false;
    s->len = s->high = s->floor = len;
    return copy_or_queue(b, &(struct copy){.what = TOY_KV_SET, .seq = seq, .from = state},
                         when);
}

static int
toy_kv_busy(struct backend *b, uint32_t seq, struct err *e)
{
    int r;

    if (!has_copies(b, seq))
        return 0;
    r = ask(b, TOY_KV_BUSY, seq, e);
    if (r != 0)
        return r;
    end_copies(b, seq);
    return 0;
}

void
toy_config(struct model_config *c)
{
    *c = (struct model_config){.vocab_size = 8192,
                               .max_positions = 65536,
                               .n_layers = 3,
                               .ratio = {0, MODEL_CSA_RATIO, MODEL_MAX_RATIO},
                               .window = 16,
                               .head_dim = 32,
                               .rope_dim = 16,
                               .index_head_dim = 32,
                               .hc_mult = 2,
                               .hidden = 16};
}

uint64_t
toy_bytes(const struct model_config *c, uint64_t seqs, uint64_t pages)
{
    struct kv_layout l;
    uint64_t bytes = 0;
    struct err e;

    if (kv_layout_init(&l, c, false, &e) == 0)
        bytes = seqs * l.state_most + pages * l.page_bytes;
    kv_layout_done(&l);
    return bytes;
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
    .kv_out = toy_kv_out,
    .kv_in = toy_kv_in,
    .kv_set = toy_kv_set,
    .kv_busy = toy_kv_busy,
    .step = toy_step,
    .seq_row = toy_seq_row,
};
