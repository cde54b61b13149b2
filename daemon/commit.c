/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What has changed, made durable. A session has one commit under way at most: it takes what differs
 * from the ledger then, copied, and the session goes on changing; what asks meanwhile waits for the
 * next one, which serves all that have asked by then. So no commit is larger than what changed, and
 * no thread but main's ever looks at a session.
 *
 * A commit that fails takes nothing from the session: all that it has stays in memory, and differs
 * from the ledger as before. If the disk is full it is tried again until it fits; any other failure
 * is for good, for after a failed fsync nobody knows what the disk holds. Until then nothing that
 * would change the session is begun.
 */
#include "config.h"

#include <errno.h>
#include <event2/event.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "daemon/options.h"
#include "daemon/session_files.h"
#include "daemon/session_ledger.h"
#include "daemon/store_impl.h"

enum { TURN_TICK_MS = 250, RELAXED_TICK_MS = 1000, RETRY_MS = 3000 };

/* --- later -------------------------------------------------------------------------------- */

static void
arm(struct store *st)
{
    const uint64_t ms = st->o->durability == DURABILITY_RELAXED ? RELAXED_TICK_MS
                                                                : TURN_TICK_MS;
    const struct timeval tv = {.tv_sec = (time_t)(ms / 1000),
                               .tv_usec = (suseconds_t)(ms % 1000 * 1000)};

    if (!st->ticking && !st->ended)
        st->ticking = event_add(st->tick, &tv) == 0;
}

void
store_commit_soon(struct store *st, struct session *s)
{
    if (!s->store.lasting || s->store.deleting || s->store.late)
        return;
    s->store.late = true;
    TAILQ_INSERT_TAIL(&st->dirty, s, store.dirty_link);
    arm(st);
}

void
store_dirty_drop(struct store *st, struct session *s)
{
    if (s->store.late)
        TAILQ_REMOVE(&st->dirty, s, store.dirty_link);
    s->store.late = false;
}

/* --- failures ----------------------------------------------------------------------------- */

void
store_fault_clear(struct store *st, struct session *s)
{
    struct store_fault *f = s->store.fault;

    if (f == NULL)
        return;
    st->counts.full -= f->full;
    st->counts.read_only -= !f->full;
    s->store.fault = NULL;
    free(f);
}

/* The same failure again is no news. */
static bool
set_fault(struct store *st, struct session *s, const struct err *why)
{
    struct store_fault *old = s->store.fault, *f = calloc(1, sizeof *f);
    const bool full = why->code == ERR_QUOTA;
    const bool news = old == NULL || old->full != full;

    if (f == NULL)
        return news; /* it is tried again, and fails again */
    f->full = full;
    f->why = *why;
    f->since_ms = news ? clock_wall_ms() : old->since_ms;
    f->retry_ns = clock_ns() + RETRY_MS * UINT64_C(1000000);
    store_fault_clear(st, s);
    st->counts.full += full;
    st->counts.read_only += !full;
    if (st->counts.since_ms == 0)
        st->counts.since_ms = f->since_ms;
    s->store.fault = f;
    return news;
}

/* For good: after a failed write nobody knows what the disk holds, and what is built on it may
 * be lost with it. */
static bool
is_read_only(const struct session *s)
{
    return s->store.fault != NULL && !s->store.fault->full;
}

int
store_refuses(const struct session *s, struct err *e)
{
    const struct store_fault *f = s->store.fault;
    const uint64_t durable = session_log_durable(&s->log);

    if (s->state == SESSION_DAMAGED)
        return err_set(e, ERR_DAMAGED, 0, "the session cannot be read: %.180s",
                       s->store.damage != NULL ? s->store.damage : "its ledger is damaged");
    if (f == NULL)
        return 0;
    if (f->full)
        return err_set(e, ERR_QUOTA, f->why.sys,
                       "the disk is full: what lies behind position %" PRIu64
                       " is in memory only and is tried again: %.110s",
                       durable, f->why.text);
    return err_set(e, ERR_READ_ONLY, f->why.sys,
                   "the session is read-only since %" PRIu64 " s, with %" PRIu64
                   " tokens on the disk; fork it to go on: %.110s",
                   (clock_wall_ms() - f->since_ms) / 1000, durable, f->why.text);
}

/* --- now ---------------------------------------------------------------------------------- */

