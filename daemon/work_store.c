/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An operation's way to the disk and from it: its session's log is loaded before its turn, and
 * what came of it is durable before its answer is told. Meanwhile other sessions go on.
 */
#include "config.h"

#include <string.h>

#include "base/log.h"
#include "daemon/options.h"
#include "daemon/work_impl.h"

/* All that wait in its queue end like this; what is in the engine or the store goes on. */
static void
fail_waiting(struct session *s, const struct err *why)
{
    for (struct op *op = s->ops; op != NULL; op = op->next) {
        if (op->stage == OP_WAITS)
            op_fail(op, why);
    }
}

bool
work_loaded(struct work *w, struct session *s)
{
    struct err why;

    if (s->state == SESSION_GONE || !s->log.parked)
        return true;
    switch (store_need(w->store, s, NULL, &why)) {
    case 1: return true;
    case 0: return false; /* on_loaded(), on_refused() */
    default:
        fail_waiting(s, &why);
        work_wait(w, s);
        work_wake(w);
        return false;
    }
}

static void
on_loaded(void *arg, struct session *s)
{
    struct work *w = arg;
    struct err e;

    if (kv_loaded(w->kv, s, &e) == -1)
        log_line(LOG_WARNING, "caches-unknown session=%s why=\"%s\"", s->name, e.text);
    work_pump(w, s);
}

static void
on_unloading(void *arg, struct session *s)
{
    struct work *w = arg;

    kv_unload(w->kv, s);
}

static void
on_refused(void *arg, struct session *s, const struct err *why)
{
    fail_waiting(s, why);
    work_pump(arg, s);
}

static void
on_stored(void *arg, struct session *s)
{
    struct op *op = s->ops;

    (void)arg;
    if (op != NULL && op->calls->stored != NULL && op->stage != OP_WAITS)
        op->calls->stored(op);
}

/* The disk does not take what the session has, or does again. */
static void
on_trouble(void *arg, struct session *s)
{
    struct op *op = s->ops;
    struct err why;

    if (op != NULL && op->stage == OP_IN_ENGINE &&
        (op->kind == OP_APPEND || op->kind == OP_SAMPLE) && store_refuses(s, &why) == -1)
        op_fail(op, &why);
    work_pump(arg, s);
}

static void
on_unmade(void *arg, struct session *s)
{
    work_delete(arg, s, NULL);
}

static void
on_idle(void *arg, struct session *s)
{
    work_try_free(arg, s);
}

void
work_listen(struct work *w)
{
    w->listener = (struct store_listener){.arg = w,
                                          .loaded = on_loaded,
                                          .unloading = on_unloading,
                                          .refused = on_refused,
                                          .stored = on_stored,
                                          .trouble = on_trouble,
                                          .unmade = on_unmade,
                                          .idle = on_idle};
    store_listen(w->store, &w->listener);
}

void
work_grew(struct work *w, struct session *s)
{
    static const uint8_t none[32];

    if (memcmp(s->fingerprint, none, sizeof none) == 0)
        memcpy(s->fingerprint, engine_info(w->engine)->fingerprint, sizeof s->fingerprint);
    if (w->o->durability == DURABILITY_ALWAYS)
        store_commit(w->store, s, NULL);
    else
        store_commit_soon(w->store, s);
}

static void
on_commit(struct store_wait *wait, const struct err *why)
{
    struct op *op = wait->arg;
    struct session *s = op->session;

    /* Its tokens are there, and nothing takes them back; but they may be lost with the machine,
     * and whoever asked must know. */
    if (why != NULL && op->err.code == ERR_NONE)
        op->err = *why;
    work_pump(op->work, s);
}

/* Nobody waits for it: with durability=relaxed, or because the operation changed nothing. What
 * was parked has files that the ledger is to name. */
static bool
need_not_wait(const struct work *w, const struct op *op)
{
    return (op_reads(op) && op->kind != OP_PARK) || w->o->durability == DURABILITY_RELAXED;
}

bool
work_stored(struct work *w, struct op *op)
{
    struct session *s = op->session;

    if (op->stage == OP_IN_STORE)
        return op->wait.at == NULL && op->wait_made.at == NULL;
    op->stage = OP_IN_STORE;
    op->work = w;
    op->wait = op->wait_made = (struct store_wait){.fn = on_commit, .arg = op};
    if (!need_not_wait(w, op))
        store_commit(w->store, s, &op->wait);
    else if (session_log_differs(&s->log))
        store_commit_soon(w->store, s);
    if (op->made != NULL && op->err.code == ERR_NONE)
        store_commit(w->store, op->made, &op->wait_made);
    return op->wait.at == NULL && op->wait_made.at == NULL;
}
