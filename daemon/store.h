/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_STORE_H
#define DAEMON_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/histogram.h"
#include "daemon/store_thread.h"

struct err;
struct event_base;
struct io;
struct options;
struct quota;
struct session;

/*
 * The store, seen from sessions: which of them there are, what of them is in memory, and what of
 * them is on the disk. It sends jobs to its threads (store_thread.h) and never waits. Main thread;
 * everybody is called back from the loop, never from inside a call.
 *
 * store.c opens, finds, makes and ends; load.c brings logs into memory and out of it; commit.c
 * makes durable what has changed.
 */
struct store;

/* Somebody who waits for a session: embedded, zeroed at first. */
struct store_wait {
    struct store_wait *next, **at; /* at: NULL if it does not wait */
    /* why NULL: done. It waits no more when it is called. */
    void (*fn)(struct store_wait *w, const struct err *why);
    void *arg;
    uint64_t turn;
};

/* Those who want to know what becomes of sessions; each may be NULL. In the order of listening. */
struct store_listener {
    struct store_listener *next;
    void *arg;
    void (*loaded)(void *arg, struct session *s); /* log and files are in memory */
    void (*unloading)(void *arg, struct session *s);
    void (*refused)(void *arg, struct session *s, const struct err *why); /* not loaded */
    void (*stored)(void *arg, struct session *s);  /* more of it is durable than before */
    void (*trouble)(void *arg, struct session *s); /* store_refuses() began, or ended */
    void (*unmade)(void *arg, struct session *s);  /* a new one that could not be made */
    void (*deleted)(void *arg, struct session *s); /* and its folder is gone */
    void (*idle)(void *arg, struct session *s);    /* no job of it is under way any more */
};

struct store_counts {
    struct histogram commit, load; /* what they took, from post to end */
    uint64_t commit_tokens, unloads, creates, forks, deletes, errors, mended,
        index_failures;
    uint64_t loaded, loaded_bytes; /* now: sessions whose log is in memory */
    uint64_t parked, damaged;
    uint64_t full, read_only; /* sessions that take nothing new */
    uint64_t since_ms;        /* the oldest of these; 0: none */
    uint64_t jobs;
};

/* Opens the store in io's directory (options.state), makes it if there is none. ERR_EXISTS:
 * another fathomd has it. */
int store_open(struct event_base *base, const struct options *o, struct quota *q,
               struct store **out, struct err *e);
/* Waits for what is under way; all sessions are still there. NULL is fine. */
void store_free(struct store *st);
void store_listen(struct store *st, struct store_listener *l);

/* Every session that the catalogue knows becomes one, parked. Once. */
int store_find_all(struct store *st, struct err *e);

/* The session is to last: it gets an id, and store_commit() makes its ledger. `from`: it is a
 * fork of this one and shares the files that session_files_change() gave it. */
int store_adopt(struct store *st, struct session *s, const struct session *from,
                struct err *e);

/* --- in memory: load.c --- */

/* 1: the log is there. 0: it is being loaded, w (NULL is fine) is told. -1: it cannot be. */
int store_need(struct store *st, struct session *s, struct store_wait *w, struct err *e);
/* Somebody has used it now: others are parked before it. */
void store_used(struct store *st, struct session *s);
/* It is not parked while anybody holds it. Who writes files for it holds it, and makes its id hot
 * (catalog_hot()) in front of the first: so they are not swept before a commit names them. */
void store_hold(struct session *s);
void store_release(struct session *s);

/* --- on the disk: commit.c --- */

/* True: all of it is durable. False: a commit is under way or begins, and w (NULL is fine) is
 * told when what there is now is durable, or why it is not. */
bool store_commit(struct store *st, struct session *s, struct store_wait *w);
/* The same, but somewhat later, and nobody is told: see the setting durability. */
void store_commit_soon(struct store *st, struct session *s);
/* -1: its ledger takes nothing more, or nothing now: ERR_READ_ONLY, ERR_QUOTA. */
int store_refuses(const struct session *s, struct err *e);

/* Its folder goes; the session itself must be GONE and is not freed before listener.idle(). */
void store_delete(struct store *st, struct session *s, struct store_wait *w);

void store_unwait(struct store_wait *w); /* one that does not wait is fine */

/* --- for others --- */

/* fn by the session's thread, in turn with its commits; or, longer, by the thread for what takes
 * long, which has no ledgers. done() from the loop, also when the session is gone. s is held. */
int store_run(struct store *st, struct session *s, bool longer,
              int (*fn)(void *arg, struct store_tools *t, struct err *e),
              void (*done)(void *arg, const struct err *why), void *arg, struct err *e);
void store_sweep(
    struct store *st); /* frees what nothing names any more, little by little */

void store_count(const struct store *st, struct store_counts *out);
void store_alive(const struct store *st, struct store_alive *out);
struct io *store_io(const struct store *st);
struct catalog *store_catalog(const struct store *st);

/* The catalogue has a new session (archive_import): it becomes one, parked, under its name or, if
 * that is taken, one with a number behind it. */
struct session *store_take_in(struct store *st, const struct catalog_entry *en,
                              struct err *e);

/* Makes all durable, then closes all; done() when that is so. No new work may come. */
void store_end(struct store *st, void (*done)(void *arg), void *arg);

#endif /* DAEMON_STORE_H */
