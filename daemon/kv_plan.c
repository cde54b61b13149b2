/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/kv_plan.h"

enum { FIRST_ROOM = 8 };

static bool
goes_before(const struct ledger_file *a, const struct ledger_file *b)
{
    if (a->about.type != b->about.type)
        return a->about.type == KVFILE_CHUNK;
    return a->about.pos < b->about.pos;
}

struct kv_piece *
kv_pieces_add(struct kv_pieces *p, const struct ledger_file *f)
{
    size_t low = 0, high = p->n;

    if (p->n == p->room) {
        const size_t room = p->room > 0 ? 2 * p->room : FIRST_ROOM;
        struct kv_piece *v = realloc(p->v, room * sizeof *v);

        if (v == NULL)
            return NULL;
        p->v = v;
        p->room = room;
    }
    while (low < high) { /* behind all that are not behind it */
        const size_t mid = low + (high - low) / 2;

        if (goes_before(f, &p->v[mid].file))
            high = mid;
        else
            low = mid + 1;
    }
    memmove(&p->v[low + 1], &p->v[low], (p->n - low) * sizeof *p->v);
    p->n++;
    p->v[low] = (struct kv_piece){.file = *f};
    return &p->v[low];
}

struct kv_piece *
kv_pieces_find(const struct kv_pieces *p, const struct kvfile_id *id)
{
    for (size_t i = 0; i < p->n; i++) {
        if (memcmp(&p->v[i].file.about.id, id, sizeof *id) == 0)
            return &p->v[i];
    }
    return NULL;
}

void
kv_pieces_remove(struct kv_pieces *p, const struct kvfile_id *id)
{
    struct kv_piece *x = kv_pieces_find(p, id);

    if (x == NULL)
        return;
    p->n--;
    memmove(x, x + 1, (size_t)(p->v + p->n - x) * sizeof *x);
}

void
kv_pieces_done(struct kv_pieces *p)
{
    free(p->v);
    *p = (struct kv_pieces){0};
}

static bool
counts(const struct kv_piece *x, enum kv_at least, uint32_t round)
{
    if (x->at < least)
        return false;
    return round == KV_SOUND ? x->failed == 0 : round == KV_ALL_COUNT || x->round != round;
}

/* Chunks are in order: those that begin behind `page` come after all that may have it. */
const struct kv_piece *
kv_cover(const struct kv_pieces *p, uint64_t page, enum kv_at least, uint32_t round)
{
    const struct kv_piece *best = NULL;
    const uint64_t block = page / KV_BLOCK * KV_BLOCK;
    size_t low = 0, high = p->n;

    while (low < high) { /* the first one of the page's block, or further */
        const size_t mid = low + (high - low) / 2;

        if (!kv_is_state(&p->v[mid]) && kv_first_page(&p->v[mid]) < block)
            low = mid + 1;
        else
            high = mid;
    }
    for (size_t i = low; i < p->n && !kv_is_state(&p->v[i]); i++) {
        const struct kv_piece *x = &p->v[i];

        if (kv_first_page(x) > page)
            break;
        if (counts(x, least, round) && kv_first_page(x) + x->file.n_pages > page &&
            (best == NULL ||
             kv_first_page(x) + x->file.n_pages > kv_first_page(best) + best->file.n_pages))
            best = x;
    }
    return best;
}

uint64_t
kv_covered(const struct kv_pieces *p, enum kv_at least, uint32_t round)
{
    uint64_t page = 0;
    const struct kv_piece *x;

    while ((x = kv_cover(p, page, least, round)) != NULL)
        page = kv_first_page(x) + x->file.n_pages;
    return page;
}

const struct kv_piece *
kv_best(const struct kv_pieces *p, uint64_t len, enum kv_at least, uint32_t round)
{
    const uint64_t covered = kv_covered(p, least, round);

    for (size_t i = p->n; i > 0 && kv_is_state(&p->v[i - 1]); i--) {
        const struct kv_piece *x = &p->v[i - 1];

        if (counts(x, least, round) && x->file.about.pos <= len &&
            x->file.about.pos / KV_PAGE <= covered)
            return x;
    }
    return NULL;
}

