/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <event2/event.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/clock.h"
#include "daemon/options.h"
#include "daemon/quota.h"
#include "daemon/transfer.h"

enum { POLL_MS = 1000 };

struct transfer_impl {
    struct transfers *x;
    pthread_t thread;
    atomic_bool cancelled;
    /* The thread's. */
    XXH3_state_t *hash;
    uint64_t deadline_ns, moved; /* moved: since the deadline was set */
};

struct transfers {
    const struct options *o;
    struct mailbox *back;
    struct event *on_back;
    struct transfer *all;
    uint64_t n;
};

int
transfer_check(int fd, const char *key, struct err *e)
{
    int type = 0, domain = 0, listens = 0;
    socklen_t a = sizeof type, b = sizeof domain, c = sizeof listens;

    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &a) == -1 ||
        getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &b) == -1 ||
        getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &c) == -1 ||
        type != SOCK_STREAM || domain != AF_UNIX || listens)
        return err_set(e, ERR_INVALID, 0,
                       "key '%s': one end of a Unix stream socket pair is needed", key);
    return 0;
}

/* --- in the thread ------------------------------------------------------------------------ */

static void
moved(struct transfer *t, const void *p, size_t n)
{
    struct transfer_impl *m = t->impl;

    XXH3_128bits_update(m->hash, p, n);
    t->bytes += n;
    m->moved += n;
    if (m->moved < TRANSFER_LEAST)
        return;
    m->moved = 0;
    m->deadline_ns = clock_ns() + t->timeout_ns;
}

/* The socket was full, or empty: waits until it is not. */
static int
wait_for(struct transfer *t, short events, struct err *e)
{
    struct transfer_impl *m = t->impl;
    struct pollfd p = {.fd = t->fd, .events = events};

    for (;;) {
        const uint64_t now = clock_ns();

        if (atomic_load(&m->cancelled))
            return err_set(e, ERR_CANCELLED, 0, "cancelled");
        if (now >= m->deadline_ns)
            return err_set(e, ERR_DEADLINE, 0,
                           "the other end moved %" PRIu64 " bytes in %" PRIu64
                           " s, less than 1 MiB (setting transfer-timeout)",
                           m->moved, t->timeout_ns / 1000000000);
        switch (poll(&p, 1, POLL_MS)) {
        case 0: break;
        case -1:
            if (errno != EINTR)
                return err_set(e, ERR_INTERNAL, errno, "poll: %s", strerror(errno));
            break;
        default: return 0;
        }
    }
}

