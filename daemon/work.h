/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_WORK_H
#define DAEMON_WORK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "daemon/engine.h"
#include "daemon/histogram.h"
#include "daemon/op.h"
#include "daemon/session.h"
#include "daemon/turn.h"

struct event_base;
struct kv;
struct options;
struct store;
struct store_wait;
struct text;

/*
 * Work: the queues of all sessions, and how their operations are carried out by an engine that
 * may fail at any time. Transcripts change only here and in OP_CALLs. Main thread.
 */
struct work;

struct work_calls {
    void *arg;
    void (*changed)(void *arg); /* of the engine: ready, lost, further with loading */
    void (*failed)(void *arg, bool forever, int status);
    void (*stopped)(void *arg);
};

struct work_model {
    uint32_t bos, eos, vocab;
    struct turn_ids turn;
};

struct work_counts {
    uint64_t queued, running, busy; /* operations now; sessions with any */
    uint64_t appended, drawn;       /* tokens, since the start */
    uint64_t faults, broken, evictions, replayed;
    struct histogram wait, first; /* from the request to its turn, and to its first token */
};

/* arena_fd: the host memory of an earlier fathomd, taken over; or -1. */
struct work *work_new(struct event_base *base, const struct options *o, struct text *text,
                      struct store *store, const struct work_model *model,
                      const struct work_calls *calls, int arena_fd, struct err *e);
void work_free(struct work *w);
struct engine *work_engine(const struct work *w);
struct kv *work_kv(const struct work *w);
void work_count(const struct work *w, struct work_counts *out);

/* Puts op at the end of its session's queue, which owns it then. ERR_BUSY: too many wait;
 * ERR_UNAVAILABLE: the engine has given up or we are stopping; ERR_DAMAGED: the session is
 * broken. On failure op is still the caller's. Its calls come from the loop. */
int work_submit(struct work *w, struct op *op, struct err *e);

/* It ends with this error as soon as the engine lets go of it, at the position reached. */
void work_cancel(struct work *w, struct op *op, const struct err *why);

/* Stops drawing until it is told to go on; the place in the batch is free for others. */
void work_pause(struct work *w, struct op *op, bool pause);

/* Deletes a session: its name is free at once, its operations end with ERR_NOT_FOUND, and it
 * is freed when nothing holds it any more. Its folder goes too, if it has one; wait (NULL is fine)
 * is told when that is so. */
void work_delete(struct work *w, struct session *s, struct store_wait *wait);

/* A stream has let go of the session (session.streams). */
void work_released(struct work *w, struct session *s);

/* For OP_CALLs, inside run(). */
int work_rollback(struct work *w, struct session *s, uint64_t pos, struct err *e);
void work_fork(struct work *w, struct session *from, struct session *to, uint64_t pos);
void work_snapshot(struct work *w, struct session *s); /* of the end, if there is room */

/* Caches of this session in the engine, as far as one can tell from here. */
uint64_t work_kv_len(const struct session *s);

/* How many tokens the engine will have to compute again when the session goes on. */
uint64_t work_replay(const struct work *w, const struct session *s);

/* And how many will come back from memory or disk. */
uint64_t work_restore(const struct work *w, const struct session *s);

/* The end: all operations and sessions are freed, whatever they wait for. w may be NULL. */
void work_end(struct work *w, struct quota *q);

/* Ends all operations with `why`; calls->stopped() when the engine is gone, too. */
void work_stop(struct work *w, const struct quota *q, const struct err *why);

#endif /* DAEMON_WORK_H */
