/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sequences: token lists with caches that follow them (the picture is in seq.h). Each function
 * that fails leaves the sequence usable with the tokens that it had. Engine loop thread only.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "engine/seq.h"
#include "gpu/backend.h"
#include "model/kvsize.h"

int
seqs_init(struct seqs *ss, const struct backend_ops *ops, struct backend *b, struct err *e)
{
    struct backend_info info;

    ops->info(b, &info);
    *ss = (struct seqs){.ops = ops,
                        .backend = b,
                        .max = info.max_seqs,
                        .vocab = info.vocab,
                        .max_positions = info.max_positions,
                        .draws = info.draws};
    ss->all = calloc(ss->max, sizeof *ss->all);
    if (ss->all == NULL)
        return err_set(e, ERR_QUOTA, 0, "no memory for %u sequences", ss->max);
    return 0;
}

static void
forget(struct seqs *ss, uint32_t n)
{
    struct seq *s = &ss->all[n];

    if (s->backed)
        ss->ops->seq_close(ss->backend, n);
    free(s->tokens);
    free(s->row);
    free(s->set_row);
    *s = (struct seq){0};
}

void
seqs_done(struct seqs *ss)
{
    for (uint32_t n = 0; ss->all != NULL && n < ss->max; n++)
        forget(ss, n);
    free(ss->all);
    ss->all = NULL;
}

struct seq *
seq_find(struct seqs *ss, uint32_t n, struct err *e)
{
    struct seq *s = seq_find_any(ss, n, e);

    if (s == NULL || !s->coming)
        return s;
    err_set(e, ERR_CONFLICT, 0, "sequence %u is coming back: KV_SET must come first", n);
    return NULL;
}

struct seq *
seq_find_any(struct seqs *ss, uint32_t n, struct err *e)
{
    if (n < ss->max && ss->all[n].open)
        return &ss->all[n];
    err_set(e, ERR_NOT_FOUND, 0, "sequence %u is not open", n);
    return NULL;
}

/* The place for a new sequence. */
static struct seq *
find_free(struct seqs *ss, uint32_t n, struct err *e)
{
    if (n >= ss->max) {
        err_set(e, ERR_INVALID, 0, "sequence %u: there are %u", n, ss->max);
        return NULL;
    }
    if (ss->all[n].open) {
        err_set(e, ERR_EXISTS, 0, "sequence %u is open already", n);
        return NULL;
    }
    return &ss->all[n];
}

static int
back(struct seqs *ss, uint32_t n, struct err *e)
{
    struct seq *s = &ss->all[n];

    if (s->backed)
        return 0;
    if (ss->ops->seq_open(ss->backend, n, e) == -1)
        return -1;
    s->backed = true;
    s->computed = 0;
    s->row_ok = false;
    return 0;
}

int
seq_open(struct seqs *ss, uint32_t n, uint32_t owner, struct err *e)
{
    struct seq *s = find_free(ss, n, e);

    if (s == NULL || back(ss, n, e) == -1)
        return -1;
    s->open = true;
    s->owner = owner;
    return 0;
}

static int
reserve(struct seqs *ss, struct seq *s, size_t want, struct err *e)
{
    size_t room = s->room < 256 ? 256 : s->room;
    uint32_t *p;

    if (want > ss->max_positions)
        return err_set(e, ERR_CONTEXT_FULL, 0, "%zu tokens, the model's context has %zu",
                       want, ss->max_positions);
    if (want <= s->room)
        return 0;
    while (room < want)
        room *= 2;
    p = realloc(s->tokens, room * sizeof *p);
    if (p == NULL)
        return err_set(e, ERR_QUOTA, 0, "no memory for %zu tokens", room);
    s->tokens = p;
    s->room = room;
    return 0;
}

static int
make_one(const struct seqs *ss, float **row, struct err *e)
{
    if (*row == NULL)
        *row = malloc(ss->vocab * sizeof **row);
    if (*row == NULL)
        return err_set(e, ERR_QUOTA, 0, "no memory for a row of %u logits", ss->vocab);
    return 0;
}

static int
make_row(struct seqs *ss, struct seq *s, struct err *e)
{
    return make_one(ss, &s->row, e);
}

int
seq_fork(struct seqs *ss, uint32_t from, uint32_t to, uint32_t owner, struct err *e)
{
    const struct seq *f = seq_find(ss, from, e);
    struct seq *s;

    if (f == NULL || (s = find_free(ss, to, e)) == NULL)
        return -1;
    if ((f->len > 0 && reserve(ss, s, f->len, e) == -1) ||
        (f->row_ok && make_row(ss, s, e) == -1) ||
        (f->set_row != NULL && make_one(ss, &s->set_row, e) == -1) ||
        (f->backed && ss->ops->seq_fork(ss->backend, from, to, e) == -1)) {
        forget(ss, to);
        return -1;
    }
    s->open = true;
    s->owner = owner;
    s->backed = f->backed;
    s->computed = f->computed;
    s->len = f->len;
    if (f->len > 0)
        memcpy(s->tokens, f->tokens, f->len * sizeof *s->tokens);
    s->row_ok = f->row_ok;
    if (f->row_ok)
        memcpy(s->row, f->row, ss->vocab * sizeof *s->row);
    s->set_at = f->set_at;
    if (f->set_row != NULL)
        memcpy(s->set_row, f->set_row, ss->vocab * sizeof *s->row);
    return 0;
}

