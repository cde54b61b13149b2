/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Questions in a chat. The model was trained on conversations in which the reasoning of earlier
 * turns is gone unless tools are at hand, so when the next question comes, it goes: the transcript
 * is the old one up to where the model began to reason, the answer alone, and the question. That
 * is one change of the log, so a crash leaves the one or the other; the engine then goes back to
 * the state at the end of the prompt and reads on from there, as after any rollback. For that a
 * state is kept there when a question that asks for reasoning is read.
 */
#include "config.h"

#include <inttypes.h>
#include <stdlib.h>

#include "base/log.h"
#include "daemon/session_files.h"
#include "daemon/work_impl.h"

enum { NEAR_ENOUGH = 128 }; /* tokens: a state not further in front of the place will do */

/* What is to go, if this is such a question. */
static bool
finds_reasoning(const struct work *w, const struct op *op, struct turn_cut *cut)
{
    const struct session_log *l = &op->session->log;
    const struct turn_ids *id = &w->model.turn;

    return op->kind == OP_APPEND && op->input == OP_MESSAGES && !op->chat.keep_reasoning &&
           turn_asks(id, op->ids, op->n_ids) && !turn_has_tools(id, op->ids, op->n_ids) &&
           turn_reasoning(id, l->tokens, l->len, cut) &&
           !turn_has_tools(id, l->tokens, l->len);
}

/* The answer's end, which one that was cut off within its reasoning does not have. */
static bool
lacks_end(const struct work *w, const struct op *op, const struct turn_cut *cut)
{
    const struct session_log *l = &op->session->log;
    const bool ended = cut->from < l->len && l->tokens[l->len - 1] == w->model.eos;

    return !ended && op->n_ids > 0 && op->ids[0] != w->model.eos;
}

/* The engine goes back to this place; how many tokens it has to compute from there, or from the
 * beginning if it is too far back. */
static uint64_t
go_back(struct work *w, struct session *s, uint64_t at)
{
    const uint32_t most = engine_info(w->engine)->max_rewind;
    struct slot *sl;
    struct err e;
    bool far;

    work_cut(w, s, at);
    sl = s->slot;
    if (sl == NULL || sl->sent <= at)
        return work_replay(w, s);
    far = sl->sent - at > most;
    if (!slots_room(&w->slots, 1) || slots_rewind(&w->slots, sl, at, &e) == -1) {
        slots_close(&w->slots, sl);
        return work_replay(w, s);
    }
    return s->log.len - (far ? 0 : at);
}

static int
drop_reasoning(struct work *w, struct op *op, const struct turn_cut *cut, struct err *e)
{
    struct session *s = op->session;
    const uint64_t was = s->log.len;
    const uint32_t end[] = {(uint32_t)w->model.turn.think_end, w->model.eos};
    /* With nothing of an answer left its end follows </think> at once. */
    const bool add_end = lacks_end(w, op, cut), empty = cut->from == was;
    const uint64_t base = cut->at + 1 + (was - cut->from) + add_end;
    uint32_t *ids = op->ids;
    size_t n = op->n_ids;
    struct session_log_edit x;
    int rc;

    op->begin = base;
    if (work_check(w, op, e) == -1) {
        op->begin = was;
        return -1;
    }
    if (add_end && !empty) {
        ids = malloc((n + 1) * sizeof *ids);
        if (ids == NULL) {
            op->begin = was;
            return err_set(e, ERR_QUOTA, 0, "no memory for %zu tokens", n);
        }
        ids[0] = w->model.eos;
        for (size_t i = 0; i < n; i++)
            ids[i + 1] = op->ids[i];
        n++;
    }
    x = (struct session_log_edit){.at = cut->at,
                                  .from = cut->from,
                                  .mid = end,
                                  .n_mid = add_end && empty ? 2 : 1,
                                  .more = ids,
                                  .n_more = n};
    /* Files first: without them there is more to compute, with too many it would be wrong. */
    rc = session_files_cut(s, cut->at, e);
    if (rc == 0)
        rc = session_log_edit(&s->log, &x, e);
    if (ids != op->ids)
        free(ids);
    if (rc == -1) {
        op->begin = was;
        return -1;
    }
    op->dropped = cut->from - cut->at - 1;
    session_log_begin_turn(&s->log);
    work_grew(w, s);
    work_record(op); /* with the change itself: what it did must never be done again */
    op->replay = go_back(w, s, cut->at) - op->n_ids;
    w->counts.appended += op->n_ids;
    log_line(LOG_DEBUG, "reasoning-dropped session=%s pos=%" PRIu64 " tokens=%" PRIu64,
             s->name, cut->at, op->dropped);
    return 0;
}

/* A question that ends in <think>: the next one will come back to just in front of that. */
static void
plan_rest(const struct work *w, struct op *op)
{
    const uint64_t end = op->begin + op->n_ids;
    const struct slot *near;

    if (op->kind != OP_APPEND || op->input != OP_MESSAGES || op->chat.keep_reasoning ||
        op->n_ids < 2 || (int64_t)op->ids[op->n_ids - 1] != w->model.turn.think)
        return;
    near = slots_snapshot(&w->slots, op->session, end - 1);
    if (near == NULL || near->snapshot_pos + NEAR_ENOUGH < end)
        op->rest_at = end - 1;
}

int
work_take_question(struct work *w, struct op *op, struct err *e)
{
    struct turn_cut cut;

    if (finds_reasoning(w, op, &cut)) {
        if (drop_reasoning(w, op, &cut, e) == -1)
            return -1;
    } else if (work_check(w, op, e) == -1) {
        return -1;
    }
    plan_rest(w, op);
    return 0;
}

uint64_t
work_rest(struct work *w, struct op *op, uint64_t total)
{
    struct session *s = op->session;
    const struct slot *sl = s->slot;

    if (op->rest_at == 0 || sl->sent < op->rest_at)
        return op->rest_at == 0 ? total : op->rest_at;
    if (sl->sent == op->rest_at && slot_working(sl) > 0)
        return op->rest_at; /* nothing more until it is there */
    if (sl->len == op->rest_at) {
        work_keep(w, s);
        kv_keep(w->kv, s);
    }
    op->rest_at = 0;
    return total;
}
