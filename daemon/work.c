/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How operations are carried out.
 *
 * Each session has a queue; its first operation is under way, the others wait. work_pump() looks
 * at one session and does the next thing that can be done now, and it is called whenever something
 * has changed: it keeps no plan, so that after a fault of the engine the same code goes on from
 * what is true then. The truth is the transcript: a slot that lacks tokens of it is fed, and
 * whether they are new or were there before makes no difference. Tokens that are appended join
 * the transcript when the engine says that it has them; drawn ones when they arrive.
 *
 * A fault while a session's jobs were running makes its operation a suspect. Suspects go first,
 * and each alone: the jobs of all others are called back, until it is past all tokens that may
 * have been in the step that failed. The engine failing there again breaks the session, so that
 * one poisoned request cannot take all others down for ever, and takes no innocent one along.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <event2/event.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "daemon/options.h"
#include "daemon/session_files.h"
#include "daemon/work_impl.h"

static void end_op(struct work *w, struct op *op);

/* Deleted ones are in a list until nobody holds them any more. */
static void
list_gone(struct work *w, struct session *s)
{
    s->next_gone = w->gone;
    s->at_gone = &w->gone;
    if (s->next_gone != NULL)
        s->next_gone->at_gone = &s->next_gone;
    w->gone = s;
}

static void
free_gone(struct work *w, struct session *s)
{
    kv_unload(w->kv, s);
    *s->at_gone = s->next_gone;
    if (s->next_gone != NULL)
        s->next_gone->at_gone = s->at_gone;
    session_free(s);
}

void
work_try_free(struct work *w, struct session *s)
{
    if (s->state == SESSION_GONE && s->ops == NULL && s->streams == 0 && s->slot == NULL &&
        !s->waiting && s->store.busy == 0 && s->holds == 0)
        free_gone(w, s);
}

void
work_wait(struct work *w, struct session *s)
{
    if (s->waiting)
        return;
    s->waiting = true;
    s->next_waiting = NULL;
    *w->waiting_tail = s;
    w->waiting_tail = &s->next_waiting;
}

/* To the loop: all that wait look again. */
void
work_wake(struct work *w)
{
    if (w->waiting != NULL || w->over != NULL || w->stopping)
        event_active(w->on_fresh, EV_TIMEOUT, 0);
}

static void
on_fresh(evutil_socket_t fd, short what, void *arg)
{
    struct work *w = arg;
    struct session *s = w->waiting, *next;
    struct session *held;
    struct op *op;

    (void)fd;
    (void)what;
    while ((op = w->over) != NULL) {
        w->over = op->next;
        if (w->over == NULL)
            w->over_tail = &w->over;
        held = op->session;
        end_op(w, op);
        held->streams--;
        work_try_free(w, held);
    }
    w->waiting = NULL;
    w->waiting_tail = &w->waiting;
    for (; s != NULL; s = next) {
        next = s->next_waiting;
        s->waiting = false;
        work_pump(w, s);
    }
    if (w->stopping && w->n_ops == 0 && !w->asked_to_stop && kv_settled(w->kv)) {
        w->asked_to_stop = true;
        engine_stop(w->engine);
    }
}

bool
work_too_far(const struct work *w, const struct slot *sl, uint64_t len)
{
    return sl->sent > len &&
           (len < sl->floor || sl->sent - len > engine_info(w->engine)->max_rewind);
}

/*
 * The slot goes back to what the transcript holds: scores are taken back, and so are tokens
 * that no quota was left for, or that were rolled back. Before anything else runs on it.
 */
void
work_trim(struct work *w, struct session *s)
{
    struct err e;

    if (s->slot == NULL || s->slot->sent <= s->log.len)
        return;
    /* So far back it would compute from the start: there may be a state nearer than that. */
    if (work_too_far(w, s->slot, s->log.len)) {
        slots_close(&w->slots, s->slot);
        return;
    }
    if (!slots_room(&w->slots, 1) || slots_rewind(&w->slots, s->slot, s->log.len, &e) == -1)
        slots_close(&w->slots, s->slot);
}

