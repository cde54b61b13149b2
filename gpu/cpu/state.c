/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sequences: rings of what the next tokens look back at, and pages of compressed rows, 128
 * tokens each over all layers. Pages are shared by forks until one of them writes; everything
 * that a step needs is taken before it begins, so that a step that starts also ends.
 */
#include "config.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "gpu/check.h"
#include "gpu/cpu/cpu.h"
#include "gpu/cpu/kvrow.h"

static void
page_drop(struct backend *b, struct page *p)
{
    if (--p->refs > 0)
        return;
    b->kv_used -= b->at.page_bytes;
    free(p->rows);
    free(p);
}

static struct page *
page_new(struct backend *b)
{
    struct page *p = malloc(sizeof *p);

    if (p == NULL)
        return NULL;
    p->refs = 1;
    p->rows = calloc(1, b->at.page_bytes > 0 ? b->at.page_bytes : 1);
    if (p->rows == NULL) {
        free(p);
        return NULL;
    }
    b->kv_used += b->at.page_bytes;
    return p;
}

static size_t
pages_for(uint64_t len)
{
    return (size_t)((len + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS);
}

void
state_cut(struct backend *b, struct seq *q, size_t n_pages)
{
    while (q->n_pages > n_pages)
        page_drop(b, q->pages[--q->n_pages]);
}

int
state_grow(struct backend *b, struct seq *q, size_t want)
{
    if (want > q->cap_pages) {
        const size_t cap = want + want / 2 + 4;
        struct page **grown = realloc(q->pages, cap * sizeof *grown);

        if (grown == NULL)
            return -1;
        q->pages = grown;
        q->cap_pages = cap;
    }
    while (q->n_pages < want) {
        struct page *p = page_new(b);

        if (p == NULL)
            return -1;
        q->pages[q->n_pages++] = p;
    }
    return 0;
}

static int
find_closed(struct backend *b, uint32_t seq, struct err *e)
{
    if (seq >= b->max_seqs)
        return err_set(e, ERR_INVALID, 0, "sequence %u of at most %u", seq, b->max_seqs);
    if (b->seqs[seq].open)
        return err_set(e, ERR_EXISTS, 0, "sequence %u is open already", seq);
    return 0;
}

int
state_find(const struct backend *b, uint32_t seq, struct err *e)
{
    if (seq >= b->max_seqs || !b->seqs[seq].open)
        return err_set(e, ERR_NOT_FOUND, 0, "sequence %u is not open", seq);
    return 0;
}

int
state_find_whole(const struct backend *b, uint32_t seq, struct err *e)
{
    if (state_find(b, seq, e) == -1)
        return -1;
    if (b->seqs[seq].coming)
        return err_set(e, ERR_CONFLICT, 0,
                       "sequence %u has been given pages, and no state yet", seq);
    return 0;
}

int
state_open(struct backend *b, uint32_t seq, struct err *e)
{
    struct seq *q;

    if (find_closed(b, seq, e) == -1)
        return -1;
    if (b->kv_used + b->at.seq_bytes > b->kv_limit)
        return err_set(e, ERR_QUOTA, 0,
                       "another sequence takes %zu bytes; %llu of %llu are in use",
                       b->at.seq_bytes, (unsigned long long)b->kv_used,
                       (unsigned long long)b->kv_limit);
    q = &b->seqs[seq];
    *q = (struct seq){.rings = aligned_alloc(ALIGN, b->at.seq_bytes)};
    if (q->rings == NULL)
        return err_set(e, ERR_QUOTA, 0, "no memory for a sequence of %zu bytes",
                       b->at.seq_bytes);
    memset(q->rings, 0, b->at.seq_bytes);
    q->open = true;
    b->kv_used += b->at.seq_bytes;
    return 0;
}

void
state_close(struct backend *b, uint32_t seq)
{
    struct seq *q;

    if (seq >= b->max_seqs || !b->seqs[seq].open)
        return;
    q = &b->seqs[seq];
    state_cut(b, q, 0);
    free(q->pages);
    free(q->rings);
    *q = (struct seq){.open = false};
    b->kv_used -= b->at.seq_bytes;
}

int
state_fork(struct backend *b, uint32_t from, uint32_t to, struct err *e)
{
    const struct seq *q;
    struct seq *t;
    struct page **pages;

    if (state_find_whole(b, from, e) == -1)
        return -1;
    q = &b->seqs[from];
    pages = calloc(q->n_pages + 1, sizeof *pages);
    if (pages == NULL)
        return err_set(e, ERR_QUOTA, 0, "no memory for a list of %zu pages", q->n_pages);
    if (state_open(b, to, e) == -1) {
        free(pages);
        return -1;
    }
    t = &b->seqs[to];
    memcpy(t->rings, q->rings, b->at.seq_bytes);
    t->len = q->len;
    t->high = q->high;
    t->floor = q->floor;
    t->pages = pages;
    t->n_pages = q->n_pages;
    t->cap_pages = q->n_pages + 1;
    for (size_t i = 0; i < q->n_pages; i++) {
        pages[i] = q->pages[i];
        pages[i]->refs++;
    }
    return 0;
}

int
state_rewind(struct backend *b, uint32_t seq, uint64_t len, struct err *e)
{
    struct seq *q;

    if (state_find_whole(b, seq, e) == -1)
        return -1;
    q = &b->seqs[seq];
    if (check_rewind(len, q->len, q->high, q->floor, e) == -1)
        return -1;
    q->len = len;
    state_cut(b, q, pages_for(len));
    return 0;
}

/* Pages that n more tokens write to: new ones, and the last one if a fork shares it. */
static size_t
pages_missing(const struct backend *b, const struct seq *q, uint64_t n)
{
    const size_t want = pages_for(q->len + n);
    const size_t at = (size_t)page_of(q->len, KV_PAGE_TOKENS);

    if (b->at.page_bytes == 0)
        return 0;
    return want - q->n_pages + (at < q->n_pages && q->pages[at]->refs > 1);
}

static int
pages_take(struct backend *b, struct seq *q, uint64_t n)
{
    const size_t want = pages_for(q->len + n);
    const size_t at = (size_t)page_of(q->len, KV_PAGE_TOKENS);

    if (b->at.page_bytes == 0)
        return 0;
    if (at < q->n_pages && q->pages[at]->refs > 1) {
        struct page *own = page_new(b);

        if (own == NULL)
            return -1;
        memcpy(own->rows, q->pages[at]->rows, b->at.page_bytes);
        page_drop(b, q->pages[at]);
        q->pages[at] = own;
    }
    return state_grow(b, q, want);
}

/*
 * All that the step needs, or ERR_QUOTA with nothing taken: pages beyond a sequence's length
 * are given back. (A page that was copied because it was shared stays a copy: same bytes.)
 */
int
state_reserve(struct backend *b, const struct step *s, struct err *e)
{
    uint64_t missing = 0, longest = 0;

    for (uint32_t i = 0; i < s->n_seqs; i++) {
        const struct seq *q = &b->seqs[s->seqs[i].seq];
        const uint64_t len = q->len + s->seqs[i].n_tokens;

        missing += pages_missing(b, q, s->seqs[i].n_tokens);
        longest = len > longest ? len : longest;
    }
    if (missing * b->at.page_bytes > b->kv_limit - b->kv_used)
        return err_set(
            e, ERR_QUOTA, 0,
            "the step takes %llu more pages of %zu bytes; %llu of %llu bytes are "
            "in use",
            (unsigned long long)missing, b->at.page_bytes, (unsigned long long)b->kv_used,
            (unsigned long long)b->kv_limit);
    if (scratch_reserve(b, longest, e) == -1)
        return -1;
    for (uint32_t i = 0; i < s->n_seqs; i++)
        if (pages_take(b, &b->seqs[s->seqs[i].seq], s->seqs[i].n_tokens) == -1)
            goto none;
    return 0;
none:
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        struct seq *q = &b->seqs[s->seqs[i].seq];

        state_cut(b, q, pages_for(q->len));
    }
    return err_set(e, ERR_QUOTA, 0, "no memory for the pages of a step");
}
