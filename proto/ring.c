/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rings: the writer's and the readers' side, on the same page so that they can be read together.
 *
 * Orders. The writer moves tail, then (release fence) overwrites; it writes a record, then
 * (release) moves head. A reader looks at head (acquire), copies, then (acquire fence) looks at
 * tail: having seen any byte of the overwriting, it sees the tail that was moved for it.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "proto/ring.h"
#include "proto/ring_index.h"

_Static_assert(sizeof(struct ring_head) == 192, "in fathom-protocol(7)");
_Static_assert(sizeof(struct ring_record) == 16, "in fathom-protocol(7)");

_Static_assert((int)RING_INDEX_ALIGN == (int)RING_ALIGN, "two headers, one ring");
_Static_assert(RING_INDEX_HEAD == sizeof(struct ring_record), "the same");

/* ---- The writer ---------------------------------------------------------------------- */

uint64_t
ring_bytes(uint64_t n, uint64_t payload)
{
    return RING_DATA_AT + ring_data_bytes(n, ring_record_bytes(payload));
}

void
ring_init(struct ring_out *r, uint8_t *map, enum ring_kind kind, uint64_t n,
          uint64_t payload, uint64_t vocab)
{
    struct ring_head *h = (struct ring_head *)(void *)map;

    *r = (struct ring_out){.map = map,
                           .data_bytes = ring_bytes(n, payload) - RING_DATA_AT,
                           .record_most = ring_record_bytes(payload)};
    h->version = RING_VERSION;
    h->kind = kind;
    h->data_bytes = r->data_bytes;
    h->record_most = r->record_most;
    h->vocab = vocab;
    h->magic = RING_MAGIC;
}

static uint8_t *
place(const struct ring_out *r, uint64_t counter)
{
    return r->map + RING_DATA_AT + counter % r->data_bytes;
}

/* How far the record at this counter reaches; a skip reaches to the end of the data. */
static uint64_t
reach(const struct ring_out *r, uint64_t counter)
{
    struct ring_record rec;

    if (ring_left(counter, r->data_bytes) < sizeof rec)
        return ring_left(counter, r->data_bytes);
    memcpy(&rec, place(r, counter), sizeof rec);
    return rec.kind == RING_SKIP ? ring_left(counter, r->data_bytes)
                                 : ring_record_bytes(rec.bytes);
}

/* The oldest records make way for what ends at `upto`. */
static void
make_way(struct ring_out *r, uint64_t upto)
{
    struct ring_head *h = (struct ring_head *)(void *)r->map;

    while (upto - r->tail > r->data_bytes)
        r->tail += reach(r, r->tail);
    __atomic_store_n(&h->tail, r->tail, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_RELEASE);
}

uint8_t *
ring_begin(struct ring_out *r, uint64_t payload)
{
    const uint64_t need = ring_record_bytes(payload);

    r->open = ring_open_at(r->head, need, r->data_bytes);
    if (r->open > r->head) {
        make_way(r, r->open);
        if (r->open - r->head >= sizeof(struct ring_record))
            memset(place(r, r->head), 0, sizeof(struct ring_record)); /* RING_SKIP */
    }
    make_way(r, r->open + need);
    return place(r, r->open) + sizeof(struct ring_record);
}

void
ring_end(struct ring_out *r, enum ring_kind kind, uint64_t pos, uint64_t bytes)
{
    const struct ring_record rec = {
        .bytes = (uint32_t)bytes, .kind = (uint32_t)kind, .pos = pos};
    struct ring_head *h = (struct ring_head *)(void *)r->map;

    memcpy(place(r, r->open), &rec, sizeof rec);
    r->head = r->open + ring_record_bytes(bytes);
    __atomic_store_n(&h->head, r->head, __ATOMIC_RELEASE);
}

/* ---- A reader ------------------------------------------------------------------------ */

bool
ring_open(struct ring_in *r, const uint8_t *map, uint64_t bytes)
{
    struct ring_head h;

    *r = (struct ring_in){.map = map};
    if (bytes < RING_DATA_AT)
        return false;
    memcpy(&h, map, sizeof h);
    if (h.magic != RING_MAGIC || h.version != RING_VERSION ||
        h.data_bytes > bytes - RING_DATA_AT || h.data_bytes % RING_ALIGN != 0 ||
        h.record_most % RING_ALIGN != 0 || h.record_most < sizeof(struct ring_record) ||
        h.record_most > h.data_bytes)
        return false;
    r->data_bytes = h.data_bytes;
    r->record_most = h.record_most;
    r->copy = malloc(h.record_most);
    return r->copy != NULL;
}

void
ring_close(struct ring_in *r)
{
    free(r->copy);
    r->copy = NULL;
}

/* One record copied, or skipped over: 1, 0 for a skip, -1 for nonsense, of which all may be
 * because it is being overwritten. */
static int
copy_record(struct ring_in *r, uint64_t *next)
{
    const uint64_t in_data = r->at % r->data_bytes, left = r->data_bytes - in_data;
    const uint8_t *from = r->map + RING_DATA_AT + in_data;
    struct ring_record rec;
    uint64_t need;

    *next = r->at + left;
    if (left < sizeof rec)
        return 0;
    memcpy(&rec, from, sizeof rec);
    if (rec.kind == RING_SKIP)
        return 0;
    need = ring_record_bytes(rec.bytes);
    if (need > left || need > r->record_most)
        return -1;
    memcpy(r->copy, &rec, sizeof rec);
    memcpy(r->copy + sizeof rec, from + sizeof rec, need - sizeof rec);
    *next = r->at + need;
    return 1;
}

int
ring_next(struct ring_in *r, struct ring_record *rec, const uint8_t **payload)
{
    const struct ring_head *h = (const struct ring_head *)(const void *)r->map;

    for (;;) {
        const uint64_t head = __atomic_load_n(&h->head, __ATOMIC_ACQUIRE);
        uint64_t tail, next = 0;
        int got = 0;

        if (r->at > head)
            return -1;
        if (r->at < head)
            got = copy_record(r, &next);
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        tail = __atomic_load_n(&h->tail, __ATOMIC_RELAXED);
        if (tail > r->at) {
            r->lost++;
            r->at = tail;
            continue;
        }
        if (head - tail > r->data_bytes)
            return -1; /* no writer does that; and what is left to read is bounded so */
        if (r->at == head)
            return 0;
        if (got == -1 || next > head)
            return -1;
        r->at = next;
        if (got == 0)
            continue;
        memcpy(rec, r->copy, sizeof *rec);
        *payload = r->copy + sizeof *rec;
        return 1;
    }
}
