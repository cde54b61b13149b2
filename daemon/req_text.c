/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests that read: transcript, tokenize, score, logits.
 */
#include "config.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/input.h"
#include "daemon/options.h"
#include "daemon/request.h"
#include "daemon/sample_params.h"
#include "daemon/text.h"
#include "daemon/work.h"
#include "model/tokenizer.h"

enum {
    PAGE_TOKENS = 32768,
    TOKENIZE_MOST = 261120, /* what fits into a frame */
    TRANSCRIPT_BYTES = 1000000,
    SCORE_MOST = 130000, /* ids and scores, which fit into a frame */
};

/* --- transcript --------------------------------------------------------------------------- */

static void
drop_data(struct request *r)
{
    free(r->data);
}

static void
on_shown(struct text_job *job)
{
    struct request *r = request_of_job(job);
    struct wire_transcript_result *res = r != NULL ? r->data : NULL;

    if (r != NULL && job->err.code != ERR_NONE) {
        request_fail(r, &job->err);
    } else if (r != NULL) {
        wire_put(res, transcript_result, text,
                 wire_strn((const char *)job->out.p, job->out.len));
        r->data = NULL;
        request_reply(r, WIRE_MSG(transcript_result), res);
        free(res);
    }
    text_job_free(job);
}

/* As many tokens as give at most a frame of text. */
static uint64_t
text_page(const struct tokenizer *t, const uint32_t *ids, uint64_t n)
{
    size_t bytes = 0, len;

    for (uint64_t i = 0; i < n; i++) {
        tokenizer_bytes(t, ids[i], &len);
        if (len > TRANSCRIPT_BYTES - bytes)
            return i;
        bytes += len;
    }
    return n;
}

static void
show_text(struct request *r, const struct wire_transcript_result *res)
{
    struct wire_transcript_result *copy = malloc(sizeof *copy);
    struct err e;
    struct text_job *job = text_job_new(TEXT_SHOW, on_shown, r, &e);

    r->data = copy;
    r->drop = drop_data;
    if (copy == NULL || job == NULL) {
        text_job_free(job);
        err_set(&e, ERR_QUOTA, errno, "no memory for the transcript");
        request_fail(r, &e);
        return;
    }
    *copy = *res;
    buf_init(&job->ids, PAGE_TOKENS * sizeof(uint32_t));
    if (buf_add(&job->ids, r->session->log.tokens + res->from, res->n * sizeof(uint32_t),
                &e) == -1) {
        text_job_free(job);
        request_fail(r, &e);
        return;
    }
    if (request_post(r, job, &e) == -1)
        request_fail(r, &e);
}

struct reading {
    uint64_t from, n; /* n: UINT64_MAX for all */
    bool ids;
};

static void
read_transcript(struct request *r, const struct err *why)
{
    struct reading q = *(struct reading *)r->data;
    const struct session_log *l = &r->session->log;
    struct wire_transcript_result res = {.from = q.from, .pos = l->len};
    uint32_t *tokens;
    struct err e;

    free(r->data);
    r->data = NULL;
    if (why != NULL) {
        request_fail_at(r, why, l->len);
        return;
    }
    if (q.from > l->len) {
        err_set(&e, ERR_INVALID, 0, "key 'from': past the end");
        request_fail_at(r, &e, l->len);
        return;
    }
    res.n = l->len - q.from;
    if (q.n < res.n)
        res.n = q.n;
    if (res.n > PAGE_TOKENS)
        res.n = PAGE_TOKENS;
    if (!q.ids) {
        res.n = text_page(r->conn->server->tokenizer, l->tokens + q.from, res.n);
        show_text(r, &res);
        return;
    }
    tokens = sample_tokens_le(l->tokens + q.from, res.n);
    if (tokens == NULL) {
        err_set(&e, ERR_QUOTA, errno, "no memory for the transcript");
        request_fail(r, &e);
        return;
    }
    wire_put(&res, transcript_result, tokens, wire_bin(tokens, res.n * sizeof *tokens));
    request_reply(r, WIRE_MSG(transcript_result), &res);
    free(tokens);
}

