/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sample: the stream is a cursor into the session's transcript, so that a reader that stalls
 * costs nothing, and one whose op_id was known gets the same tokens again. Only what is not in
 * the transcript (log-probabilities, if asked for) is kept until the reader has it.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "daemon/input.h"
#include "daemon/options.h"
#include "daemon/request.h"
#include "daemon/sample_params.h"
#include "daemon/shm.h"
#include "daemon/stream_text.h"
#include "daemon/text.h"
#include "daemon/work.h"
#include "model/tokenizer.h"

enum { CREDIT_DEFAULT = 1024, QUIET_BYTES = 262144, ITEM_TEXT = 65536 };

struct weights {
    float logprob;
    uint32_t n_top;
    struct sample_top top[SAMPLER_MAX_TOP];
};

struct sampling {
    struct sample_params params;
    struct stream_text text;
    bool quiet, parse, detach, pauses, logprobs, over, thinking, in_answer, begun;
    bool
        waits; /* the newest token for the next one, or the end: its text is not decided yet */
    uint64_t begin, next,
        end; /* positions: of the sample, of the reader, of what is there */
    uint64_t credit;
    uint32_t n_stream; /* messages sent */
    uint64_t rollbacks;
    struct buf kept;  /* struct weights of [next, end) */
    uint64_t paid;    /* for them */
    struct buf shown; /* quiet: the text */
    uint32_t *tokens; /* quiet: for the result */
    struct wire_sample_result res;
    struct err err; /* over: how */
    uint64_t stop_at;
    enum link_reason reason;
    bool context_full;
    char stop[SAMPLER_MAX_STOP_BYTES + 1];

    /* The ring has a cursor of its own: it waits for nobody. */
    struct ring *ring;            /* taken; NULL: none */
    struct stream_text ring_text; /* RING_TOKEN */
    bool ring_in_answer;
};

static void pump(struct request *r);

static void
drop(struct request *r)
{
    struct sampling *d = r->data;

    if (d == NULL)
        return;
    quota_give(r->conn->user, QUOTA_BYTES, d->paid);
    if (d->ring != NULL)
        d->ring->taken = false;
    stream_text_done(&d->ring_text);
    stream_text_done(&d->text);
    buf_done(&d->kept);
    buf_done(&d->shown);
    free(d->tokens);
    free(d);
    r->data = NULL;
}

/* --- what the engine brings --------------------------------------------------------------- */

static int
keep_weights(struct request *r, const struct sample_choice *c, uint32_t n, struct err *e)
{
    struct sampling *d = r->data;

    if (quota_take(r->conn->user, QUOTA_BYTES, n * sizeof(struct weights), e) == -1)
        return -1;
    d->paid += n * sizeof(struct weights);
    for (uint32_t i = 0; i < n; i++) {
        struct weights w = {.logprob = c[i].logprob, .n_top = c[i].n_top};

        memcpy(w.top, c[i].top, sizeof w.top);
        if (buf_add(&d->kept, &w, sizeof w, e) == -1)
            return -1;
    }
    return 0;
}

static void
start_reading(struct sampling *d, const struct request *r, uint64_t begin)
{
    const struct session_log *l = &r->session->log;
    const int64_t think = tokenizer_control_id(r->conn->server->tokenizer, "<think>");

    if (d->begun)
        return;
    d->begun = true;
    d->begin = d->next = d->end = begin;
    d->rollbacks = l->rollbacks;
    d->thinking = !l->parked && begin > 0 && begin <= l->len && think >= 0 &&
                  l->tokens[begin - 1] == (uint32_t)think;
}

/* --- the ring ----------------------------------------------------------------------------- */

/* What has just been drawn. A reader that is too slow finds gaps, so this cannot fail for want of
 * room; text that cannot be made for want of memory is text that is not there. */
static void
fill_ring(struct request *r, uint64_t pos, const struct sample_choice *c, uint32_t n)
{
    struct sampling *d = r->data;
    const struct tokenizer *t = r->conn->server->tokenizer;
    const int64_t end_of = tokenizer_control_id(t, "</think>");
    struct buf text;
    struct err e;

    if (d->ring == NULL)
        return;
    buf_init(&text, RING_TEXT_MOST);
    for (uint32_t i = 0; i < n; i++) {
        if (d->ring->kind == RING_LOGITS) {
            ring_put_row(d->ring, pos + i, &c[i]);
            continue;
        }
        text.len = 0;
        if (stream_text_add(&d->ring_text, c[i].id, &text, &e) == -1)
            text.len = 0;
        d->ring_in_answer |= end_of >= 0 && c[i].id == (uint32_t)end_of;
        ring_put_token(d->ring, pos + i, &c[i],
                       d->thinking && d->parse && !d->ring_in_answer, text.p, text.len);
    }
    buf_done(&text);
    ring_wake(d->ring);
}

