/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How operations are carried out.
 *
 * Each session has a queue; its first operation is under way, the others wait. pump() looks at
 * one session and does the next thing that can be done now, and it is called whenever something
 * has changed: it keeps no plan, so that after a fault of the engine the same code goes on from
 * what is true then. The truth is the transcript: a slot that lacks tokens of it is fed, and
 * whether they are new or were there before makes no difference. Tokens that are appended join
 * the transcript when the engine says that it has them; drawn ones when they arrive.
 *
 * A fault while a session's jobs were running makes its operation a suspect. Suspects run one
 * at a time until they are past the place where it happened; the engine failing again before
 * that breaks the session, so that one poisoned request cannot take all others down for ever.
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
#include "daemon/slots.h"
#include "daemon/text.h"
#include "daemon/work.h"
#include "model/tokenizer.h"

enum { FEEDS_AT_ONCE = 2, JOBS_SPARE = 16 };

struct work {
    const struct options *o;
    struct text *text;
    struct engine *engine;
    struct work_calls calls;
    struct slots slots;
    uint32_t bos, eos;
    struct session *waiting, **waiting_tail; /* for the engine, a slot or room for jobs */
    struct op *over, **over_tail;            /* cancelled while they waited behind others */
    struct event *on_fresh;
    struct session *trial; /* the suspect that runs now */
    struct work_counts counts;
    uint64_t n_ops; /* in all queues */
    bool stopping, asked_to_stop, failed;
    struct err why_failed;
};

static void pump(struct work *w, struct session *s);
static void end_op(struct work *w, struct op *op);

static void
try_free(struct session *s)
{
    if (s->state == SESSION_GONE && s->ops == NULL && s->streams == 0 && !s->waiting)
        session_free(s);
}

/* --- lists ------------------------------------------------------------------------------ */

static void
wait_for_engine(struct work *w, struct session *s)
{
    if (s->waiting)
        return;
    s->waiting = true;
    s->next_waiting = NULL;
    *w->waiting_tail = s;
    w->waiting_tail = &s->next_waiting;
}

/* To the loop: all that wait look again. */
static void
wake(struct work *w)
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
        try_free(held);
    }
    w->waiting = NULL;
    w->waiting_tail = &w->waiting;
    for (; s != NULL; s = next) {
        next = s->next_waiting;
        s->waiting = false;
        pump(w, s);
    }
    if (w->stopping && w->n_ops == 0 && !w->asked_to_stop) {
        w->asked_to_stop = true;
        engine_stop(w->engine);
    }
}

/* --- sessions at rest -------------------------------------------------------------------- */

/*
 * The slot goes back to what the transcript holds: scores are taken back, and so are tokens
 * that no quota was left for, or that were rolled back. Before anything else runs on it.
 */
static void
trim(struct work *w, struct session *s)
{
    struct err e;

    if (s->slot == NULL || s->slot->sent <= s->log.len)
        return;
    if (!slots_room(&w->slots, 1) || slots_rewind(&w->slots, s->slot, s->log.len, &e) == -1)
        slots_close(&w->slots, s->slot);
}

static void
settle(struct work *w, struct session *s)
{
    if (s->state == SESSION_GONE) {
        if (s->slot != NULL)
            slots_close(&w->slots, s->slot);
        try_free(s);
        return;
    }
    if (s->state == SESSION_BROKEN)
        return;
    trim(w, s);
    session_move(s,
                 s->log.len == 0   ? SESSION_EMPTY
                 : s->slot != NULL ? SESSION_WARM
                                   : SESSION_COLD,
                 "nothing to do");
}

void
work_released(struct work *w, struct session *s)
{
    (void)w;
    try_free(s);
}

/* --- operations -------------------------------------------------------------------------- */

static void
record(struct op *op)
{
    struct session *s = op->session;
    struct op_record r = {.kind = (uint8_t)op->kind,
                          .reason = (uint32_t)op->reason,
                          .code = (uint8_t)op->err.code,
                          .begin = op->begin,
                          .end = s->log.len,
                          .stop_at = op->stop_at};
    struct err e;