void
req_transcript(struct request *r, const void *body)
{
    const struct wire_transcript *q = body;
    struct reading *d = calloc(1, sizeof *d);
    struct err e;

    r->data = d;
    r->drop = drop_data;
    if (d == NULL) {
        err_set(&e, ERR_QUOTA, errno, "no memory for the transcript");
        request_fail(r, &e);
        return;
    }
    d->ids = wire_has(q, transcript, what) && wire_is(q->what, "tokens");
    d->from = q->from;
    d->n = wire_has(q, transcript, n) ? q->n : UINT64_MAX;
    if (wire_has(q, transcript, what) && !d->ids && !wire_is(q->what, "text")) {
        err_set(&e, ERR_INVALID, 0, "key 'what': neither text nor tokens");
        request_fail(r, &e);
        return;
    }
    request_load(r, read_transcript);
}

/* --- tokenize ----------------------------------------------------------------------------- */

static void
on_tokenized(struct text_job *job)
{
    struct request *r = request_of_job(job);
    struct wire_tokenize_result res = {.n = job->ids.len / sizeof(uint32_t)};
    const size_t shown = res.n < TOKENIZE_MOST ? res.n : TOKENIZE_MOST;
    uint32_t *tokens;
    struct err e;

    if (r != NULL && job->err.code != ERR_NONE) {
        request_fail(r, &job->err);
    } else if (r != NULL) {
        tokens = sample_tokens_le((const uint32_t *)(const void *)job->ids.p, shown);
        if (tokens == NULL) {
            err_set(&e, ERR_QUOTA, errno, "no memory for tokens");
            request_fail(r, &e);
        } else {
            res.tokens = wire_bin(tokens, shown * sizeof *tokens);
            request_reply(r, WIRE_MSG(tokenize_result), &res);
        }
        free(tokens);
    }
    text_job_free(job);
}

void
req_tokenize(struct request *r, const void *body)
{
    const struct wire_tokenize *q = body;
    struct err e;
    struct text_job *job = text_job_new(TEXT_TOKENIZE, on_tokenized, r, &e);
    char *text = wire_dup(q->text);

    if (job == NULL || text == NULL) {
        text_job_free(job);
        free(text);
        err_set(&e, ERR_QUOTA, errno, "no memory for %u bytes", q->text.len);
        request_fail(r, &e);
        return;
    }
    job->in = text;
    job->n_in = q->text.len;
    job->flags = q->control ? TOKENIZE_CONTROL : 0;
    job->bulk = q->text.len > TEXT_BULK_BYTES;
    if (request_post(r, job, &e) == -1)
        request_fail(r, &e);
}

/* --- score -------------------------------------------------------------------------------- */

static void
on_scored(struct op *op)
{
    struct request *r = request_of(op);
    struct wire_score_result res = {.n = op->n_ids};
    uint32_t *tokens, *bits;
    struct err e;

    if (r == NULL)
        return;
    if (op->err.code != ERR_NONE) {
        request_fail_at(r, &op->err, op->session->log.len);
        return;
    }
    tokens = sample_tokens_le(op->ids, op->n_ids);
    for (size_t i = 0; i < op->n_scores; i++) {
        if (op->begin + i == 0)
            op->scores[i] = NAN;
        else
            res.total += (double)op->scores[i];
    }
    /* The floats' bits, in the order of the wire. */
    bits = sample_tokens_le((const uint32_t *)(const void *)op->scores, op->n_scores);
    if (tokens == NULL || bits == NULL) {
        err_set(&e, ERR_QUOTA, errno, "no memory for scores");
        request_fail(r, &e);
    } else {
        res.tokens = wire_bin(tokens, op->n_ids * sizeof *tokens);
        res.logprobs = wire_bin(bits, op->n_scores * sizeof *bits);
        request_reply(r, WIRE_MSG(score_result), &res);
    }
    free(tokens);
    free(bits);
}

/* Behind nothing: a session of the caller's that ends with the request. No request can name
 * it, for names do not begin with a dot. */
