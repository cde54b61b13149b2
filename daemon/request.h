/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_REQUEST_H
#define DAEMON_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "daemon/conn.h"
#include "daemon/op.h"
#include "daemon/server.h"
#include "daemon/store.h"
#include "proto/wire.h"

struct session;
struct text_job;

/*
 * A request under way. The handler of its method either ends it at once or leaves it in the
 * connection's list and ends it later; request_reply() and request_fail() end and free it.
 * Main thread.
 */
struct request {
    struct conn *conn;
    struct request *next, **at;
    uint32_t id;
    const struct request_entry *entry;
    struct session *session; /* that it names; good until the loop turns, unless held */
    bool holds;
    struct op *op;             /* under way; op->owner is this request */
    struct text_job *text_job; /* under way; its arg is this request */
    struct store_wait wait;    /* for its session's log, or for the disk */
    bool changed;              /* waits for the disk: what it asked for is done */
    void (*go)(struct request *r, const struct err *why); /* when the waiting is over */

    /* What happens to it; each may be NULL. */
    void (*credit)(struct request *r, uint32_t n);
    void (*resume)(struct request *r); /* there is room for output again */
    void (*leave)(struct request *r);  /* the client has left: let go; it is freed then */
    void (*drop)(struct request *r);   /* frees what the handler keeps */
    void *data;                        /* the handler's */
};

/* One line a method. */
struct request_entry {
    void (*handle)(struct request *r, const void *body);
    unsigned need; /* of a session, enum session_right; 0: names none */
    size_t name;   /* offset of its name in the body */
    bool name_is_optional;
};

void request_new(struct conn *c, struct wire_in *in);
void request_cancel(struct conn *c, uint32_t id);
void request_credit(struct conn *c, uint32_t id, uint32_t n);
void request_resume_all(struct conn *c);
void request_leave_all(
    struct conn *c); /* the client has left: each goes on alone or ends */

void request_reply(struct request *r, const struct wire_message *m, const void *body);
void request_fail(struct request *r, const struct err *e);
void request_fail_at(struct request *r, const struct err *e, uint64_t pos);

/* The session that it names stays until the request ends, though it may be GONE by then. */
void request_hold(struct request *r);

/* go() when the session's log is in memory (why NULL), or cannot be: at once or later. */
void request_load(struct request *r, void (*go)(struct request *r, const struct err *why));

/* go() when all of the session (r->session) is durable, or cannot be: at once or later. */
void request_commit(struct request *r,
                    void (*go)(struct request *r, const struct err *why));

/* Hands op to the session's queue; on failure ends the request and frees op. */
int request_submit(struct request *r, struct op *op);
/* For op_calls.done: the request that still waits for op, or NULL; unties the two. */
struct request *request_of(struct op *op);

/* Waits for a text job, whose done() gets the request by request_of_job(): NULL if the
 * client has left. -1: the user has no quota for it, and the job is freed. */
int request_post(struct request *r, struct text_job *job, struct err *e);
struct request *request_of_job(struct text_job *job);

/* Copies a wire string into room; false if it does not fit. */
bool request_copy(char *room, size_t size, struct wire_str s);

/* The handlers, req_*.c. */
#define HANDLER(id) void req_##id(struct request *r, const void *body)
HANDLER(hello);
HANDLER(session_new);
HANDLER(list);
HANDLER(stat);
HANDLER(append);
HANDLER(sample);
HANDLER(fork);
HANDLER(checkpoint);
HANDLER(rollback);
HANDLER(park);
HANDLER(unpark);
HANDLER(export);
HANDLER(import);
HANDLER(verify);
HANDLER(rename);
HANDLER(delete);
HANDLER(chmod);
HANDLER(transcript);
HANDLER(tokenize);
HANDLER(score);
HANDLER(logits);
HANDLER(status);
HANDLER(stats);
HANDLER(ring);
HANDLER(ring_wake);

/* Of exports and verifies: the daemon stops, they end as soon as they can; it has, they are freed (after
 * store_free()). */
void req_store_stop(struct server *sv);
void req_store_end(struct server *sv);

#endif /* DAEMON_REQUEST_H */
