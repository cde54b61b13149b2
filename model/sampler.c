/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Chooses the next token: bias and bans -> penalties -> min_tokens -> temperature -> top-k ->
 * top-p -> min-p -> draw (docs/SAMPLING.md). Every filter keeps some of the best candidates
 * (candidates.h); what has to look at the whole row is in logits.h. Sums are of
 * integers: they have no order. One thread for each sampler.
 */
#include <config.h>

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "model/candidates.h"
#include "model/logits.h"
#include "model/sampler.h"

/* Weights of candidates that are gathered first: what is 12 below the best, or more, is seldom drawn. */
static const uint64_t first_look = (uint64_t)(6e-6 * LOGITS_UNIT);

struct sampler {
    uint32_t vocab;
    float *x;            /* f32 [vocab]: logits after bias, penalties and bans */
    float *block_max;    /* of these, as logits_clean makes it */
    uint64_t weights;    /* of all at temperature 1; 0: not known */
    uint32_t *count;     /* u32 [vocab]: all zero between calls */
    struct candidate *c; /* [vocab] */
};

struct sampler *
sampler_new(uint32_t vocab, struct err *e)
{
    struct sampler *s = calloc(1, sizeof *s);

    if (vocab == 0 || vocab > LOGITS_MOST) {
        free(s);
        err_set(e, ERR_INVALID, 0, "a sampler for %u tokens: 1 to %d are possible", vocab,
                LOGITS_MOST);
        return NULL;
    }
    if (s != NULL) {
        s->vocab = vocab;
        s->x = calloc(vocab, sizeof *s->x);
        s->block_max = calloc(vocab / LOGITS_BLOCK + 1, sizeof *s->block_max);
        s->count = calloc(vocab, sizeof *s->count);
        s->c = calloc(vocab, sizeof *s->c);
    }
    if (s == NULL || s->x == NULL || s->block_max == NULL || s->count == NULL ||
        s->c == NULL) {
        sampler_free(s);
        err_set(e, ERR_QUOTA, errno, "no memory for a sampler of %u tokens", vocab);
        return NULL;
    }
    return s;
}

void
sampler_free(struct sampler *s)
{
    if (s == NULL)
        return;
    free(s->x);
    free(s->block_max);
    free(s->count);
    free(s->c);
    free(s);
}

/* A float that can be compared and subtracted: NaN sorts last, +inf leaves differences finite. */
static float
clean(float x)
{
    if (isnan(x))
        return -INFINITY;
    return x > FLT_MAX ? FLT_MAX : x;
}

float
sampler_logprob(const float *logits, uint32_t vocab, uint32_t id)
{
    const float max = logits_max(logits, vocab);

    if (id >= vocab || clean(logits[id]) == -INFINITY)
        return -INFINITY;
    return (float)((double)clean(logits[id]) -
                   draw_log_sum(max, logits_sum(logits, vocab, max, 1)));
}

/* The n_top best of the model's own distribution: insertion into a short list. */
static void
list_top(const struct sampler *s, uint32_t n_top, struct sample_choice *out)
{
    float best[SAMPLER_MAX_TOP];
    uint32_t n = 0;

    for (uint32_t id = 0; id < s->vocab && n_top > 0; id++) {
        const float v = s->x[id];
        uint32_t at = n;

        if (v == -INFINITY || (n == n_top && v <= best[n - 1]))
            continue;
        if (n < n_top)
            n++;
        else
            at--;
        for (; at > 0 && v > best[at - 1]; at--) {
            best[at] = best[at - 1];
            out->top[at] = out->top[at - 1];
        }
        best[at] = v;
        out->top[at] =
            (struct sample_top){.id = id, .logprob = (float)((double)v - out->log_sum)};
    }
    out->n_top = n;
}

/* Repetition, presence and frequency over u32 [n] history, each token once. */
static int
penalise(struct sampler *s, const struct sample_params *p, const uint32_t *history,
         size_t n, struct err *e)
{
    for (size_t i = 0; i < n; i++) {
        if (history[i] >= s->vocab)
            return err_set(e, ERR_INVALID, 0, "history holds token %u of %u", history[i],
                           s->vocab);
    }
    for (size_t i = 0; i < n; i++)
        s->count[history[i]]++;
    for (size_t i = 0; i < n; i++) {
        const uint32_t id = history[i], times = s->count[id];
        float x = s->x[id];

        if (times == 0)
            continue;
        s->count[id] = 0;
        x = x > 0 ? x / p->repetition : x * p->repetition;
        x -= p->presence + p->frequency * (float)times;
        s->x[id] = clean(x);
    }
    return 0;
}

/* What does not depend on the other tokens, in s->x; *max: the largest then. */
static int
adjust(struct sampler *s, const struct sample_params *p, const uint32_t *history,
       size_t n_history, uint32_t n_drawn, float *max, struct err *e)
{
    const size_t window = n_history < p->penalty_window ? n_history
                                                        : (size_t)p->penalty_window;
    const bool penalties = (p->repetition != 1 || p->presence != 0 || p->frequency != 0) &&
                           window > 0;
    const uint32_t held = n_drawn < p->min_tokens ? p->n_stop_tokens : 0;

    for (uint32_t i = 0; i < p->n_bias; i++)
        s->x[p->bias[i].id] = clean(s->x[p->bias[i].id] + p->bias[i].bias);
    if (penalties && penalise(s, p, history + (n_history - window), window, e) == -1)
        return -1;
    for (uint32_t i = 0; i < held; i++)
        s->x[p->stop_tokens[i]] = -INFINITY;
    if (p->n_bias == 0 && !penalties && held == 0)
        return 0;
    *max = logits_clean(s->x, s->vocab, s->x, s->block_max);
    s->weights = 0;
    return 0;
}

