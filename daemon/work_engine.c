/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An operation's way through the engine: what is sent for it, what comes of it, and what
 * becomes of all of them when the engine goes.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "daemon/options.h"
#include "daemon/work_impl.h"

enum { FEEDS_AT_ONCE = 2 };

/* The session gets a slot with as much of its transcript as there is. False: not now. */
static bool
get_slot(struct work *w, struct session *s, struct err *e)
{
    struct slot *sl, *from;
    int rc;

    from = slots_snapshot(&w->slots, s, s->log.len);
    if (kv_restore(w->kv, s, from != NULL ? from->snapshot_pos : 0) == KV_UNDER_WAY) {
        if (s->state != SESSION_RESTORING) {
            session_move(s, SESSION_QUEUED, "it is not there");
            session_move(s, SESSION_RESTORING, "its caches come back");
        }
        return false;
    }
    session_move(s, SESSION_QUEUED, "a place is all that it waits for");
    if (w->slots.n_free == 0) {
        kv_evict(w);
        return false; /* it is free once the engine has closed it */
    }
    sl = slots_take(&w->slots, s, SLOT_SESSION);
    if (sl == NULL)
        return false;
    if (from != NULL)
        rc = slots_fork(&w->slots, sl, from, s->user->uid, e);
    else
        rc = slots_open(&w->slots, sl, s->user->uid, e);
    s->slot = sl;
    kv_got_slot(s);
    if (rc == -1)
        slots_close(&w->slots, sl);
    else if (from != NULL)
        slots_touch(&w->slots, from);
    return rc == 0;
}

/* Where in the transcript and the input together a position is: a run of tokens. */
static const uint32_t *
tokens_at(const struct op *op, uint64_t pos, uint32_t *n)
{
    const uint64_t known = op->session->log.len;
    const uint64_t left = pos < known ? known - pos : op->begin + op->n_ids - pos;

    if (left < *n)
        *n = (uint32_t)left;
    return pos < known ? op->session->log.tokens + pos : op->ids + (pos - op->begin);
}

static int
feed(struct work *w, struct op *op, uint64_t total, struct err *e)
{
    struct session *s = op->session;
    struct slot *sl = s->slot;

    while (sl->feeds < FEEDS_AT_ONCE && sl->sent < total && slots_room(&w->slots, 1)) {
        const uint64_t first = op->begin + op->n_scores;
        const bool scores = op->kind == OP_SCORE && sl->sent >= first;
        const uint64_t state_at = sl->sent - sl->sent % KV_STATE_EVERY + KV_STATE_EVERY;
        uint32_t n = (uint32_t)w->o->feed_tokens;
        const uint32_t *ids;

        if (total - sl->sent < n)
            n = (uint32_t)(total - sl->sent);
        if (state_at - sl->sent < n)
            n = (uint32_t)(state_at - sl->sent);
        if (op->kind == OP_SCORE && sl->sent == op->begin)
            kv_save(w->kv, s, sl, KV_ALL); /* it may be too far back afterwards */
        if (op->kind == OP_SCORE && !scores && first - sl->sent < n)
            n = (uint32_t)(first - sl->sent);
        ids = tokens_at(op, sl->sent, &n);
        if (sl->sent < s->log.len) {
            w->counts.replayed += n;
            op->again += n;
        }
        if (slots_feed(&w->slots, sl, ids, n, scores, e) == -1)
            return -1;
        if (op->kind != OP_SCORE && sl->sent == state_at)
            kv_save(w->kv, s, sl, KV_STATE); /* if there is room for it now */
    }
    return 0;
}

static enum session_state
state_of(const struct op *op)
{
    const struct slot *sl = op->session->slot;

    if (sl->len < op->session->log.len || slot_lacks_rows(sl) || op->kind == OP_UNPARK)
        return SESSION_REPLAYING;
    return op->kind == OP_SAMPLE || op->kind == OP_LOGITS ? SESSION_SAMPLING
                                                          : SESSION_FEEDING;
}

/* Tells the slot's jobs to stop, once. */
static void
call_back(struct work *w, struct slot *sl)
{
    if (sl == NULL || slot_working(sl) == 0 || sl->cancelled)
        return;
    sl->cancelled = true;
    slots_cancel(&w->slots, sl);
}

/* All others leave the engine, so that what happens now is this session's doing. */
static void
begin_trial(struct work *w, struct session *s)
{
    w->trial = s;
    for (uint32_t i = 0; i < w->slots.n; i++) {
        struct slot *sl = &w->slots.all[i];
        struct op *op = sl->use == SLOT_SESSION ? sl->session->ops : NULL;

        if (sl->session == s || op == NULL || op->stage != OP_IN_ENGINE ||
            slot_working(sl) == 0)
            continue;
        op->held = op->was_stopped = true;
        call_back(w, sl);
    }
}

