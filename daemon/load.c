/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Logs into memory when somebody needs them, and out of it again. A session that nobody uses costs
 * its few figures; one that is used costs its transcript until it has been left alone for a while
 * or others need the room. Only what is durable leaves.
 *
 * A ledger that cannot be read makes its session DAMAGED, and nothing else: it says why, and can
 * be deleted. Another try may show that the disk only had a bad moment; when that fails too the
 * folder is taken aside, out of the way of every later start. But not if it is the log that is
 * damaged (EUCLEAN): what is in front of that is sound, and somebody may want it (ledger_give_up).
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "daemon/options.h"
#include "daemon/session_files.h"
#include "daemon/session_ledger.h"
#include "daemon/store_impl.h"

enum { LOOKED_AT_ONCE = 256, FAILURES = 2 };

static uint64_t
memory_of(const struct session *s)
{
    return s->log.room * sizeof *s->log.tokens +
           s->log.checkpoint_room * sizeof *s->log.checkpoints +
           (s->log.ops != NULL ? OP_IDS_KEPT * sizeof *s->log.ops : 0) +
           s->n_files * sizeof *s->files;
}

void
store_loaded_add(struct store *st, struct session *s)
{
    if (s->store.listed)
        return;
    s->store.listed = true;
    TAILQ_INSERT_TAIL(&st->loaded, s, store.loaded_link);
    st->counts.loaded++;
    store_used(st, s);
}

void
store_loaded_drop(struct store *st, struct session *s)
{
    if (!s->store.listed)
        return;
    s->store.listed = false;
    TAILQ_REMOVE(&st->loaded, s, store.loaded_link);
    st->counts.loaded--;
    st->counts.loaded_bytes -= s->store.bytes;
    s->store.bytes = 0;
}

void
store_used(struct store *st, struct session *s)
{
    const uint64_t now = memory_of(s);

    s->store.used_ns = clock_ns();
    if (!s->store.listed)
        return;
    st->counts.loaded_bytes += now - s->store.bytes;
    s->store.bytes = now;
    TAILQ_REMOVE(&st->loaded, s, store.loaded_link);
    TAILQ_INSERT_TAIL(&st->loaded, s, store.loaded_link);
}

void
store_hold(struct session *s)
{
    s->holds++;
}

void
store_release(struct session *s)
{
    s->holds--;
}

/* --- in ----------------------------------------------------------------------------------- */

static void
on_aside(struct store_job *job)
{
    struct session *s = job->arg;
    struct store *st = s->store.of;

    if (job->err.code != ERR_NONE)
        log_line(LOG_ERROR, "quarantine-failed why=\"%s\"", job->err.text);
    else
        log_line(LOG_ERROR, "session-quarantined session=%s uid=%" PRIu32 " why=\"%s\"",
                 s->name, s->user->uid, job->why);
    s->store.aside = job->err.code == ERR_NONE;
    s->store.loading = false;
    store_job_free(job);
    store_back(st, s);
}

static void
set_aside(struct store *st, struct session *s, const struct err *why)
{
    struct err e;
    struct store_job *job = store_job_new(STORE_QUARANTINE, &s->id, on_aside, s, &e);

    if (job == NULL)
        return; /* at the next try */
    snprintf(job->why, sizeof job->why, "%s", why->text);
    s->store.loading = true; /* no further try meanwhile */
    store_post(st, s, job);
}

static void
damaged(struct store *st, struct session *s, const struct err *why)
{
    free(s->store.damage);
    s->store.damage = strdup(why->text);
    s->store.failures++;
    st->counts.errors++;
    session_move(s, SESSION_DAMAGED, "it cannot be read");
    log_line(LOG_ERROR, "session-damaged session=%s uid=%" PRIu32 " why=\"%s\"", s->name,
             s->user->uid, why->text);
    if (s->store.failures >= FAILURES && why->sys != EUCLEAN)
        set_aside(st, s, why);
}

