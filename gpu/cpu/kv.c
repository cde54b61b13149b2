/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Caches out of the backend and back (model/kvlayout.h says in which form). A page of this
 * backend is a page of the image, byte for byte; the state is picked out of the rings row by
 * row. Every byte of an image is copied from a row that the sequence's tokens have written:
 * rows of a branch that was taken back, and slots that nothing has reached, are never looked at.
 * All of it is done when the call returns.
 */
#include "config.h"

#include <string.h>

#include "base/err.h"
#include "gpu/check.h"
#include "gpu/cpu/cpu.h"

struct ring {
    uint8_t *rows;
    uint64_t slots;
};

/* Where the rows of a part of the state wait for the next token. */
static struct ring
ring_of(const struct backend *b, const struct seq *q, const struct kv_part *p)
{
    const bool draft = p->layer == b->c.n_layers;
    const struct layer *l = draft ? &b->net.draft->layer : &b->net.layers[p->layer];

    switch (p->kind) {
    case KV_PART_FRONTIER:
        return (struct ring){q->rings + l->comp.ring_at, (uint64_t)l->comp.slots};
    case KV_PART_INDEX_FRONTIER:
        return (struct ring){q->rings + l->index_comp.ring_at,
                             (uint64_t)l->index_comp.slots};
    case KV_PART_DRAFT_STREAMS:
        return (struct ring){q->rings + b->net.draft->ring_at, DRAFT_SLOTS};
    default: return (struct ring){q->rings + l->ring_at, (uint64_t)b->at.ring_slots};
    }
}

/* A place in an image that is read, or in one that is written. */
struct cursor {
    const uint8_t *from;
    uint8_t *to; /* NULL: read */
};

static void
copy(struct cursor *c, uint8_t *own, size_t n)
{
    if (c->to != NULL) {
        memcpy(c->to, own, n);
        c->to += n;
    } else {
        memcpy(own, c->from, n);
        c->from += n;
    }
}

/* The state at len, row by row: out of the sequence, or into it. */
static void
copy_state(const struct backend *b, const struct seq *q, uint64_t len, struct cursor c)
{
    for (size_t i = 0; i < b->layout.n_parts; i++) {
        const struct kv_part *p = &b->layout.parts[i];
        const uint64_t n = kv_state_rows(p, len), first = kv_state_first(p, len);

        if (n == 0)
            continue;
        if (p->kind == KV_PART_MAIN || p->kind == KV_PART_INDEX) {
            copy(&c, q->pages[page_of(len, KV_PAGE_TOKENS)]->rows + p->page_at,
                 n * p->row_bytes);
        } else {
            const struct ring r = ring_of(b, q, p);

            for (uint64_t k = first; k < first + n; k++)
                copy(&c, r.rows + ring_slot(k, r.slots) * p->row_bytes, p->row_bytes);
        }
    }
}

int
kv_out(struct backend *b, uint32_t seq, uint64_t first, uint64_t n, uint8_t *pages,
       uint8_t *state, struct err *e)
{
    struct seq *q;
    uint64_t whole;

    if (state_find_whole(b, seq, e) == -1)
        return -1;
    q = &b->seqs[seq];
    whole = q->len / KV_PAGE_TOKENS;
    if (first > whole || n > whole - first)
        return err_set(e, ERR_INVALID, 0,
                       "sequence %u: %llu pages from page %llu on, there are %llu", seq,
                       (unsigned long long)n, (unsigned long long)first,
                       (unsigned long long)whole);
    for (uint64_t i = 0; i < n && b->at.page_bytes > 0; i++)
        memcpy(pages + i * b->at.page_bytes, q->pages[first + i]->rows, b->at.page_bytes);
    if (state != NULL)
        copy_state(b, q, q->len, (struct cursor){.to = state});
    return 0;
}

/* `n` more pages of a sequence whose caches come in; ERR_QUOTA takes none. */
static int
take_pages(struct backend *b, struct seq *q, uint64_t n, struct err *e)
{
    const size_t had = q->n_pages;

    if (b->at.page_bytes == 0)
        return 0;
    if (n > (b->kv_limit - b->kv_used) / b->at.page_bytes)
        return err_set(e, ERR_QUOTA, 0,
                       "%llu more pages of %zu bytes; %llu of %llu bytes are in use",
                       (unsigned long long)n, b->at.page_bytes,
                       (unsigned long long)b->kv_used, (unsigned long long)b->kv_limit);
    if (state_grow(b, q, had + (size_t)n) == 0)
        return 0;
    state_cut(b, q, had);
    return err_set(e, ERR_QUOTA, 0, "no memory for %llu pages", (unsigned long long)n);
}

static int
find_coming(struct backend *b, uint32_t seq, struct err *e)
{
    return state_find(b, seq, e) == -1 ? -1 : check_empty(seq, b->seqs[seq].len, e);
}

int
kv_in(struct backend *b, uint32_t seq, uint64_t n, const uint8_t *pages, struct err *e)
{
    struct seq *q;

    if (find_coming(b, seq, e) == -1)
        return -1;
    q = &b->seqs[seq];
    if (check_come(&b->c, q->n_come, n, e) == -1)
        return -1;
    if (take_pages(b, q, n, e) == -1)
        return -1;
    for (uint64_t i = 0; i < n && b->at.page_bytes > 0; i++)
        memcpy(q->pages[q->n_come + i]->rows, pages + i * b->at.page_bytes,
               b->at.page_bytes);
    q->n_come += n;
    q->coming = true;
    return 0;
}

int
kv_set(struct backend *b, uint32_t seq, uint64_t len, const uint8_t *state, struct err *e)
{
    struct seq *q;

    if (find_coming(b, seq, e) == -1)
        return -1;
    q = &b->seqs[seq];
    if (check_set(&b->c, len, q->n_come, e) == -1)
        return -1;
    if (len % KV_PAGE_TOKENS != 0 && take_pages(b, q, 1, e) == -1)
        return -1;
    copy_state(b, q, len, (struct cursor){.from = state});
    q->len = q->high = q->floor = len;
    q->coming = false;
    q->n_come = 0;
    return 0;
}

int
kv_busy(struct backend *b, uint32_t seq, struct err *e)
{
    (void)b;
    (void)seq;
    (void)e;
    return 0;
}