void
work_end_trial(struct work *w, const struct session *s)
{
    if (w->trial != s)
        return;
    w->trial = NULL;
    work_wake(w);
}

/* May it run now? A suspect alone, others when no suspect is on trial. */
static bool
may_run(struct work *w, struct op *op)
{
    struct session *s = op->session;
    const uint32_t own = s->slot != NULL ? s->slot->jobs : 0;

    if (op->suspect && w->trial == NULL)
        begin_trial(w, s);
    op->held = w->trial != NULL && w->trial != s;
    return !op->held && (w->trial != s || w->slots.n_jobs == own);
}

/* Tokens are drawn in pieces, so that what they have brought is saved in between: each ends where
 * a block of pages is whole. The last token drawn is not in the caches yet, so that is one
 * further. A draw depends on its position and on what was drawn before, not on the pieces. */
static int
sample(struct work *w, struct op *op, struct err *e)
{
    struct session *s = op->session;
    const uint64_t len = s->slot->sent, most = KVFILE_CHUNK_TOKENS;
    const uint64_t piece = len > 0 ? most - (len - 1) % most : 1;
    struct sample_params p = op->params;

    if (p.max_tokens - op->n_drawn > piece)
        p.max_tokens = (uint32_t)(op->n_drawn + piece);
    if (op->n_drawn > 0)
        kv_drawn(w->kv, s);
    return slots_sample(&w->slots, s->slot, op->n_drawn, &p, op->rows, op->fd, e);
}

/* Sends what can be sent for the operation under way. 1: it is complete, 0: it goes on. */
static int
drive(struct work *w, struct op *op, struct err *e)
{
    struct session *s = op->session;
    uint64_t total;

    if (w->failed) {
        *e = w->why_failed;
        return -1;
    }
    if (engine_state(w->engine) != ENGINE_SERVING || !may_run(w, op)) {
        session_move(s, SESSION_QUEUED, "not yet");
        work_wait(w, s);
        return 0;
    }
    /* Not whenever the slot is at rest: a rewind of the operation before may be under way. */
    if (!op->sized && work_take_question(w, op, e) == -1)
        return -1;
    op->sized = true;
    if (!slots_room(&w->slots, WORK_JOBS_SPARE)) {
        work_wait(w, s);
        return 0;
    }
    e->code = ERR_NONE;
    if (s->slot == NULL && !get_slot(w, s, e)) {
        if (e->code != ERR_NONE)
            return -1;
        work_wait(w, s);
        return 0;
    }
    total = op->kind == OP_APPEND || op->kind == OP_SCORE ? op->begin + op->n_ids
                                                          : s->log.len;
    if (s->slot->sent < total) {
        if (feed(w, op, work_rest(w, op, total), e) == -1)
            return -1;
    } else if (slot_working(s->slot) == 0) {
        if (op->kind == OP_APPEND || op->kind == OP_SCORE || op->kind == OP_UNPARK)
            return 1;
        if ((op->kind == OP_SAMPLE ? sample(w, op, e)
                                   : slots_logits(&w->slots, s->slot, op->fd, e)) == -1)
            return -1;
    }
    session_move(s, state_of(op), "the engine works on it");
    return 0;
}

/* The slot's jobs are all over and one of them failed. True: try again. */
static bool
recover(struct work *w, struct op *op)
{
    struct session *s = op->session;
    struct slot *sl = s->slot;
    const struct err why = sl->err;

    sl->err.code = ERR_NONE;
    sl->sent = sl->len;
    if (!sl->open)
        slots_close(&w->slots, sl);
    if (op->err.code != ERR_NONE)
        return false;
    if (why.code == ERR_CANCELLED && op->was_stopped)
        return false;
    if (why.code == ERR_QUOTA && kv_evict(w)) {
        session_move(s, SESSION_QUEUED, "the engine is short of room");
        work_wait(w, s);
        return true;
    }
    if (why.code == ERR_CONTEXT_FULL && op->kind == OP_SAMPLE && op->n_drawn > 0) {
        op->context_full = true;
        op->reason = LINK_LIMIT;
        op->stage = OP_OVER;
        return false;
    }
    op_fail(op, &why);
    return false;
}

static bool
at_rest(const struct session *s)
{
    return s->slot == NULL || slot_working(s->slot) == 0;
}

