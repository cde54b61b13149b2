/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <event2/event.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "daemon/kv_bulk.h"
#include "kvstore/io.h"

enum { CHECKER, WRITER, READER, READER_2, WORKERS, PATIENCE_S = 5 };

struct worker {
    struct kv_bulk *b;
    struct mailbox *box;
    pthread_t thread;
    bool running;
    unsigned posted;           /* and not back: main's */
    _Atomic uint64_t since_ns; /* in a job since then; 0: in none */
};

struct kv_bulk {
    struct io *io;
    struct catalog *catalog;
    struct mailbox *back;
    struct event *on_back;
    atomic_bool stop;
    struct worker workers[WORKERS];
};

struct kv_bulk_job *
kv_bulk_job_new(enum kv_bulk_kind kind, void (*done)(struct kv_bulk_job *), void *owner,
                struct err *e)
{
    struct kv_bulk_job *job = calloc(1, sizeof *job);

    if (job == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory for a job of the store");
        return NULL;
    }
    job->kind = kind;
    job->done = done;
    job->owner = owner;
    return job;
}

void
kv_bulk_job_free(struct kv_bulk_job *job)
{
    if (job == NULL)
        return;
    free(job->tokens);
    free(job);
}

static int
seal(struct kv_bulk_job *job, struct err *e)
{
    struct kvfile_plan plan;

    kvfile_plan(job->model, &job->about, &plan);
    if (plan.bytes > job->room)
        return err_set(e, ERR_INTERNAL, 0, "an image of %" PRIu64 " bytes in %" PRIu64,
                       plan.bytes, job->room);
    if (job->about.logits && plan.logits_at != job->row_at)
        memmove(job->image + plan.logits_at, job->image + job->row_at,
                job->model->vocab * sizeof(float));
    kvfile_seal(job->model, &job->about, job->tokens, job->image);
    job->bytes = plan.bytes;
    return 0;
}

/* Its checksums say that it is whole; that it is of this session its place, its id and its
 * tokens do. */
static int
check(struct kv_bulk_job *job, struct err *e)
{
    const uint32_t *tokens = NULL;
    struct kvfile_about about;
    struct kvfile_plan plan;

    if (kvfile_check(job->image, job->room, job->model, &job->about, &about, &plan, &tokens,
                     e) == -1)
        return -1;
    if (job->n_tokens > 0 &&
        (tokens == NULL || about.n_tokens < job->n_tokens ||
         memcmp(tokens, job->tokens, job->n_tokens * sizeof *tokens) != 0))
        return err_set(e, ERR_DAMAGED, 0,
                       "the chunk at position %" PRIu64 " is of other tokens", about.pos);
    return 0;
}

static int
remove_file(struct io *io, const struct kv_bulk_job *job, struct err *e)
{
    char name[KVFILE_NAME_MAX], path[CATALOG_DIR_MAX + KVFILE_NAME_MAX + 1];

    kvfile_name(&job->about, name);
    snprintf(path, sizeof path, "%s/%s", job->dir, name);
    return io->ops->unlink(io, path, e);
}

static void
run(struct kv_bulk *b, struct kv_bulk_job *job)
{
    struct err e = {0};
    int rc = 0;

    switch (job->kind) {
    case KV_BULK_SEAL: rc = seal(job, &e); break;
    case KV_BULK_CHECK: rc = check(job, &e); break;
    case KV_BULK_WRITE:
        /* Before there is a file: or it could be swept before the ledger names it. */
        rc = catalog_hot(b->catalog, &job->session, true, &e);
        if (rc == 0)
            rc = kvfile_publish(b->io, job->dir, &job->about, job->image, job->room, &e);
        break;
    case KV_BULK_READ:
        rc = kvfile_read(b->io, job->dir, &job->about, job->image, job->room, &job->bytes,
                         &e);
        break;
    case KV_BULK_UNLINK: rc = remove_file(b->io, job, &e); break;
    }
    if (rc == -1)
        job->err = e;
}

static void *
work(void *arg)
{
    struct worker *w = arg;
    struct pollfd p = {.fd = mailbox_fd(w->box), .events = POLLIN};
    sigset_t all;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    while (!atomic_load(&w->b->stop)) {
        struct mail *next;

        if (poll(&p, 1, -1) == -1 && errno != EINTR)
            break;
        for (struct mail *m = mailbox_take_all(w->box); m != NULL; m = next) {
            struct kv_bulk_job *job = (struct kv_bulk_job *)m;
            const uint64_t began = clock_ns();

            next = m->next;
            atomic_store(&w->since_ns, began);
            if (!atomic_load(&w->b->stop))
                run(w->b, job);
            atomic_store(&w->since_ns, 0);
            job->ns = clock_ns() - began;
            mailbox_post(w->b->back, &job->mail);
        }
    }
    return NULL;
}

