/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bulk transfers without io_uring: WORKERS threads take pieces of the calls that wait, the oldest
 * call first. They are started by the first call.
 *
 * A thread may hang in the kernel with a piece. So a call is an object of its own, counted: when its
 * caller gives up, the last thread that comes back with a piece of it frees it. It has a
 * descriptor of its own too, so that nobody's file can be hit who opens one under the number
 * that the caller has closed meanwhile. One lock, not held during transfers.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "kvstore/io_impl.h"

enum { WORKERS = 8 };

struct call {
    struct bulk_job job;
    struct call *next;  /* in the queue, while there are pieces to begin */
    size_t begun, end;  /* pieces are begun up to there; where the file ends, or the call */
    unsigned n_out;     /* pieces that threads have */
    int sys;            /* the first error */
    bool given_up;      /* nobody waits: the last thread frees it */
    pthread_cond_t all; /* no piece is out or to begin */
};

struct threads {
    pthread_mutex_t mu;
    pthread_cond_t work;
    struct call *first, **last; /* mu */
    uint64_t moved_ns;          /* mu: when a piece came back last */
    unsigned n_stuck;           /* mu: calls given up with pieces out */
    unsigned n_workers;         /* mu */
    pthread_t workers[WORKERS];
    bool stop; /* mu */
};

struct threads *
threads_new(void)
{
    struct threads *t = calloc(1, sizeof *t);

    if (t == NULL)
        return NULL;
    pthread_mutex_init(&t->mu, NULL);
    pthread_cond_init(&t->work, NULL);
    t->last = &t->first;
    return t;
}

static void
free_call(struct call *c)
{
    close(c->job.fd);
    pthread_cond_destroy(&c->all);
    free(c);
}

/* With mu held. */
static void
leave_queue(struct threads *t, struct call *c)
{
    for (struct call **at = &t->first; *at != NULL; at = &(*at)->next)
        if (*at == c) {
            *at = c->next;
            if (t->last == &c->next)
                t->last = at;
            return;
        }
}

/* Moves n bytes at `from`; *moved is fewer only at the end of a file that is read. An errno, or
 * 0. Goes on until all is moved, though its caller may have given up: the memory and the
 * descriptor are still the call's. */
static int
move_piece(const struct bulk_job *j, size_t from, size_t n, size_t *moved)
{
    for (*moved = 0; *moved < n;) {
        uint8_t *p = j->p + from + *moved;
        const off_t at = (off_t)(j->at + from + *moved);
        const ssize_t k = j->write ? pwrite(j->fd, p, n - *moved, at)
                                   : pread(j->fd, p, n - *moved, at);

        if (k == -1 && errno == EINTR)
            continue;
        if (k == -1)
            return errno;
        if (k == 0)
            return j->write ? EIO : 0;
        *moved += (size_t)k;
        if (j->direct && !j->write && *moved % IO_BLOCK != 0)
            return 0; /* the end, and the kernel would refuse to go on from here */
    }
    return 0;
}

static void *
work(void *arg)
{
    struct threads *t = arg;

    pthread_mutex_lock(&t->mu);
    for (;;) {
        struct call *c = t->first;
        size_t from, n, moved;
        int sys;

        if (t->stop)
            break;
        if (c == NULL) {
            pthread_cond_wait(&t->work, &t->mu);
            continue;
        }
        from = c->begun;
        n = c->job.n - from < IO_PIECE ? c->job.n - from : IO_PIECE;
        c->begun += n;
        c->n_out++;
        if (c->begun >= c->end)
            leave_queue(t, c);
        pthread_mutex_unlock(&t->mu);

        sys = move_piece(&c->job, from, n, &moved);

        pthread_mutex_lock(&t->mu);
        t->moved_ns = clock_ns();
        c->n_out--;
        if (sys != 0 && c->sys == 0)
            c->sys = sys;
        if (sys == 0 && moved < n && from + moved < c->end)
            c->end = from + moved;
        if (c->sys != 0 || c->begun >= c->end)
            leave_queue(t, c);
        if (c->given_up && c->n_out == 0) {
            t->n_stuck--;
            free_call(c);
        } else if (c->n_out == 0 && (c->sys != 0 || c->begun >= c->end)) {
            pthread_cond_signal(&c->all);
        }
    }
    pthread_mutex_unlock(&t->mu);
    return NULL;
}

