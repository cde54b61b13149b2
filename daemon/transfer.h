/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_TRANSFER_H
#define DAEMON_TRANSFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "base/mailbox.h"

struct catalog;
struct event_base;
struct options;
struct quota;
struct user;

/*
 * Long streams between a client's socket and the store: export and import. Each has a thread of
 * its own while it lasts, so that a slow client holds up nobody; there are at most max-transfers of
 * them, and max-transfers-per-user of one user's. A client that moves less than TRANSFER_LEAST bytes
 * within transfer-timeout is given up: nobody can keep a thread for nothing. All functions are
 * main's, except those that say otherwise.
 */
enum { TRANSFER_LEAST = 1 << 20 };

struct transfer {
    struct mail mail;
    struct transfer *next, **at; /* in the list of all */
    struct user *user;           /* held */
    int fd;                      /* a stream socket, owned */
    uint64_t timeout_ns;
    /* In its thread: does it all, with transfer_write() or transfer_read(). */
    int (*run)(struct transfer *t, struct err *e);
    void (*done)(struct transfer *t); /* main; frees what is behind arg. t goes after it */
    void *arg;

    struct err err;     /* code ERR_NONE: fine */
    uint64_t bytes;     /* moved */
    uint8_t digest[16]; /* XXH3-128 of them, as xxh128sum(1) prints it */

    struct transfer_impl *impl;
};

struct transfers;

int transfers_new(struct event_base *base, const struct options *o, struct transfers **out,
                  struct err *e);
/* Ends all that are under way, and waits for that; their done() is called. NULL is fine. */
void transfers_free(struct transfers *x);

/* Is fd a socket that we can use? ERR_INVALID names the key. */
int transfer_check(int fd, const char *key, struct err *e);

/* Begins. On failure (ERR_BUSY: too many) fd and arg are still the caller's; else done() follows. */
struct transfer *transfer_start(struct transfers *x, struct user *user, int fd,
                                int (*run)(struct transfer *t, struct err *e),
                                void (*done)(struct transfer *t), void *arg, struct err *e);

/* It ends soon, with ERR_CANCELLED unless it was over already. */
void transfer_cancel(struct transfer *t);

/* In its thread. -1: the client is gone, too slow, or it was cancelled; *e. */
int transfer_write(struct transfer *t, const void *p, size_t n, struct err *e);
ssize_t transfer_read(struct transfer *t, void *p, size_t room,
                      struct err *e); /* 0: the end */

#endif /* DAEMON_TRANSFER_H */
