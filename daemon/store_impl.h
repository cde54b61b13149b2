/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_STORE_IMPL_H
#define DAEMON_STORE_IMPL_H

#include "base/err.h"
#include "daemon/session.h"
#include "daemon/store.h"

/*
 * What store.c, load.c and commit.c share. Nobody else includes it.
 */
TAILQ_HEAD(session_list, session);

struct store {
    const struct options *o;
    struct quota *q;
    struct io *io;
    struct catalog *catalog;
    struct store_threads *threads;
    struct store_listener *listeners;
    struct session_list loaded; /* lasting, the least recently used first */
    struct session_list dirty;  /* to be committed at the next tick */
    struct event *tick, *idle, *sweep;
    bool ticking, sweeping, sweep_again;
    uint64_t jobs; /* of sessions, under way */
    bool ending, ended;
    void (*end)(void *arg);
    void *end_arg;
    struct store_counts counts;
};

struct store_fault {
    struct err why;
    bool full; /* it may fit later: it is tried again */
    uint64_t since_ms, retry_ns;
};

#define STORE_TELL(st, what, ...)                                                \
    for (struct store_listener *l_ = (st)->listeners; l_ != NULL; l_ = l_->next) \
        if (l_->what != NULL)                                                    \
    l_->what(l_->arg, __VA_ARGS__)

/* A job of this session: posts it, counts it. */
void store_post(struct store *st, struct session *s, struct store_job *job);
/* It is back: goes on with deleting, says when the session is idle, ends the store. */
void store_back(struct store *st, struct session *s);

void store_wait_add(struct store_wait **list, struct store_wait *w);
/* Those of the list up to a turn. */
void store_wait_call(struct store_wait **list, uint64_t turn, const struct err *why);

/* load.c */
void store_idle_tick(struct store *st);
void store_loaded_add(struct store *st, struct session *s);
void store_loaded_drop(struct store *st, struct session *s);

/* commit.c */
void store_dirty_tick(struct store *st);
void store_dirty_drop(struct store *st, struct session *s);
void store_fault_clear(struct store *st, struct session *s);

#endif /* DAEMON_STORE_IMPL_H */
