/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The beginning of an operation: whether it may run at all, and its input as tokens.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "daemon/text.h"
#include "daemon/work_impl.h"
#include "model/tokenizer.h"

/* The ids that go in front of what is appended: the beginning-of-sentence token, or the
 * end-of-sentence token of an answer that was cut short, which the next message needs. */
static int
put_in_front(const struct work *w, struct op *op, struct buf *ids, struct err *e)
{
    const struct session_log *l = &op->session->log;
    const bool at_start = l->len == 0;

    if (op->input == OP_MESSAGES) {
        if (!at_start && l->turns > 0 && !l->turn_open &&
            l->tokens[l->len - 1] != w->model.eos)
            return buf_add(ids, &w->model.eos, sizeof w->model.eos, e);
    } else if (op->bos == 1 || (op->bos == -1 && at_start && op->input == OP_TEXT)) {
        return buf_add(ids, &w->model.bos, sizeof w->model.bos, e);
    }
    return 0;
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
        op_fail(op, &job->err);
    } else if (op->err.code == ERR_NONE) {
        if (op_pay(op, job->ids.len, &e) == -1) {
            op_fail(op, &e);
        } else {
            op->ids = (uint32_t *)(void *)job->ids.p;
            op->n_ids = job->ids.len / sizeof *op->ids;
            buf_init(&job->ids, 0);
        }
    }
    text_job_free(job);
    op->stage = OP_IN_ENGINE;
    work_pump(w, s);
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
    p[0] = w->model.bos;
    memcpy(p + 1, op->ids, op->n_ids * sizeof *p);
    free(op->ids);
    op->ids = p;
    op->n_ids++;
    return 0;
}

/* The session's tokens are of one model; whether that is the engine's is known once it is there. */
static int
check_model(const struct session *s, const struct link_ready *info, struct err *e)
{
    static const uint8_t none[32];
    char theirs[17], ours[17];

    if (memcmp(s->fingerprint, none, sizeof none) != 0 &&
        memcmp(s->fingerprint, info->fingerprint, sizeof s->fingerprint) != 0) {
        for (int i = 0; i < 8; i++) {
            snprintf(theirs + 2 * i, 3, "%02x", s->fingerprint[i]);
            snprintf(ours + 2 * i, 3, "%02x", info->fingerprint[i]);
        }
        return err_set(
            e, ERR_MODEL_MISMATCH, 0,
            "the session's tokens are of model %s..., this is model %s...: it can "
            "be read only",
            theirs, ours);
    }
    if (s->max_id >= info->vocab)
        return err_set(e, ERR_DAMAGED, 0,
                       "the session holds token %" PRIu32 ", the vocabulary has %" PRIu32,
                       s->max_id, info->vocab);
    return 0;
}

/* Its turn has come. */
int
work_start(struct work *w, struct op *op, struct err *e)
{
    struct session *s = op->session;
    const struct op_record *r = op->has_op_id ? session_log_recall(&s->log, op->op_id)
                                              : NULL;

    op->began_ns = clock_ns();
    histogram_add(&w->counts.wait, op->began_ns - op->queued_ns);
    op->begin = op->end = s->log.len;
    if (r != NULL) {
        if (r->kind != op->kind)
            return err_set(e, ERR_INVALID, 0, "this op_id was used for another method");
        op->repeated = true;
        op->begin = r->begin;
        op->end = r->end;
        op->reason = (enum link_reason)r->reason;
        op->stop_at = r->stop_at;
        op->params.seed = r->seed;
        op->n_drawn = r->end - r->begin;
        op->stage = OP_OVER;
        if (r->undone)
            return err_set(e, ERR_CONFLICT, 0,
                           "the first request of this op_id ended at position %" PRIu64
                           ", and was rolled back since",
                           r->end);
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
    if (!op_reads(op) && store_refuses(s, e) == -1)
        return -1;
    if (op->kind == OP_CALL) {
        op->stage = OP_OVER;
        return op->calls->run(op, e);
    }
    if (s->state == SESSION_BROKEN)
        return err_set(e, ERR_DAMAGED, 0,
                       "the session brought the engine down twice at position %" PRIu64
                       "; roll it back or delete it",
                       s->log.len);
    if (op->kind == OP_UNPARK && s->log.len == 0) {
        op->stage = OP_OVER;
        return 0;
    }
    if (op->kind == OP_APPEND || op->kind == OP_SCORE) {
        if (op->input != OP_TOKENS)
            return start_text(w, op, e);
        if (start_tokens(w, op, e) == -1)
            return -1;
    }
    op->stage = OP_IN_ENGINE;
    return 0;
}

/* Of the disk, for its tokens and their rows. Not taken yet: they are counted as they are written. */
static int
check_disk(const struct work *w, const struct op *op, struct err *e)
{
    const struct kvfile_model *m = kv_model(w->kv);
    const uint64_t rows = m != NULL ? m->page_bytes / KVFILE_PAGE_TOKENS : 0;
    const uint64_t bytes = op->n_ids * (rows + sizeof *op->ids);
    struct user *u = op->session->user;

    if (quota_take(u, QUOTA_DISK, bytes, e) == -1)
        return -1;
    quota_give(u, QUOTA_DISK, bytes);
    return 0;
}

/* What the model's size says about it, once that is known. */
int
work_check(const struct work *w, struct op *op, struct err *e)
{
    const struct link_ready *info = engine_info(w->engine);
    const uint64_t max = info->max_positions;

    if (check_model(op->session, info, e) == -1)
        return -1;
    for (size_t i = 0; i < op->n_ids && op->input == OP_TOKENS; i++) {
        if (op->ids[i] >= info->vocab)
            return err_set(e, ERR_INVALID, 0,
                           "token %zu is %" PRIu32 "; the vocabulary has %" PRIu32, i,
                           op->ids[i], info->vocab);
    }
    if (op->most_ids != 0 && op->n_ids > op->most_ids)
        return err_set(e, ERR_QUOTA, 0, "%zu tokens to score, at most %zu", op->n_ids,
                       op->most_ids);
    if (op->n_ids > max || op->begin > max - op->n_ids)
        return err_set(e, ERR_CONTEXT_FULL, 0,
                       "%zu tokens at position %" PRIu64
                       " do not fit: the context ends at %" PRIu64,
                       op->n_ids, op->begin, max);
    if (op->kind == OP_APPEND && check_disk(w, op, e) == -1)
        return -1;
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
