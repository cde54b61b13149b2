/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Byte-pair merging of one word (spec 11, stage 4).
 *
 * Most words have a handful of bytes: for them the pair of lowest rank is found by looking at
 * all of them, and the rest moves up by one. That is quadratic, so a longer word (a line of
 * "====", a gene, somebody's attack) uses a list of symbols and a heap of pairs, each a number:
 * its rank above its place in the word. A symbol knows where its pair is in the heap, which
 * so never holds a stale one: memory is fixed by the word, 28 bytes for each of its own.
 */
#include <config.h> /* "config.h" would be model/config.h */

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/err.h"
#include "model/bpe.h"

enum { SHORT_WORD = 32 };

#define NONE UINT32_MAX

struct bpe_merge {
    uint32_t left, right;
    uint32_t rank; /* NONE: a free slot */
    uint32_t id;
};

/* A symbol of a long word, and the pair that it forms with the next one. */
struct bpe_node {
    uint32_t id;
    uint32_t prev, next; /* NONE at the ends */
    uint32_t to;         /* what the pair becomes */
    uint32_t where;      /* the pair's place in the heap, NONE if it does not merge */
};

static uint32_t
slot_of(const struct bpe *b, uint32_t left, uint32_t right)
{
    const uint64_t key = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15;

    return (uint32_t)(key >> 32) & b->mask;
}

int
bpe_init(struct bpe *b, size_t n_merges, struct err *e)
{
    size_t n = 64;

    while (n < n_merges * 2)
        n *= 2;
    b->slots = malloc(n * sizeof b->slots[0]);
    if (b->slots == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for %zu merges", n_merges);
    memset(b->slots, 0xff, n * sizeof b->slots[0]);
    b->mask = (uint32_t)(n - 1);
    return 0;
}

void
bpe_done(struct bpe *b)
{
    free(b->slots);
    *b = (struct bpe){0};
}

bool
bpe_add(struct bpe *b, uint32_t left, uint32_t right, uint32_t rank, uint32_t id)
{
    uint32_t i = slot_of(b, left, right);

    for (; b->slots[i].rank != NONE; i = (i + 1) & b->mask) {
        if (b->slots[i].left == left && b->slots[i].right == right)
            return false;
    }
    b->slots[i] = (struct bpe_merge){left, right, rank, id};
    return true;
}

/* The rank of a pair, NONE if it does not merge. */
static uint32_t
lookup(const struct bpe *b, uint32_t left, uint32_t right, uint32_t *to)
{
    uint32_t i = slot_of(b, left, right);

    for (; b->slots[i].rank != NONE; i = (i + 1) & b->mask) {
        if (b->slots[i].left == left && b->slots[i].right == right) {
            *to = b->slots[i].id;
            return b->slots[i].rank;
        }
    }
    return NONE;
}

static int
short_word(const struct bpe *b, struct bpe_work *work, const uint8_t *word, size_t n,
           struct buf *ids, struct err *e)
{
    uint32_t id[SHORT_WORD], rank[SHORT_WORD], to[SHORT_WORD];

    id[0] = b->byte_id[word[0]];
    for (size_t i = 1; i < n; i++) {
        id[i] = b->byte_id[word[i]];
        rank[i - 1] = lookup(b, id[i - 1], id[i], &to[i - 1]);
    }
    while (n > 1) {
        size_t best = 0;

        work->steps += n;
        for (size_t i = 1; i < n - 1; i++) {
            if (rank[i] < rank[best])
                best = i;
        }
        if (rank[best] == NONE)
            break;
        id[best] = to[best];
        n--;
        for (size_t i = best + 1; i < n; i++) {
            id[i] = id[i + 1];
            rank[i - 1] = rank[i];
            to[i - 1] = to[i];
        }
        if (best > 0)
            rank[best - 1] = lookup(b, id[best - 1], id[best], &to[best - 1]);
        if (best + 1 < n)
            rank[best] = lookup(b, id[best], id[best + 1], &to[best]);
    }
    return buf_add(ids, id, n * sizeof id[0], e);
}

static void
place(struct bpe_work *w, uint32_t at, uint64_t pair)
{
    w->heap[at] = pair;
    w->nodes[(uint32_t)pair].where = at;
}

/* Moves a pair from place `at`, where it may be out of order, to its own. */
static void
settle(struct bpe_work *w, uint32_t n, uint32_t at)
{
    const uint64_t pair = w->heap[at];

    while (at > 0 && pair < w->heap[(at - 1) / 2]) {
        place(w, at, w->heap[(at - 1) / 2]);
        at = (at - 1) / 2;
        w->steps++;
    }
    for (;;) {
        uint32_t child = 2 * at + 1;

        if (child >= n)
            break;
        if (child + 1 < n && w->heap[child + 1] < w->heap[child])
            child++;
        if (pair < w->heap[child])
            break;
        place(w, at, w->heap[child]);
        at = child;
        w->steps++;
    }
    place(w, at, pair);
}

static void
heap_remove(struct bpe_work *w, uint32_t *n, uint32_t node)
{
    const uint32_t at = w->nodes[node].where;

    if (at == NONE)
        return;
    w->nodes[node].where = NONE;
    (*n)--;
    if (at < *n) {
        place(w, at, w->heap[*n]);
        settle(w, *n, at);
    }
}

/* Looks the pair at `node` up anew and brings the heap into line. */
static void
pair_changed(const struct bpe *b, struct bpe_work *w, uint32_t *n, uint32_t node)
{
    struct bpe_node *p = &w->nodes[node];
    const uint32_t rank = p->next == NONE ? NONE
                                          : lookup(b, p->id, w->nodes[p->next].id, &p->to);
    const uint64_t pair = (uint64_t)rank << 32 | node;

    w->steps++;
    if (rank == NONE) {
        heap_remove(w, n, node);
        return;
    }
    if (p->where == NONE)
        place(w, (*n)++, pair);
    else
        w->heap[p->where] = pair;
    settle(w, *n, p->where);
}

static int
work_reserve(struct bpe_work *w, size_t n, struct err *e)
{
    if (n <= w->room)
        return 0;
    bpe_work_done(w);
    w->nodes = malloc(n * sizeof w->nodes[0]);
    w->heap = malloc(n * sizeof w->heap[0]);
    if (w->nodes == NULL || w->heap == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for a word of %zu bytes", n);
    w->room = n;
    return 0;
}

static int
long_word(const struct bpe *b, struct bpe_work *w, const uint8_t *word, uint32_t len,
          struct buf *ids, struct err *e)
{
    uint32_t n = 0; /* pairs in the heap */

    if (work_reserve(w, len, e) == -1)
        return -1;
    for (uint32_t i = 0; i < len; i++) {
        w->nodes[i] = (struct bpe_node){.id = b->byte_id[word[i]],
                                        .prev = i - 1, /* NONE for the first */
                                        .next = i + 1 < len ? i + 1 : NONE,
                                        .where = NONE};
    }
    for (uint32_t i = 0; i < len; i++)
        pair_changed(b, w, &n, i);
    while (n > 0) {
        const uint32_t at = (uint32_t)w->heap[0];
        struct bpe_node *p = &w->nodes[at];
        const uint32_t gone = p->next;

        p->id = p->to;
        p->next = w->nodes[gone].next;
        if (p->next != NONE)
            w->nodes[p->next].prev = at;
        heap_remove(w, &n, gone);
        pair_changed(b, w, &n, at);
        if (p->prev != NONE)
            pair_changed(b, w, &n, p->prev);
    }
    for (uint32_t i = 0; i != NONE; i = w->nodes[i].next) {
        if (buf_add(ids, &w->nodes[i].id, sizeof w->nodes[i].id, e) == -1)
            return -1;
    }
    return 0;
}

int
bpe_word(const struct bpe *b, struct bpe_work *work, const char *word, size_t len,
         struct buf *ids, struct err *e)
{
    assert(len > 0);
    if (len > BPE_WORD_MAX)
        return err_set(e, ERR_INVALID, 0,
                       "a single word of %zu bytes; the tokenizer takes up to %d", len,
                       BPE_WORD_MAX);
    if (len <= SHORT_WORD)
        return short_word(b, work, (const uint8_t *)word, len, ids, e);
    return long_word(b, work, (const uint8_t *)word, (uint32_t)len, ids, e);
}

void
bpe_work_done(struct bpe_work *work)
{
    free(work->nodes);
    free(work->heap);
    work->nodes = NULL;
    work->heap = NULL;
    work->room = 0;
}