static void
on_back(evutil_socket_t fd, short what, void *arg)
{
    struct kv_bulk *b = arg;
    struct mail *next;

    (void)fd;
    (void)what;
    for (struct mail *m = mailbox_take_all(b->back); m != NULL; m = next) {
        struct kv_bulk_job *job = (struct kv_bulk_job *)m;

        next = m->next;
        b->workers[job->worker].posted--;
        job->done(job);
    }
}

void
kv_bulk_post(struct kv_bulk *b, struct kv_bulk_job *job)
{
    switch (job->kind) {
    case KV_BULK_SEAL:
    case KV_BULK_CHECK: job->worker = CHECKER; break;
    case KV_BULK_WRITE:
    case KV_BULK_UNLINK: job->worker = WRITER; break;
    case KV_BULK_READ:
        job->worker = b->workers[READER_2].posted < b->workers[READER].posted ? READER_2
                                                                              : READER;
        break;
    }
    job->posted_ns = clock_ns();
    b->workers[job->worker].posted++;
    mailbox_post(b->workers[job->worker].box, &job->mail);
}

uint64_t
kv_bulk_waits_since(const struct kv_bulk *b)
{
    uint64_t oldest = 0;

    for (int i = WRITER; i < WORKERS; i++) {
        const uint64_t since = atomic_load(&b->workers[i].since_ns);

        if (since != 0 && (oldest == 0 || since < oldest))
            oldest = since;
    }
    return oldest;
}

static int
start_worker(struct kv_bulk *b, struct worker *w, struct err *e)
{
    int rc;

    w->b = b;
    w->box = mailbox_new(e);
    if (w->box == NULL)
        return -1;
    rc = pthread_create(&w->thread, NULL, work, w);
    if (rc != 0)
        return err_set(e, ERR_INTERNAL, rc, "pthread_create: %s", strerror(rc));
    w->running = true;
    return 0;
}

struct kv_bulk *
kv_bulk_new(struct event_base *base, struct io *io, struct catalog *catalog, struct err *e)
{
    struct kv_bulk *b = calloc(1, sizeof *b);

    if (b == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory for the store's threads");
        return NULL;
    }
    b->io = io;
    b->catalog = catalog;
    b->back = mailbox_new(e);
    if (b->back == NULL)
        goto fail;
    b->on_back = event_new(base, mailbox_fd(b->back), EV_READ | EV_PERSIST, on_back, b);
    if (b->on_back == NULL || event_add(b->on_back, NULL) == -1) {
        err_set(e, ERR_QUOTA, errno, "no memory for the store's threads");
        goto fail;
    }
    for (int i = 0; i < WORKERS; i++) {
        if (start_worker(b, &b->workers[i], e) == -1)
            goto fail;
    }
    return b;

fail:
    kv_bulk_free(b);
    return NULL;
}

static void
drop_all(struct mailbox *box)
{
    struct mail *next;

    for (struct mail *m = mailbox_take_all(box); m != NULL; m = next) {
        next = m->next;
        kv_bulk_job_free((struct kv_bulk_job *)m);
    }
}

/* A mail that only wakes: the worker sees `stop` and hands it back unread. */
static bool
stop_worker(struct worker *w)
{
    struct timespec until;
    struct err e;
    struct kv_bulk_job *nudge = kv_bulk_job_new(KV_BULK_SEAL, NULL, NULL, &e);

    if (nudge == NULL)
        return false;
    mailbox_post(w->box, &nudge->mail);
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += PATIENCE_S;
    return pthread_timedjoin_np(w->thread, NULL, &until) == 0;
}

bool
kv_bulk_free(struct kv_bulk *b)
{
    bool hangs = false;

    if (b == NULL)
        return true;
    atomic_store(&b->stop, true);
    if (b->on_back != NULL)
        event_free(b->on_back);
    for (int i = 0; i < WORKERS; i++) {
        if (b->workers[i].running && !stop_worker(&b->workers[i]))
            hangs = true;
    }
    if (hangs)
        return false; /* what it may touch stays */
    for (int i = 0; i < WORKERS; i++) {
        if (b->workers[i].box != NULL)
            drop_all(b->workers[i].box);
        mailbox_free(b->workers[i].box);
    }
    if (b->back != NULL)
        drop_all(b->back);
    mailbox_free(b->back);
    free(b);
    return true;
}