void
work_settle(struct work *w, struct session *s)
{
    if (s->state == SESSION_GONE) {
        if (s->slot != NULL)
            slots_close(&w->slots, s->slot);
        work_try_free(w, s);
        return;
    }
    if (s->state == SESSION_BROKEN || s->log.parked)
        return;
    work_trim(w, s);
    session_move(s,
                 s->store.fault != NULL ? SESSION_READ_ONLY
                 : s->log.len == 0      ? SESSION_EMPTY
                 : s->slot != NULL      ? SESSION_WARM
                                        : SESSION_COLD,
                 "nothing to do");
}

void
work_released(struct work *w, struct session *s)
{
    work_try_free(w, s);
}

void
work_record(struct op *op)
{
    struct session *s = op->session;
    struct op_record r = {.kind = (uint8_t)op->kind,
                          .reason = (uint32_t)op->reason,
                          .code = (uint8_t)op->err.code,
                          .begin = op->begin,
                          .end = s->log.len,
                          .stop_at = op->stop_at,
                          .seed = op->params.seed};
    struct err e;

    /* What changed nothing may be tried again as if it had never been. */
    if (!op->has_op_id || op->repeated || op->recorded || op->stage == OP_WAITS ||
        (op->err.code != ERR_NONE && s->log.len == op->begin))
        return;
    op->recorded = true;
    memcpy(r.id, op->op_id, OP_ID_BYTES);
    if (session_log_record(&s->log, &r, &e) == -1)
        log_line(LOG_WARNING, "op-id-lost session=%s why=\"%s\"", s->name, e.text);
}

static void
end_turn(struct work *w, struct op *op)
{
    struct session *s = op->session;
    struct err e;

    if (op->kind != OP_SAMPLE || op->err.code != ERR_NONE || op->repeated)
        return;
    if (!s->log.turn_open && op->reason != LINK_STOP_TOKEN)
        return;
    if (session_log_turn(&s->log, &e) == -1)
        log_line(LOG_INFO, "turn-unmarked session=%s why=\"%s\"", s->name, e.text);
    else
        work_snapshot(w, s);
}

/* The engine is through with the first operation of the queue: what came of it is told to the
 * session's log, so that it is stored together. */
static void
conclude(struct work *w, struct op *op)
{
    struct session *s = op->session;

    op->end = op->repeated ? op->end : s->log.len;
    if (op->began_ns == 0)
        op->begin = op->end; /* it failed before its turn: nothing came of it */
    work_end_trial(w, s);
    work_wake(w); /* it may be evicted for another one now */
    if (s->state == SESSION_GONE || s->log.parked)
        return;
    work_record(op);
    s->used_ms = clock_wall_ms();
    if (s->state != SESSION_BROKEN)
        work_trim(w, s);
    if (op->input == OP_MESSAGES && op->kind == OP_APPEND && op->err.code == ERR_NONE &&
        !op->repeated)
        session_log_begin_turn(&s->log);
    if (s->slot != NULL)
        slots_touch(&w->slots, s->slot);
    end_turn(w, op);
    kv_op_over(w->kv, s);
}

static void
end_op(struct work *w, struct op *op)
{
    struct session *s = op->session;

    op->stage = OP_OVER;
    op->end_ns = clock_ns();
    w->n_ops--;
    s->streams++; /* done() may be the last to let go of it */
    op->calls->done(op);
    op_free(op);
    s->streams--;
}

/* The first operation of the queue is over, and stored. */
static void
finish(struct work *w, struct session *s)
{
    struct op *op = s->ops;

    s->ops = op->next;
    if (s->ops == NULL)
        s->ops_tail = &s->ops;
    s->n_ops--;
    work_wake(w);
    if (s->store.listed)
        store_used(w->store, s);
    end_op(w, op);
}

