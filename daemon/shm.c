/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that clients read, and the rings in it.
 *
 * Waking: one end of a socket pair, not an eventfd. The two ends of a pair are two open files, so
 * a client that takes O_NONBLOCK off its own changes nothing of ours; an eventfd is one open file
 * for both, and who clears the flag and fills the counter makes the other's write wait for ever.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/err.h"
#include "daemon/conn.h"
#include "daemon/options.h"
#include "daemon/server.h"
#include "daemon/shm.h"
#include "model/sampler.h"
#include "proto/link.h"

#ifndef MFD_NOEXEC_SEAL
#    define MFD_NOEXEC_SEAL 8u /* Linux 6.3 */
#endif

/* Zeros, all of them there, never shorter or longer. */
static int
make_memfd(const char *name, uint64_t bytes, struct err *e)
{
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL), rc;

    if (fd == -1 && errno == EINVAL)
        fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd == -1)
        return err_set(e, ERR_QUOTA, errno, "no descriptor left for shared memory: %s",
                       strerror(errno));
    do
        rc = fallocate(fd, 0, 0, (off_t)bytes);
    while (rc == -1 && errno == EINTR);
    if (rc == -1 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == -1) {
        err_set(e, ERR_QUOTA, errno, "no memory for %" PRIu64 " shared bytes: %s", bytes,
                strerror(errno));
        close(fd);
        return -1;
    }
    return fd;
}

int
shm_new(struct shm *m, const char *name, uint64_t bytes, int *fd, struct err *e)
{
    *m = (struct shm){.bytes = bytes};
    *fd = make_memfd(name, bytes, e);
    if (*fd == -1)
        return -1;
    m->map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
    if (m->map == MAP_FAILED) {
        err_set(e, ERR_QUOTA, errno, "mmap of %" PRIu64 " bytes: %s", bytes,
                strerror(errno));
        m->map = NULL;
    } else if (fcntl(*fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) == -1) {
        err_set(e, ERR_INTERNAL, errno, "sealing shared memory (Linux 5.1 can): %s",
                strerror(errno));
    } else {
        return 0;
    }
    shm_done(m);
    close(*fd);
    *fd = -1;
    return -1;
}

void
shm_done(struct shm *m)
{
    if (m->map != NULL)
        munmap(m->map, m->bytes);
    m->map = NULL;
}

/* ---- Rings --------------------------------------------------------------------------- */

static void
ring_free(struct ring *r, struct user *payer)
{
    if (r->rows_map != NULL)
        munmap((void *)(uintptr_t)r->rows_map, r->rows_bytes);
    if (r->rows_fd != -1)
        close(r->rows_fd);
    if (r->wake != -1)
        close(r->wake);
    shm_done(&r->shm);
    quota_give(payer, QUOTA_BYTES, r->paid);
    free(r);
}

/* Where the engine is to put its rows. It writes there, so this is not what the client sees. */
static int
make_rows(struct ring *r, uint64_t n, struct err *e)
{
    void *map;

    r->rows = (uint32_t)n;
    r->rows_bytes = n * link_row_bytes(r->vocab);
    r->rows_fd = make_memfd("fathom-rows", r->rows_bytes, e);
    if (r->rows_fd == -1)
        return -1;
    map = mmap(NULL, r->rows_bytes, PROT_READ, MAP_SHARED, r->rows_fd, 0);
    if (map == MAP_FAILED)
        return err_set(e, ERR_QUOTA, errno, "mmap of %" PRIu64 " bytes: %s", r->rows_bytes,
                       strerror(errno));
    r->rows_map = map;
    return 0;
}

/* The bytes that it takes, all together; ERR_QUOTA says how many records there may be. */
static int
check_size(const struct conn *c, enum ring_kind kind, uint64_t n, uint64_t *bytes,
           struct err *e)
{
    const uint64_t most = c->server->o->max_ring, vocab = c->server->vocab;
    const bool rows = kind == RING_LOGITS;
    const uint64_t payload = rows ? sizeof(struct ring_logits) + vocab * sizeof(float)
                                  : sizeof(struct ring_token) + RING_TEXT_MOST;
    const uint64_t one = ring_bytes(1, payload) - ring_bytes(0, payload) +
                         (rows ? link_row_bytes((uint32_t)vocab) : 0);
    uint64_t n_most;

    *bytes = ring_bytes(0, payload);
    n_most = most > *bytes ? (most - *bytes) / one : 0;
    if (n < 1 || n > n_most)
        return err_set(e, n < 1 ? ERR_INVALID : ERR_QUOTA, 0,
                       "key 'records': %" PRIu64 ", not 1 to %" PRIu64
                       " (setting max-ring, %" PRIu64 " bytes)",
                       n, n_most, most);
    *bytes += n * one;
    return 0;
}

