/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The store as a whole: opens it, makes sessions of what the catalogue knows, deletes, counts and
 * ends. A session that is found is parked: the catalogue's few figures are all of it that is in
 * memory, so that a start takes as long with ten thousand of them as it takes to read one table.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <event2/event.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "daemon/options.h"
#include "daemon/session_files.h"
#include "daemon/store_impl.h"
#include "kvstore/io.h"

enum { IDLE_TICK_MS = 1000, SWEEP_PAUSE_MS = 50, SWEEP_RETRY_S = 60 };

/* --- waiting ------------------------------------------------------------------------------ */

void
store_wait_add(struct store_wait **list, struct store_wait *w)
{
    assert(w->at == NULL);
    while (*list != NULL)
        list = &(*list)->next;
    w->next = NULL;
    w->at = list;
    *list = w;
}

void
store_unwait(struct store_wait *w)
{
    if (w->at == NULL)
        return;
    *w->at = w->next;
    if (w->next != NULL)
        w->next->at = w->at;
    w->at = NULL;
    w->next = NULL;
}

/* From the front each time: a call may take others out of the list. */
void
store_wait_call(struct store_wait **list, uint64_t turn, const struct err *why)
{
    struct store_wait *w;

    while ((w = *list) != NULL && w->turn <= turn) {
        store_unwait(w);
        w->fn(w, why);
    }
}

/* --- jobs --------------------------------------------------------------------------------- */

void
store_post(struct store *st, struct session *s, struct store_job *job)
{
    s->store.busy++;
    st->jobs++;
    store_threads_post(st->threads, job);
}

static void
on_ended(void *arg)
{
    struct store *st = arg;

    st->ended = true;
    st->end(st->end_arg);
}

static void
try_end(struct store *st)
{
    struct err e;

    if (!st->ending || st->ended || st->jobs > 0)
        return;
    st->ended = true;
    if (store_threads_end(st->threads, on_ended, st, &e) == 0)
        return;
    log_line(LOG_WARNING, "store-end why=\"%s\"", e.text);
    st->end(st->end_arg); /* store_free() closes what is open */
}

static void
on_deleted(struct store_job *job)
{
    struct session *s = job->arg;
    struct store *st = s->store.of;
    const struct err why = job->err;

    store_job_free(job);
    if (why.code != ERR_NONE && why.code != ERR_NOT_FOUND) {
        st->counts.errors++;
        log_line(LOG_ERROR, "delete-failed why=\"%s\"", why.text);
        store_wait_call(&s->store.deletes, UINT64_MAX, &why);
    } else {
        st->counts.deletes++;
        STORE_TELL(st, deleted, s);
        store_wait_call(&s->store.deletes, UINT64_MAX, NULL);
        store_sweep(st);
    }
    s->store.deleted = true;
    store_back(st, s);
}

/* When nothing else of it is under way, for what is under way may be its making. */
static void
go_on_deleting(struct store *st, struct session *s)
{
    const bool there = s->store.made && !s->store.aside;
    struct store_job *job;
    struct err e;

    if (!s->store.deleting || s->store.deleted || s->store.busy > 0)
        return;
    s->store.busy++; /* whoever is told may let go of it */
    job = there ? store_job_new(STORE_DELETE, &s->id, on_deleted, s, &e) : NULL;
    if (job != NULL) {
        store_post(st, s, job);
    } else {
        s->store.deleted = true;
        if (there)
            log_line(LOG_ERROR, "delete-failed why=\"%s\"", e.text);
        store_wait_call(&s->store.deletes, UINT64_MAX, there ? &e : NULL);
    }
    s->store.busy--;
}

void
store_back(struct store *st, struct session *s)
{
    st->jobs--;
    s->store.busy--;
    go_on_deleting(st, s);
    if (s->store.busy == 0)
        STORE_TELL(st, idle, s); /* may free it */
    try_end(st);
}