    /* What changed nothing may be tried again as if it had never been. */
    if (!op->has_op_id || op->repeated || op->stage == OP_WAITS ||
        (op->err.code != ERR_NONE && s->log.len == op->begin))
        return;
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

/* The first operation of the queue is over. */
static void
finish(struct work *w, struct session *s)
{
    struct op *op = s->ops;

    op->end = op->repeated ? op->end : s->log.len;
    record(op);
    s->ops = op->next;
    if (s->ops == NULL)
        s->ops_tail = &s->ops;
    s->n_ops--;
    s->used_ms = clock_wall_ms();
    if (w->trial == s)
        w->trial = NULL;
    wake(w); /* it may be evicted for another one now */
    if (s->state != SESSION_GONE && s->state != SESSION_BROKEN)
        trim(w, s);
    if (s->slot != NULL && s->state != SESSION_GONE) {
        slots_touch(&w->slots, s->slot);
        end_turn(w, op);
    }
    end_op(w, op);
}

static void
fail(struct op *op, const struct err *e)
{
    if (op->err.code == ERR_NONE)
        op->err = *e;
}

static void
on_text(struct text_job *job)
{
    struct op *op = job->arg;
    struct work *w = op->work;
    struct session *s = op->session;
    struct err e;

    op->text_job = NULL;
    if (job->err.code != ERR_NONE) {
        fail(op, &job->err);
    } else if (op->err.code == ERR_NONE) {
        if (op_pay(op, job->ids.len, &e) == -1) {
            fail(op, &e);
        } else {
            op->ids = (uint32_t *)(void *)job->ids.p;
            op->n_ids = job->ids.len / sizeof *op->ids;
            buf_init(&job->ids, 0);
        }
    }
    text_job_free(job);
    op->stage = OP_IN_ENGINE;
    pump(w, s);
}

/* The ids that go in front of what is appended: the beginning-of-sentence token, or the
 * end-of-sentence token of an answer that was cut short, which the next message needs. */
static int
put_in_front(const struct work *w, struct op *op, struct buf *ids, struct err *e)
{
    const struct session_log *l = &op->session->log;
    const bool at_start = l->len == 0;

    if (op->input == OP_MESSAGES) {
        if (!at_start && l->turns > 0 && !l->turn_open && l->tokens[l->len - 1] != w->eos)
            return buf_add(ids, &w->eos, sizeof w->eos, e);
    } else if (op->bos == 1 || (op->bos == -1 && at_start && op->input == OP_TEXT)) {
        return buf_add(ids, &w->bos, sizeof w->bos, e);
    }
    return 0;
}

static int
start_text(struct work *w, struct op *op, struct err *e)
{
    const bool chat = op->input == OP_MESSAGES;
    struct text_job *job = text_job_new(chat ? TEXT_CHAT : TEXT_TOKENIZE, on_text, op, e);

    if (job == NULL)
        return -1;
    buf_init(&job->ids, 1024);
    if (put_in_front(w, op, &job->ids, e) == -1) {
        text_job_free(job);
        return -1;
    }
    job->in = op->text;
    job->n_in = op->n_text;
    job->mapped = op->mapped;
    job->flags = op->control;
    job->bulk = op->n_text > TEXT_BULK_BYTES;
    job->chat = op->chat;
    job->chat.in_context = op->session->log.len > 0;
    op->text = NULL; /* the job's */
    op->mapped = NULL;
    op->n_text = 0;
    op->work = w;
    op->text_job = job;
    op->stage = OP_IN_TEXT;
    text_post(w->text, job);
    return 0;
}

/* Tokens that came as they are may want the beginning-of-sentence token, too. */
static int
start_tokens(const struct work *w, struct op *op, struct err *e)
{
    uint32_t *p;

    if (op->bos != 1)
        return 0;
    p = malloc((op->n_ids + 1) * sizeof *p);
    if (p == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for %zu tokens", op->n_ids);
    p[0] = w->bos;
    memcpy(p + 1, op->ids, op->n_ids * sizeof *p);
    free(op->ids);
    op->ids = p;
    op->n_ids++;
    return 0;
}

/* Its turn has come. */
static int
start(struct work *w, struct op *op, struct err *e)
{
    struct session *s = op->session;
    const struct op_record *r = op->has_op_id ? session_log_recall(&s->log, op->op_id)
                                              : NULL;

    op->began_ns = clock_ns();
    op->begin = op->end = s->log.len;
    if (r != NULL) {
        if (r->kind != op->kind)
            return err_set(e, ERR_INVALID, 0, "this op_id was used for another method");
        op->repeated = true;
        op->begin = r->begin;
        op->end = r->end;
        op->reason = (enum link_reason)r->reason;
        op->stop_at = r->stop_at;
        op->n_drawn = r->end - r->begin;
        op->stage = OP_OVER;
        if (r->code != ERR_NONE)
            return err_set(e, (enum err_code)r->code, 0,
                           "the first request of this op_id ended at position %" PRIu64
                           " with error %s",
                           r->end, err_name((enum err_code)r->code));
        return 0;
    }
    if (op->has_if_pos && op->if_pos != s->log.len)
        return err_set(e, ERR_CONFLICT, 0,
                       "the session is at position %" PRIu64 ", not %" PRIu64, s->log.len,
                       op->if_pos);
    if (op->kind == OP_CALL) {
        op->stage = OP_OVER;
        return op->calls->run(op, e);
    }
    if (s->state == SESSION_BROKEN)
        return err_set(e, ERR_DAMAGED, 0,
                       "the session brought the engine down twice at position %" PRIu64
                       "; roll it back or delete it",
                       s->log.len);
    if (op->kind == OP_APPEND || op->kind == OP_SCORE) {
        if (op->input != OP_TOKENS)
            return start_text(w, op, e);
        if (start_tokens(w, op, e) == -1)
            return -1;
    }
    op->stage = OP_IN_ENGINE;
    return 0;
}

/* What the model's size says about it, once that is known. */
static int
check_size(const struct work *w, struct op *op, struct err *e)
{
    const struct link_ready *info = engine_info(w->engine);
    const uint64_t max = info->max_positions;

    for (size_t i = 0; i < op->n_ids && op->input == OP_TOKENS; i++) {
        if (op->ids[i] >= info->vocab)
            return err_set(e, ERR_INVALID, 0,
                           "token %zu is %" PRIu32 "; the vocabulary has %" PRIu32, i,
                           op->ids[i], info->vocab);
    }
    if (op->n_ids > max || op->begin > max - op->n_ids)
        return err_set(e, ERR_CONTEXT_FULL, 0,
                       "%zu tokens at position %" PRIu64
                       " do not fit: the context ends at %" PRIu64,
                       op->n_ids, op->begin, max);
    if (op->kind == OP_SAMPLE) {
        if (op->begin == 0)
            return err_set(e, ERR_INVALID, 0,
                           "the session is empty: append something first");
        if (op->to_end)
            op->params.max_tokens =
                (uint32_t)(max - op->begin < UINT32_MAX ? max - op->begin : UINT32_MAX);
        if (op->params.max_tokens == 0)
            return err_set(e, ERR_CONTEXT_FULL, 0,
                           "the context is full: %" PRIu64 " tokens", max);
        return sample_params_check(&op->params, info->vocab, e);
    }
    if (op->kind == OP_LOGITS && op->begin == 0)
        return err_set(e, ERR_INVALID, 0, "the session is empty: append something first");
    if (op->kind == OP_SCORE && op->scores == NULL) {
        if (op_pay(op, op->n_ids * sizeof *op->scores, e) == -1)
            return -1;
        op->scores = calloc(op->n_ids + 1, sizeof *op->scores);
        if (op->scores == NULL)
            return err_set(e, ERR_QUOTA, errno, "no memory for %zu scores", op->n_ids);
    }
    return 0;
}

/* --- the engine's part ------------------------------------------------------------------- */

/* The session gets a slot with as much of its transcript as there is. False: not now. */
static bool
get_slot(struct work *w, struct session *s, struct err *e)
{
    struct slot *sl, *from;
    int rc;

    if (w->slots.n_free == 0 && slots_evict(&w->slots))
        return false; /* it is free once the engine has closed it */
    sl = slots_take(&w->slots, s, SLOT_SESSION);
    if (sl == NULL)
        return false;
    from = slots_snapshot(&w->slots, s, s->log.len);
    if (from != NULL)
        rc = slots_fork(&w->slots, sl, from, s->user->uid, e);
    else
        rc = slots_open(&w->slots, sl, s->user->uid, e);
    s->slot = sl;
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
        uint32_t n = (uint32_t)w->o->feed_tokens;
        const uint32_t *ids;

        if (op->kind == OP_SCORE && !scores && first - sl->sent < n)
            n = (uint32_t)(first - sl->sent);
        ids = tokens_at(op, sl->sent, &n);
        if (sl->sent < s->log.len)
            w->counts.replayed += n;
        if (slots_feed(&w->slots, sl, ids, n, scores, e) == -1)
            return -1;
    }
    return 0;
}

static enum session_state
state_of(const struct op *op)
{
    if (op->kind == OP_SAMPLE || op->kind == OP_LOGITS)
        return op->session->slot->sent < op->session->log.len ? SESSION_REPLAYING
                                                              : SESSION_SAMPLING;
    return op->session->slot->len < op->session->log.len ? SESSION_REPLAYING
                                                         : SESSION_FEEDING;
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
    if (engine_state(w->engine) != ENGINE_SERVING ||
        (op->suspect && w->trial != NULL && w->trial != s)) {
        wait_for_engine(w, s);
        return 0;
    }
    /* Not whenever the slot is at rest: a rewind of the operation before may be under way. */
    if (!op->sized && check_size(w, op, e) == -1)
        return -1;
    op->sized = true;
    if (!slots_room(&w->slots, JOBS_SPARE)) {
        wait_for_engine(w, s);
        return 0;
    }
    e->code = ERR_NONE;
    if (s->slot == NULL && !get_slot(w, s, e)) {
        if (e->code != ERR_NONE)
            return -1;
        wait_for_engine(w, s);
        return 0;
    }
    if (op->suspect)
        w->trial = s;
    total = op->kind == OP_APPEND || op->kind == OP_SCORE ? op->begin + op->n_ids
                                                          : s->log.len;
    if (s->slot->sent < total) {
        if (feed(w, op, total, e) == -1)
            return -1;
    } else if (s->slot->jobs == 0) {
        if (op->kind == OP_APPEND || op->kind == OP_SCORE)
            return 1;
        if (op->kind == OP_SAMPLE
                ? slots_sample(&w->slots, s->slot, op->n_drawn, &op->params, e) == -1
                : slots_logits(&w->slots, s->slot, op->fd, e) == -1)
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
    if (why.code == ERR_CANCELLED && op->was_paused)
        return false;
    if (why.code == ERR_QUOTA && slots_evict(&w->slots)) {
        session_move(s, SESSION_QUEUED, "the engine is short of room");
        wait_for_engine(w, s);
        return true;
    }
    if (why.code == ERR_CONTEXT_FULL && op->kind == OP_SAMPLE && op->n_drawn > 0) {
        op->context_full = true;
        op->reason = LINK_LIMIT;
        op->stage = OP_OVER;
        return false;
    }
    fail(op, &why);
    return false;
}

/* The operation in the engine: false if it goes on, true if it is over. */
static bool
advance(struct work *w, struct op *op)
{
    struct session *s = op->session;
    struct err e;
    int rc;

    if (s->slot != NULL && s->slot->jobs == 0 && s->slot->err.code != ERR_NONE &&
        recover(w, op))
        return false;
    if (s->slot == NULL || s->slot->jobs == 0)
        op->was_paused = op->paused;
    if (op->stage == OP_OVER)
        return s->slot == NULL || s->slot->jobs == 0;
    if (op->err.code != ERR_NONE) {
        if (s->slot == NULL || s->slot->jobs == 0)
            return true;
        if (!s->slot->cancelled) {
            s->slot->cancelled = true;
            slots_cancel(&w->slots, s->slot);
        }
        return false;
    }
    if (op->paused) {
        if (s->slot != NULL && s->slot->jobs > 0 && !s->slot->cancelled) {
            s->slot->cancelled = true;
            slots_cancel(&w->slots, s->slot);
        }
        session_move(s, SESSION_QUEUED, "its reader is slow");
        return false;
    }
    rc = drive(w, op, &e);
    if (rc == -1) {
        fail(op, &e);
        return advance(w, op);
    }
    return rc == 1;
}

static void
pump(struct work *w, struct session *s)
{
    struct op *op;
    struct err e;

    while ((op = s->ops) != NULL) {
        if (op->stage == OP_WAITS && op->err.code == ERR_NONE) {
            if (s->state != SESSION_GONE && s->state != SESSION_BROKEN)
                session_move(s, SESSION_QUEUED, "work came");
            if (start(w, op, &e) == -1)
                fail(op, &e);
        }
        if (op->stage == OP_IN_TEXT)
            return; /* also when it was cancelled: the text is the thread's until then */
        if (op->stage == OP_IN_ENGINE && !advance(w, op))
            return;
        finish(w, s);
    }
    settle(w, s);
}

/* --- packets ----------------------------------------------------------------------------- */

/* It got past the place of the fault: no suspect any more. */
static void
clear_suspect(struct work *w, struct op *op, const struct slot *sl)
{
    if (!op->suspect || sl->len <= op->fault_len)
        return;
    op->suspect = false;
    if (w->trial == op->session) {
        w->trial = NULL;
        wake(w);
    }
}

static void
on_fed(struct work *w, struct op *op, const struct slots_news *news)
{
    struct session *s = op->session;
    struct err e;

    if (op->kind == OP_APPEND && news->pos > s->log.len && op->err.code != ERR_QUOTA) {
        const size_t n = news->pos - s->log.len;

        if (session_log_append(&s->log, op->ids + (s->log.len - op->begin), n, &e) == -1) {
            fail(op, &e);
            return;
        }
        w->counts.appended += n;
    }
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
        fail(op, &e);
        return;
    }
    if (op->n_drawn == 0)
        op->first_ns = clock_ns();
    op->n_drawn += news->n;
    w->counts.drawn += news->n;
    if (op->calls->drawn != NULL)
        op->calls->drawn(op, news->pos, news->tokens, news->n);
}

static void
on_end(struct op *op, const struct slots_news *news)
{
    if (news->end->reason == LINK_FAILED)
        return; /* slot->err has it */
    if (news->job_type == LINK_SAMPLE) {
        op->reason = (enum link_reason)news->end->reason;
        op->stop_at = news->end->stop_at;
        op->stage = OP_OVER;
    } else if (news->job_type == LINK_LOGITS) {
        op->stage = OP_OVER;
    }
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
        wake(w); /* a slot or room for a job may be free now */
    s = news.slot->session;
    if (s == NULL || news.slot->use != SLOT_SESSION)
        return 0;
    op = s->ops;
    if (op == NULL || op->stage != OP_IN_ENGINE) {
        /* A rewind of an operation that is over. */
        return 0;
    }
    switch (news.type) {
    case LINK_FED: on_fed(w, op, &news); break;
    case LINK_SCORES: on_scores(op, &news); break;
    case LINK_TOKENS: on_tokens(w, op, &news); break;
    default: on_end(op, &news);
    }
    clear_suspect(w, op, news.slot);
    if (news.slot->jobs == 0)
        news.slot->cancelled = false;
    if (news.type == LINK_END || op->err.code != ERR_NONE)
        pump(w, s);
    return 0;
}

/* --- the engine's life ------------------------------------------------------------------- */

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
    w->calls.changed(w->calls.arg);
    wake(w);
}

