/* SPDX-License-Identifier: Apache-2.0 */
#ifndef PROTO_RING_H
#define PROTO_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * A ring of records in shared memory: one process writes, any number read, none waits for
 * another. The newest records push out the oldest; a reader sees what it has missed by the
 * positions. Nobody but the writer can write there (F_SEAL_FUTURE_WRITE), so it takes nothing
 * from this memory but what it has put there itself.
 *
 *   0      struct ring_head
 *   4096   data: records one after the other, each at a multiple of 8 and in one piece
 *
 * `head` and `tail` count bytes since the beginning and never go back; a record of counter c lies
 * at data + c % data_bytes. Records from tail to head are whole. Before a record is overwritten,
 * tail is moved past it; so a reader copies a record and looks at tail again: if that is past it
 * now, what was copied may be two records and is thrown away. Words are native, that is
 * little-endian where fathom runs.
 */
enum {
    RING_VERSION = 1,
    RING_DATA_AT = 4096,
    RING_ALIGN = 8,
};

#define RING_MAGIC UINT64_C(0x474e495248544146) /* "FATHRING" */

enum ring_kind {
    RING_SKIP,   /* up to the end of the data there is nothing: go on at its beginning */
    RING_TOKEN,  /* struct ring_token, then the text that the token completes */
    RING_LOGITS, /* struct ring_logits, then f32 [vocab] */
    RING_END, /* the sample is over at pos; the text that had been held back until then */
};

/* Each word is written by one store. What does not change comes first. */
struct ring_head {
    uint64_t magic, version;
    uint64_t kind;        /* enum ring_kind, of its records */
    uint64_t data_bytes;  /* a multiple of RING_ALIGN */
    uint64_t record_most; /* bytes of the longest record, its head included */
    uint64_t vocab;
    uint64_t zero[2];
    uint64_t tail; /* on its own cache line, as head is */
    uint64_t zero_[7];
    uint64_t head;
    uint64_t zero__[7];
};

struct ring_record {
    uint32_t bytes; /* of what follows, without padding */
    uint32_t kind;
    uint64_t pos; /* of the token in its session */
};

struct ring_token {
    uint32_t id;
    uint32_t reasoning; /* 1: part of it */
    double logprob;
};

/* log-probability of token i: row[i] - log_sum */
struct ring_logits {
    uint32_t id; /* the token that was drawn */
    uint32_t zero;
    double log_sum; /* log of the sum of exp over the row */
};

/* ---- The writer ---------------------------------------------------------------------- */

struct ring_out {
    uint8_t *map;
    uint64_t data_bytes, record_most, head, tail;
    uint64_t open; /* head behind the record under way */
};

/* Bytes for n records with at most `payload` bytes each, head and skipped end included. */
uint64_t ring_bytes(uint64_t n, uint64_t payload);

/* map: ring_bytes() of zeros. */
void ring_init(struct ring_out *r, uint8_t *map, enum ring_kind kind, uint64_t n,
               uint64_t payload, uint64_t vocab);

/* Room for a record of at most `payload` bytes, the oldest make way; then it is there for readers.
 * `bytes` may be fewer. One at a time. */
uint8_t *ring_begin(struct ring_out *r, uint64_t payload);
void ring_end(struct ring_out *r, enum ring_kind kind, uint64_t pos, uint64_t bytes);

/* ---- A reader ------------------------------------------------------------------------ */

struct ring_in {
    const uint8_t *map;
    uint64_t data_bytes, record_most, at;
    uint64_t lost; /* how often records were pushed out before they were read */
    uint8_t *copy; /* [record_most] */
};

/* map: `bytes` of it, which do not change. False: this is no ring that we can read. */
bool ring_open(struct ring_in *r, const uint8_t *map, uint64_t bytes);
void ring_close(struct ring_in *r);

/* The next record, in r->copy until the next call: 1; 0: none yet; -1: it makes no sense. */
int ring_next(struct ring_in *r, struct ring_record *head, const uint8_t **payload);

#endif /* PROTO_RING_H */
