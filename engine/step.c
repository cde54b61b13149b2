/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One step of the backend: who is in it (sched.c), what each gets, and what came of it. How
 * the tokens are cut changes no result, so chunk sizes follow the clock: short ones while
 * somebody waits for the next token, longer ones when nobody does. Engine loop thread only.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/err.h"
#include "engine/state.h"

enum {
    LEAST_CHUNK = 32,
    FIRST_CHUNK = 256,                  /* before the speed is known */
    STREAM_STEP_NS = 100 * 1000 * 1000, /* prefill beside decoding sequences */
    LONE_STEP_NS = 400 * 1000 * 1000,   /* a cancel waits that long at most */
};

static void
put(uint64_t *field, uint64_t value)
{
    __atomic_store_n(field, value, __ATOMIC_RELAXED);
}

static uint32_t
prefill_room(const struct engine *en)
{
    bool streams = false;
    double n = FIRST_CHUNK;

    for (size_t i = 0; i < en->n_waiting; i++)
        streams |= en->waiting[i]->type == LINK_SAMPLE;
    if (en->prefill_ns > 0)
        n = (streams ? STREAM_STEP_NS : LONE_STEP_NS) / en->prefill_ns;
    if (n < LEAST_CHUNK)
        return LEAST_CHUNK;
    return n < en->info.max_step_tokens ? (uint32_t)n : en->info.max_step_tokens;
}

/* The first position whose row a FEED with scores needs. */
static uint64_t
first_row(const struct job *j, const struct seq *s)
{
    const uint64_t first = j->a.feed.pos > 0 ? j->a.feed.pos - 1 : 0;

    return first > s->computed ? first : s->computed;
}

static bool
is_scored(const struct job *j)
{
    return j->type == LINK_FEED && j->a.feed.score == 1;
}

/* One job's part of the step; *rows is the room for scored rows that is left. -1: j->err. */
static int
fill_share(struct engine *en, struct step_seq *sh, struct job *j, uint32_t take,
           uint32_t *rows_at)
{
    struct seq *s = &en->seqs.all[j->seq];
    const uint64_t end = s->computed + take;
    bool to_row;

    *sh = (struct step_seq){.seq = j->seq, .n_tokens = take};
    if (is_scored(j) && end > first_row(j, s)) {
        sh->n_logits = (uint32_t)(end - first_row(j, s));
        if (en->score_rows == NULL)
            en->score_rows =
                malloc((size_t)en->max_scored * en->info.vocab * sizeof(float));
        if (en->score_rows == NULL)
            return err_set(&j->err, ERR_QUOTA, 0, "no memory for the rows to be scored");
        sh->logits = en->score_rows + (size_t)*rows_at * en->info.vocab;
        *rows_at += sh->n_logits;
    }
    to_row = sh->n_logits == 0 && end == s->len + s->ahead;
    if (seq_ready(&en->seqs, j->seq, to_row || sh->n_logits > 0, &j->err) == -1)
        return -1;
    if (to_row)
        s->row_ok = false; /* being overwritten */
    if (to_row && j->type == LINK_SAMPLE && choose_by_backend(en, j)) {
        sh->draw = &j->sampling->draw;
        sh->drawn = &j->sampling->drawn;
    } else if (to_row) {
        sh->n_logits = 1;
        sh->logits = s->row;
    }
    sh->tokens = s->tokens + s->computed;
    return 0;
}

/* Log-probabilities of the fed tokens in [computed, computed + n): each from the row in front. */
static void
tell_scores(struct engine *en, const struct job *j, const struct seq *s,
            const struct step_seq *sh)
{
    const uint32_t vocab = en->info.vocab;
    const uint64_t end = s->computed + sh->n_tokens, row0 = end - sh->n_logits;
    const uint64_t from = j->a.feed.pos > s->computed ? j->a.feed.pos : s->computed;
    const struct link_scores ls = {.pos = from, .n = (uint32_t)(end - from)};

    if (end <= from)
        return;
    for (uint64_t p = from; p < end; p++) {
        const float *row = s->row;

        if (p > row0)
            row = sh->logits + (p - 1 - row0) * vocab;
        en->score_out[p - from] = p == 0 ? 0 : sampler_logprob(row, vocab, s->tokens[p]);
    }
    engine_tell(en, LINK_SCORES, j, &ls, sizeof ls, en->score_out,
                ls.n * sizeof *en->score_out);
}

