/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The jobs that move caches between the backend and the daemon's arena. A backend copies beside
 * its steps or at once, inside the call: this file serves both, by asking for a few megabytes at
 * a time, for a few milliseconds in each turn of the loop, and then looking whether the copies
 * are over whenever the loop comes by. A job that has asked for anything ends only when nothing
 * of its sequence is on the way any more, also if it fails: until then the memory is in use.
 * Engine loop thread only.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/err.h"
#include "engine/state.h"
#include "model/kvlayout.h"
#include "model/kvsize.h"

enum {
    CALL_BYTES = 8 << 20,       /* asked for in one call */
    TURN_NS = 10 * 1000 * 1000, /* asking, in one turn of the loop */
    ARENA_ALIGN = 8,
};

/* `n` times `each` bytes at `at` lie in the arena. */
static int
check_place(const struct engine *en, uint64_t at, uint64_t n, uint64_t each, struct err *e)
{
    const uint64_t size = en->model.arena_bytes;

    if (at % ARENA_ALIGN == 0 && at <= size && (each == 0 || n <= (size - at) / each))
        return 0;
    return err_set(e, ERR_INVALID, 0,
                   "%llu times %llu bytes at %llu of the arena, which has %llu",
                   (unsigned long long)n, (unsigned long long)each, (unsigned long long)at,
                   (unsigned long long)size);
}

static int
check_state_place(const struct engine *en, uint64_t pos, uint64_t state_at, uint64_t row_at,
                  struct err *e)
{
    const uint64_t state = kv_state_bytes(en->model.layout, pos);

    if (check_place(en, state_at, 1, state, e) == -1)
        return err_prefix(e, "state");
    if (check_place(en, row_at, en->info.vocab, sizeof(float), e) == -1)
        return err_prefix(e, "row of logits");
    return 0;
}

static int
check_arena(const struct engine *en, struct err *e)
{
    if (en->model.arena != NULL && en->model.ops->kv_out != NULL)
        return 0;
    return err_set(e, ERR_UNAVAILABLE, 0,
                   "caches cannot be moved: the engine has no arena, or its backend "
                   "cannot do it");
}

static struct copying *
begin(struct job *j)
{
    j->copying = calloc(1, sizeof *j->copying);
    if (j->copying == NULL)
        err_set(&j->err, ERR_QUOTA, 0, "no memory for a job");
    return j->copying;
}

/* May more be asked for in this turn? */
static bool
is_in_time(struct engine *en)
{
    const uint64_t now = clock_ns();

    if (en->copy_until == 0)
        en->copy_until = now + TURN_NS;
    if (now < en->copy_until)
        return true;
    en->copies_to_ask = true;
    return false;
}

/* All is asked for, or j->err: over when nothing is on the way. */
static enum progress
settle(struct engine *en, struct job *j)
{
    struct err e;

    switch (en->model.ops->kv_busy(en->model.backend, j->seq, &e)) {
    case 1: return COPIES;
    case 0: break;
    default: engine_fatal(en, LINK_EXIT_FAULT, &e); return COPIES;
    }
    if (j->err.code != ERR_NONE)
        return job_failed(en, j);
    if (j->type == LINK_KV_OUT)
        engine_tell(en, LINK_SAVED, j, &j->copying->saved, sizeof j->copying->saved, NULL,
                    0);
    return job_done(en, j);
}

/* Pages and places are right, whatever the sequence is by then; *pages: so many are wanted. */
static int
check_out(const struct engine *en, struct job *j, const struct seq *s, uint64_t *pages)
{
    const struct link_kv_out *k = &j->a.kv_out;
    const uint64_t whole = s->len / KV_PAGE_TOKENS;

    *pages = 0;
    for (uint32_t i = 0; i < k->n_runs; i++) {
        const struct link_kv_run *r = &j->runs[i];

        if (r->first > whole || r->n > whole - r->first)
            return err_set(&j->err, ERR_INVALID, 0,
                           "%llu pages from page %llu on, of %zu tokens",
                           (unsigned long long)r->n, (unsigned long long)r->first, s->len);
        if (check_place(en, r->at, r->n, en->model.layout->page_bytes, &j->err) == -1)
            return -1;
        if (*pages < r->first + r->n)
            *pages = r->first + r->n;
    }
    if (k->state_at == LINK_NOWHERE)
        return 0;
    if (s->len == 0)
        return err_set(&j->err, ERR_INVALID, 0, "no state to save: no token was fed");
    if (check_state_place(en, s->len, k->state_at, k->row_at, &j->err) == -1)
        return -1;
    return check_state_place(en, s->len - 1, k->state_at, k->row_at, &j->err);
}

/* The state's row is there: that of the last token or, where a token was drawn from it and has
 * not run yet, of the one in front. */
static bool
has_saved_row(const struct seq *s)
{
    return s->row_ok && s->len - s->computed <= 1;
}

