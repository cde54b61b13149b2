/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ENGINE_SCHED_H
#define ENGINE_SCHED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * What goes into the next step. A step has two kinds of room, shared out separately so that
 * neither kind of work can push the other aside:
 *
 *   decode   one token each of the sequences that have exactly one to run. All of them, unless
 *            the step would be full: then those whose turn it is.
 *   prefill  chunks of the sequences that have more, `prefill` tokens in all; some of the step
 *            is kept for them however many decode.
 *
 * Within a kind, room goes to the owner that has got the least of it, and among the owner's
 * sequences to the one that has got the least. Who comes new or comes back starts level with
 * the one that has the least among those waiting: no credit for silence, and a debt is not
 * forgotten by pausing. No clock, no allocation: the same calls give the same choices.
 */
enum {
    SCHED_MAX_ITEMS = 512,
    SCHED_MAX_OWNERS = 1024,
    SCHED_ALIGN = 128, /* chunks end on whole pages of the cache where they can */
};

struct sched_limits {
    uint32_t step;    /* tokens in a step, all kinds */
    uint32_t prefill; /* tokens of chunks in a step */
    uint32_t scored;  /* of these, tokens whose logits are all wanted */
};

struct sched_item {
    uint32_t owner, seq;
    uint64_t pos;    /* of its first token to be run */
    uint32_t tokens; /* to be run; at least 1 */
    bool scored;
    uint32_t take;  /* out: tokens in this step; 0: not in it */
    uint32_t share; /* scratch: index of its owner */
};

enum { SCHED_DECODE, SCHED_PREFILL, SCHED_KINDS };

/* By kind of room: */
struct sched_share {
    uint64_t seen[SCHED_KINDS];  /* the last pick in which it wanted some */
    uint64_t used[SCHED_KINDS];  /* tokens given to it */
    uint64_t level[SCHED_KINDS]; /* an owner's: what its poorest sequence waiting had */
};

struct sched {
    uint64_t picks;              /* the number of the one under way, from 2 on */
    uint64_t level[SCHED_KINDS]; /* what the poorest owner waiting had */
    uint32_t owner_ids[SCHED_MAX_OWNERS];
    struct sched_share owners[SCHED_MAX_OWNERS];
    uint32_t n_owners;
    struct sched_share *seqs; /* [max_seqs], by number */
};

struct err;

int sched_init(struct sched *s, uint32_t max_seqs, struct err *e);
void sched_done(struct sched *s);
void sched_forget(struct sched *s, uint32_t seq); /* the number starts anew */

/* At most SCHED_MAX_ITEMS items, each of another sequence below max_seqs. */
void sched_pick(struct sched *s, const struct sched_limits *l, struct sched_item *items,
                size_t n);

#endif /* ENGINE_SCHED_H */
