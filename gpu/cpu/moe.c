/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Experts (spec 8). Rows are gathered by expert, so that each expert's matrices are read once
 * a step whatever the number of rows; a row's result is put together in ascending order of
 * expert ids, so the company of other rows does not show.
 */
#include "config.h"

#include <math.h>
#include <string.h>

#include "base/fp.h"
#include "gpu/cpu/cpu.h"
#include "gpu/cpu/pool.h"

static float
gate_score(float logit)
{
    return sqrtf(logit > 20.0f ? logit : log1pf(expf(logit)));
}

/* The k best of score + bias, best first; equal ones: lower id. */
static void
choose_best(const float *score, const float *bias, int n, int k, int *chosen)
{
    for (int i = 0; i < k; i++) {
        int best = -1;

        for (int x = 0; x < n; x++) {
            bool taken = false;

            for (int t = 0; t < i; t++)
                taken |= chosen[t] == x;
            if (!taken && (best == -1 || score[x] + bias[x] > score[best] + bias[best]))
                best = x;
        }
        chosen[i] = best;
    }
}

static void
sort_ids(int *id, int n)
{
    for (int i = 1; i < n; i++) {
        const int x = id[i];
        int t = i;

        for (; t > 0 && id[t - 1] > x; t--)
            id[t] = id[t - 1];
        id[t] = x;
    }
}

/* chosen and weight of one row from its gate logits, which become scores. */
static void
route(const struct model_config *c, const struct layer *l, uint32_t token, float *gate,
      int *chosen, float *weight)
{
    const int k = c->n_experts_used;
    float sum = 0.0f;

    for (int x = 0; x < c->n_experts; x++)
        gate[x] = gate_score(gate[x]);
    if (l->gate_table != NULL)
        for (int i = 0; i < k; i++)
            chosen[i] = l->gate_table[(size_t)token * k + i];
    else
        choose_best(gate, l->gate_bias, c->n_experts, k, chosen);
    sort_ids(chosen, k);
    for (int i = 0; i < k; i++)
        sum += gate[chosen[i]];
    for (int i = 0; i < k; i++)
        weight[i] = gate[chosen[i]] / sum * c->route_scale;
}

/* Every (row, expert) gets a place in the gathered order: by expert, then by row. */
static void
assign_slots(struct backend *b, int rows)
{
    const int k = b->c.n_experts_used, n_experts = b->c.n_experts;
    struct scratch *s = &b->s;

    memset(s->first, 0, ((size_t)n_experts + 1) * sizeof *s->first);
    for (int i = 0; i < rows * k; i++)
        s->first[s->chosen[i] + 1]++;
    for (int x = 0; x < n_experts; x++)
        s->first[x + 1] += s->first[x];
    for (int i = 0; i < rows * k; i++) {
        s->slot[i] = s->first[s->chosen[i]]++;
        s->gweight[s->slot[i]] = s->weight[i];
    }
    for (int x = n_experts; x > 0; x--)
        s->first[x] = s->first[x - 1];
    s->first[0] = 0;
}

/* Rows of the step on their way to the experts and back. */
struct trip {
    const struct backend *b;
    const struct layer *l;
    const uint32_t *token;
    const uint16_t *x;
    uint16_t *f;
};

static void
gather(const void *arg, int r, int end)
{
    const struct trip *t = arg;
    const struct scratch *s = &t->b->s;
    const int k = t->b->c.n_experts_used;
    const size_t d = (size_t)t->b->c.hidden;

    for (; r < end; r++)
        for (int i = 0; i < k; i++)
            memcpy(s->gx + (size_t)s->slot[r * k + i] * d, t->x + (size_t)r * d,
                   d * sizeof *t->x);
}

static struct linear_args
job(const struct matrix *w, const uint16_t *x, uint16_t *y, int rows)
{
    return (struct linear_args){
        .w = w, .x = x, .y = y, .rows = rows, .x_stride = w->in, .y_stride = w->out};
}