static size_t
pieces_in(const struct kv_pieces *p, uint64_t first, uint64_t n)
{
    size_t count = 0;

    for (size_t i = 0; i < p->n && !kv_is_state(&p->v[i]); i++)
        count += kv_first_page(&p->v[i]) >= first && kv_first_page(&p->v[i]) < first + n;
    return count;
}

/* The gaps among the pages [from, to) of one block: how many, the first `most` of them to out. */
static size_t
find_gaps(const struct kv_pieces *p, uint64_t from, uint64_t to, struct kv_run *out,
          size_t most)
{
    size_t n = 0;

    for (uint64_t page = from; page < to;) {
        const struct kv_piece *x = kv_cover(p, page, KV_COMING, KV_SOUND);
        uint64_t end = page + 1;

        if (x != NULL) {
            page = kv_first_page(x) + x->file.n_pages;
            continue;
        }
        while (end < to && kv_cover(p, end, KV_COMING, KV_SOUND) == NULL)
            end++;
        if (n < most)
            out[n] = (struct kv_run){page, end - page, false};
        n++;
        page = end;
    }
    return n;
}

static size_t
plan_block(const struct kv_pieces *p, uint64_t from, uint64_t to, struct kv_run *out,
           size_t most)
{
    const uint64_t block = from / KV_BLOCK * KV_BLOCK;
    const size_t n = find_gaps(p, from, to, out, most);

    if (n > 0 && to == block + KV_BLOCK &&
        pieces_in(p, block, KV_BLOCK) + n > KV_BLOCK_PIECES) {
        out[0] = (struct kv_run){block, KV_BLOCK, true};
        return 1;
    }
    return n < most ? n : most;
}

size_t
kv_plan_runs(const struct kv_pieces *p, uint64_t pages, bool whole_blocks,
             struct kv_run *out, size_t most)
{
    uint64_t page = kv_covered(p, KV_COMING, KV_SOUND);
    size_t n = 0;

    if (whole_blocks)
        pages = pages / KV_BLOCK * KV_BLOCK;
    while (page < pages && n < most) {
        const uint64_t end = page / KV_BLOCK * KV_BLOCK + KV_BLOCK;

        n += plan_block(p, page, end < pages ? end : pages, out + n, most - n);
        page = end;
    }
    return n;
}

static bool
is_named(uint64_t pos, const uint64_t *named, size_t n_named)
{
    for (size_t i = 0; i < n_named; i++) {
        /* The last token drawn may not have been computed: see LINK_SAVED. */
        if (named[i] == pos || named[i] == pos + 1)
            return true;
    }
    return false;
}

size_t
kv_plan_drop(const struct kv_pieces *p, const uint64_t *named, size_t n_named,
             struct kvfile_id *out, size_t most)
{
    size_t n = 0, turns = 0;
    uint64_t newest = 0;

    for (size_t i = p->n; i > 0 && kv_is_state(&p->v[i - 1]) && n < most; i--) {
        const struct kv_piece *x = &p->v[i - 1];
        const uint64_t pos = x->file.about.pos;
        const bool turn = x->file.turn && turns < KV_TURNS_KEPT;

        turns += x->file.turn;
        if (x->at < KV_STORED) /* it may come to nothing yet */
            continue;
        if (x->failed > 0 && newest > 0) { /* there is a better one */
            out[n++] = x->file.about.id;
            continue;
        }
        if (newest == 0 && x->failed == 0) {
            newest = pos;
            continue;
        }
        if (!turn && pos % KV_STATE_EVERY != 0 && !is_named(pos, named, n_named))
            out[n++] = x->file.about.id;
    }
    return n;
}

size_t
kv_plan_replaced(const struct kv_pieces *p, struct kvfile_id *out, size_t most)
{
    size_t n = 0;

    for (size_t i = 0; i < p->n && !kv_is_state(&p->v[i]) && n < most; i++) {
        const struct kv_piece *x = &p->v[i];
        const uint64_t end = kv_first_page(x) + x->file.n_pages;
        const struct kv_piece *by;
        uint64_t page = kv_first_page(x);

        if (x->failed == 0 || x->at < KV_STORED)
            continue;
        while (page < end && (by = kv_cover(p, page, KV_STORED, KV_SOUND)) != NULL)
            page = kv_first_page(by) + by->file.n_pages;
        if (page >= end)
            out[n++] = x->file.about.id;
    }
    return n;
}
