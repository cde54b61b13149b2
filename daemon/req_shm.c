/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests for shared memory: statistics pages, rings, and what wakes their readers.
 */
#include "config.h"

#include "daemon/request.h"
#include "daemon/shm.h"
#include "proto/page.h"

void
req_stats(struct request *r, const void *body)
{
    struct wire_stats_result res = {.bytes = PAGE_BYTES};
    struct err e;

    (void)body;
    if (page_new(r->conn, r->session, &res.page, &e) == -1)
        request_fail(r, &e);
    else
        request_reply(r, WIRE_MSG(stats_result), &res);
}

void
req_ring(struct request *r, const void *body)
{
    const struct wire_ring *q = body;
    const bool rows = wire_is(q->kind, "logits");
    struct wire_ring_result res = {0};
    const struct ring *ring;
    struct err e;

    if (!rows && !wire_is(q->kind, "tokens")) {
        err_set(&e, ERR_INVALID, 0, "key 'kind': neither tokens nor logits");
        request_fail(r, &e);
        return;
    }
    ring = ring_new(r->conn, rows ? RING_LOGITS : RING_TOKEN, q->records, &res.memory, &e);
    if (ring == NULL) {
        request_fail(r, &e);
        return;
    }
    res.ring = ring->number;
    res.bytes = ring->shm.bytes;
    request_reply(r, WIRE_MSG(ring_result), &res);
}

void
req_ring_wake(struct request *r, const void *body)
{
    const struct wire_ring_wake *q = body;
    struct wire_ring_wake_result res = {0};
    struct err e;
    struct ring *ring = ring_find(r->conn, q->ring, &e);

    if (ring == NULL || ring_waker(ring, &res.wake, &e) == -1)
        request_fail(r, &e);
    else
        request_reply(r, WIRE_MSG(ring_wake_result), &res);
}
