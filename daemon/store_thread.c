/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The threads that wait for the disk, so that the event loop need not. They share nothing: a
 * session's jobs all go to the thread that its id says, and with them its ledger. A ledger that
 * failed is closed at once and opened anew by the next job: what it takes then is what the disk
 * really holds.
 *
 * Before a ledger is opened its id is made `hot` in the catalogue; when it is closed the catalogue is
 * told what is in it. The id is cold again when its session is parked, not before: files that are
 * on their way while the ledger is closed for want of handles are safe from being swept. So after a
 * crash only sessions that were in use have to be looked at.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "daemon/store_thread.h"

enum { LONG_THREAD = STORE_THREADS, ALL_THREADS, TURN_MS = 1000 };

struct handle {
    struct kvfile_id id;
    struct ledger *ledger; /* NULL: not in use */
    bool changed;
    struct catalog_entry entry; /* changed: what the catalogue is to be told */
    uint64_t used;
};

struct thread {
    struct store_tools tools;
    struct store_threads *all;
    struct handle handles[STORE_HANDLES];
    struct kvfile_id *hot; /* to be cold again */
    size_t n_hot, hot_room;
    uint64_t stamp;
};

struct store_threads {
    struct workers *workers;
    /* A piece of a sweep, or any number of ledgers being looked at. */
    pthread_rwlock_t sweeping;
    atomic_uint_least64_t index_failures, index_renewals; /* that were told of */
    int ending; /* threads that have yet to close their ledgers */
    void (*ended)(void *arg);
    void *ended_arg;
    struct thread threads[ALL_THREADS];
};

/* --- jobs --------------------------------------------------------------------------------- */

struct store_job *
store_job_new(enum store_kind kind, const struct kvfile_id *id,
              void (*done)(struct store_job *), void *arg, struct err *e)
{
    struct store_job *job = calloc(1, sizeof *job);

    if (job == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory for a job of the store");
        return NULL;
    }
    job->kind = kind;
    if (id != NULL)
        job->id = *id;
    job->done = done;
    job->arg = arg;
    return job;
}

void
store_job_free(struct store_job *job)
{
    if (job == NULL)
        return;
    free((void *)(uintptr_t)job->change.tokens);
    free((void *)(uintptr_t)job->change.points);
    free((void *)(uintptr_t)job->change.ops);
    free((void *)(uintptr_t)job->change.add);
    free((void *)(uintptr_t)job->change.drop);
    ledger_content_done(&job->content);
    free(job->own);
    free(job);
}

/* --- ledgers ------------------------------------------------------------------------------ */

static struct handle *
find(struct thread *th, const struct kvfile_id *id)
{
    for (size_t i = 0; i < STORE_HANDLES; i++) {
        struct handle *h = &th->handles[i];

        if (h->ledger != NULL && memcmp(&h->id, id, sizeof *id) == 0)
            return h;
    }
    return NULL;
}

static size_t
find_hot(const struct thread *th, const struct kvfile_id *id)
{
    size_t i = 0;

    while (i < th->n_hot && memcmp(&th->hot[i], id, sizeof *id) != 0)
        i++;
    return i;
}

static int
make_hot(struct thread *th, const struct kvfile_id *id, struct err *e)
{
    if (find_hot(th, id) < th->n_hot)
        return 0;
    if (th->n_hot == th->hot_room) {
        const size_t room = th->hot_room > 0 ? 2 * th->hot_room : STORE_HANDLES;
        struct kvfile_id *v = realloc(th->hot, room * sizeof *v);

        if (v == NULL)
            return err_set(e, ERR_QUOTA, errno, "no memory for %zu open sessions", room);
        th->hot = v;
        th->hot_room = room;
    }
    if (catalog_hot(th->tools.catalog, id, true, e) == -1)
        return -1;
    th->hot[th->n_hot++] = *id;
    return 0;
}

/* It stays hot in the catalogue: the next start looks for itself. */
static void
forget_hot(struct thread *th, const struct kvfile_id *id)
{
    const size_t i = find_hot(th, id);

    if (i < th->n_hot)
        th->hot[i] = th->hot[--th->n_hot];
}

static void
make_cold(struct thread *th, const struct kvfile_id *id)
{
    struct err e;

    if (find_hot(th, id) == th->n_hot)
        return;
    forget_hot(th, id);
    if (catalog_hot(th->tools.catalog, id, false, &e) == -1)
        log_line(LOG_WARNING, "catalogue-behind why=\"%s\"", e.text);
}

/* well: what it holds is what the catalogue is told. */
static void
close_handle(struct thread *th, struct handle *h, bool well)
{
    struct err e;

    ledger_close(h->ledger);
    h->ledger = NULL;
    if (!well) {
        forget_hot(th, &h->id);
    } else if (h->changed && catalog_note(th->tools.catalog, &h->entry, &e) == -1) {
        forget_hot(th, &h->id);
        log_line(LOG_WARNING, "catalogue-behind why=\"%s\"", e.text);
    }
}

