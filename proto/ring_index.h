/* SPDX-License-Identifier: Apache-2.0 */
#ifndef PROTO_RING_INDEX_H
#define PROTO_RING_INDEX_H

#include "base/index_t.h"

/*
 * Where records lie in a ring (proto/ring.h): one text for C and for the prover
 * (verify/rings.cc).
 */
enum { RING_INDEX_ALIGN = 8, RING_INDEX_HEAD = 16 };

/* Bytes of a record with so many of payload: its head, and zeros behind. */
INDEX_FN INDEX_T
ring_record_bytes(INDEX_T payload)
{
    return (RING_INDEX_HEAD + payload + RING_INDEX_ALIGN - 1) / RING_INDEX_ALIGN *
           RING_INDEX_ALIGN;
}

/* Bytes of n records of that size. One more than asked for: a record that does not fit in front
 * of the end leaves that empty. */
INDEX_FN INDEX_T
ring_data_bytes(INDEX_T n, INDEX_T record)
{
    return (n + 1) * record;
}

/* From the place of a counter to the end of the data. */
INDEX_FN INDEX_T
ring_left(INDEX_T counter, INDEX_T data_bytes)
{
    return data_bytes - counter % data_bytes;
}

/* Where a record that needs so many bytes begins, if all up to `head` is taken. */
INDEX_FN INDEX_T
ring_open_at(INDEX_T head, INDEX_T need, INDEX_T data_bytes)
{
    return INDEX_IF(ring_left(head, data_bytes) < need, head + ring_left(head, data_bytes),
                    head);
}

#endif /* PROTO_RING_INDEX_H */
