/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ENGINE_JOB_H
#define ENGINE_JOB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "model/sampler.h"
#include "proto/link.h"

/* A SAMPLE under way. */
struct sampling {
    struct sample_params params;
    struct stop_matcher stops;
    uint64_t n_drawn; /* those of before a restart included */

    /* The next token as the backend is drawing it, or has drawn it beside its last step. */
    struct draw draw;
    struct drawn drawn;
    bool has_drawn;

    /* choose.c's: the next token, or why there is none, if it is known already. */
    bool chosen, failed;
    struct sample_choice choice;
    struct err err;
};

/* How far a KV_OUT, KV_IN or KV_SET is. */
struct copying {
    uint32_t run; /* KV_OUT: the next page to be asked for is page `page` of that run */
    uint64_t page;
    bool asked; /* for all */
    struct link_saved saved;
};

/*
 * One packet that asks for something, from its arrival to its LINK_END. Jobs stand in one list
 * in the order of arrival; that order is what keeps jobs of one sequence in turn.
 */
struct job {
    struct job *next;
    uint16_t type; /* enum link_type */
    uint32_t seq, number;
    bool started;
    struct err err; /* set: to be ended with it */

    union {
        struct link_open open;
        struct link_fork fork;
        struct link_rewind rewind;
        struct link_feed feed;
        struct link_sample sample;
        struct link_kv_out kv_out;
        struct link_kv_in kv_in;
        struct link_kv_set kv_set;
    } a;

    uint32_t *tokens;          /* FEED, KV_IN: u32 [n], until it has started */
    struct link_kv_run *runs;  /* KV_OUT: [n_runs] */
    struct copying *copying;   /* KV_*: from its first call of the backend on */
    struct sampling *sampling; /* SAMPLE */
    int fd;                    /* LOGITS, and SAMPLE with rows; else -1 */
    uint8_t *rows;             /* SAMPLE with rows: its slots, mapped */
    uint64_t rows_bytes;
};

/*
 * From a packet whose head is right, with the descriptor that came along, which is the job's
 * from now on. A body that is wrong makes a job with err set, to be ended at once. NULL
 * without memory. Positions and sequences are checked when the job's turn comes.
 */
struct job *job_new(const union link_packet *p, size_t len, int fd);
void job_free(struct job *j);

/* A SAMPLE's slots for rows of logits, into memory. -1: j->err. */
int job_map_rows(struct job *j, uint32_t vocab);

/* Not those that are over as soon as their turn comes. */
bool job_can_be_cancelled(const struct job *j);

#endif /* ENGINE_JOB_H */
