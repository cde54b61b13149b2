/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_WORKERS_H
#define DAEMON_WORKERS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/mailbox.h"

struct event_base;

/*
 * Threads that do jobs for main: each has a mailbox, does what is in it in the order of posting,
 * and sends it back. A job is its poster's own struct, this its first member; it belongs to its
 * thread from the post until main gets it back.
 */
struct worker_job {
    struct mail mail;
    unsigned thread; /* who does it */
};

struct workers_kind {
    void (*run)(void *arg, struct worker_job *job);  /* its thread does it */
    void (*back)(void *arg, struct worker_job *job); /* main: it is done */
    void (*drop)(struct worker_job *job); /* main, at the end: nobody wants it any more */
    void (*end)(void *arg, unsigned thread); /* a thread's last words; NULL: none */
    int turn_ms; /* a thread looks around that often at least, for a watchdog; -1: when woken */
};

struct workers;

/* kind and arg must outlive them. */
struct workers *workers_new(struct event_base *base, unsigned n,
                            const struct workers_kind *kind, void *arg, struct err *e);

/* Waits for the jobs under way, for each thread not longer than patience_s (0: as long as it
 * takes); jobs that wait, or are back and not taken, are dropped. False: a thread hangs; then
 * nothing that it may touch is freed: ask again, or end the process. NULL is fine. */
bool workers_free(struct workers *w, unsigned patience_s);

void workers_post(struct workers *w, unsigned thread, struct worker_job *job);

/* Main's view of a thread. */
unsigned workers_posted(const struct workers *w, unsigned thread);   /* jobs not back yet */
uint64_t workers_since_ns(const struct workers *w, unsigned thread); /* in a job since; 0 */
uint64_t workers_turned_ns(const struct workers *w, unsigned thread); /* looked for work */

#endif /* DAEMON_WORKERS_H */