static void
end_ring(struct request *r)
{
    struct sampling *d = r->data;
    struct buf text;
    struct err e;

    if (d->ring == NULL)
        return;
    buf_init(&text, RING_TEXT_MOST);
    if (d->err.code == ERR_NONE)
        (void)stream_text_end(&d->ring_text, d->stop_at, &text, &e);
    ring_put_end(d->ring, d->end, text.p, text.len);
    buf_done(&text);
    ring_wake(d->ring);
    d->ring->taken = false;
    d->ring = NULL;
}

static void
on_drawn(struct op *op, uint64_t pos, const struct sample_choice *c, uint32_t n)
{
    struct request *r = op->owner;
    struct sampling *d;
    struct err e;

    if (r == NULL)
        return;
    d = r->data;
    start_reading(d, r, op->begin);
    d->end = pos + n;
    fill_ring(r, pos, c, n);
    if (d->logprobs && !d->quiet && keep_weights(r, c, n, &e) == -1)
        work_cancel(r->conn->server->work, op, &e);
    pump(r);
}

/* How far the reader may see: with durability=always no further than the disk has it. */
static uint64_t
shown_until(const struct request *r)
{
    const struct sampling *d = r->data;
    const uint64_t durable = session_log_durable(&r->session->log);

    if (r->conn->server->o->durability != DURABILITY_ALWAYS || d->over || durable > d->end)
        return d->end;
    return durable > d->next ? durable : d->next;
}

static void
on_stored(struct op *op)
{
    struct request *r = op->owner;

    if (r != NULL)
        pump(r);
}

static void
on_done(struct op *op)
{
    struct request *r = request_of(op);
    struct sampling *d;

    if (r == NULL)
        return;
    d = r->data;
    start_reading(d, r, op->begin);
    d->end = op->end;
    if (op->err.code != ERR_NONE)
        d->end = shown_until(r); /* what did not get to the disk is not told */
    d->over = true;
    d->err = op->err;
    d->reason = op->reason;
    d->stop_at = op->reason == LINK_STOP_STRING ? op->stop_at : UINT64_MAX;
    d->context_full = op->context_full;
    d->params.max_tokens = op->params.max_tokens;
    d->params.seed = op->params.seed; /* an op_id's first one */
    d->res.pos = op->end;
    d->res.n = op->end - op->begin;
    if (op->repeated)
        wire_put(&d->res, sample_result, repeated, true);
    if (op->began_ns != 0)
        wire_put(&d->res, sample_result, queue_us, (op->began_ns - op->queued_ns) / 1000);
    if (op->first_ns != 0)
        wire_put(&d->res, sample_result, first_us, (op->first_ns - op->queued_ns) / 1000);
    wire_put(&d->res, sample_result, total_us, (op->end_ns - op->queued_ns) / 1000);
    end_ring(r);
    pump(r);
}

/* --- the end ------------------------------------------------------------------------------ */

static const char *
reason_name(const struct sampling *d, const struct session_log *l, uint32_t eos)
{
    if (d->context_full)
        return "context-full";
    switch (d->reason) {
    case LINK_STOP_TOKEN: return l->tokens[d->end - 1] == eos ? "eos" : "stop-token";
    case LINK_STOP_STRING: return "stop-string";
    default: return "limit";
    }
}

/* Which of the stop strings begins at stop_at: they lie in the last tokens. */
static void
find_stop(struct sampling *d, const struct server *sv, const struct session_log *l)
{
    struct stop_matcher m;
    struct sample_params *one = malloc(sizeof *one);

    for (uint32_t i = 0; one != NULL && i < d->params.n_stops && d->stop[0] == '\0'; i++) {
        uint64_t at;

        *one = d->params;
        one->n_stops = 1;
        one->stops[0] = d->params.stops[i];
        stop_matcher_init(&m, one);
        for (uint64_t p = d->begin; p < d->end; p++) {
            size_t len;
            const char *bytes = tokenizer_bytes(sv->tokenizer, l->tokens[p], &len);

            if (tokenizer_is_control(sv->tokenizer, l->tokens[p]) ||
                !stop_matcher_feed(&m, bytes, len, &at))
                continue;
            if (at == d->stop_at)
                snprintf(d->stop, sizeof d->stop, "%.*s", (int)one->stops[0].len,
                         one->stops[0].s);
            break;
        }
    }
    free(one);
}