/* The fault happened while this session's jobs were running. */
static void
suspect(struct work *w, struct session *s, const struct slot *sl)
{
    struct op *op = s->ops;
    struct err e;

    if (op->suspect && w->trial == s && sl->len <= op->fault_len) {
        err_set(&e, ERR_DAMAGED, 0,
                "the engine failed twice at position %" PRIu64
                " of this session; roll it back or delete it",
                sl->len);
        log_line(LOG_ERROR, "session-broken name=%s uid=%" PRIu32 " pos=%" PRIu64, s->name,
                 s->user->uid, sl->len);
        w->counts.broken++;
        fail(op, &e);
        session_move(s, SESSION_BROKEN, "two faults");
        return;
    }
    op->suspect = true;
    op->fault_len = sl->len;
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
        if (s->ops != NULL && s->ops->stage == OP_IN_ENGINE && sl->jobs > 0 && own_fault)
            suspect(w, s, sl);
        if (s->state == SESSION_WARM)
            session_move(s, SESSION_COLD, "the engine is gone");
        else if (s->state != SESSION_GONE && s->state != SESSION_BROKEN)
            session_move(s, SESSION_QUEUED, "the engine is gone");
        wait_for_engine(w, s);
    }
    w->trial = NULL;
    slots_done(&w->slots);
    w->calls.changed(w->calls.arg);
    wake(w);
}