int
transfer_write(struct transfer *t, const void *p, size_t n, struct err *e)
{
    const char *at = p;

    while (n > 0) {
        const ssize_t sent = send(t->fd, at, n, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (sent > 0) {
            moved(t, at, (size_t)sent);
            at += sent;
            n -= (size_t)sent;
        } else if (sent == -1 && (errno == EPIPE || errno == ECONNRESET)) {
            return err_set(e, ERR_CANCELLED, errno, "the reader has left");
        } else if (sent == -1 && errno != EAGAIN && errno != EINTR) {
            return err_set(e, ERR_INTERNAL, errno, "send: %s", strerror(errno));
        } else if (wait_for(t, POLLOUT, e) == -1) {
            return -1;
        }
    }
    return 0;
}

ssize_t
transfer_read(struct transfer *t, void *p, size_t room, struct err *e)
{
    for (;;) {
        const ssize_t got = recv(t->fd, p, room, MSG_DONTWAIT);

        if (got > 0)
            moved(t, p, (size_t)got);
        if (got >= 0 && !atomic_load(&t->impl->cancelled))
            return got;
        if (got >= 0)
            return err_set(e, ERR_CANCELLED, 0, "cancelled");
        if (errno == ECONNRESET)
            return err_set(e, ERR_CANCELLED, errno, "the writer has left");
        if (errno != EAGAIN && errno != EINTR)
            return err_set(e, ERR_INTERNAL, errno, "recv: %s", strerror(errno));
        if (wait_for(t, POLLIN, e) == -1)
            return -1;
    }
}

static void *
work(void *arg)
{
    struct transfer *t = arg;
    XXH128_canonical_t c;
    struct err e;

    if (t->run(t, &e) == -1)
        t->err = e;
    XXH128_canonicalFromHash(&c, XXH3_128bits_digest(t->impl->hash));
    memcpy(t->digest, c.digest, sizeof t->digest);
    mailbox_post(t->impl->x->back, &t->mail);
    return NULL;
}

/* --- main --------------------------------------------------------------------------------- */

static void
transfer_free(struct transfer *t)
{
    if (t->impl != NULL)
        XXH3_freeState(t->impl->hash);
    free(t->impl);
    quota_drop(t->user);
    free(t);
}

static void
take_back(struct transfers *x)
{
    struct mail *next;

    for (struct mail *m = mailbox_take_all(x->back); m != NULL; m = next) {
        struct transfer *t = (struct transfer *)m;

        next = m->next;
        pthread_join(t->impl->thread, NULL);
        *t->at = t->next;
        if (t->next != NULL)
            t->next->at = t->at;
        x->n--;
        close(t->fd); /* before the answer: who reads to the end is not kept waiting */
        t->done(t);
        transfer_free(t);
    }
}

static void
on_back(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    take_back(arg);
}

int
transfers_new(struct event_base *base, const struct options *o, struct transfers **out,
              struct err *e)
{
    struct transfers *x = calloc(1, sizeof *x);

    *out = x;
    if (x == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for transfers");
    x->o = o;
    x->back = mailbox_new(e);
    if (x->back == NULL)
        return -1;
    x->on_back = event_new(base, mailbox_fd(x->back), EV_READ | EV_PERSIST, on_back, x);
    if (x->on_back == NULL || event_add(x->on_back, NULL) == -1)
        return err_set(e, ERR_QUOTA, errno, "no memory for transfers");
    return 0;
}

void
transfer_cancel(struct transfer *t)
{
    atomic_store(&t->impl->cancelled, true);
    shutdown(t->fd, SHUT_RDWR); /* wakes it */
}

void
transfers_free(struct transfers *x)
{
    if (x == NULL)
        return;
    for (struct transfer *t = x->all; t != NULL; t = t->next)
        transfer_cancel(t);
    while (x->all != NULL) {
        struct pollfd p = {.fd = mailbox_fd(x->back), .events = POLLIN};

        (void)poll(&p, 1, -1);
        take_back(x);
    }
    if (x->on_back != NULL)
        event_free(x->on_back);
    mailbox_free(x->back);
    free(x);
}

static int
check_room(const struct transfers *x, const struct user *user, struct err *e)
{
    uint64_t own = 0;

    for (const struct transfer *t = x->all; t != NULL; t = t->next)
        own += t->user == user;
    if (own >= x->o->max_transfers_user)
        return err_set(e, ERR_BUSY, 0,
                       "%" PRIu64 " exports and imports of yours are under way (setting "
                       "max-transfers-per-user)",
                       own);
    if (x->n >= x->o->max_transfers)
        return err_set(
            e, ERR_BUSY, 0,
            "%" PRIu64 " exports and imports are under way (setting max-transfers)", x->n);
    return 0;
}

/* With all signals blocked: they are main's. */
static int
start_thread(struct transfer *t, struct err *e)
{
    sigset_t all, before;
    int rc;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = pthread_create(&t->impl->thread, NULL, work, t);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc == 0 ? 0 : err_set(e, ERR_QUOTA, rc, "no thread: %s", strerror(rc));
}

struct transfer *
transfer_start(struct transfers *x, struct user *user, int fd,
               int (*run)(struct transfer *t, struct err *e),
               void (*done)(struct transfer *t), void *arg, struct err *e)
{
    struct transfer *t;

    if (check_room(x, user, e) == -1)
        return NULL;
    t = calloc(1, sizeof *t);
    if (t == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory for a transfer");
        return NULL;
    }
    t->user = quota_hold(user);
    t->fd = fd;
    t->timeout_ns = x->o->transfer_timeout * UINT64_C(1000000);
    t->run = run;
    t->done = done;
    t->arg = arg;
    t->impl = calloc(1, sizeof *t->impl);
    if (t->impl == NULL || (t->impl->hash = XXH3_createState()) == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory for a transfer");
        transfer_free(t);
        return NULL;
    }
    t->impl->x = x;
    t->impl->deadline_ns = clock_ns() + t->timeout_ns;
    XXH3_128bits_reset(t->impl->hash);
    if (start_thread(t, e) == -1) {
        transfer_free(t);
        return NULL;
    }
    t->next = x->all;
    t->at = &x->all;
    if (t->next != NULL)
        t->next->at = &t->next;
    x->all = t;
    x->n++;
    return t;
}