/* All that the result takes from the transcript, while the tokens are there for sure. */
static void
conclude(struct request *r)
{
    struct sampling *d = r->data;
    const struct server *sv = r->conn->server;
    const struct session_log *l = &r->session->log;
    struct wire_sample_result *res = &d->res;
    const uint32_t eos = sv->eos;

    res->reason = wire_str(reason_name(d, l, eos));
    if (d->reason == LINK_STOP_STRING && !d->context_full) {
        find_stop(d, sv, l);
        if (d->stop[0] != '\0')
            wire_put(res, sample_result, stop, wire_str(d->stop));
    } else if (d->reason == LINK_STOP_TOKEN) {
        wire_put(res, sample_result, stop_id, l->tokens[d->end - 1]);
    }
    if (d->quiet && d->shown.len <= QUIET_BYTES &&
        res->n <= QUIET_BYTES / sizeof(uint32_t)) {
        d->tokens = sample_tokens_le(l->tokens + d->begin, res->n);
        wire_put(res, sample_result, text,
                 wire_strn((const char *)d->shown.p, d->shown.len));
        if (d->tokens != NULL)
            wire_put(res, sample_result, tokens,
                     wire_bin(d->tokens, res->n * sizeof(uint32_t)));
    }
    sample_params_tell(&d->params, res);
}

static void
reply(struct request *r)
{
    const struct sampling *d = r->data;

    request_reply(r, WIRE_MSG(sample_result), &d->res);
}

static void
on_parsed(struct text_job *job)
{
    struct request *r = request_of_job(job);
    struct sampling *d = r != NULL ? r->data : NULL;

    if (d != NULL && job->err.code == ERR_NONE) {
        wire_put(&d->res, sample_result, message,
                 wire_strn((const char *)job->out.p, job->out.len));
        if (job->note[0] != '\0')
            wire_put(&d->res, sample_result, note, wire_str(job->note));
    } else if (d != NULL) {
        wire_put(&d->res, sample_result, note, wire_str(job->err.text));
    }
    if (d != NULL)
        reply(r);
    text_job_free(job);
}

static void
parse(struct request *r)
{
    struct sampling *d = r->data;
    const size_t bytes = (d->end - d->begin) * sizeof(uint32_t);
    struct err e;
    struct text_job *job = text_job_new(TEXT_PARSE, on_parsed, r, &e);

    r->resume = NULL;
    r->credit = NULL;
    if (job != NULL) {
        buf_init(&job->ids, bytes + 1);
        job->thinking = d->thinking;
        if (buf_add(&job->ids, r->session->log.tokens + d->begin, bytes, &e) == -1) {
            text_job_free(job);
            job = NULL;
        }
    }
    /* The tokens are drawn and told: without a message the result is still a result. */
    if (job == NULL || request_post(r, job, &e) == -1) {
        wire_put(&d->res, sample_result, note, wire_str(e.text));
        reply(r);
    }
}

/* --- the stream --------------------------------------------------------------------------- */

struct batch {
    struct wire_token items[WIRE_MAX_BATCH];
    struct wire_top tops[WIRE_MAX_BATCH][SAMPLER_MAX_TOP];
    size_t text_at[WIRE_MAX_BATCH + 1];
    struct buf text;
    uint32_t n;
};

