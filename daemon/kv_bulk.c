/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "daemon/kv_bulk.h"
#include "kvstore/io.h"

enum { CHECKER, WRITER, READER, READER_2, THREADS, PATIENCE_S = 5 };

struct kv_bulk {
    struct io *io;
    struct catalog *catalog;
    struct workers *workers;
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
run(void *arg, struct worker_job *work)
{
    struct kv_bulk *b = arg;
    struct kv_bulk_job *job = (struct kv_bulk_job *)work;
    const uint64_t began = clock_ns();
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
    job->ns = clock_ns() - began;
}

static void
on_back(void *arg, struct worker_job *work)
{
    struct kv_bulk_job *job = (struct kv_bulk_job *)work;

    (void)arg;
    job->done(job);
}

static void
drop(struct worker_job *work)
{
    kv_bulk_job_free((struct kv_bulk_job *)work);
}

/* Which thread does it. */
static unsigned
thread_of(const struct kv_bulk *b, const struct kv_bulk_job *job)
{
    switch (job->kind) {
    case KV_BULK_SEAL:
    case KV_BULK_CHECK: return CHECKER;
    case KV_BULK_WRITE:
    case KV_BULK_UNLINK: return WRITER;
    case KV_BULK_READ: break;
    }
    return workers_posted(b->workers, READER_2) < workers_posted(b->workers, READER)
               ? READER_2
               : READER;
}

void
kv_bulk_post(struct kv_bulk *b, struct kv_bulk_job *job)
{
    job->posted_ns = clock_ns();
    workers_post(b->workers, thread_of(b, job), &job->work);
}

uint64_t
kv_bulk_waits_since(const struct kv_bulk *b)
{
    uint64_t oldest = 0;

    for (unsigned i = WRITER; i < THREADS; i++) {
        const uint64_t since = workers_since_ns(b->workers, i);

        if (since != 0 && (oldest == 0 || since < oldest))
            oldest = since;
    }
    return oldest;
}

struct kv_bulk *
kv_bulk_new(struct event_base *base, struct io *io, struct catalog *catalog, struct err *e)
{
    static const struct workers_kind kind = {
        .run = run, .back = on_back, .drop = drop, .turn_ms = -1};
    struct kv_bulk *b = calloc(1, sizeof *b);

    if (b == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory for the store's threads");
        return NULL;
    }
    b->io = io;
    b->catalog = catalog;
    b->workers = workers_new(base, THREADS, &kind, b, e);
    if (b->workers == NULL) {
        free(b);
        return NULL;
    }
    return b;
}

bool
kv_bulk_free(struct kv_bulk *b)
{
    if (b == NULL)
        return true;
    if (!workers_free(b->workers, PATIENCE_S))
        return false; /* what it may touch stays */
    free(b);
    return true;
}