void
work_pump(struct work *w, struct session *s)
{
    struct op *op;
    struct err e;

    while ((op = s->ops) != NULL) {
        if (op->stage == OP_WAITS && op->err.code == ERR_NONE) {
            if (!work_loaded(w, s))
                return;
            if (s->state != SESSION_GONE && s->state != SESSION_BROKEN)
                session_move(s, SESSION_QUEUED, "work came");
            if (work_start(w, op, &e) == -1)
                op_fail(op, &e);
        }
        if (op->stage == OP_IN_TEXT)
            return; /* also when it was cancelled: the text is the thread's until then */
        if (op->stage == OP_IN_ENGINE && !work_advance(w, op))
            return;
        if (op->stage != OP_IN_STORE)
            conclude(w, op);
        if (!work_stored(w, op))
            return;
        finish(w, s);
    }
    work_settle(w, s);
}

struct engine *
work_engine(const struct work *w)
{
    return w->engine;
}

struct kv *
work_kv(const struct work *w)
{
    return w->kv;
}

struct work *
work_new(struct event_base *base, const struct options *o, struct text *text,
         struct store *store, const struct work_model *model,
         const struct work_calls *calls, int arena_fd, struct err *e)
{
    struct work *w = calloc(1, sizeof *w);
    struct engine_calls engine_calls;

    if (w == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory for the sessions' work");
        return NULL;
    }
    w->o = o;
    w->text = text;
    w->store = store;
    w->model = *model;
    w->calls = *calls;
    w->waiting_tail = &w->waiting;
    w->over_tail = &w->over;
    engine_calls = work_engine_calls(w);
    w->on_fresh = event_new(base, -1, 0, on_fresh, w);
    w->engine = engine_new(base, o, model->vocab, &engine_calls, e);
    if (w->engine == NULL || w->on_fresh == NULL) {
        if (w->engine != NULL)
            err_set(e, ERR_QUOTA, errno, "no memory for the sessions' work");
        work_free(w);
        return NULL;
    }
    w->slots.engine = w->engine;
    w->kv = kv_new(w, base, store_io(store), arena_fd, e);
    if (w->kv == NULL) {
        work_free(w);
        return NULL;
    }
    engine_set_arena(w->engine, kv_arena_fd(w->kv), kv_arena_bytes(w->kv));
    work_listen(w);
    return w;
}

void
work_free(struct work *w)
{
    if (w == NULL)
        return;
    kv_free(w->kv);
    engine_free(w->engine);
    slots_done(&w->slots);
    if (w->on_fresh != NULL)
        event_free(w->on_fresh);
    free(w);
}

int
work_submit(struct work *w, struct op *op, struct err *e)
{
    struct session *s = op->session;

    if (w->stopping)
        return err_set(e, ERR_UNAVAILABLE, 0, "fathomd is stopping");
    if (w->failed && op->kind != OP_CALL) {
        *e = w->why_failed;
        return -1;
    }
    if (s->n_ops >= w->o->max_jobs)
        return err_set(e, ERR_BUSY, 0,
                       "%zu operations wait for this session already (setting "
                       "max-jobs-per-session)",
                       s->n_ops);
    *s->ops_tail = op;
    s->ops_tail = &op->next;
    s->n_ops++;
    w->n_ops++;
    /* From the loop, so that a caller need not expect done() inside its own call. */
    if (s->n_ops == 1) {
        work_wait(w, s);
        work_wake(w);
    }
    return 0;
}

void
work_cancel(struct work *w, struct op *op, const struct err *why)
{
    struct session *s = op->session;
    struct op **at = &s->ops;

    /* In the store it is done: what came of it is told. */
    if (op->stage == OP_OVER || op->stage == OP_IN_STORE || op->err.code != ERR_NONE)
        return;
    op_fail(op, why);
    if (op == s->ops) {
        work_wait(w, s);
    } else {
        while (*at != op)
            at = &(*at)->next;
        *at = op->next;
        if (s->ops_tail == &op->next)
            s->ops_tail = at;
        s->n_ops--;
        s->streams++; /* given back in on_fresh() */
        op->next = NULL;
        *w->over_tail = op;
        w->over_tail = &op->next;
    }
    work_wake(w);
}