static int
put_token(struct request *r, struct batch *b, struct err *e)
{
    struct sampling *d = r->data;
    const struct session_log *l = &r->session->log;
    const struct tokenizer *t = r->conn->server->tokenizer;
    const uint32_t i = b->n, id = l->tokens[d->next];
    struct wire_token *item = &b->items[i];
    const bool last = d->over && d->next + 1 == d->end && d->err.code == ERR_NONE;

    *item = (struct wire_token){.pos = d->next, .id = id};
    b->text_at[i] = b->text.len;
    if (stream_text_add(&d->text, id, &b->text, e) == -1 ||
        (last && stream_text_end(&d->text, d->stop_at, &b->text, e) == -1))
        return -1;
    b->text_at[i + 1] = b->text.len;
    if (d->thinking && d->parse) {
        const int64_t end_of = tokenizer_control_id(t, "</think>");

        d->in_answer |= end_of >= 0 && id == (uint32_t)end_of;
        wire_put(item, token, reasoning, !d->in_answer);
    }
    if (d->kept.len >= sizeof(struct weights) * (i + 1)) {
        const struct weights *w = (const struct weights *)(const void *)d->kept.p + i;

        wire_put(item, token, logprob, (double)w->logprob);
        for (uint32_t k = 0; k < w->n_top; k++)
            b->tops[i][k] =
                (struct wire_top){.id = w->top[k].id, .logprob = (double)w->top[k].logprob};
        if (w->n_top > 0) {
            item->has |= UINT64_C(1) << WIRE_token_top;
            item->top.v = b->tops[i];
            item->top.n = w->n_top;
        }
    }
    b->n++;
    d->next++;
    return 0;
}

static void
forget_weights(struct request *r, uint32_t n)
{
    struct sampling *d = r->data;
    const size_t bytes = n * sizeof(struct weights);

    if (d->kept.len < bytes)
        return;
    buf_drop(&d->kept, bytes);
    d->paid -= bytes;
    quota_give(r->conn->user, QUOTA_BYTES, bytes);
}

/* One message of the stream. False: no more now. */
static bool
send_batch(struct request *r, struct batch *b, struct err *e)
{
    struct sampling *d = r->data;
    struct conn *c = r->conn;
    const uint64_t until = shown_until(r);

    b->n = 0;
    b->text.len = 0;
    d->waits = false;
    while (b->n < WIRE_MAX_BATCH && d->next < until && d->credit > 0 &&
           b->text.len < ITEM_TEXT / 2) {
        /* The last token brings what had been held back until then, and this may be it. */
        d->waits = d->next + 1 == d->end && !d->over &&
                   stream_text_would_hold(&d->text, r->session->log.tokens[d->next]);
        if (d->waits)
            break;
        if (put_token(r, b, e) == -1)
            return false;
        d->credit--;
    }
    if (b->n == 0)
        return false;
    for (uint32_t i = 0; i < b->n; i++)
        b->items[i].text = wire_strn((const char *)b->text.p + b->text_at[i],
                                     b->text_at[i + 1] - b->text_at[i]);
    if (wire_stream(&c->out, r->id, d->n_stream++, WIRE_MSG(token), b->items, b->n, e) ==
        -1)
        return false;
    forget_weights(r, b->n);
    return true;
}

/* All that is there, as text for the result. */
static int
collect(struct request *r, struct err *e)
{
    struct sampling *d = r->data;

    for (; d->next < d->end; d->next++) {
        if (stream_text_add(&d->text, r->session->log.tokens[d->next], &d->shown, e) == -1)
            return -1;
    }
    if (d->over && d->err.code == ERR_NONE)
        return stream_text_end(&d->text, d->stop_at, &d->shown, e);
    return 0;
}

static void
stream(struct request *r, struct err *e)
{
    static struct batch b; /* one thread; too large for the stack */

    if (b.text.cap == 0)
        buf_init(&b.text, 1u << 20);
    while (conn_waiting(r->conn) < CONN_STREAM_BYTES && send_batch(r, &b, e))
        ;
}

static void
end(struct request *r)
{
    struct sampling *d = r->data;

    if (d->err.code != ERR_NONE) {
        request_fail_at(r, &d->err, d->end);
        return;
    }
    conclude(r);
    if (d->parse)
        parse(r);
    else
        reply(r);
}

/* Sends what can be sent, and ends the request if that was all. */
static void
pump(struct request *r)
{
    struct sampling *d = r->data;
    struct conn *c = r->conn;
    struct err e = {0};
    uint64_t low;

    if (r->text_job != NULL || !d->begun)
        return;
    /* What a rollback took away cannot be read any more. */
    low = session_log_low(&r->session->log, d->rollbacks);
    if (d->end > low) {
        err_set(&e, ERR_CONFLICT, 0,
                "the session was rolled back to %" PRIu64
                " while this stream was at %" PRIu64,
                low, d->next);
    } else if (d->quiet) {
        if (collect(r, &e) == -1 && e.code == ERR_QUOTA)
            d->shown.len = QUIET_BYTES + 1; /* too long to be told in the result */
        e.code = ERR_NONE;
        d->next = d->end;
    } else {
        stream(r, &e);
    }
    if (e.code != ERR_NONE) {
        if (e.code == ERR_QUOTA && d->next < d->end)
            conn_drop(c);
        if (r->op != NULL) {
            work_cancel(c->server->work, r->op, &e);
            d->next = d->end;
            return;
        }
        request_fail_at(r, &e, r->session->log.len);
        return;
    }
    if (r->op != NULL && d->pauses)
        work_pause(c->server->work, r->op, d->credit == 0);
    if (d->over && d->next == d->end) {
        end(r);
        return;
    }
    conn_kick(c);
    if (d->credit > 0 && d->next < shown_until(r) && !d->waits)
        conn_again(c);
}