void
store_delete(struct store *st, struct session *s, struct store_wait *w)
{
    struct err why;

    s->store.deleting = true;
    s->store.busy++;
    store_dirty_drop(st, s);
    store_loaded_drop(st, s);
    store_fault_clear(st, s);
    err_set(&why, ERR_NOT_FOUND, 0, "the session was deleted");
    store_wait_call(&s->store.loads, UINT64_MAX, &why);
    if (!s->log.committing)
        store_wait_call(&s->store.commits, UINT64_MAX, &why);
    if (w != NULL)
        store_wait_add(&s->store.deletes, w);
    s->store.busy--;
    go_on_deleting(st, s);
}

/* --- the start ---------------------------------------------------------------------------- */

struct found {
    struct session *s;
    char name[SESSION_NAME_MAX + 1];
};

struct finding {
    struct store *st;
    struct found *v;
    size_t n, room;
    struct err *e;
};

static int
by_owner(const void *a, const void *b)
{
    const struct found *x = a, *y = b;
    const uint32_t u = x->s->user->uid, v = y->s->user->uid;

    if (u != v)
        return u < v ? -1 : 1;
    if (strcmp(x->name, y->name) != 0)
        return strcmp(x->name, y->name);
    return x->s->created_ms < y->s->created_ms ? -1 : x->s->created_ms > y->s->created_ms;
}

static void
fill(struct store *st, struct session *s, const struct catalog_entry *en)
{
    const struct ledger_meta *m = &en->meta;
    const uint64_t own = SESSION_DISK_BYTES + en->len * sizeof(uint32_t);

    s->id = en->id;
    s->store.of = st;
    s->store.lasting = s->store.made = true;
    s->gid = m->gid;
    s->mode = m->mode & 0777;
    s->created_ms = m->created_ms;
    s->used_ms = m->used_ms;
    s->kept = *m;
    memcpy(s->fingerprint, m->fingerprint, sizeof s->fingerprint);
    session_log_found(&s->log, en->len, en->n_points);
    s->log.turns = m->turns;
    s->log.rollbacks = m->rollbacks;
    s->log.turn_open = m->turn_open != 0;
    s->file_bytes = en->disk_bytes > own ? en->disk_bytes - own : 0;
    quota_force(s->user, QUOTA_DISK, SESSION_DISK_BYTES + s->file_bytes);
    s->state = en->damaged ? SESSION_DAMAGED : SESSION_PARKED;
}

static int
on_entry(void *arg, const struct catalog_entry *en)
{
    struct finding *f = arg;
    struct user *u;
    struct session *s;

    if (f->n == f->room) {
        const size_t room = f->room > 0 ? 2 * f->room : 64;
        struct found *v = realloc(f->v, room * sizeof *v);

        if (v == NULL)
            return err_set(f->e, ERR_QUOTA, errno, "no memory for %zu sessions", room);
        f->v = v;
        f->room = room;
    }
    u = f->n > 0 && f->v[f->n - 1].s->user->uid == en->meta.uid
            ? quota_hold(f->v[f->n - 1].s->user)
            : quota_user(f->st->q, en->meta.uid, f->e);
    s = u != NULL ? session_found(u, f->st->o->max_checkpoints, f->e) : NULL;
    quota_drop(u);
    if (s == NULL)
        return -1;
    fill(f->st, s, en);
    f->st->counts.damaged += en->damaged;
    if (catalog_mended(f->st->catalog, &en->id)) {
        f->st->counts.mended++;
        log_line(LOG_WARNING, "ledger-mended session=%s uid=%" PRIu32, en->meta.name,
                 en->meta.uid);
    }
    if (en->damaged) {
        s->store.damage = strdup(en->why);
        log_line(LOG_ERROR, "session-damaged uid=%" PRIu32 " session=%s why=\"%s\"",
                 en->meta.uid, en->meta.name, en->why);
    }
    f->v[f->n].s = s;
    snprintf(f->v[f->n].name, sizeof f->v[f->n].name, "%s", en->meta.name);
    /* What is left of a damaged one need not tell its name. */
    if (session_name_check(en->meta.name, &(struct err){0}) == -1)
        snprintf(f->v[f->n].name, sizeof f->v[f->n].name, "damaged-%02x%02x%02x%02x",
                 en->id.b[0], en->id.b[1], en->id.b[2], en->id.b[3]);
    f->n++;
    return 0;
}