void
work_pause(struct work *w, struct op *op, bool pause)
{
    if (op->paused == pause || op->stage == OP_OVER)
        return;
    op->paused = pause;
    op->was_stopped |= pause;
    work_wait(w, op->session);
    work_wake(w);
}

void
work_delete(struct work *w, struct session *s, struct store_wait *wait)
{
    struct err why;

    err_set(&why, ERR_NOT_FOUND, 0, "the session was deleted");
    for (struct op *op = s->ops; op != NULL; op = op->next)
        op_fail(op, &why);
    slots_drop_snapshots(&w->slots, s, 0);
    kv_forget(w->kv, s);
    session_move(s, SESSION_GONE, "deleted");
    session_unlink(s);
    list_gone(w, s);
    work_wait(w, s);
    work_wake(w);
    store_delete(w->store, s, wait);
}

void
work_stop(struct work *w, const struct quota *q, const struct err *why)
{
    w->stopping = true;
    for (const struct user *u = q->users; u != NULL; u = u->next) {
        for (size_t i = 0; i < u->n_sessions; i++) {
            struct session *s = u->sessions[i];

            for (struct op *op = s->ops; op != NULL; op = op->next) {
                if (op->stage != OP_IN_STORE)
                    op_fail(op, why);
            }
            if (s->ops != NULL)
                work_wait(w, s);
        }
    }
    work_wake(w);
}

static void
free_session(struct work *w, struct session *s)
{
    struct op *op;

    while ((op = s->ops) != NULL) {
        s->ops = op->next;
        op_free(op);
    }
    s->slot = NULL;
    s->waiting = false;
    s->streams = 0;
    kv_unload(w != NULL ? w->kv : NULL, s);
    session_free(s);
}

void
work_end(struct work *w, struct quota *q)
{
    struct session *s;
    struct op *op;

    while (w != NULL && (op = w->over) != NULL) {
        w->over = op->next;
        op_free(op);
    }
    while (w != NULL && (s = w->gone) != NULL) {
        w->gone = s->next_gone;
        free_session(w, s);
    }
    if (w != NULL) {
        w->waiting = NULL;
        w->waiting_tail = &w->waiting;
    }
    for (struct user *u = q->users; u != NULL;) {
        if (u->n_sessions == 0) {
            u = u->next;
            continue;
        }
        free_session(w, u->sessions[u->n_sessions - 1]);
        u = q->users; /* the last session may have taken its user along */
    }
}

void
work_cut(struct work *w, struct session *s, uint64_t pos)
{
    slots_drop_snapshots(&w->slots, s, pos);
    kv_truncate(w->kv, s, pos);
    /* A snapshot of just that place is quicker than to compute its window again. Too far back for
     * the caches: then it comes back from a snapshot, a state, or its tokens. */
    if (s->slot != NULL && s->slot->sent > pos) {
        const struct slot *snap = slots_snapshot(&w->slots, s, pos);

        if (pos == 0 || work_too_far(w, s->slot, pos) ||
            (snap != NULL && snap->snapshot_pos == pos))
            slots_close(&w->slots, s->slot);
    }
}

int
work_rollback(struct work *w, struct session *s, uint64_t pos, struct err *e)
{
    if (pos <= s->log.len && session_files_cut(s, pos, e) == -1)
        return -1;
    if (session_log_truncate(&s->log, pos, e) == -1)
        return -1;
    if (pos == 0)
        memset(s->fingerprint, 0, sizeof s->fingerprint); /* of no model any more */
    work_cut(w, s, pos);
    if (s->state == SESSION_BROKEN)
        session_move(s, pos > 0 ? SESSION_COLD : SESSION_EMPTY, "rolled back");
    return 0;
}