/* With mu held. As many as can be had; an errno if there is none. */
static int
start_workers(struct threads *t)
{
    sigset_t all, was;
    int sys = 0;

    if (t->n_workers == WORKERS)
        return 0;
    sigfillset(&all); /* signals are for the main thread */
    pthread_sigmask(SIG_SETMASK, &all, &was);
    while (t->n_workers < WORKERS && sys == 0) {
        sys = pthread_create(&t->workers[t->n_workers], NULL, work, t);
        if (sys == 0)
            t->n_workers++;
    }
    pthread_sigmask(SIG_SETMASK, &was, NULL);
    return t->n_workers > 0 ? 0 : sys;
}

static struct call *
new_call(const struct bulk_job *j, int *sys)
{
    struct call *c = calloc(1, sizeof *c);
    pthread_condattr_t attr;

    if (c == NULL) {
        *sys = ENOMEM;
        return NULL;
    }
    c->job = *j;
    c->end = j->n;
    c->job.fd = fcntl(j->fd, F_DUPFD_CLOEXEC, 0);
    if (c->job.fd == -1) {
        *sys = errno;
        free(c);
        return NULL;
    }
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&c->all, &attr);
    pthread_condattr_destroy(&attr);
    return c;
}

/* With mu held. Until all is done, or no thread at all has brought anything back for the
 * deadline: waiting behind others who get on is no hang. */
static void
wait_call(struct threads *t, struct call *c)
{
    const uint64_t patience = (uint64_t)c->job.deadline_ms * 1000000, began = clock_ns();

    while (c->n_out > 0 || (c->sys == 0 && c->begun < c->end)) {
        const uint64_t since = t->moved_ns > began ? t->moved_ns : began;
        const uint64_t until = since + patience;
        const struct timespec ts = {
            .tv_sec = (time_t)(until / 1000000000),
            .tv_nsec = (long)(until % 1000000000),
        };

        if (clock_ns() >= until) {
            c->sys = ETIMEDOUT;
            break;
        }
        pthread_cond_timedwait(&c->all, &t->mu, &ts);
    }
}

ssize_t
threads_move(struct threads *t, const struct bulk_job *j)
{
    int sys = 0;
    struct call *c;
    ssize_t done;

    if (j->n == 0)
        return 0;
    c = new_call(j, &sys);
    if (c == NULL)
        return -sys;
    pthread_mutex_lock(&t->mu);
    sys = t->n_stuck >= IO_STUCK_MOST ? EBUSY : start_workers(t);
    if (sys == 0) {
        *t->last = c;
        t->last = &c->next;
        pthread_cond_broadcast(&t->work);
        wait_call(t, c);
        leave_queue(t, c);
        sys = c->sys;
    }
    done = sys == 0 ? (ssize_t)c->end : -sys;
    if (c->n_out > 0) {
        c->given_up = true;
        t->n_stuck++;
    } else {
        free_call(c);
    }
    pthread_mutex_unlock(&t->mu);
    return done;
}

unsigned
threads_stuck(struct threads *t)
{
    unsigned n;

    pthread_mutex_lock(&t->mu);
    n = t->n_stuck;
    pthread_mutex_unlock(&t->mu);
    return n;
}

void
threads_free(struct threads *t)
{
    bool stuck;

    pthread_mutex_lock(&t->mu);
    t->stop = true;
    stuck = t->n_stuck > 0;
    pthread_cond_broadcast(&t->work);
    pthread_mutex_unlock(&t->mu);
    /* A thread that hangs cannot be joined, and uses *t when it comes back. */
    for (unsigned i = 0; i < t->n_workers; i++) {
        if (stuck)
            pthread_detach(t->workers[i]);
        else
            pthread_join(t->workers[i], NULL);
    }
    if (stuck)
        return;
    pthread_cond_destroy(&t->work);
    pthread_mutex_destroy(&t->mu);
    free(t);
}