/* A name may be there twice: it was deleted or given away, and taken anew, and the end came in
 * between. Nobody was told that, so the younger one may have another name. */
static int
link_found(struct store *st, struct found *f, struct err *e)
{
    char name[SESSION_NAME_MAX + 1];

    if (session_link(f->s, f->name, e) == 0)
        return 0;
    for (int i = 2; e->code == ERR_EXISTS; i++) {
        snprintf(name, sizeof name, "%.55s.%d", f->name, i);
        if (session_link(f->s, name, e) == -1)
            continue;
        log_line(LOG_NOTICE, "session-renamed session=%s to=%s uid=%" PRIu32, f->name, name,
                 f->s->user->uid);
        session_log_touch(&f->s->log);
        store_commit_soon(st, f->s);
        return 0;
    }
    return -1;
}

int
store_find_all(struct store *st, struct err *e)
{
    struct finding f = {.st = st, .e = e};
    size_t linked = 0;
    int rc = catalog_each(st->catalog, on_entry, &f, e);

    if (rc == 0 && f.n > 0)
        qsort(f.v, f.n, sizeof *f.v, by_owner);
    while (rc == 0 && linked < f.n) {
        rc = link_found(st, &f.v[linked], e);
        linked += rc == 0;
    }
    for (size_t i = linked; i < f.n; i++)
        session_free(f.v[i].s);
    if (rc == 0)
        log_line(LOG_INFO, "store-open sessions=%zu tokens=%" PRIu64, f.n,
                 st->q->used[QUOTA_TOKENS]);
    free(f.v);
    if (rc == 0)
        store_sweep(st);
    return rc;
}

struct session *
store_take_in(struct store *st, const struct catalog_entry *en, struct err *e)
{
    struct finding f = {.st = st, .e = e};
    struct session *s = NULL;

    if (on_entry(&f, en) == 0) {
        s = f.v[0].s;
        if (link_found(st, &f.v[0], e) == -1) {
            session_free(s);
            s = NULL;
        }
    }
    free(f.v);
    return s;
}

int
store_adopt(struct store *st, struct session *s, const struct session *from, struct err *e)
{
    if (quota_take(s->user, QUOTA_DISK, SESSION_DISK_BYTES, e) == -1)
        return -1;
    catalog_new_id(&s->id);
    s->store.of = st;
    s->store.lasting = true;
    s->store.forked = from != NULL;
    if (from != NULL)
        s->store.from = from->id;
    session_log_touch(&s->log);
    store_loaded_add(st, s);
    return 0;
}

/* --- jobs for others ---------------------------------------------------------------------- */

struct task {
    struct session *s;
    int (*fn)(void *arg, struct store_tools *t, struct err *e);
    void (*done)(void *arg, const struct err *why);
    void *arg;
};

static int
run_task(void *arg, struct store_tools *t, struct err *e)
{
    const struct task *task = arg;

    return task->fn(task->arg, t, e);
}

static void
on_run(struct store_job *job)
{
    struct task *task = job->arg;
    struct session *s = task->s;
    struct store *st = s->store.of;

    task->done(task->arg, job->err.code != ERR_NONE ? &job->err : NULL);
    store_job_free(job);
    store_back(st, s);
}

int
store_run(struct store *st, struct session *s, bool longer,
          int (*fn)(void *arg, struct store_tools *t, struct err *e),
          void (*done)(void *arg, const struct err *why), void *arg, struct err *e)
{
    struct task *task = malloc(sizeof *task);
    struct store_job *job =
        task == NULL
            ? NULL
            : store_job_new(longer ? STORE_RUN_LONG : STORE_RUN, &s->id, on_run, task, e);

    if (job == NULL) {
        free(task);
        return err_set(e, ERR_QUOTA, errno, "no memory for a job of the store");
    }
    *task = (struct task){.s = s, .fn = fn, .done = done, .arg = arg};
    job->own = task;
    job->run = run_task;
    store_post(st, s, job);
    return 0;
}