/* Those that top-k, top-p and min-p leave, and their weight; without filters those that are likely,
 * and everybody's. */
static uint64_t
filter(const struct sampler *s, struct candidates *k, const struct draw *d)
{
    const bool by_k = d->top_k > 0 && d->top_k < k->vocab;
    uint64_t all = s->weights;

    if (!by_k && d->top_p >= 1 && d->least > 0) {
        candidates_gather(k, d->least);
        return k->sum;
    }
    candidates_gather(k, first_look);
    if (by_k) {
        if (k->n < d->top_k && !k->all)
            candidates_gather(k, 1);
        if (k->n > d->top_k)
            candidates_keep(k, d->top_k);
        all = k->sum;
    } else if (all == 0 || k->scale != 1) {
        all = logits_sum(k->x, k->vocab, k->max, k->scale);
    }
    if (d->top_p < 1) {
        if (!by_k && k->sum < draw_share(d->top_p, all) && !k->all)
            candidates_gather(k, 1);
        candidates_cut(k, draw_share(d->top_p, all));
    }
    if (d->least > 0)
        candidates_drop(k, d->least);
    return by_k || d->top_p < 1 || d->least > 0 ? k->sum : all;
}

/* The first candidate at which the running sum of weights passes the random part of their total. */
static uint32_t
draw(struct sampler *s, const struct draw *d, uint64_t pos, float max)
{
    struct candidates k = {.x = s->x,
                           .block_max = s->block_max,
                           .vocab = s->vocab,
                           .max = max,
                           .scale = d->scale,
                           .c = s->c};
    const uint64_t passed = draw_passed(filter(s, &k, d), draw_random(d->seed, pos));

    if (k.sum <= passed) /* only where nothing was filtered */
        candidates_gather(&k, 1);
    candidates_cut(&k, passed + 1);
    return k.c[k.n - 1].id;
}

static uint32_t
first_largest(const struct sampler *s, float max)
{
    uint32_t id = 0;

    while (s->block_max[id / LOGITS_BLOCK] < max)
        id += LOGITS_BLOCK;
    while (s->x[id] < max)
        id++;
    return id;
}

static uint32_t
choose(struct sampler *s, const struct draw *d, uint64_t pos, float max)
{
    return d->scale > 0 ? draw(s, d, pos, max) : first_largest(s, max);
}

static struct draw
draw_of(const struct sample_params *p)
{
    return (struct draw){.scale = p->temperature > 0 ? 1 / (double)p->temperature : 0,
                         .seed = p->seed,
                         .least = p->min_p > 0 ? draw_share(p->min_p, (uint64_t)LOGITS_UNIT)
                                               : 0,
                         .top_p = p->top_p,
                         .top_k = p->top_k};
}

int
sampler_choose(struct sampler *s, const struct sample_params *p, const float *logits,
               const uint32_t *history, size_t n_history, uint64_t pos, uint32_t n_drawn,
               struct sample_choice *out, struct err *e)
{
    const struct draw d = draw_of(p);
    float max = logits_clean(logits, s->vocab, s->x, s->block_max);

    if (max == -INFINITY)
        return err_set(e, ERR_INVALID, 0,
                       "no logit is a finite number: no token to choose at position %llu",
                       (unsigned long long)pos);
    s->weights = logits_sum(s->x, s->vocab, max, 1);
    out->log_sum = draw_log_sum(max, s->weights);
    list_top(s, p->n_top, out);
    if (adjust(s, p, history, n_history, n_drawn, &max, e) == -1)
        return -1;
    if (max == -INFINITY)
        return err_set(e, ERR_INVALID, 0,
                       "bans and min_tokens leave no token to choose at position %llu",
                       (unsigned long long)pos);
    out->id = choose(s, &d, pos, max);
    out->logprob = (float)((double)clean(logits[out->id]) - out->log_sum);
    return 0;
}

bool
sampler_draw(const struct sample_params *p, uint32_t n_drawn, struct draw *out)
{
    const bool penalties = (p->repetition != 1 || p->presence != 0 || p->frequency != 0) &&
                           p->penalty_window > 0;

    if (penalties || p->n_bias > 0 || p->n_top > 0 ||
        (n_drawn < p->min_tokens && p->n_stop_tokens > 0))
        return false;
    *out = draw_of(p);
    return true;
}

void
sampler_draw_row(struct sampler *s, const struct draw *d, uint64_t pos, const float *logits,
                 struct drawn *out)
{
    const float max = logits_clean(logits, s->vocab, s->x, s->block_max);

    s->weights = logits_sum(s->x, s->vocab, max, 1);
    *out = (struct drawn){
        .weights = s->weights, .max = max, .odd = !logits_finite(logits, s->vocab)};
    if (max > -INFINITY)
        out->token = choose(s, d, pos, max);
    out->logit = s->x[out->token];
}

void
sampler_drawn(const struct drawn *d, struct sample_choice *out)
{
    out->id = d->token;
    out->log_sum = draw_log_sum(d->max, d->weights);
    out->logprob = (float)((double)d->logit - out->log_sum);
    out->n_top = 0;
}
