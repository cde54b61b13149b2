/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_WORK_IMPL_H
#define DAEMON_WORK_IMPL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "daemon/kv_impl.h"
#include "daemon/slots.h"
#include "daemon/work.h"

/*
 * What work.c (queues), work_start.c (an operation's input), work_engine.c (its way through the
 * engine) and work_store.c (its way to the disk) share. Nobody else includes it.
 */
enum { WORK_JOBS_SPARE = 16 }; /* of the link's jobs, for closing and rewinding */

struct work {
    const struct options *o;
    struct text *text;
    struct engine *engine;
    struct work_calls calls;
    struct slots slots;
    struct work_model model;
    struct session *waiting, **waiting_tail; /* for the engine, a slot or room for jobs */
    struct op *over, **over_tail;            /* cancelled while they waited behind others */
    struct event *on_fresh;
    struct session *trial; /* the suspect that runs now */
    struct session *gone;  /* deleted, but still held by somebody */
    struct store *store;
    struct kv *kv;
    struct store_listener listener;
    struct work_counts counts;
    uint64_t n_ops; /* in all queues */
    bool stopping, asked_to_stop, failed;
    struct err why_failed;
};

/* Does all that can be done for this session now. */
void work_pump(struct work *w, struct session *s);

/* The session is to be pumped when something of the engine has changed; that it has. */
void work_wait(struct work *w, struct session *s);
void work_wake(struct work *w);

/* The engine would compute from the start, or cannot go back to there at all. */
bool work_too_far(const struct work *w, const struct slot *sl, uint64_t len);

/* The slot goes back to what the transcript holds. */
void work_trim(struct work *w, struct session *s);

/* The transcript has other tokens behind pos now, or none: what the engine has of them goes. */
void work_cut(struct work *w, struct session *s, uint64_t pos);

/* A copy of the caches as they stand in the engine now, if there is room. */
void work_keep(struct work *w, struct session *s);

/* Chat (work_turn.c): checks an append's size and, for a question, takes the reasoning of the
 * exchange before it out of the transcript, in one change with the question itself. */
int work_take_question(struct work *w, struct op *op, struct err *e);

/* How far the append may be fed now: to its end, or to where the caches are kept first. */
uint64_t work_rest(struct work *w, struct op *op, uint64_t total);

/* The operation's turn has come: its stage afterwards says how it goes on. */
int work_start(struct work *w, struct op *op, struct err *e);

/* What the model's size says about it, once that is known. */
int work_check(const struct work *w, struct op *op, struct err *e);

/* Its result into the log, once, if it has an op_id and has changed anything. */
void work_record(struct op *op);

/* Goes on with an operation in the engine: false if it goes on, true if it is over. */
bool work_advance(struct work *w, struct op *op);

/* If this session was the suspect on trial, others may run again. */
void work_end_trial(struct work *w, const struct session *s);

/* work_store.c. The session's log is there: true. Else it is being loaded, or its operations have
 * failed. */
bool work_loaded(struct work *w, struct session *s);
/* What came of an operation is durable: true. Else it is OP_IN_STORE, and its session is pumped
 * when that is over. */
bool work_stored(struct work *w, struct op *op);
/* The engine has more of the session's tokens than the ledger. */
void work_grew(struct work *w, struct session *s);
void work_listen(struct work *w);
void work_try_free(struct work *w, struct session *s);
void work_settle(struct work *w, struct session *s);

/* The engine's calls; w is their arg. */
struct engine_calls work_engine_calls(struct work *w);

#endif /* DAEMON_WORK_IMPL_H */