/* 1: a step must run first. */
static int
start_out(struct engine *en, struct job *j)
{
    const struct link_kv_out *k = &j->a.kv_out;
    const bool state = k->state_at != LINK_NOWHERE;
    struct seq *s;
    uint64_t pages;

    if (check_arena(en, &j->err) == -1 ||
        (s = seq_find(&en->seqs, j->seq, &j->err)) == NULL ||
        check_out(en, j, s, &pages) == -1)
        return -1;
    /* The row is gone, by a rewind: the last token runs once more. */
    if (state && !has_saved_row(s) && seq_want_row(&en->seqs, j->seq, &j->err) == -1)
        return -1;
    if (state && !has_saved_row(s))
        return 1;
    if (pages * KV_PAGE_TOKENS > s->computed)
        return 1;
    if (begin(j) == NULL)
        return -1;
    if (state) {
        j->copying->saved = (struct link_saved){
            .pos = s->computed,
            .state_bytes = kv_state_bytes(en->model.layout, s->computed)};
        memcpy(en->model.arena + k->row_at, s->row, en->info.vocab * sizeof *s->row);
    }
    return 0;
}

/* The next pages of a run, or the state behind the last run: one call of the backend. */
static int
ask_for_more(struct engine *en, struct job *j)
{
    const struct link_kv_out *k = &j->a.kv_out;
    const uint64_t page = en->model.layout->page_bytes;
    struct copying *c = j->copying;
    uint64_t n, most = UINT64_MAX;
    const struct link_kv_run *r;

    if (c->run == k->n_runs) {
        c->asked = true;
        if (k->state_at == LINK_NOWHERE)
            return 0;
        return en->model.ops->kv_out(en->model.backend, j->seq, 0, 0, NULL,
                                     en->model.arena + k->state_at, &j->err);
    }
    if (page > 0)
        most = page < CALL_BYTES ? CALL_BYTES / page : 1;
    r = &j->runs[c->run];
    n = r->n - c->page < most ? r->n - c->page : most;
    if (n > 0 && en->model.ops->kv_out(en->model.backend, j->seq, r->first + c->page, n,
                                       en->model.arena + r->at + c->page * page, NULL,
                                       &j->err) == -1)
        return -1;
    c->page += n;
    if (c->page == r->n) {
        c->page = 0;
        c->run++;
    }
    return 0;
}

enum progress
copy_out(struct engine *en, struct job *j)
{
    if (j->copying == NULL) {
        const int r = start_out(en, j);

        if (r != 0)
            return r == 1 ? NEEDS_STEP : job_failed(en, j);
    }
    while (!j->copying->asked && j->err.code == ERR_NONE) {
        if (!is_in_time(en))
            return COPIES;
        if (ask_for_more(en, j) == -1 && j->err.code == ERR_INTERNAL)
            engine_fatal(en, LINK_EXIT_FAULT, &j->err);
    }
    return settle(en, j);
}

static int
start_in(struct engine *en, struct job *j)
{
    const struct link_kv_in *k = &j->a.kv_in;
    struct seq *s;

    if (check_arena(en, &j->err) == -1 ||
        (s = seq_find_any(&en->seqs, j->seq, &j->err)) == NULL)
        return -1;
    if (k->pos != s->len || s->len % KV_PAGE_TOKENS != 0 || (s->len > 0 && !s->coming))
        return err_set(&j->err, ERR_CONFLICT, 0,
                       "caches for position %llu: the sequence has %zu tokens%s",
                       (unsigned long long)k->pos, s->len,
                       s->coming ? " of whole and other pages"
                                 : ", and takes none but when it is empty");
    for (uint32_t i = 0; i < k->n; i++)
        if (j->tokens[i] >= en->info.vocab)
            return err_set(&j->err, ERR_INVALID, 0,
                           "token %u at position %llu: ids end at %u", j->tokens[i],
                           (unsigned long long)k->pos + i, en->info.vocab);
    if (check_place(en, k->at, k->n / KV_PAGE_TOKENS, en->model.layout->page_bytes,
                    &j->err) == -1 ||
        begin(j) == NULL)
        return -1;
    j->copying->asked = true;
    return seq_kv_in(&en->seqs, j->seq, j->tokens, k->n, en->model.arena + k->at, &j->err);
}

static int
start_set(struct engine *en, struct job *j)
{
    const struct link_kv_set *k = &j->a.kv_set;
    struct seq *s;

    if (check_arena(en, &j->err) == -1 ||
        (s = seq_find_any(&en->seqs, j->seq, &j->err)) == NULL)
        return -1;
    if (!s->coming || k->pos != s->len)
        return err_set(&j->err, ERR_CONFLICT, 0,
                       "a state for position %llu: %zu tokens have come with KV_IN",
                       (unsigned long long)k->pos, s->coming ? s->len : 0);
    if (check_state_place(en, k->pos, k->state_at, k->row_at, &j->err) == -1 ||
        begin(j) == NULL)
        return -1;
    j->copying->asked = true;
    return seq_kv_set(&en->seqs, j->seq, en->model.arena + k->state_at,
                      (const float *)(const void *)(en->model.arena + k->row_at), &j->err);
}

/* One call of the backend, then waiting for it. */
static enum progress
start_once(struct engine *en, struct job *j, int (*start)(struct engine *en, struct job *j))
{
    if (j->copying == NULL) {
        if (!is_in_time(en))
            return COPIES;
        if (start(en, j) == -1) {
            if (j->err.code == ERR_INTERNAL)
                engine_fatal(en, LINK_EXIT_FAULT, &j->err);
            return job_failed(en, j);
        }
    }
    return settle(en, j);
}

enum progress
copy_in(struct engine *en, struct job *j)
{
    return start_once(en, j, start_in);
}

enum progress
copy_set(struct engine *en, struct job *j)
{
    return start_once(en, j, start_set);
}