static void
take_in(struct store *st, struct session *s, struct store_job *job)
{
    struct err why = job->err;

    if (why.code == ERR_NONE && session_from_ledger(s, &job->content, &why) == 0) {
        s->max_id = job->max_id;
        s->store.failures = 0;
        histogram_add(&st->counts.load, clock_ns() - job->posted_ns);
        session_move(s, s->log.len > 0 ? SESSION_COLD : SESSION_EMPTY, "its log is here");
        store_loaded_add(st, s);
        STORE_TELL(st, loaded, s);
        store_wait_call(&s->store.loads, UINT64_MAX, NULL);
        return;
    }
    if (why.code == ERR_DAMAGED || why.code == ERR_NOT_FOUND)
        damaged(st, s, &why);
    else
        session_move(s, SESSION_PARKED, "its log could not be read now");
    STORE_TELL(st, refused, s, &why);
    store_wait_call(&s->store.loads, UINT64_MAX, &why);
}

static void
on_loaded(struct store_job *job)
{
    struct session *s = job->arg;
    struct store *st = s->store.of;

    s->store.loading = false;
    if (!s->store.deleting)
        take_in(st, s, job);
    store_job_free(job);
    store_back(st, s);
}

int
store_need(struct store *st, struct session *s, struct store_wait *w, struct err *e)
{
    struct store_job *job;

    if (!s->log.parked) {
        store_used(st, s);
        return 1;
    }
    if (s->store.aside || (s->store.loading && s->state == SESSION_DAMAGED))
        return err_set(e, ERR_DAMAGED, 0, "the session cannot be read: %.180s",
                       s->store.damage != NULL ? s->store.damage : "its ledger is damaged");
    if (!s->store.loading) {
        job = store_job_new(STORE_LOAD, &s->id, on_loaded, s, e);
        if (job == NULL)
            return -1;
        s->store.loading = true;
        session_move(s, SESSION_LOADING, "somebody needs its log");
        store_post(st, s, job);
    }
    if (w != NULL)
        store_wait_add(&s->store.loads, w);
    return 0;
}

/* --- out ---------------------------------------------------------------------------------- */

static bool
may_park(const struct session *s)
{
    return (s->state == SESSION_COLD || s->state == SESSION_EMPTY) && s->ops == NULL &&
           s->slot == NULL && s->streams == 0 && s->holds == 0 && !s->waiting &&
           s->store.busy == 0 && s->store.made && s->store.fault == NULL &&
           !session_log_differs(&s->log);
}

static void
on_closed(struct store_job *job)
{
    struct session *s = job->arg;
    struct store *st = s->store.of;

    store_job_free(job);
    store_back(st, s);
}

static void
park(struct store *st, struct session *s)
{
    struct err e;
    struct store_job *job = store_job_new(STORE_CLOSE, &s->id, on_closed, s, &e);

    STORE_TELL(st, unloading, s);
    store_loaded_drop(st, s);
    session_log_park(&s->log);
    session_files_park(s);
    session_move(s, SESSION_PARKED, "nobody uses it");
    st->counts.unloads++;
    if (job != NULL) /* else it stays open until others push it out, and is not swept */
        store_post(st, s, job);
    store_sweep(st); /* of what it no longer needs */
}

/* The least recently used first, as long as there is a reason; those that cannot go now are
 * looked at again after the others. */
void
store_idle_tick(struct store *st)
{
    const uint64_t now = clock_ns();

    for (int i = 0; i < LOOKED_AT_ONCE; i++) {
        struct session *s = TAILQ_FIRST(&st->loaded);
        const bool full = st->counts.loaded_bytes > st->o->transcript_memory;

        if (s == NULL ||
            (!full && now - s->store.used_ns < st->o->park_after * UINT64_C(1000000)))
            return;
        if (may_park(s)) {
            park(st, s);
        } else {
            TAILQ_REMOVE(&st->loaded, s, store.loaded_link);
            TAILQ_INSERT_TAIL(&st->loaded, s, store.loaded_link);
        }
    }
}