static int
make_scratch(struct request *r, struct err *e)
{
    static uint64_t number;
    struct session *s = session_new(r->conn->user, 1, e);
    char name[SESSION_NAME_MAX + 1];

    if (s == NULL)
        return -1;
    snprintf(name, sizeof name, ".score-%llu", (unsigned long long)++number);
    if (session_link(s, name, e) == -1) {
        session_free(s);
        return -1;
    }
    r->session = s;
    return 0;
}

static void
delete_scratch(struct op *op)
{
    on_scored(op);
    if (op->session->state != SESSION_GONE)
        work_delete(op->work, op->session, NULL);
}

void
req_score(struct request *r, const void *body)
{
    static const struct op_calls calls = {.done = on_scored},
                                 scratch_calls = {.done = delete_scratch};
    const struct wire_score *q = body;
    const bool scratch = r->session == NULL;
    struct work *w = r->conn->server->work;
    struct session *s;
    struct op *op = NULL;
    struct err e;
    int rc = -1;

    if (wire_has(q, score, text) == wire_has(q, score, tokens))
        err_set(&e, ERR_INVALID, 0, "one of 'text' and 'tokens' is needed");
    else if (!scratch || make_scratch(r, &e) == 0)
        op = op_new(OP_SCORE, r->session, r->conn->user, scratch ? &scratch_calls : &calls,
                    r, &e);
    if (op != NULL) {
        op->work = w;
        op->most_ids = SCORE_MOST;
        op->control = q->control ? TOKENIZE_CONTROL : 0;
        op->input = OP_TEXT;
        rc = wire_has(q, score, tokens) ? input_tokens(op, q->tokens, &e)
                                        : input_text(op, q->text, &e);
    }
    if (rc == -1) {
        op_free(op);
        if (scratch && r->session != NULL)
            work_delete(w, r->session, NULL);
        request_fail(r, &e);
        return;
    }
    s = r->session;
    if (request_submit(r, op) == -1 && scratch)
        work_delete(w, s, NULL);
}

/* --- logits ------------------------------------------------------------------------------- */

static void
on_logits(struct op *op)
{
    struct request *r = request_of(op);
    const struct link_ready *info;
    struct wire_logits_result res = {.pos = op->begin};
    struct err e;

    if (r == NULL)
        return;
    if (op->err.code != ERR_NONE) {
        request_fail_at(r, &op->err, op->session->log.len);
        return;
    }
    info = engine_info(work_engine(r->conn->server->work));
    if (fcntl(op->fd, F_ADD_SEALS,
              F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) == -1) {
        err_set(&e, ERR_INTERNAL, errno, "sealing the logits: %s", strerror(errno));
        request_fail(r, &e);
        return;
    }
    res.logits = op->fd;
    res.vocab = info->vocab;
    op->fd = -1; /* the frame's */
    request_reply(r, WIRE_MSG(logits_result), &res);
}

void
req_logits(struct request *r, const void *body)
{
    static const struct op_calls calls = {.done = on_logits};
    const struct link_ready *info = engine_info(work_engine(r->conn->server->work));
    struct op *op;
    struct err e;

    (void)body;
    if (info == NULL) {
        err_set(&e, ERR_UNAVAILABLE, 0, "the engine is still loading");
        request_fail(r, &e);
        return;
    }
    op = op_new(OP_LOGITS, r->session, r->conn->user, &calls, r, &e);
    if (op == NULL) {
        request_fail(r, &e);
        return;
    }
    if (op_pay(op, info->vocab * sizeof(float), &e) == -1) {
        op_free(op);
        request_fail(r, &e);
        return;
    }
    op->fd = memfd_create("fathom-logits", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (op->fd == -1 || ftruncate(op->fd, (off_t)(info->vocab * sizeof(float))) == -1) {
        err_set(&e, ERR_QUOTA, errno, "no memory for logits: %s", strerror(errno));
        op_free(op);
        request_fail(r, &e);
        return;
    }
    request_submit(r, op);
}