/* A place for one more: free, or the least recently used. */
static struct handle *
place(struct thread *th)
{
    struct handle *best = th->handles;

    for (size_t i = 0; i < STORE_HANDLES; i++) {
        struct handle *h = &th->handles[i];

        if (h->ledger == NULL)
            return h;
        if (h->used < best->used)
            best = h;
    }
    close_handle(th, best, true);
    return best;
}

static struct handle *
get(struct thread *th, const struct kvfile_id *id, struct err *e)
{
    struct handle *h = find(th, id);
    char dir[CATALOG_DIR_MAX];
    struct err mended;
    uint64_t at;

    if (h == NULL) {
        h = place(th);
        *h = (struct handle){.id = *id};
        catalog_dir(id, dir);
        if (make_hot(th, id, e) == -1)
            return NULL;
        if (ledger_open(th->tools.io, dir, false, &h->ledger, e) == -1) {
            h->ledger = NULL;
            return NULL;
        }
        if (ledger_mended(h->ledger, &at) > 0) { /* it was not when the store was opened */
            err_set(&mended, ERR_DAMAGED, 0, "%s: at %llu of its log", dir,
                    (unsigned long long)at);
            log_line(LOG_WARNING, "ledger-mended why=\"%s\"", mended.text);
        }
    }
    h->used = ++th->stamp;
    return h;
}

/* For run(): the tools are a thread's first member. */
static struct ledger *
tool_ledger(struct store_tools *t, const struct kvfile_id *id, struct err *e)
{
    struct thread *th = (struct thread *)(void *)t;
    struct handle *h;

    if (th == &th->all->threads[LONG_THREAD]) {
        err_set(e, ERR_INTERNAL, 0, "the thread for long jobs has no ledgers");
        return NULL;
    }
    h = get(th, id, e);
    return h != NULL ? h->ledger : NULL;
}

static void
tool_close(struct store_tools *t, const struct kvfile_id *id)
{
    struct thread *th = (struct thread *)(void *)t;
    struct handle *h = find(th, id);

    if (h != NULL)
        close_handle(th, h, true);
}

static void
close_all(struct thread *th)
{
    for (size_t i = 0; i < STORE_HANDLES; i++) {
        if (th->handles[i].ledger != NULL)
            close_handle(th, &th->handles[i], true);
    }
    while (th->n_hot > 0)
        make_cold(th, &th->hot[th->n_hot - 1]);
}

/* Nothing is done with it any more. */
static void
let_go(struct thread *th, const struct kvfile_id *id)
{
    tool_close(&th->tools, id);
    make_cold(th, id);
}

/* --- what is done ------------------------------------------------------------------------- */

/* Without opening it for changes, if it is not open: to read a session leaves no trace on the
 * disk, and costs no sync. But then it is not hot, and could be swept meanwhile. */
static int
load(struct thread *th, struct store_job *job, struct err *e)
{
    struct handle *h = find(th, &job->id);
    struct ledger *l = NULL;
    char dir[CATALOG_DIR_MAX];
    int rc;

    catalog_dir(&job->id, dir);
    if (h == NULL) {
        pthread_rwlock_rdlock(&th->all->sweeping);
        rc = ledger_look(th->tools.io, dir, &l, e);
        if (rc == 0)
            rc = ledger_load(l, &job->content, e);
        ledger_close(l);
        pthread_rwlock_unlock(&th->all->sweeping);
    } else {
        rc = ledger_load(h->ledger, &job->content, e);
    }
    if (rc == -1 && h != NULL)
        close_handle(th, h, false);
    for (uint64_t i = 0; i < job->content.len; i++) {
        if (job->content.tokens[i] > job->max_id)
            job->max_id = job->content.tokens[i];
    }
    return rc;
}

static int
commit(struct thread *th, struct store_job *job, struct err *e)
{
    struct handle *h = get(th, &job->id, e);

    if (h == NULL)
        return -1;
    if (ledger_commit(h->ledger, &job->change, e) == -1) {
        close_handle(th, h, false);
        return -1;
    }
    h->changed = true;
    h->entry = (struct catalog_entry){.id = job->id,
                                      .meta = job->meta,
                                      .len = job->len,
                                      .n_points = job->n_points,
                                      .disk_bytes = job->disk_bytes};
    return 0;
}

static int
sweep(struct thread *th, struct store_job *job, struct err *e)
{
    int rc;

    pthread_rwlock_wrlock(&th->all->sweeping);
    rc = catalog_sweep(th->tools.catalog, e);
    pthread_rwlock_unlock(&th->all->sweeping);
    job->more = rc == 1;
    return rc == -1 ? -1 : 0;
}

static int
run_job(struct thread *th, struct store_job *job, struct err *e)
{
    struct catalog *c = th->tools.catalog;

    switch (job->kind) {
    case STORE_CREATE: return catalog_create(c, &job->id, &job->change, e);
    case STORE_FORK: return catalog_fork(c, &job->from, &job->id, &job->change, e);
    case STORE_LOAD: return load(th, job, e);
    case STORE_COMMIT: return commit(th, job, e);
    case STORE_CLOSE: let_go(th, &job->id); return 0;
    case STORE_DELETE: let_go(th, &job->id); return catalog_delete(c, &job->id, e);
    case STORE_QUARANTINE:
        let_go(th, &job->id);
        return catalog_quarantine(c, &job->id, job->why, e);
    case STORE_RUN:
    case STORE_RUN_LONG: return job->run(job->arg, &th->tools, e);
    case STORE_SWEEP: return sweep(th, job, e);
    case STORE_END: close_all(th); return 0;
    }
    return err_set(e, ERR_INTERNAL, 0, "no such job of the store");
}

