/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Chooses the next token: bias and bans -> penalties -> min_tokens -> temperature -> top-k ->
 * top-p -> min-p -> draw (docs/SAMPLING.md). Every filter keeps a prefix of the candidates
 * ordered by (logit descending, id ascending), so one walk along that order serves them all;
 * a heap gives the order lazily, because a draw seldom looks further than a few dozen of
 * 129,280 candidates. Sums are in double and in a fixed order. One thread for each sampler.
 */
#include <config.h>

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "model/sampler.h"

struct candidate {
    float x;
    uint32_t id;
};

struct sampler {
    uint32_t vocab;
    float *x;               /* f32 [vocab]: logits after bias, penalties and bans */
    uint32_t *count;        /* u32 [vocab]: all zero between calls */
    struct candidate *heap; /* [vocab]: heap in front, what was popped behind, best last */
    double *w;              /* f64 [vocab]: weights by rank */
};

struct sampler *
sampler_new(uint32_t vocab, struct err *e)
{
    struct sampler *s = calloc(1, sizeof *s);

    if (vocab == 0) {
        free(s);
        err_set(e, ERR_INVALID, 0, "a sampler for no tokens");
        return NULL;
    }
    if (s != NULL) {
        s->vocab = vocab;
        s->x = calloc(vocab, sizeof *s->x);
        s->count = calloc(vocab, sizeof *s->count);
        s->heap = calloc(vocab, sizeof *s->heap);
        s->w = calloc(vocab, sizeof *s->w);
    }
    if (s == NULL || s->x == NULL || s->count == NULL || s->heap == NULL || s->w == NULL) {
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
    free(s->count);
    free(s->heap);
    free(s->w);
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

/* max over f32 [n]; -inf if there is nothing better */
static float
largest(const float *x, uint32_t n)
{
    float max = -INFINITY;

    for (uint32_t i = 0; i < n; i++) {
        const float v = clean(x[i]);

        if (v > max)
            max = v;
    }
    return max;
}

/* log of the sum of exp over f32 [n], whose largest is `max` */
static double
log_sum_exp(const float *x, uint32_t n, float max)
{
    double sum = 0;

    if (max == -INFINITY)
        return -(double)INFINITY;
    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)clean(x[i]) - (double)max);
    return (double)max + log(sum);
}

float
sampler_logprob(const float *logits, uint32_t vocab, uint32_t id)
{
    const float max = largest(logits, vocab);

    if (id >= vocab || clean(logits[id]) == -INFINITY)
        return -INFINITY;
    return (float)((double)clean(logits[id]) - log_sum_exp(logits, vocab, max));
}