static void
on_credit(struct request *r, uint32_t n)
{
    struct sampling *d = r->data;

    d->credit = d->credit + n < UINT32_MAX ? d->credit + n : UINT32_MAX;
    pump(r);
}

/* Detached, it goes on without a reader. */
static void
on_leave(struct request *r)
{
    const struct sampling *d = r->data;
    struct op *op = r->op;

    if (op == NULL || d == NULL || !d->detach)
        return;
    request_of(op);
    work_pause(r->conn->server->work, op, false); /* nobody would give it credit again */
}

/* --- the beginning ------------------------------------------------------------------------ */

static int
take_ring(struct request *r, struct sampling *d, struct op *op, uint64_t number,
          struct err *e)
{
    struct ring *ring = ring_find(r->conn, number, e);

    if (ring == NULL)
        return -1;
    if (ring->taken)
        return err_set(e, ERR_BUSY, 0, "another sample fills ring %" PRIu64, number);
    if (ring->kind == RING_LOGITS) {
        op->fd = fcntl(ring->rows_fd, F_DUPFD_CLOEXEC, 3);
        if (op->fd == -1)
            return err_set(e, ERR_QUOTA, errno, "no descriptor left for rows of logits");
        op->rows = ring->rows;
    }
    ring->taken = true;
    d->ring = ring;
    return 0;
}

static int
read_body(struct request *r, struct sampling *d, struct op *op, const struct wire_sample *q,
          struct err *e)
{
    if (sample_params_read(&d->params, q, r->conn->server->eos, e) == -1 ||
        input_op_id(op, wire_has(q, sample, op_id), q->op_id, e) == -1)
        return -1;
    if (wire_has(q, sample, on_stall) && !wire_is(q->on_stall, "continue") &&
        !wire_is(q->on_stall, "pause"))
        return err_set(e, ERR_INVALID, 0, "key 'on_stall': neither continue nor pause");
    d->pauses = wire_has(q, sample, on_stall) && wire_is(q->on_stall, "pause");
    d->quiet = q->quiet;
    d->parse = q->parse;
    d->detach = q->detach;
    d->logprobs = q->logprobs || q->top_logprobs > 0;
    d->credit = wire_has(q, sample, credit) ? q->credit : CREDIT_DEFAULT;
    stream_text_init(&d->text, r->conn->server->tokenizer, &d->params, q->control);
    stream_text_init(&d->ring_text, r->conn->server->tokenizer, &d->params, q->control);
    buf_init(&d->kept, SIZE_MAX / 2);
    buf_init(&d->shown, QUIET_BYTES);
    op->params = d->params;
    op->to_end = !wire_has(q, sample, n);
    op->has_if_pos = wire_has(q, sample, if_pos);
    op->if_pos = q->if_pos;
    return wire_has(q, sample, ring) ? take_ring(r, d, op, q->ring, e) : 0;
}

void
req_sample(struct request *r, const void *body)
{
    static const struct op_calls calls = {
        .drawn = on_drawn, .stored = on_stored, .done = on_done};
    struct sampling *d = calloc(1, sizeof *d);
    struct op *op = NULL;
    struct err e;
    int rc = -1;

    r->data = d;
    r->drop = drop;
    if (d == NULL)
        err_set(&e, ERR_QUOTA, errno, "no memory for a sample");
    else if ((op = op_new(OP_SAMPLE, r->session, r->conn->user, &calls, r, &e)) != NULL)
        rc = read_body(r, d, op, body, &e);
    if (rc == -1) {
        op_free(op);
        request_fail_at(r, &e, r->session->log.len);
        return;
    }
    request_hold(r); /* the cursor reads its transcript */
    r->credit = on_credit;
    r->resume = pump;
    r->leave = on_leave;
    request_submit(r, op);
}