static void
settle_share(struct engine *en, struct job *j, const struct step_seq *sh)
{
    struct seq *s = &en->seqs.all[j->seq];
    const size_t before = s->len;

    if (is_scored(j)) {
        tell_scores(en, j, s, sh);
        if (sh->n_logits > 0)
            memcpy(s->row, sh->logits + (size_t)(sh->n_logits - 1) * en->info.vocab,
                   en->info.vocab * sizeof *s->row);
    }
    seq_ran(s, sh->n_tokens, sh->n_logits > 0);
    if (sh->draw != NULL)
        j->sampling->has_drawn = true;
    if (j->type == LINK_FEED && s->len > before) {
        const struct link_fed lf = {.pos = s->len};

        engine_tell(en, LINK_FED, j, &lf, sizeof lf, NULL, 0);
    }
}

static void
account(struct engine *en, const struct step *st, uint64_t ns)
{
    struct link_status *p = en->status;
    struct backend_info info;
    uint64_t prefill = 0, decode = 0;

    for (uint32_t i = 0; i < st->n_seqs; i++)
        if (st->seqs[i].n_tokens > 1)
            prefill += st->seqs[i].n_tokens;
        else
            decode++;
    if (prefill >= LEAST_CHUNK / 2) {
        const double each = (double)ns / (double)(prefill + decode);

        en->prefill_ns = en->prefill_ns > 0 ? 0.75 * en->prefill_ns + 0.25 * each : each;
    }
    en->model.ops->info(en->model.backend, &info);
    put(&p->steps, p->steps + 1);
    put(&p->prefill_tokens, p->prefill_tokens + prefill);
    put(&p->decode_tokens, p->decode_tokens + decode);
    put(&p->step_ns, p->step_ns + ns);
    put(&p->kv_used, info.kv_used);
}

static int
call_backend(struct engine *en, struct step_seq *shares, uint32_t n, struct err *e)
{
    const struct step st = {.n_seqs = n, .seqs = shares};
    uint64_t tokens = 0, began, now;
    int r;

    for (uint32_t i = 0; i < n; i++)
        tokens += shares[i].n_tokens;
    began = clock_ns();
    put(&en->status->step_tokens, tokens);
    put(&en->status->step_began_ns, began);
    r = en->model.ops->step(en->model.backend, &st, e);
    now = clock_ns();
    put(&en->status->beat_ns, now);
    put(&en->status->step_began_ns, 0);
    if (r == 0)
        account(en, &st, now - began);
    return r;
}

/*
 * The step as it is, or, if one of its sequences spoils it (no room for its caches), each of
 * them alone, so that only that one's job fails.
 */
static void
run(struct engine *en, uint32_t n)
{
    struct err e;

    if (call_backend(en, en->shares, n, &e) == 0) {
        for (uint32_t i = 0; i < n; i++)
            settle_share(en, en->share_jobs[i], &en->shares[i]);
        return;
    }
    for (uint32_t i = 0; i < n && e.code != ERR_INTERNAL; i++) {
        struct job *j = en->share_jobs[i];

        if (n > 1 && call_backend(en, &en->shares[i], 1, &e) == 0)
            settle_share(en, j, &en->shares[i]);
        else
            j->err = e;
    }
    if (e.code == ERR_INTERNAL)
        engine_fatal(en, LINK_EXIT_FAULT, &e);
}

bool
step(struct engine *en)
{
    const struct sched_limits limits = {.step = en->info.max_step_tokens,
                                        .prefill = prefill_room(en),
                                        .scored = en->max_scored};
    uint32_t n = 0, rows_at = 0;

    if (en->n_waiting == 0)
        return false;
    sched_pick(&en->sched, &limits, en->items, en->n_waiting);
    for (size_t i = 0; i < en->n_waiting; i++) {
        struct job *j = en->waiting[i];

        if (en->items[i].take == 0)
            continue;
        if (fill_share(en, &en->shares[n], j, en->items[i].take, &rows_at) == 0)
            en->share_jobs[n++] = j;
    }
    if (n > 0)
        run(en, n);
    return true;
}