/* The n_top best of the model's own distribution: one pass, insertion into a short list. */
static void
report(const float *logits, uint32_t vocab, uint32_t n_top, struct sample_choice *out)
{
    const double lse = log_sum_exp(logits, vocab, largest(logits, vocab));
    float best[SAMPLER_MAX_TOP];
    uint32_t n = 0;

    out->log_sum = lse;
    out->logprob = (float)((double)clean(logits[out->id]) - lse);
    for (uint32_t id = 0; id < vocab && n_top > 0; id++) {
        const float v = clean(logits[id]);
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
        out->top[at] = (struct sample_top){.id = id, .logprob = (float)((double)v - lse)};
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

/* Logits to s->x, with everything in it that does not depend on the other tokens. */
static int
adjust(struct sampler *s, const struct sample_params *p, const float *logits,
       const uint32_t *history, size_t n_history, uint32_t n_drawn, struct err *e)
{
    const size_t window = n_history < p->penalty_window ? n_history
                                                        : (size_t)p->penalty_window;

    for (uint32_t i = 0; i < s->vocab; i++)
        s->x[i] = clean(logits[i]);
    for (uint32_t i = 0; i < p->n_bias; i++)
        s->x[p->bias[i].id] = clean(s->x[p->bias[i].id] + p->bias[i].bias);
    if ((p->repetition != 1 || p->presence != 0 || p->frequency != 0) && window > 0 &&
        penalise(s, p, history + (n_history - window), window, e) == -1)
        return -1;
    for (uint32_t i = 0; i < p->n_stop_tokens && n_drawn < p->min_tokens; i++)
        s->x[p->stop_tokens[i]] = -INFINITY;
    return 0;
}

static bool
better(struct candidate a, struct candidate b)
{
    return a.x > b.x || (a.x == b.x && a.id < b.id);
}

static void
sift_down(struct candidate *h, uint32_t n, uint32_t i)
{
    const struct candidate c = h[i];

    for (;;) {
        uint32_t child = 2 * i + 1;

        if (child >= n)
            break;
        if (child + 1 < n && better(h[child + 1], h[child]))
            child++;
        if (!better(h[child], c))
            break;
        h[i] = h[child];
        i = child;
    }
    h[i] = c;
}

/* All tokens that are not banned, as a heap; their number. */
static uint32_t
gather(struct sampler *s)
{
    uint32_t n = 0;

    for (uint32_t id = 0; id < s->vocab; id++) {
        if (s->x[id] > -INFINITY)
            s->heap[n++] = (struct candidate){.x = s->x[id], .id = id};
    }
    for (uint32_t i = n / 2; i-- > 0;)
        sift_down(s->heap, n, i);
    return n;
}

/* The candidates in order, as far as anyone has looked. */
struct ranking {
    struct sampler *s;
    uint32_t n, popped;
    double max, temperature;
};

/* The weight of the candidate of the next rank, which becomes known by this call. */
static double
rank_next(struct ranking *r)
{
    struct candidate *h = r->s->heap;
    const uint32_t left = r->n - r->popped;
    const struct candidate best = h[0];
    const double w = exp(((double)best.x - r->max) / r->temperature);

    h[0] = h[left - 1];
    if (left > 1)
        sift_down(h, left - 1, 0);
    h[left - 1] = best;
    r->s->w[r->popped++] = w;
    return w;
}

static uint32_t
rank_id(const struct ranking *r, uint32_t rank)
{
    return r->s->heap[r->n - 1 - rank].id;
}

/* Sum of all weights of at least `least`, in the order of ids. */
static double
total_weight(const struct ranking *r, double least)
{
    double sum = 0;

    for (uint32_t id = 0; id < r->s->vocab; id++) {
        const double w = exp(((double)r->s->x[id] - r->max) / r->temperature);

        if (w >= least)
            sum += w;
    }
    return sum;
}

/*
 * Top-k, top-p and min-p: how many of the best candidates survive, with their weights in
 * s->w and the sum of those in *total. At least one does.
 */
static uint32_t
survivors(struct ranking *r, const struct sample_params *p, double *total)
{
    const bool by_k = p->top_k > 0 && p->top_k < r->n;
    const uint32_t k = by_k ? p->top_k : r->n;
    const double min_p = (double)p->min_p, top_p = (double)p->top_p;
    const double *w = r->s->w;
    double all = 0, sum = 0;
    uint32_t n = 0;

    if (by_k) {
        while (r->popped < k)
            all += rank_next(r);
    } else {
        all = total_weight(r, 0);
    }
    while (n < k && (n == 0 || sum < top_p * all)) {
        if (n == r->popped)
            rank_next(r);
        sum += w[n++];
    }
    /* The best has weight 1, so min-p needs no division; the order is by weight. */
    while (n > 1 && w[n - 1] < min_p)
        n--;
    *total = 0;
    for (uint32_t i = 0; i < n; i++)
        *total += w[i];
    return n;
}

/* 53 random bits for position pos, in [0, 1). */
static double
uniform(uint64_t seed, uint64_t pos)
{
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    const uint32_t counter[4] = {(uint32_t)pos, (uint32_t)(pos >> 32), 0, 0};
    uint32_t out[4];

    philox4x32(key, counter, out);
    return (double)(((uint64_t)out[1] << 32 | out[0]) >> 11) * 0x1p-53;
}

/* The first candidate at which the running sum of weights passes u times their total. */
static uint32_t
draw(struct sampler *s, const struct sample_params *p, uint64_t pos, float max)
{
    struct ranking r = {
        .s = s, .n = gather(s), .max = (double)max, .temperature = (double)p->temperature};
    const bool walk = (p->top_k > 0 && p->top_k < r.n) || p->top_p < 1;
    const double u = uniform(p->seed, pos);
    double total, sum = 0;
    uint32_t n = r.n, last = 0;

    if (walk)
        n = survivors(&r, p, &total);
    else
        total = total_weight(&r, (double)p->min_p); /* and the walk stays short */
    for (uint32_t i = 0; i < n; i++) {
        const double w = i < r.popped ? s->w[i] : rank_next(&r);

        /* Rounding can leave the sum short of the total: then the last that had a chance. */
        if (w == 0 || (i > 0 && w < (double)p->min_p))
            break;
        sum += w;
        last = i;
        if (sum > u * total)
            break;
    }
    return rank_id(&r, last);
}

int
sampler_choose(struct sampler *s, const struct sample_params *p, const float *logits,
               const uint32_t *history, size_t n_history, uint64_t pos, uint32_t n_drawn,
               struct sample_choice *out, struct err *e)
{
    float max;
    uint32_t id = 0;

    if (adjust(s, p, logits, history, n_history, n_drawn, e) == -1)
        return -1;
    max = largest(s->x, s->vocab);
    if (max == -INFINITY && largest(logits, s->vocab) == -INFINITY)
        return err_set(e, ERR_INVALID, 0,
                       "no logit is a finite number: no token to choose at position %llu",
                       (unsigned long long)pos);
    if (max == -INFINITY)
        return err_set(e, ERR_INVALID, 0,
                       "bans and min_tokens leave no token to choose at position %llu",
                       (unsigned long long)pos);
    if (p->temperature > 0) {
        id = draw(s, p, pos, max);
    } else {
        while (s->x[id] < max)
            id++;
    }
    out->id = id;
    report(logits, s->vocab, p->n_top, out);
    return 0;
}