/* Matrices of all experts that have rows: w1 and w3 (up) or w2, then the shared one's. */
static int
list_jobs(struct backend *b, const struct layer *l, const uint16_t *shared_x, int rows,
          bool up)
{
    const size_t d = (size_t)b->c.hidden, inter = (size_t)b->c.moe_inter;
    const size_t end = (size_t)rows * b->c.n_experts_used;
    struct scratch *s = &b->s;
    struct linear_args *a = s->jobs;

    for (int x = 0; x <= b->c.n_experts; x++) {
        const bool shared = x == b->c.n_experts;
        const struct expert *m = shared ? &l->shared : &l->experts[x];
        const size_t at = shared ? end : (size_t)s->first[x];
        const int n = shared ? rows : s->first[x + 1] - s->first[x];

        if (n == 0)
            continue;
        if (up) {
            const uint16_t *in = shared ? shared_x : s->gx + at * d;

            *a++ = job(&m->w1, in, s->gg + at * inter, n);
            *a++ = job(&m->w3, in, s->gu + at * inter, n);
        } else {
            *a++ = job(&m->w2, s->gg + at * inter, shared ? s->gs : s->gx + at * d, n);
        }
    }
    return (int)(a - s->jobs);
}

/* f = bf16(sum of the routed outputs, ascending ids, + the shared one). */
static void
combine(const void *arg, int r, int end)
{
    const struct trip *t = arg;
    const struct scratch *s = &t->b->s;
    const int k = t->b->c.n_experts_used, d = t->b->c.hidden;

    for (; r < end; r++) {
        for (int c = 0; c < d; c++) {
            float sum = 0.0f;

            for (int i = 0; i < k; i++)
                sum += bf16_to_f32(s->gx[(size_t)s->slot[r * k + i] * d + c]);
            t->f[(size_t)r * d + c] =
                f32_to_bf16(sum + bf16_to_f32(s->gs[(size_t)r * d + c]));
        }
    }
}

static void
route_rows(const void *arg, int r, int end)
{
    const struct trip *t = arg;
    const struct model_config *c = &t->b->c;
    const struct scratch *s = &t->b->s;
    const int k = c->n_experts_used;

    for (; r < end; r++)
        route(c, t->l, t->token[r], s->gate + (size_t)r * c->n_experts, s->chosen + r * k,
              s->weight + r * k);
}

/* In place, if the matrix that comes next wants it. */
static void
quantise_for(struct backend *b, const struct matrix *next, uint16_t *x, int rows)
{
    if (is_quantised(next))
        b->ops->act_quant(&(struct act_quant_args){.x = x,
                                                   .y = x,
                                                   .rows = rows,
                                                   .dim = next->in,
                                                   .stride = next->in,
                                                   .group = 128});
}

void
moe_forward(struct backend *b, const struct layer *l, const struct rows *r,
            const uint16_t *x, uint16_t *f)
{
    const struct model_config *c = &b->c;
    struct scratch *s = &b->s;
    const int k = c->n_experts_used, n = r->n, all = n * (k + 1);
    struct linear_args gate = job(&l->gate, x, (uint16_t *)s->gate, n);
    struct trip trip = {.b = b, .l = l, .token = r->token, .f = f};
    const uint16_t *routed_x, *shared_x;

    gate.y_f32 = 1;
    b->ops->linear(&gate, 1);
    pool_run(n, 16, route_rows, &trip);
    assign_slots(b, n);
    for (int i = n * k; i < all; i++)
        s->gweight[i] = 1.0f;

    b->ops->act_quant(&(struct act_quant_args){.x = x,
                                               .y = s->yq,
                                               .rows = n,
                                               .dim = c->hidden,
                                               .stride = c->hidden,
                                               .group = 128});
    routed_x = input_for(&l->experts[0].w1, x, s->yq);
    shared_x = input_for(&l->shared.w1, x, s->yq);
    trip.x = routed_x;
    pool_run(n, 8, gather, &trip);
    b->ops->linear(s->jobs, list_jobs(b, l, shared_x, n, true));
    b->ops->swiglu(&(struct swiglu_args){.gate = s->gg,
                                         .up = s->gu,
                                         .weight = s->gweight,
                                         .a = s->gg,
                                         .rows = all,
                                         .dim = c->moe_inter,
                                         .limit = c->swiglu_limit});
    quantise_for(b, &l->experts[0].w2, s->gg, n * k);
    quantise_for(b, &l->shared.w2, s->gg + (size_t)n * k * c->moe_inter, n);
    b->ops->linear(s->jobs, list_jobs(b, l, shared_x, n, false));
    pool_run(n, 4, combine, &trip);
}