/* The operation in the engine: false if it goes on, true if it is over. */
bool
work_advance(struct work *w, struct op *op)
{
    struct session *s = op->session;
    struct err e;
    int rc;

    if (op->kind == OP_PARK)
        return kv_park_step(w, op);
    if (at_rest(s) && s->slot != NULL && s->slot->err.code != ERR_NONE && recover(w, op))
        return false;
    if (at_rest(s))
        op->was_stopped = op_stands(op);
    if (op->stage == OP_OVER)
        return at_rest(s);
    if (op->err.code != ERR_NONE) {
        if (at_rest(s))
            return true;
        call_back(w, s->slot);
        return false;
    }
    if (op->paused) {
        call_back(w, s->slot);
        if (at_rest(s))
            work_end_trial(w, s); /* its reader may take long: others need not wait */
        session_move(s, SESSION_QUEUED, "its reader is slow");
        return false;
    }
    rc = drive(w, op, &e);
    if (rc == -1) {
        op_fail(op, &e);
        return work_advance(w, op);
    }
    return rc == 1;
}

/* It got past the place of the fault: no suspect any more. */
static void
clear_suspect(struct work *w, struct op *op, const struct slot *sl)
{
    if (!op->suspect || sl->len < op->fault_to)
        return;
    op->suspect = false;
    work_end_trial(w, op->session);
}

static void
on_fed(struct work *w, struct op *op, const struct slots_news *news)
{
    struct session *s = op->session;
    struct err e;

    if (op->kind == OP_APPEND && news->pos > s->log.len && op->err.code != ERR_QUOTA) {
        const size_t n = news->pos - s->log.len;

        if (session_log_append(&s->log, op->ids + (s->log.len - op->begin), n, &e) == -1) {
            op_fail(op, &e);
            return;
        }
        w->counts.appended += n;
        work_grew(w, s);
    }
    if (op->kind != OP_SCORE)
        kv_fed(w->kv, s);
    if (op->calls->progress != NULL)
        op->calls->progress(op);
}

static void
on_scores(struct op *op, const struct slots_news *news)
{
    if (op->kind != OP_SCORE || news->pos != op->begin + op->n_scores ||
        op->n_scores + news->n > op->n_ids)
        return;
    memcpy(op->scores + op->n_scores, news->scores, news->n * sizeof *op->scores);
    op->n_scores += news->n;
}

static void
on_tokens(struct work *w, struct op *op, const struct slots_news *news)
{
    struct session *s = op->session;
    uint32_t ids[LINK_MAX_PACKET / sizeof(struct sample_choice)];
    struct err e;

    if (op->kind != OP_SAMPLE || op->err.code == ERR_QUOTA)
        return;
    for (uint32_t i = 0; i < news->n; i++)
        ids[i] = news->tokens[i].id;
    if (session_log_append(&s->log, ids, news->n, &e) == -1) {
        op_fail(op, &e);
        return;
    }
    if (op->n_drawn == 0) {
        op->first_ns = clock_ns();
        histogram_add(&w->counts.first, op->first_ns - op->queued_ns);
    }
    op->n_drawn += news->n;
    w->counts.drawn += news->n;
    work_grew(w, s);
    if (op->calls->drawn != NULL)
        op->calls->drawn(op, news->pos, news->tokens, news->n);
}

static void
on_end(struct op *op, const struct slots_news *news)
{
    if (news->end->reason == LINK_FAILED)
        return; /* slot->err has it */
    if (news->job_type == LINK_SAMPLE) {
        if (news->end->reason == LINK_LIMIT && op->n_drawn < op->params.max_tokens)
            return; /* a piece of it */
        op->reason = (enum link_reason)news->end->reason;
        op->stop_at = news->end->stop_at;
        op->stage = OP_OVER;
    } else if (news->job_type == LINK_LOGITS) {
        op->stage = OP_OVER;
    }
}

/* A job has ended while no operation needed it. If it failed, the tokens are fed later. */
static void
end_idle_job(struct work *w, struct slot *sl)
{
    struct session *s = sl->session;

    if (slot_working(sl) > 0 || sl->err.code == ERR_NONE)
        return;
    slots_close(&w->slots, sl);
    if (s->state == SESSION_WARM)
        session_move(s, SESSION_COLD, "the engine had no room for it");
}

static int
on_packet(void *arg, const union link_packet *p, size_t len, struct err *e)
{
    struct work *w = arg;
    struct slots_news news;
    struct session *s;
    struct op *op;

    if (slots_read(&w->slots, p, len, engine_info(w->engine)->vocab, &news, e) == -1)
        return -1;
    if (news.type == LINK_END)
        work_wake(w); /* a slot or room for a job may be free now */
    if (news.owner != NULL || news.slot->filling)
        return kv_news(w->kv, &news, e);
    s = news.slot->session;
    if (s == NULL || news.slot->use != SLOT_SESSION)
        return 0;
    op = s->ops;
    if (op == NULL || op->stage != OP_IN_ENGINE) {
        /* A rewind of an operation that is over, or a fork at rest. */
        end_idle_job(w, news.slot);
        return 0;
    }
    switch (news.type) {
    case LINK_FED: on_fed(w, op, &news); break;
    case LINK_SCORES: on_scores(op, &news); break;
    case LINK_TOKENS: on_tokens(w, op, &news); break;
    default: on_end(op, &news);
    }
    clear_suspect(w, op, news.slot);
    if (s->state == SESSION_REPLAYING)
        session_move(s, state_of(op), "it is further");
    if (slot_working(news.slot) == 0)
        news.slot->cancelled = false;
    if (news.type == LINK_END || op->err.code != ERR_NONE)
        work_pump(w, s);
    return 0;
}