static void
on_swept(struct store_job *job)
{
    const bool failed = job->err.code != ERR_NONE;
    const struct timeval pause = {.tv_sec = failed ? SWEEP_RETRY_S : 0,
                                  .tv_usec = failed ? 0 : SWEEP_PAUSE_MS * 1000};
    struct store *st = job->arg;

    if (failed)
        log_line(LOG_WARNING, "sweep why=\"%s\"", job->err.text);
    /* Not at once: each piece holds up whoever opens a ledger meanwhile. */
    st->sweeping = (job->more || failed || st->sweep_again) &&
                   event_add(st->sweep, &pause) == 0;
    st->sweep_again = false;
    store_job_free(job);
}

static void
sweep(struct store *st)
{
    struct store_job *job;
    struct err e;

    st->sweeping = false;
    if (st->ending)
        return;
    job = store_job_new(STORE_SWEEP, NULL, on_swept, st, &e);
    if (job == NULL)
        return; /* with the next deletion, or the next start */
    st->sweeping = true;
    store_threads_post(st->threads, job);
}

void
store_sweep(struct store *st)
{
    st->sweep_again = st->sweeping;
    if (!st->sweeping)
        sweep(st);
}

/* --- open and end ------------------------------------------------------------------------- */

static void
on_idle(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    store_idle_tick(arg);
}

static void
on_tick(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    store_dirty_tick(arg);
}

static void
on_sweep(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    sweep(arg);
}

int
store_open(struct event_base *base, const struct options *o, struct quota *q,
           struct store **out, struct err *e)
{
    const struct timeval often = {.tv_sec = IDLE_TICK_MS / 1000};
    struct store *st = calloc(1, sizeof *st);

    if (st == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for the store");
    st->o = o;
    st->q = q;
    TAILQ_INIT(&st->loaded);
    TAILQ_INIT(&st->dirty);
    st->io = io_open_root(o->state, true, e);
    if (st->io == NULL || catalog_open(st->io, &st->catalog, e) == -1) {
        if (e->code == ERR_BUSY)
            err_set(e, ERR_EXISTS, e->sys,
                    "another fathomd has %s; stop it or choose another --state", o->state);
        goto fail;
    }
    st->threads = store_threads_new(base, st->io, st->catalog, e);
    if (st->threads == NULL)
        goto fail;
    st->tick = evtimer_new(base, on_tick, st);
    st->idle = event_new(base, -1, EV_PERSIST, on_idle, st);
    st->sweep = evtimer_new(base, on_sweep, st);
    if (st->tick == NULL || st->idle == NULL || st->sweep == NULL ||
        event_add(st->idle, &often) == -1) {
        err_set(e, ERR_QUOTA, errno, "no memory for the store");
        goto fail;
    }
    *out = st;
    return 0;

fail:
    store_free(st);
    return -1;
}

void
store_free(struct store *st)
{
    if (st == NULL)
        return;
    store_threads_free(st->threads);
    if (st->tick != NULL)
        event_free(st->tick);
    if (st->idle != NULL)
        event_free(st->idle);
    if (st->sweep != NULL)
        event_free(st->sweep);
    catalog_close(st->catalog);
    io_close_root(st->io);
    free(st);
}

void
store_listen(struct store *st, struct store_listener *l)
{
    struct store_listener **at = &st->listeners;

    while (*at != NULL)
        at = &(*at)->next;
    l->next = NULL;
    *at = l;
}

void
store_end(struct store *st, void (*done)(void *arg), void *arg)
{
    st->end = done;
    st->end_arg = arg;
    for (const struct user *u = st->q->users; u != NULL; u = u->next) {
        for (size_t i = 0; i < u->n_sessions; i++)
            store_commit(st, u->sessions[i], NULL);
    }
    st->ending = true;
    try_end(st);
}

void
store_count(const struct store *st, struct store_counts *out)
{
    struct catalog_health h;

    catalog_health(st->catalog, &h);
    *out = st->counts;
    out->index_failures = h.failures;
    out->jobs = st->jobs;
    out->parked = st->q->used[QUOTA_SESSIONS] - out->loaded;
}

void
store_alive(const struct store *st, struct store_alive *out)
{
    store_threads_alive(st->threads, out);
}

struct catalog *
store_catalog(const struct store *st)
{
    return st->catalog;
}

struct io *
store_io(const struct store *st)
{
    return st->io;
}
