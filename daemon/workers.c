/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starting, feeding and stopping threads that work for main: the text, store and caches' threads
 * are made of this. Signals are main's alone.
 */
#include "config.h"

#include <errno.h>
#include <event2/event.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "daemon/workers.h"

struct worker {
    struct workers *all;
    unsigned n;
    struct mailbox *box;
    struct worker_job nudge; /* only wakes */
    pthread_t thread;
    bool running, nudged;
    unsigned posted;                      /* and not back: main's */
    _Atomic uint64_t turned_ns, since_ns; /* since: of the job under way; 0 */
};

struct workers {
    const struct workers_kind *kind;
    void *arg;
    struct mailbox *back;
    struct event *on_back;
    atomic_bool stop;
    unsigned n;
    struct worker v[]; /* [n] */
};

static void
do_all(struct worker *w)
{
    struct workers *all = w->all;
    struct mail *next;

    for (struct mail *m = mailbox_take_all(w->box); m != NULL; m = next) {
        struct worker_job *job = (struct worker_job *)m;

        next = m->next;
        if (job == &w->nudge)
            continue;
        w->since_ns = clock_ns();
        if (!atomic_load(&all->stop))
            all->kind->run(all->arg, job);
        w->turned_ns = clock_ns();
        w->since_ns = 0;
        mailbox_post(all->back, &job->mail);
    }
}

static void *
work(void *arg)
{
    struct worker *w = arg;
    struct workers *all = w->all;
    struct pollfd p = {.fd = mailbox_fd(w->box), .events = POLLIN};
    sigset_t mask;

    sigfillset(&mask);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    while (!atomic_load(&all->stop)) {
        w->turned_ns = clock_ns();
        if (poll(&p, 1, all->kind->turn_ms) == -1 && errno != EINTR)
            break;
        do_all(w);
    }
    if (all->kind->end != NULL)
        all->kind->end(all->arg, w->n);
    return NULL;
}

static void
on_back(evutil_socket_t fd, short what, void *arg)
{
    struct workers *w = arg;
    struct mail *next;

    (void)fd;
    (void)what;
    for (struct mail *m = mailbox_take_all(w->back); m != NULL; m = next) {
        struct worker_job *job = (struct worker_job *)m;

        next = m->next;
        w->v[job->thread].posted--;
        w->kind->back(w->arg, job);
    }
}

void
workers_post(struct workers *w, unsigned thread, struct worker_job *job)
{
    job->thread = thread;
    w->v[thread].posted++;
    mailbox_post(w->v[thread].box, &job->mail);
}

unsigned
workers_posted(const struct workers *w, unsigned thread)
{
    return w->v[thread].posted;
}

uint64_t
workers_since_ns(const struct workers *w, unsigned thread)
{
    return w->v[thread].since_ns;
}

uint64_t
workers_turned_ns(const struct workers *w, unsigned thread)
{
    return w->v[thread].turned_ns;
}

static int
start(struct workers *all, unsigned n, struct err *e)
{
    struct worker *w = &all->v[n];
    int rc;

    w->all = all;
    w->n = n;
    w->turned_ns = clock_ns();
    w->box = mailbox_new(e);
    if (w->box == NULL)
        return -1;
    rc = pthread_create(&w->thread, NULL, work, w);
    if (rc != 0)
        return err_set(e, ERR_INTERNAL, rc, "pthread_create: %s", strerror(rc));
    w->running = true;
    return 0;
}

struct workers *
workers_new(struct event_base *base, unsigned n, const struct workers_kind *kind, void *arg,
            struct err *e)
{
    struct workers *w = calloc(1, sizeof *w + n * sizeof w->v[0]);

    if (w == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory for threads");
        return NULL;
    }
    w->kind = kind;
    w->arg = arg;
    w->n = n;
    w->back = mailbox_new(e);
    if (w->back == NULL)
        goto fail;
    w->on_back = event_new(base, mailbox_fd(w->back), EV_READ | EV_PERSIST, on_back, w);
    if (w->on_back == NULL || event_add(w->on_back, NULL) == -1) {
        err_set(e, ERR_QUOTA, errno, "no memory for threads");
        goto fail;
    }
    for (unsigned i = 0; i < n; i++) {
        if (start(w, i, e) == -1)
            goto fail;
    }
    return w;

fail:
    workers_free(w, 0);
    return NULL;
}

static void
drop_all(struct workers *w, struct mailbox *box)
{
    struct mail *next;

    if (box == NULL)
        return;
    for (struct mail *m = mailbox_take_all(box); m != NULL; m = next) {
        struct worker_job *job = (struct worker_job *)m;
        bool nudge = false;

        next = m->next;
        for (unsigned i = 0; i < w->n; i++)
            nudge = nudge || job == &w->v[i].nudge;
        if (!nudge)
            w->kind->drop(job);
    }
    mailbox_free(box);
}

static bool
join(struct worker *w, unsigned patience_s)
{
    struct timespec until;

    if (patience_s == 0)
        return pthread_join(w->thread, NULL) == 0;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += patience_s;
    return pthread_timedjoin_np(w->thread, NULL, &until) == 0;
}

bool
workers_free(struct workers *w, unsigned patience_s)
{
    bool hangs = false;

    if (w == NULL)
        return true;
    atomic_store(&w->stop, true);
    if (w->on_back != NULL)
        event_free(w->on_back);
    w->on_back = NULL;
    for (unsigned i = 0; i < w->n; i++) {
        if (w->v[i].running && !w->v[i].nudged)
            mailbox_post(w->v[i].box, &w->v[i].nudge.mail);
        w->v[i].nudged = true;
    }
    for (unsigned i = 0; i < w->n; i++) {
        if (w->v[i].running && join(&w->v[i], patience_s))
            w->v[i].running = false;
        hangs = hangs || w->v[i].running;
    }
    if (hangs)
        return false;
    for (unsigned i = 0; i < w->n; i++)
        drop_all(w, w->v[i].box);
    drop_all(w, w->back);
    free(w);
    return true;
}
