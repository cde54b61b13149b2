/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_SLOTS_H
#define DAEMON_SLOTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "proto/link.h"

struct engine;
struct op;
struct sample_choice;
struct sample_params;
struct session;

/*
 * Slots: the engine's sequences, seen from here; and the jobs under way on them. What a slot
 * holds is always the start of its session's transcript (and of the input being appended), or
 * is about to be closed. Main thread; work.c's own.
 */
enum slot_use { SLOT_FREE, SLOT_SESSION, SLOT_SNAPSHOT, SLOT_CLOSING };

struct slot {
    enum slot_use use;
    uint32_t number;
    struct session *session; /* whose tokens it holds; NULL when FREE or CLOSING */
    bool open;               /* the engine said so */
    bool cancelled;          /* its jobs were told to stop */
    uint64_t len;            /* tokens that it has, as the engine told */
    uint64_t sent;           /* and will have once the jobs under way are done */
    uint64_t computed; /* of these the caches hold the rows; behind it they are computed
                          again before anything else */
    uint64_t snapshot_pos;
    uint64_t floor;  /* it came back by KV_SET: it cannot be rewound to less than that */
    bool filling;    /* KV_INs, and no KV_SET yet */
    bool close_sent; /* SLOT_CLOSING: else there was no room for the job yet */
    uint32_t jobs, feeds, saves; /* under way; of them FEEDs, KV_OUTs */
    uint64_t used;               /* stamp, for the least recently used */
    struct err err; /* of the first job that failed since the slot was last at rest */
};

struct job {
    uint32_t number; /* 0: not in use */
    enum link_type type;
    struct slot *slot;
    uint64_t from, to; /* FEED: positions; REWIND, FORK: to is the length */
    uint64_t scored;   /* FEED with scores: told so far, a position */
    bool scores;
    bool state;  /* KV_OUT: of pages and a state */
    bool saved;  /* KV_OUT: LINK_SAVED has come */
    void *owner; /* KV_*: whose it is */
};

struct slots {
    struct engine *engine;
    struct slot *all;
    uint32_t n, n_free, n_snapshots, n_closing;
    struct job jobs[LINK_MAX_JOBS];
    uint32_t n_jobs, next_number;
    uint64_t stamp, evictions;
};

int slots_init(struct slots *ss, uint32_t n, struct err *e); /* n: LINK_READY's max_seqs */
void slots_done(struct slots *ss);

/* The row of the last token is always to be computed; of others, after a far rewind. */
static inline bool
slot_lacks_rows(const struct slot *sl)
{
    return sl->len > 0 && sl->computed < sl->len - 1;
}

/* Jobs under way that may change it: a copy that is being made (KV_OUT) holds nobody up. */
static inline uint32_t
slot_working(const struct slot *sl)
{
    return sl->jobs - sl->saves;
}

/* A free slot for the session; NULL if there is none. Nothing is sent yet. */
struct slot *slots_take(struct slots *ss, struct session *s, enum slot_use use);

/* Sends one job. -1: no memory, or no room in the table (ask with slots_room() before). */
bool slots_room(const struct slots *ss, uint32_t n);
int slots_open(struct slots *ss, struct slot *sl, uint32_t owner, struct err *e);
int slots_fork(struct slots *ss, struct slot *sl, const struct slot *from, uint32_t owner,
               struct err *e);
int slots_rewind(struct slots *ss, struct slot *sl, uint64_t len, struct err *e);
int slots_feed(struct slots *ss, struct slot *sl, const uint32_t *ids, uint32_t n,
               bool scores, struct err *e);
int slots_sample(struct slots *ss, struct slot *sl, uint64_t n_drawn,
                 const struct sample_params *params, uint32_t rows, int fd,
                 struct err *e); /* rows > 0: slots in fd, which stays the caller's */
int slots_logits(struct slots *ss, struct slot *sl, int fd, struct err *e);

/* Caches out and in (proto/link.h, LINK_KV_*); all places are the arena's. `owner` comes back in
 * slots_news, also when the slot is nobody's any more by then. */
int slots_kv_out(struct slots *ss, struct slot *sl, const struct link_kv_out *what,
                 const struct link_kv_run *runs, void *owner, struct err *e);
int slots_kv_in(struct slots *ss, struct slot *sl, const uint32_t *ids, uint32_t n,
                uint64_t at, void *owner, struct err *e);
int slots_kv_set(struct slots *ss, struct slot *sl, uint64_t state_at, uint64_t row_at,
                 void *owner, struct err *e);

void slots_cancel(struct slots *ss, struct slot *sl); /* all its FEEDs, SAMPLEs, LOGITS */
void slots_close(struct slots *ss, struct slot *sl);  /* free once the engine says so */

/* A snapshot of this session with the most tokens, at most max; NULL. */
struct slot *slots_snapshot(const struct slots *ss, const struct session *s, uint64_t max);
void slots_drop_snapshots(struct slots *ss, const struct session *s, uint64_t beyond);
void slots_drop_oldest_snapshot(struct slots *ss);
void slots_touch(struct slots *ss, struct slot *sl);

/* The job that a packet is about, all of the packet checked against what was asked for; then
 * slot lengths are brought up to date and a LINK_END's job is gone. NULL: a lie, *e. */
struct slots_news {
    enum link_type type, job_type;
    struct slot *slot;
    uint64_t pos; /* FED, END: the length; SCORES, TOKENS: of the first */
    uint32_t n;
    const float *scores;                /* SCORES */
    const struct sample_choice *tokens; /* TOKENS */
    const struct link_end *end;         /* END */
    const struct link_saved *saved;     /* SAVED */
    void *owner;                        /* KV_* */
};

int slots_read(struct slots *ss, const union link_packet *p, size_t len, uint32_t vocab,
               struct slots_news *out, struct err *e);

#endif /* DAEMON_SLOTS_H */