static void
on_ready(void *arg)
{
    struct work *w = arg;
    struct err e;

    if (slots_init(&w->slots, engine_info(w->engine)->max_seqs, &e) == -1) {
        log_line(LOG_ERROR, "engine-ready failed=\"%s\"", e.text);
        engine_kill(w->engine);
        return;
    }
    w->failed = false;
    kv_ready(w->kv);
    w->calls.changed(w->calls.arg);
    work_wake(w);
}

/*
 * The fault happened while this session's jobs were running: in a step with some of the tokens
 * behind those that it had done, how many of them depends on the clock.
 */
static void
suspect(struct work *w, struct session *s, const struct slot *sl)
{
    struct op *op = s->ops;
    const uint64_t most = sl->len + engine_info(w->engine)->max_step_tokens;
    const uint64_t from = sl->len, sent = sl->sent > from ? sl->sent : from + 1;
    const uint64_t to = sent < most ? sent : most;
    struct err e;

    if (op->suspect && w->trial == s && from < op->fault_to && to > op->fault_from) {
        err_set(&e, ERR_DAMAGED, 0,
                "the engine failed twice at position %" PRIu64
                " of this session; roll it back or delete it",
                from);
        log_line(LOG_ERROR, "session-broken session=%s uid=%" PRIu32 " pos=%" PRIu64,
                 s->name, s->user->uid, from);
        w->counts.broken++;
        op_fail(op, &e);
        session_move(s, SESSION_BROKEN, "two faults");
        return;
    }
    op->suspect = true;
    op->fault_from = from;
    op->fault_to = to;
}

static void
on_lost(void *arg, bool own_fault)
{
    struct work *w = arg;

    w->counts.faults++;
    for (uint32_t i = 0; i < w->slots.n; i++) {
        struct slot *sl = &w->slots.all[i];
        struct session *s = sl->session;

        if (s == NULL || sl->use != SLOT_SESSION)
            continue;
        s->slot = NULL;
        if (s->ops != NULL && s->ops->stage == OP_IN_ENGINE && sl->jobs > 0 && own_fault &&
            s->state != SESSION_GONE && !sl->filling)
            suspect(w, s, sl);
        if (s->state == SESSION_WARM)
            session_move(s, SESSION_COLD, "the engine is gone");
        else if (s->ops != NULL && s->state != SESSION_GONE && s->state != SESSION_BROKEN)
            session_move(s, SESSION_QUEUED, "the engine is gone");
        work_wait(w, s);
    }
    w->trial = NULL;
    kv_lost(w->kv, own_fault);
    slots_done(&w->slots);
    w->calls.changed(w->calls.arg);
    work_wake(w);
}

/* All users' sessions are reached through the queues that wait: nobody runs any more. */
static void
fail_waiting(struct work *w, const struct err *why)
{
    for (struct session *s = w->waiting; s != NULL; s = s->next_waiting) {
        for (struct op *op = s->ops; op != NULL; op = op->next)
            op_fail(op, why);
    }
    work_wake(w);
}

static void
on_failed(void *arg, bool forever, int status)
{
    struct work *w = arg;

    w->failed = true;
    err_set(&w->why_failed, ERR_UNAVAILABLE, 0,
            "the engine has given up after too many faults; the last: %.120s",
            engine_error(w->engine)->text);
    fail_waiting(w, &w->why_failed);
    w->calls.failed(w->calls.arg, forever, status);
}

/* Each job may first need all rows of its sequence again; a guess of the engine that proves
 * wrong costs tokens, too. */
static uint64_t
expects(void *arg)
{
    const struct work *w = arg;
    uint64_t sum = 0;

    for (uint32_t i = 0; i < w->slots.n; i++) {
        if (w->slots.all[i].jobs > 0)
            sum += 2 * (w->slots.all[i].sent + engine_info(w->engine)->max_step_tokens);
    }
    return sum;
}

static void
on_stopped(void *arg)
{
    struct work *w = arg;

    w->calls.stopped(w->calls.arg);
}

static void
on_progress(void *arg)
{
    struct work *w = arg;

    w->calls.changed(w->calls.arg);
}

struct engine_calls
work_engine_calls(struct work *w)
{
    return (struct engine_calls){
        .arg = w,
        .ready = on_ready,
        .packet = on_packet,
        .expects = expects,
        .lost = on_lost,
        .failed = on_failed,
        .stopped = on_stopped,
        .progress = on_progress,
    };
}