/* All users' sessions are reached through the queues that wait: nobody runs any more. */
static void
fail_waiting(struct work *w, const struct err *why)
{
    for (struct session *s = w->waiting; s != NULL; s = s->next_waiting) {
        for (struct op *op = s->ops; op != NULL; op = op->next)
            fail(op, why);
    }
    wake(w);
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

static bool
expects(void *arg)
{
    const struct work *w = arg;

    return w->slots.n_jobs > 0;
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

struct engine *
work_engine(const struct work *w)
{
    return w->engine;
}

struct work *
work_new(struct event_base *base, const struct options *o, struct text *text, uint32_t bos,
         uint32_t eos, const struct work_calls *calls, struct err *e)
{
    struct work *w = calloc(1, sizeof *w);
    const struct engine_calls engine_calls = {
        .arg = w,
        .ready = on_ready,
        .packet = on_packet,
        .expects = expects,
        .lost = on_lost,
        .failed = on_failed,
        .stopped = on_stopped,
        .progress = on_progress,
    };

    if (w == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory for the sessions' work");
        return NULL;
    }
    w->o = o;
    w->text = text;
    w->bos = bos;
    w->eos = eos;
    w->calls = *calls;
    w->waiting_tail = &w->waiting;
    w->over_tail = &w->over;
    w->on_fresh = event_new(base, -1, 0, on_fresh, w);
    w->engine = engine_new(base, o, &engine_calls, e);
    if (w->engine == NULL || w->on_fresh == NULL) {
        if (w->engine != NULL)
            err_set(e, ERR_QUOTA, errno, "no memory for the sessions' work");
        work_free(w);
        return NULL;
    }
    w->slots.engine = w->engine;
    return w;
}

void
work_free(struct work *w)
{
    if (w == NULL)
        return;
    engine_free(w->engine);
    slots_done(&w->slots);
    if (w->on_fresh != NULL)
        event_free(w->on_fresh);
    free(w);
}

/* --- from requests ----------------------------------------------------------------------- */

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
        wait_for_engine(w, s);
        wake(w);
    }
    return 0;
}