/* The library says nothing itself. */
static void
tell_index(struct store_threads *all, struct catalog *c)
{
    struct catalog_health h;
    struct err why;

    catalog_health(c, &h);
    if (h.failures > atomic_exchange(&all->index_failures, h.failures)) {
        catalog_why(c, &why);
        log_line(LOG_ERROR, "index-failed why=\"%s\"", why.text);
    }
    if (h.renewals > atomic_exchange(&all->index_renewals, h.renewals))
        log_line(LOG_NOTICE, "index-made-again");
}

static void
run(void *arg, struct worker_job *work)
{
    struct store_threads *t = arg;
    struct store_job *job = (struct store_job *)work;
    struct err e = {0};

    if (run_job(&t->threads[work->thread], job, &e) == -1)
        job->err = e;
    tell_index(t, t->threads[work->thread].tools.catalog);
    job->done_ns = clock_ns();
}

static void
end(void *arg, unsigned thread)
{
    struct store_threads *t = arg;

    close_all(&t->threads[thread]);
}

/* --- main's side -------------------------------------------------------------------------- */

static void
on_back(void *arg, struct worker_job *work)
{
    struct store_job *job = (struct store_job *)work;

    (void)arg;
    job->done(job);
}

static void
drop(struct worker_job *work)
{
    store_job_free((struct store_job *)work);
}

/* The same session, the same thread. */
static unsigned
thread_of(const struct store_job *job)
{
    const struct kvfile_id *id = job->kind == STORE_FORK ? &job->from : &job->id;

    if (job->kind == STORE_RUN_LONG || job->kind == STORE_SWEEP)
        return LONG_THREAD;
    return id->b[0] % STORE_THREADS; /* ids are random */
}

static void
post(struct store_threads *t, unsigned thread, struct store_job *job)
{
    job->posted_ns = clock_ns();
    workers_post(t->workers, thread, &job->work);
}

void
store_threads_post(struct store_threads *t, struct store_job *job)
{
    post(t, thread_of(job), job);
}

static void
on_end(struct store_job *job)
{
    struct store_threads *t = job->arg;

    store_job_free(job);
    if (--t->ending == 0)
        t->ended(t->ended_arg);
}

int
store_threads_end(struct store_threads *t, void (*done)(void *arg), void *arg,
                  struct err *e)
{
    struct store_job *jobs[ALL_THREADS] = {0};

    for (int i = 0; i < ALL_THREADS; i++) {
        jobs[i] = store_job_new(STORE_END, NULL, on_end, t, e);
        if (jobs[i] != NULL)
            continue;
        while (i > 0)
            store_job_free(jobs[--i]);
        return -1;
    }
    t->ended = done;
    t->ended_arg = arg;
    t->ending = ALL_THREADS;
    for (unsigned i = 0; i < ALL_THREADS; i++)
        post(t, i, jobs[i]);
    return 0;
}

void
store_threads_alive(const struct store_threads *t, struct store_alive *out)
{
    const uint64_t now = clock_ns();

    *out = (struct store_alive){0};
    for (unsigned i = 0; i < ALL_THREADS; i++) {
        const uint64_t turned = workers_turned_ns(t->workers, i);
        const uint64_t began = workers_since_ns(t->workers, i);

        out->waiting += workers_posted(t->workers, i);
        if (i == LONG_THREAD)
            continue;
        if (now > turned && now - turned > out->turned_ns)
            out->turned_ns = now - turned;
        if (began != 0 && now > began && now - began > out->job_ns)
            out->job_ns = now - began;
    }
}

struct store_threads *
store_threads_new(struct event_base *base, struct io *io, struct catalog *catalog,
                  struct err *e)
{
    static const struct workers_kind kind = {
        .run = run, .back = on_back, .drop = drop, .end = end, .turn_ms = TURN_MS};
    struct store_threads *t = calloc(1, sizeof *t);

    if (t == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory for the store's threads");
        return NULL;
    }
    pthread_rwlock_init(&t->sweeping, NULL);
    for (int i = 0; i < ALL_THREADS; i++)
        t->threads[i] = (struct thread){
            .tools = {io, catalog, .ledger = tool_ledger, .close = tool_close}, .all = t};
    t->workers = workers_new(base, ALL_THREADS, &kind, t, e);
    if (t->workers == NULL) {
        pthread_rwlock_destroy(&t->sweeping);
        free(t);
        return NULL;
    }
    return t;
}

void
store_threads_free(struct store_threads *t)
{
    if (t == NULL)
        return;
    workers_free(t->workers, 0);
    for (int i = 0; i < ALL_THREADS; i++)
        free(t->threads[i].hot);
    pthread_rwlock_destroy(&t->sweeping);
    free(t);
}