static void
fails(struct store *st, struct session *s, const struct err *why, bool making)
{
    struct err told = *why;

    st->counts.errors++;
    if (set_fault(st, s, why))
        log_line(LOG_ERROR,
                 "commit-failed session=%s uid=%" PRIu32 " pos=%" PRIu64 " durable=%" PRIu64
                 " why=\"%s\"",
                 s->name, s->user->uid, s->log.len, session_log_durable(&s->log),
                 why->text);
    if (making) {
        store_fault_clear(st, s);
        if (told.code == ERR_QUOTA)
            err_prefix(&told, "the disk is full");
        store_wait_call(&s->store.commits, UINT64_MAX, &told);
        if (!s->store.deleting)
            STORE_TELL(st, unmade, s);
        return;
    }
    store_refuses(s, &told);
    /* Those that have asked since, too: it would not fare better. */
    store_wait_call(&s->store.commits, UINT64_MAX, &told);
    if (s->store.deleting)
        return;
    if (told.code == ERR_QUOTA)
        store_commit_soon(st, s);
    STORE_TELL(st, trouble, s);
}

static void
succeeds(struct store *st, struct session *s)
{
    const bool mended = s->store.fault != NULL;

    if (mended) {
        log_line(LOG_NOTICE, "commit-mended session=%s uid=%" PRIu32 " pos=%" PRIu64,
                 s->name, s->user->uid, s->log.len);
        store_fault_clear(st, s);
    }
    if (st->counts.full + st->counts.read_only == 0)
        st->counts.since_ms = 0;
    STORE_TELL(st, stored, s);
    store_wait_call(&s->store.commits, s->store.taken, NULL);
    if (mended && !s->store.deleting)
        STORE_TELL(st, trouble, s);
}

static void
measure(struct store *st, const struct store_job *job)
{
    const uint64_t ns = clock_ns() - job->posted_ns;

    st->counts.creates += job->kind == STORE_CREATE;
    st->counts.forks += job->kind == STORE_FORK;
    histogram_add(&st->counts.commit, ns);
    st->counts.commit_tokens += job->change.n_tokens;
}

static void begin(struct store *st, struct session *s);

static void
on_committed(struct store_job *job)
{
    struct session *s = job->arg;
    struct store *st = s->store.of;
    const bool ok = job->err.code == ERR_NONE;
    struct err gone;

    session_log_stored(&s->log, ok);
    session_files_stored(s, ok);
    if (ok) {
        measure(st, job);
        s->store.made = true;
        succeeds(st, s);
        if (!s->store.deleting && !s->log.committing && s->store.asked > s->store.taken)
            begin(st, s);
        if (s->store.deleting) { /* no other commit follows for those that asked since */
            err_set(&gone, ERR_NOT_FOUND, 0, "the session was deleted");
            store_wait_call(&s->store.commits, UINT64_MAX, &gone);
        }
    } else {
        fails(st, s, &job->err, job->kind != STORE_COMMIT);
    }
    store_job_free(job);
    store_back(st, s);
}

static void
begin(struct store *st, struct session *s)
{
    const enum store_kind kind = s->store.made     ? STORE_COMMIT
                                 : s->store.forked ? STORE_FORK
                                                   : STORE_CREATE;
    struct err e;
    struct store_job *job;

    if (is_read_only(s)) {
        store_commit_soon(st, s); /* which tells those who wait */
        return;
    }
    job = store_job_new(kind, &s->id, on_committed, s, &e);
    if (job == NULL || session_to_ledger(s, job, &e) == -1) {
        store_job_free(job);
        store_commit_soon(st, s); /* when there is memory again */
        return;
    }
    job->from = s->store.from;
    s->store.taken = s->store.asked;
    s->n_touched_taken = s->n_touched;
    session_log_take(&s->log);
    store_post(st, s, job);
}

bool
store_commit(struct store *st, struct session *s, struct store_wait *w)
{
    const bool differs = session_log_differs(&s->log);

    if (!s->store.lasting || s->store.deleting ||
        (s->store.made && !differs && !s->log.committing))
        return true;
    if (differs || !s->log.committing)
        s->store.asked++;
    if (w != NULL) {
        w->turn = s->store.asked;
        store_wait_add(&s->store.commits, w);
    }
    if (!s->log.committing)
        begin(st, s);
    return false;
}

/* --- the tick ----------------------------------------------------------------------------- */

void
store_dirty_tick(struct store *st)
{
    const uint64_t now = clock_ns();
    struct session *s, *next, *last = TAILQ_LAST(&st->dirty, session_list);
    struct err why;

    st->ticking = false;
    for (s = TAILQ_FIRST(&st->dirty); s != NULL; s = next) {
        next = s == last ? NULL : TAILQ_NEXT(s, store.dirty_link);
        if (s->store.fault != NULL && s->store.fault->full &&
            now < s->store.fault->retry_ns)
            continue;
        store_dirty_drop(st, s);
        if (!is_read_only(s)) {
            store_commit(st, s, NULL);
            continue;
        }
        s->store.busy++; /* whoever is told may let go of it */
        store_refuses(s, &why);
        store_wait_call(&s->store.commits, UINT64_MAX, &why);
        s->store.busy--;
        if (s->store.busy == 0)
            STORE_TELL(st, idle, s);
    }
    if (!TAILQ_EMPTY(&st->dirty))
        arm(st);
}
