/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_SHM_H
#define DAEMON_SHM_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/ring.h"

struct conn;
struct err;
struct sample_choice;
struct server;
struct session;

/*
 * Shared memory that clients read: rings of drawn tokens or of their logits, and statistics
 * pages. We write it, through a mapping that was made before the seals; nobody can write to it
 * afterwards, not even we through another mapping, and nobody can shorten it. So there is nothing
 * in it that a client could lie about, and none whose end we would have to wait for. It belongs
 * to the connection that asked for it and goes with it. Main thread.
 */
struct shm {
    void *map;
    uint64_t bytes;
};

/* *fd: what the client gets, the caller's. Memory for all of it is taken at once: a page that is
 * missing later would be a SIGBUS. ERR_QUOTA. */
int shm_new(struct shm *m, const char *name, uint64_t bytes, int *fd, struct err *e);
void shm_done(struct shm *m);

/* ---- Rings --------------------------------------------------------------------------- */

enum { RINGS_MOST = 16, RING_TEXT_MOST = 1024 };

struct ring {
    struct ring *next;
    uint64_t number; /* on its connection */
    enum ring_kind kind;
    struct ring_out out;
    struct shm shm;
    bool taken; /* by a sample under way */
    int wake;   /* our end of a socket pair; -1: none */
    uint64_t paid;
    uint32_t rows, vocab; /* RING_LOGITS */
    int rows_fd;          /* where the engine puts them: `rows` slots (proto/link.h); -1 */
    const void *rows_map;
    uint64_t rows_bytes;
    uint64_t missed; /* rows that the engine had overwritten already */
};

/* n records; *fd: the client's. */
struct ring *ring_new(struct conn *c, enum ring_kind kind, uint64_t n, int *fd,
                      struct err *e);
struct ring *ring_find(const struct conn *c, uint64_t number, struct err *e);

/* A descriptor that becomes readable when something was put into the ring; made once. */
int ring_waker(struct ring *r, int *fd, struct err *e);
void ring_wake(struct ring *r);

void ring_put_token(struct ring *r, uint64_t pos, const struct sample_choice *c,
                    bool reasoning, const void *text, uint64_t len);
void ring_put_row(struct ring *r, uint64_t pos, const struct sample_choice *c);
void ring_put_end(struct ring *r, uint64_t pos, const void *text, uint64_t len);

void rings_drop(struct conn *c); /* the connection ends */

/* ---- Statistics pages ---------------------------------------------------------------- */

enum { PAGES_MOST = 64, PAGE_EVERY_MS = 200 };

struct page {
    struct page *next;
    struct conn *conn;
    struct session *session; /* held (streams); NULL: of the daemon, or it is gone */
    bool of_session;
    struct shm shm;
};

/* session NULL: of the daemon. It is written now and then every PAGE_EVERY_MS while the connection
 * lives. */
int page_new(struct conn *c, struct session *s, int *fd, struct err *e);
void pages_drop(struct conn *c);
void pages_end(struct server *sv); /* the timer, when nobody has a page any more */

#endif /* DAEMON_SHM_H */
