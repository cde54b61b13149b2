/* SPDX-License-Identifier: Apache-2.0 */
/* The expert sublayer (spec 8): gate, choice, the experts' matrices, sum. Which experts run is
 * known to the device only; launches are for as many as rows could have chosen. */
#include "config.h"

#include "base/err.h"
#include "gpu/cuda/cuda.h"

static int
route(struct backend *b, const struct cuda_layer *l, const struct cuda_rows *r,
      const uint16_t *x, struct err *e)
{
    const struct model_config *c = &b->c;
    struct cuda_scratch *s = &b->s;
    struct linear_args gate = linear_job(&l->gate, x, s->gate, r->n);
    const struct route_args a = {.gate = s->gate,
                                 .bias = l->gate_bias,
                                 .table = l->gate_table,
                                 .token = r->rows,
                                 .chosen = s->chosen,
                                 .slot = s->slot,
                                 .first = s->first,
                                 .source = s->source,
                                 .active = s->active,
                                 .weight = s->weight,
                                 .slot_weight = s->slot_weight,
                                 .rows = r->n,
                                 .n_experts = c->n_experts,
                                 .k = c->n_experts_used,
                                 .scale = c->route_scale};

    gate.y_f32 = 1;
    if (linear_cuda(&b->rk, &gate, 1, e) == -1)
        return -1;
    return route_cuda(&b->rk, &a, e);
}

/* w1 and w3 of all experts that have rows, then of the shared one: gg and gu. */
static int
up(struct backend *b, const struct cuda_layer *l, int n, const uint16_t *x, struct err *e)
{
    struct cuda_scratch *s = &b->s;
    const int slots = n * b->c.n_experts_used;
    const size_t shared = (size_t)slots * b->c.moe_inter;
    const struct expert_args routed = {
        .shape = l->expert.w1,
        .w = {l->w1, l->w3},
        .first = s->first,
        .source = s->source,
        .active = s->active,
        .x = input_for(&l->expert.w1, x, s->yq),
        .y = {s->gg, s->gu},
        .n_mats = 2,
        .max_active = slots < b->c.n_experts ? slots : b->c.n_experts,
        .one_row = n == 1};
    const uint16_t *in = input_for(&l->shared.w1, x, s->yq);
    const struct linear_args all[2] = {linear_job(&l->shared.w1, in, s->gg + shared, n),
                                       linear_job(&l->shared.w3, in, s->gu + shared, n)};

    if (expert_linear_cuda(&b->rk, &routed, e) == -1)
        return -1;
    return linear_cuda(&b->rk, all, 2, e);
}

/* gg = act(gg, gu), rounded where w2 wants it. */
static int
between(struct backend *b, const struct cuda_layer *l, int n, struct err *e)
{
    struct cuda_scratch *s = &b->s;
    const int slots = n * b->c.n_experts_used, dim = b->c.moe_inter;
    struct swiglu_args a = {.gate = s->gg,
                            .up = s->gu,
                            .weight = s->slot_weight,
                            .a = s->gg,
                            .rows = slots,
                            .dim = dim,
                            .limit = b->c.swiglu_limit};

    if (swiglu_cuda(&b->rk, &a, e) == -1)
        return -1;
    a.gate = a.a = s->gg + (size_t)slots * dim;
    a.up = s->gu + (size_t)slots * dim;
    a.weight = NULL;
    a.rows = n;
    if (swiglu_cuda(&b->rk, &a, e) == -1)
        return -1;
    if (is_quantised(&l->expert.w2) && quantise(b, s->gg, s->gg, slots, dim, e) == -1)
        return -1;
    if (is_quantised(&l->shared.w2) && quantise(b, a.a, a.a, n, dim, e) == -1)
        return -1;
    return 0;
}

static int
down(struct backend *b, const struct cuda_layer *l, int n, uint16_t *f, struct err *e)
{
    struct cuda_scratch *s = &b->s;
    const int slots = n * b->c.n_experts_used;
    const struct expert_args routed = {
        .shape = l->expert.w2,
        .w = {l->w2},
        .first = s->first,
        .active = s->active,
        .x = s->gg,
        .y = {s->ex},
        .n_mats = 1,
        .max_active = slots < b->c.n_experts ? slots : b->c.n_experts,
        .one_row = n == 1};
    const struct linear_args all =
        linear_job(&l->shared.w2, s->gg + (size_t)slots * b->c.moe_inter, s->gs, n);
    const struct combine_args sum = {.routed = s->ex,
                                     .shared = s->gs,
                                     .slot = s->slot,
                                     .f = f,
                                     .rows = n,
                                     .k = b->c.n_experts_used,
                                     .dim = b->c.hidden};

    if (expert_linear_cuda(&b->rk, &routed, e) == -1 ||
        linear_cuda(&b->rk, &all, 1, e) == -1)
        return -1;
    return combine_cuda(&b->rk, &sum, e);
}

int
cuda_moe(struct backend *b, const struct cuda_layer *l, const struct cuda_rows *r,
         const uint16_t *x, uint16_t *f, struct err *e)
{
    if (route(b, l, r, x, e) == -1 || quantise(b, x, b->s.yq, r->n, b->c.hidden, e) == -1 ||
        up(b, l, r->n, x, e) == -1 || between(b, l, r->n, e) == -1)
        return -1;
    return down(b, l, r->n, f, e);
}
