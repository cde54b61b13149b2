/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which token comes next, for all sequences whose row of logits is there: one costs some 0.2 ms of
 * a processor with 129,280 logits (tools/bench sampler), so those of a large batch are shared out
 * among the threads that the CPU backend computes with. What is chosen depends on nobody else.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "engine/state.h"
#include "gpu/cpu/pool.h"
#include "model/logits.h"

struct choosing {
    struct engine *en;
    struct job *jobs[LINK_MAX_JOBS];
    int n, share; /* share: jobs for one sampler */
};

int
choose_init(struct engine *en, struct err *e)
{
    const int threads = pool_processors();

    en->n_samplers = threads < MAX_SAMPLERS ? threads : MAX_SAMPLERS;
    if ((uint32_t)en->n_samplers > en->info.max_seqs)
        en->n_samplers = (int)en->info.max_seqs;
    for (int i = 0; i < en->n_samplers; i++) {
        en->samplers[i] = sampler_new(en->info.vocab, e);
        if (en->samplers[i] == NULL)
            return -1;
    }
    return 0;
}

void
choose_done(struct engine *en)
{
    for (int i = 0; i < en->n_samplers; i++)
        sampler_free(en->samplers[i]);
}

static int
odd_logits(const struct seq *s, struct err *e)
{
    return err_set(e, ERR_INTERNAL, 0, "logits at position %zu are not finite", s->len);
}

static int
choose(const struct engine *en, struct sampler *sampler, struct job *j)
{
    struct sampling *sa = j->sampling;
    const struct seq *s = &en->seqs.all[j->seq];
    const size_t window = sa->params.penalty_window;
    const size_t n = window < s->len ? window : s->len;

    memset(&sa->choice, 0, sizeof sa->choice); /* padding too: it goes over the link */
    if (!logits_finite(s->row, en->info.vocab))
        return odd_logits(s, &sa->err);
    return sampler_choose(sampler, &sa->params, s->row, s->tokens + s->len - n, n, s->len,
                          (uint32_t)sa->n_drawn, &sa->choice, &sa->err);
}

static void
choose_for(const struct engine *en, struct sampler *sampler, struct job *j)
{
    j->sampling->chosen = true;
    j->sampling->failed = choose(en, sampler, j) == -1;
}

static void
choose_some(const void *arg, int first, int end)
{
    const struct choosing *c = arg;

    for (int i = first; i < end; i++)
        choose_for(c->en, c->en->samplers[first / c->share], c->jobs[i]);
}

void
choose_all(struct engine *en)
{
    struct choosing c = {.en = en};

    /* One that has started is the first of its sequence: nothing comes in between. */
    for (struct job *j = en->jobs; j != NULL; j = j->next)
        if (j->type == LINK_SAMPLE && j->started && j->err.code == ERR_NONE &&
            seq_has_row(&en->seqs.all[j->seq]))
            c.jobs[c.n++] = j;
    if (c.n < 2)
        return;
    c.share = (c.n + en->n_samplers - 1) / en->n_samplers;
    pool_run(c.n, c.share, choose_some, &c);
}

bool
choose_by_backend(const struct engine *en, struct job *j)
{
    struct sampling *sa = j->sampling;

    return en->info.draws && j->rows == NULL &&
           sampler_draw(&sa->params, (uint32_t)sa->n_drawn, &sa->draw);
}

/* What the backend has drawn. */
static int
take_drawn(const struct engine *en, struct job *j)
{
    struct sampling *sa = j->sampling;

    memset(&sa->choice, 0, sizeof sa->choice);
    if (sa->drawn.odd != 0)
        return odd_logits(&en->seqs.all[j->seq], &sa->err);
    sampler_drawn(&sa->drawn, &sa->choice);
    return 0;
}

const struct sample_choice *
choose_one(struct engine *en, struct job *j)
{
    struct sampling *sa = j->sampling;

    if (sa->has_drawn)
        sa->failed = take_drawn(en, j) == -1;
    else if (!sa->chosen)
        choose_for(en, en->samplers[0], j);
    sa->chosen = sa->has_drawn = false;
    if (!sa->failed)
        return &sa->choice;
    j->err = sa->err;
    return NULL;
}
