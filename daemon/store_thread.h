/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_STORE_THREAD_H
#define DAEMON_STORE_THREAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "daemon/workers.h"
#include "kvstore/catalog.h"
#include "kvstore/ledger.h"

struct event_base;
struct io;

/*
 * Store threads: all that may wait for a disk. Main posts jobs and gets them back; what is about
 * one session is done by one thread, in the order of posting. That thread owns the session's open
 * ledger; of those it keeps the STORE_HANDLES used last, and closes the others. One thread more
 * does what takes long and needs no open ledger, so that it holds up no commit.
 */
enum { STORE_THREADS = 4, STORE_HANDLES = 64 };

enum store_kind {
    STORE_CREATE, /* catalog_create() with `change` */
    STORE_FORK,   /* catalog_fork() of `from`, by the thread of `from` */
    STORE_LOAD,   /* ledger_load() into `content` */
    STORE_COMMIT, /* `change`; the catalogue is told `len`, `n_points`, `disk_bytes` */
    STORE_CLOSE,  /* the ledger, if it is open */
    STORE_DELETE,
    STORE_QUARANTINE, /* with `why` */
    STORE_RUN,        /* run(), with the session's ledger closed or open as it is */
    STORE_RUN_LONG,   /* run(), by the thread for long jobs */
    STORE_SWEEP,      /* catalog_sweep() by that one; `more`: there is more */
    STORE_END,        /* main's, to each thread: all ledgers are closed */
};

/* What run() may use. */
struct store_tools {
    struct io *io;
    struct catalog *catalog;
    /* The session's ledger; NULL with *e set, and in the thread for long jobs. */
    struct ledger *(*ledger)(struct store_tools *t, const struct kvfile_id *id,
                             struct err *e);
    /* Closes it, if it is open: its file stands alone until it is asked for again. */
    void (*close)(struct store_tools *t, const struct kvfile_id *id);
};

struct store_job {
    struct worker_job work;
    enum store_kind kind;
    struct kvfile_id id, from;
    void (*done)(struct store_job *job); /* main thread; frees the job */
    void *arg;                           /* the poster's */
    void *own;                           /* freed with it */

    /* CREATE, FORK, COMMIT: what change points to belongs to the job. */
    struct ledger_change change;
    struct ledger_meta meta;
    uint64_t len, n_points, disk_bytes;

    struct ledger_content content; /* LOAD */
    uint32_t max_id;               /* LOAD: the largest token; 0 if there are none */
    char why[120];                 /* QUARANTINE */
    int (*run)(void *arg, struct store_tools *t, struct err *e);
    bool more; /* SWEEP */

    struct err err; /* code ERR_NONE: fine */
    uint64_t posted_ns, done_ns;
};

struct store_job *store_job_new(enum store_kind kind, const struct kvfile_id *id,
                                void (*done)(struct store_job *), void *arg, struct err *e);
void store_job_free(struct store_job *job);

struct store_threads;

/* io and catalogue must outlive them. */
struct store_threads *store_threads_new(struct event_base *base, struct io *io,
                                        struct catalog *catalog, struct err *e);
/* Waits for the jobs under way, closes all ledgers, drops what waits and what came back. */
void store_threads_free(struct store_threads *t);

void store_threads_post(struct store_threads *t, struct store_job *job);
/* STORE_END to each thread; done() when all of them have closed their ledgers. */
int store_threads_end(struct store_threads *t, void (*done)(void *arg), void *arg,
                      struct err *e);

/* For a watchdog: the thread that is worst off. The thread for long jobs does not count. */
struct store_alive {
    uint64_t turned_ns; /* the longest time since a thread last looked for work */
    uint64_t job_ns;  /* the longest time that a job under way has taken so far; 0: none */
    uint64_t waiting; /* jobs posted and not done */
};

void store_threads_alive(const struct store_threads *t, struct store_alive *out);

#endif /* DAEMON_STORE_THREAD_H */