struct ring *
ring_new(struct conn *c, enum ring_kind kind, uint64_t n, int *fd, struct err *e)
{
    const uint64_t payload = kind == RING_LOGITS
                                 ? sizeof(struct ring_logits) +
                                       (uint64_t)c->server->vocab * sizeof(float)
                                 : sizeof(struct ring_token) + RING_TEXT_MOST;
    const struct ring *last = c->rings;
    uint64_t bytes, have = 0;
    struct ring *r;

    *fd = -1;
    for (const struct ring *o = last; o != NULL; o = o->next)
        have++;
    if (have >= RINGS_MOST) {
        err_set(e, ERR_QUOTA, 0, "%d rings on one connection are the most", RINGS_MOST);
        return NULL;
    }
    if (check_size(c, kind, n, &bytes, e) == -1)
        return NULL;
    r = calloc(1, sizeof *r);
    if (r == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory for a ring");
        return NULL;
    }
    r->wake = r->rows_fd = -1;
    r->kind = kind;
    r->vocab = c->server->vocab;
    if (quota_take(c->user, QUOTA_BYTES, bytes, e) == 0) {
        r->paid = bytes;
        if ((kind != RING_LOGITS || make_rows(r, n, e) == 0) &&
            shm_new(&r->shm, "fathom-ring", ring_bytes(n, payload), fd, e) == 0) {
            ring_init(&r->out, r->shm.map, kind, n, payload, r->vocab);
            r->number = last != NULL ? last->number + 1 : 1;
            r->next = c->rings;
            c->rings = r;
            return r;
        }
    }
    ring_free(r, c->user);
    return NULL;
}

struct ring *
ring_find(const struct conn *c, uint64_t number, struct err *e)
{
    for (struct ring *r = c->rings; r != NULL; r = r->next) {
        if (r->number == number)
            return r;
    }
    err_set(e, ERR_NOT_FOUND, 0, "no ring %" PRIu64 " on this connection", number);
    return NULL;
}

int
ring_waker(struct ring *r, int *fd, struct err *e)
{
    int pair[2];

    if (r->wake != -1)
        return err_set(e, ERR_EXISTS, 0, "ring %" PRIu64 " has a waker already", r->number);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == -1)
        return err_set(e, ERR_QUOTA, errno, "socketpair: %s", strerror(errno));
    r->wake = pair[0];
    *fd = pair[1];
    return 0;
}

void
ring_wake(struct ring *r)
{
    /* A full socket has woken its reader already, and one that is gone need not be woken. */
    if (r->wake != -1 && send(r->wake, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL) == -1 &&
        errno != EAGAIN && errno != EINTR) {
        close(r->wake);
        r->wake = -1;
    }
}

void
ring_put_token(struct ring *r, uint64_t pos, const struct sample_choice *c, bool reasoning,
               const void *text, uint64_t len)
{
    const struct ring_token t = {
        .id = c->id, .reasoning = reasoning, .logprob = (double)c->logprob};
    uint8_t *p;

    /* No token of a tokenizer.json comes near that, stop strings held back in front included. */
    if (len > RING_TEXT_MOST)
        len = RING_TEXT_MOST;
    p = ring_begin(&r->out, sizeof t + len);
    memcpy(p, &t, sizeof t);
    if (len > 0)
        memcpy(p + sizeof t, text, len);
    ring_end(&r->out, RING_TOKEN, pos, sizeof t + len);
}

/* From the engine's slot, unless it has gone on already: then this row is missing, as one that
 * the client was too slow for would be. What it says may be nonsense, as any logits of a broken
 * engine; that it is whole is checked. */
void
ring_put_row(struct ring *r, uint64_t pos, const struct sample_choice *c)
{
    const struct link_row *slot =
        (const struct link_row *)(const void *)((const uint8_t *)r->rows_map +
                                                pos % r->rows * link_row_bytes(r->vocab));
    const uint64_t row_bytes = (uint64_t)r->vocab * sizeof(float);
    struct ring_logits head = {.id = c->id};
    uint8_t *p;

    if (__atomic_load_n(&slot->stamp, __ATOMIC_ACQUIRE) != pos + 1) {
        r->missed++;
        return;
    }
    p = ring_begin(&r->out, sizeof head + row_bytes);
    head.log_sum = slot->log_sum;
    memcpy(p, &head, sizeof head);
    memcpy(p + sizeof head, slot + 1, row_bytes);
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (__atomic_load_n(&slot->stamp, __ATOMIC_RELAXED) != pos + 1)
        r->missed++; /* the room stays unused: the next record takes it */
    else
        ring_end(&r->out, RING_LOGITS, pos, sizeof head + row_bytes);
}

void
ring_put_end(struct ring *r, uint64_t pos, const void *text, uint64_t len)
{
    uint8_t *p;

    if (r->kind != RING_TOKEN)
        len = 0;
    if (len > RING_TEXT_MOST)
        len = RING_TEXT_MOST;
    p = ring_begin(&r->out, len);
    if (len > 0)
        memcpy(p, text, len);
    ring_end(&r->out, RING_END, pos, len);
}

void
rings_drop(struct conn *c)
{
    struct ring *r;

    while ((r = c->rings) != NULL) {
        c->rings = r->next;
        ring_free(r, c->user);
    }
}