int
seq_close(struct seqs *ss, uint32_t n, struct err *e)
{
    if (seq_find_any(ss, n, e) == NULL)
        return -1;
    forget(ss, n);
    return 0;
}

/* The caches go back to `to` tokens, or to none if the backend cannot undo that much. */
static int
uncompute(struct seqs *ss, uint32_t n, size_t to, struct err *e)
{
    struct seq *s = &ss->all[n];
    struct err why;

    s->row_ok = false;
    if (to < s->set_at) { /* other tokens may come in place of those */
        free(s->set_row);
        s->set_row = NULL;
    }
    if (ss->ops->seq_rewind(ss->backend, n, to, &why) == 0) {
        s->computed = to;
        return 0;
    }
    if (why.code != ERR_CONFLICT) {
        *e = why;
        return -1;
    }
    ss->ops->seq_close(ss->backend, n);
    s->backed = false;
    s->computed = 0;
    return 0;
}

int
seq_rewind(struct seqs *ss, uint32_t n, uint64_t len, struct err *e)
{
    struct seq *s = seq_find(ss, n, e);

    if (s == NULL)
        return -1;
    if (len > s->len)
        return err_set(e, ERR_CONFLICT, 0, "rewind to %llu, the sequence has %zu tokens",
                       (unsigned long long)len, s->len);
    if (s->computed > len && uncompute(ss, n, (size_t)len, e) == -1)
        return -1;
    s->len = (size_t)len;
    return 0;
}

int
seq_put_ahead(struct seqs *ss, struct seq *s, const uint32_t *tokens, size_t n,
              struct err *e)
{
    if (reserve(ss, s, s->len + n, e) == -1)
        return -1;
    memcpy(s->tokens + s->len, tokens, n * sizeof *tokens);
    s->ahead = n;
    return 0;
}

void
seq_drop_ahead(struct seq *s)
{
    s->ahead = 0;
}

int
seq_append(struct seqs *ss, struct seq *s, uint32_t token, struct err *e)
{
    if (reserve(ss, s, s->len + 1, e) == -1)
        return -1;
    s->tokens[s->len++] = token;
    return 0;
}

bool
seq_has_row(const struct seq *s)
{
    return s->computed == s->len && s->row_ok;
}

void
seq_fetch_row(struct seqs *ss, uint32_t n)
{
    struct seq *s = &ss->all[n];
    struct err why;

    if (ss->draws && s->backed && !s->row_ok && s->row != NULL)
        s->row_ok = ss->ops->seq_row(ss->backend, n, s->row, &why) == 0;
}

int
seq_want_row(struct seqs *ss, uint32_t n, struct err *e)
{
    struct seq *s = &ss->all[n];

    if (s->len == 0 || s->computed < s->len)
        return 0;
    seq_fetch_row(ss, n);
    if (s->row_ok)
        return 0;
    if (s->set_row != NULL && s->len == s->set_at) {
        memcpy(s->row, s->set_row, ss->vocab * sizeof *s->row);
        s->row_ok = true;
        return 0;
    }
    return uncompute(ss, n, s->len - 1, e);
}

int
seq_kv_in(struct seqs *ss, uint32_t n, const uint32_t *tokens, size_t n_tokens,
          const uint8_t *pages, struct err *e)
{
    struct seq *s = &ss->all[n];

    if (reserve(ss, s, s->len + n_tokens, e) == -1 || back(ss, n, e) == -1 ||
        ss->ops->kv_in(ss->backend, n, n_tokens / KV_PAGE_TOKENS, pages, e) == -1)
        return -1;
    memcpy(s->tokens + s->len, tokens, n_tokens * sizeof *tokens);
    s->len += n_tokens;
    s->coming = true;
    return 0;
}

int
seq_kv_set(struct seqs *ss, uint32_t n, const uint8_t *state, const float *row,
           struct err *e)
{
    struct seq *s = &ss->all[n];

    if (make_row(ss, s, e) == -1 || make_one(ss, &s->set_row, e) == -1 ||
        ss->ops->kv_set(ss->backend, n, s->len, state, e) == -1)
        return -1;
    memcpy(s->row, row, ss->vocab * sizeof *row);
    memcpy(s->set_row, row, ss->vocab * sizeof *row);
    s->row_ok = true;
    s->set_at = s->computed = s->len;
    s->coming = false;
    return 0;
}

int
seq_ready(struct seqs *ss, uint32_t n, bool row, struct err *e)
{
    if (back(ss, n, e) == -1)
        return -1;
    return row ? make_row(ss, &ss->all[n], e) : 0;
}

void
seq_ran(struct seq *s, size_t n, bool row)
{
    s->computed += n;
    s->row_ok = row;
    if (s->computed > s->len) {
        s->ahead -= s->computed - s->len;
        s->len = s->computed;
    }
}