void
work_cancel(struct work *w, struct op *op, const struct err *why)
{
    struct session *s = op->session;
    struct op **at = &s->ops;

    if (op->stage == OP_OVER || op->err.code != ERR_NONE)
        return;
    fail(op, why);
    if (op == s->ops) {
        wait_for_engine(w, s);
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
    wake(w);
}

void
work_pause(struct work *w, struct op *op, bool pause)
{
    if (op->paused == pause || op->stage == OP_OVER)
        return;
    op->paused = pause;
    op->was_paused |= pause;
    wait_for_engine(w, op->session);
    wake(w);
}

void
work_delete(struct work *w, struct session *s)
{
    struct err why;

    err_set(&why, ERR_NOT_FOUND, 0, "the session was deleted");
    for (struct op *op = s->ops; op != NULL; op = op->next)
        fail(op, &why);
    slots_drop_snapshots(&w->slots, s, 0);
    session_move(s, SESSION_GONE, "deleted");
    session_unlink(s);
    wait_for_engine(w, s);
    wake(w);
}

void
work_stop(struct work *w, const struct quota *q, const struct err *why)
{
    w->stopping = true;
    for (const struct user *u = q->users; u != NULL; u = u->next) {
        for (struct session *s = u->sessions; s != NULL; s = s->next) {
            for (struct op *op = s->ops; op != NULL; op = op->next)
                fail(op, why);
            if (s->ops != NULL)
                wait_for_engine(w, s);
        }
    }
    wake(w);
}

static void
free_session(struct session *s)
{
    struct op *op;

    while ((op = s->ops) != NULL) {
        s->ops = op->next;
        op_free(op);
    }
    s->slot = NULL;
    s->waiting = false;
    s->streams = 0;
    session_free(s);
}

void
work_end(struct work *w, struct quota *q)
{
    struct session *s, *next;
    struct op *op;

    while ((op = w->over) != NULL) {
        w->over = op->next;
        op_free(op);
    }
    for (s = w->waiting; s != NULL; s = next) {
        next = s->next_waiting;
        s->waiting = false;
        if (s->state == SESSION_GONE && s->slot == NULL)
            free_session(s);
    }
    for (uint32_t i = 0; i < w->slots.n; i++) {
        struct slot *sl = &w->slots.all[i];

        if (sl->use == SLOT_SESSION && sl->session->state == SESSION_GONE)
            free_session(sl->session);
    }
    w->waiting = NULL;
    w->waiting_tail = &w->waiting;
    for (struct user *u = q->users; u != NULL;) {
        if (u->sessions == NULL) {
            u = u->next;
            continue;
        }
        free_session(u->sessions);
        u = q->users; /* the last session may have taken its user along */
    }
}

int
work_rollback(struct work *w, struct session *s, uint64_t pos, struct err *e)
{
    if (session_log_truncate(&s->log, pos, e) == -1)
        return -1;
    slots_drop_snapshots(&w->slots, s, pos);
    /* A snapshot of just that place is quicker than to compute its window again. */
    if (s->slot != NULL && s->slot->sent > pos) {
        const struct slot *snap = slots_snapshot(&w->slots, s, pos);

        if (pos == 0 || (snap != NULL && snap->snapshot_pos == pos))
            slots_close(&w->slots, s->slot);
    }
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
    if (src == NULL || !src->open || src->jobs > 0 || src->len != pos || pos == 0 ||
        !slots_room(&w->slots, JOBS_SPARE))
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
work_snapshot(struct work *w, struct session *s)
{
    struct slot *sl, *have = slots_snapshot(&w->slots, s, s->log.len);
    struct err e;

    if (w->o->snapshots == 0 || s->slot == NULL || s->slot->jobs > 0 ||
        s->slot->len != s->log.len || s->log.len == 0 ||
        !slots_room(&w->slots, JOBS_SPARE) ||
        (have != NULL && have->snapshot_pos == s->log.len))
        return;
    while (w->slots.n_snapshots >= w->o->snapshots)
        slots_drop_oldest_snapshot(&w->slots);
    if (w->slots.n_free < 2)
        return; /* the last one is for somebody's work */
    sl = slots_take(&w->slots, s, SLOT_SNAPSHOT);
    if (sl == NULL)
        return;
    sl->snapshot_pos = s->log.len;
    if (slots_fork(&w->slots, sl, s->slot, s->user->uid, &e) == -1)
        slots_close(&w->slots, sl);
}

uint64_t
work_kv_len(const struct session *s)
{
    return s->slot != NULL ? s->slot->len : 0;
}

uint64_t
work_at_hand(const struct work *w, const struct session *s)
{
    const struct slot *snap;

    if (s->slot != NULL)
        return s->slot->sent < s->log.len ? s->slot->sent : s->log.len;
    snap = slots_snapshot(&w->slots, s, s->log.len);
    return snap != NULL ? snap->snapshot_pos : 0;
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
        out->running += sl->jobs > 0;
    }
    out->queued -= out->running < out->queued ? out->running : out->queued;
}