void
work_fork(struct work *w, struct session *from, struct session *to, uint64_t pos)
{
    const struct slot *src = slots_snapshot(&w->slots, from, pos);
    struct slot *sl;
    struct err e;

    if (src == NULL || src->snapshot_pos != pos)
        src = from->slot;
    session_move(to, pos > 0 ? SESSION_COLD : SESSION_EMPTY, "forked");
    if (kv_loaded(w->kv, to, &e) == -1)
        log_line(LOG_WARNING, "caches-unknown session=%s why=\"%s\"", to->name, e.text);
    if (src == NULL || !src->open || slot_working(src) > 0 || src->len != pos || pos == 0 ||
        !slots_room(&w->slots, WORK_JOBS_SPARE))
        return; /* its tokens will be fed when they are needed */
    sl = slots_take(&w->slots, to, SLOT_SESSION);
    if (sl == NULL)
        return;
    to->slot = sl;
    if (slots_fork(&w->slots, sl, src, to->user->uid, &e) == -1)
        slots_close(&w->slots, sl);
    else
        session_move(to, SESSION_WARM, "forked");
}

void
work_keep(struct work *w, struct session *s)
{
    const uint64_t pos = s->slot != NULL ? s->slot->len : 0;
    struct slot *sl, *have = slots_snapshot(&w->slots, s, pos);
    struct err e;

    if (w->o->snapshots == 0 || pos == 0 || slot_working(s->slot) > 0 ||
        !slots_room(&w->slots, WORK_JOBS_SPARE) ||
        (have != NULL && have->snapshot_pos == pos))
        return;
    while (w->slots.n_snapshots >= w->o->snapshots)
        slots_drop_oldest_snapshot(&w->slots);
    if (w->slots.n_free < 2)
        return; /* the last one is for somebody's work */
    sl = slots_take(&w->slots, s, SLOT_SNAPSHOT);
    if (sl == NULL)
        return;
    sl->snapshot_pos = pos;
    if (slots_fork(&w->slots, sl, s->slot, s->user->uid, &e) == -1)
        slots_close(&w->slots, sl);
}

void
work_snapshot(struct work *w, struct session *s)
{
    if (s->slot != NULL && s->slot->len == s->log.len)
        work_keep(w, s);
    kv_named(w->kv, s);
}

uint64_t
work_kv_len(const struct session *s)
{
    const struct slot *sl = s->slot;

    if (sl == NULL)
        return 0;
    if (slot_lacks_rows(sl))
        return sl->computed;
    return sl->len < s->log.len ? sl->len : s->log.len;
}

uint64_t
work_replay(const struct work *w, const struct session *s)
{
    const uint64_t len = s->log.len;
    const struct slot *sl = s->slot, *snap = slots_snapshot(&w->slots, s, len);
    uint64_t best = kv_position(w->kv, s, len);

    if (sl != NULL && !work_too_far(w, sl, len)) {
        if (slot_working(sl) == 0 && slot_lacks_rows(sl))
            return len - sl->computed;
        return sl->sent < len ? len - sl->sent : 0;
    }
    if (snap != NULL && snap->snapshot_pos > best)
        best = snap->snapshot_pos;
    return len - best;
}

uint64_t
work_restore(const struct work *w, const struct session *s)
{
    const uint64_t len = s->log.len, best = kv_position(w->kv, s, len);
    const struct slot *snap = slots_snapshot(&w->slots, s, len);

    if ((s->slot != NULL && !work_too_far(w, s->slot, len)) ||
        (snap != NULL && snap->snapshot_pos >= best))
        return 0;
    return best;
}

void
work_count(const struct work *w, struct work_counts *out)
{
    *out = w->counts;
    out->evictions = w->slots.evictions;
    out->queued = w->n_ops;
    for (uint32_t i = 0; i < w->slots.n; i++) {
        const struct slot *sl = &w->slots.all[i];

        if (sl->use != SLOT_SESSION || sl->session->ops == NULL)
            continue;
        out->busy++;
        out->running += slot_working(sl) > 0;
    }
    out->queued -= out->running < out->queued ? out->running : out->queued;
}
