/* SPDX-License-Identifier: Apache-2.0 */
/* The expert sublayer (spec 8): gate, choice, the experts' matrices, sum. Which experts run is
 * known to the device only; launches are for as many as rows could have chosen. */
#include "config.h"

#include "base/err.h"
#include "gpu/cuda/cuda.h"

/* The gate's logits, and of the shared expert w1 and w3, which wait for no choice. */
static int
gate_and_shared(struct backend *b, const struct layer *l, int n, const uint16_t *x,
                struct err *e)
{
    struct cuda_scratch *s = &b->s;
    const size_t shared = (size_t)n * b->c.n_experts_used * b->c.moe_inter;
    const uint16_t *in = input_for(&l->shared.w1, x, s->yq);
    struct linear_args a[3] = {linear_job(&l->gate, x, s->gate, n),
                               linear_job(&l->shared.w1, in, s->gg + shared, n),
                               linear_job(&l->shared.w3, in, s->gu + shared, n)};

    a[0].y_f32 = 1;
    return linear_cuda(&b->rk, a, 3, e);
}

static struct route_args
route(const struct backend *b, const struct layer *l, const struct cuda_rows *r)
{
    const struct model_config *c = &b->c;
    const struct cuda_scratch *s = &b->s;

    return (struct route_args){.gate = s->gate,
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
                               .back = &b->back,
                               .rows = r->n,
                               .n_experts = c->n_experts,
                               .k = c->n_experts_used,
                               .scale = c->route_scale};
}

/* Whether no expert has more than one row: a table may name one twice. */
static int
one_row_each(const struct layer *l, int n)
{
    return n == 1 && l->gate_table == NULL;
}

/* w1 and w3 of all experts that have rows: gg and gu. */
static int
up(struct backend *b, const struct layer *l, int n, const uint16_t *x, struct err *e)
{
    struct cuda_scratch *s = &b->s;
    const int slots = n * b->c.n_experts_used;
    const struct expert_args routed = {
        .shape = l->experts[0].w1,
        .w = {l->w1, l->w3},
        .first = s->first,
        .source = s->source,
        .active = s->active,
        .x = input_for(&l->experts[0].w1, x, s->yq),
        .y = {s->gg, s->gu},
        .n_mats = 2,
        .max_active = slots < b->c.n_experts ? slots : b->c.n_experts,
        .one_row = one_row_each(l, n),
        .many = n > 8 ? 1 + slots / b->c.n_experts : 0};

    return expert_linear_cuda(&b->rk, &routed, e);
}

/* gg = act(gg, gu), of the shared expert behind the others. */
static int
between(struct backend *b, int n, struct err *e)
{
    struct cuda_scratch *s = &b->s;
    const int slots = n * b->c.n_experts_used, dim = b->c.moe_inter;
    const struct swiglu_args a = {.gate = s->gg,
                                  .up = s->gu,
                                  .weight = s->slot_weight,
                                  .a = s->gg,
                                  .rows = slots + n,
                                  .weighted = slots,
                                  .dim = dim,
                                  .limit = b->c.swiglu_limit};

    return swiglu_cuda(&b->rk, &a, e);
}

/* One row's in one go. */
static int
up_row(struct backend *b, const struct layer *l, const struct cuda_rows *r,
       const uint16_t *x, struct err *e)
{
    const struct experts_row_args a = {.route = route(b, l, r),
                                       .shape = l->experts[0].w1,
                                       .w = {l->w1, l->w3},
                                       .x = input_for(&l->experts[0].w1, x, b->s.yq),
                                       .gate = b->s.gg,
                                       .up = b->s.gu,
                                       .w2 = l->w2,
                                       .second = b->s.second,
                                       .limit = b->c.swiglu_limit};

    return experts_row_cuda(&b->rk, &a, e);
}

/* gg rounded where w2 wants it and does not do that itself. */
static int
rounded(struct backend *b, const struct layer *l, int n, struct err *e)
{
    struct cuda_scratch *s = &b->s;
    const int slots = n * b->c.n_experts_used, dim = b->c.moe_inter;
    uint16_t *shared = s->gg + (size_t)slots * dim;

    if (is_quantised(&l->experts[0].w2) && !quantises_itself(&l->experts[0].w2, n) &&
        quantise(b, s->gg, s->gg, slots, dim, e) == -1)
        return -1;
    if (is_quantised(&l->shared.w2) && !quantises_itself(&l->shared.w2, n) &&
        quantise(b, shared, shared, n, dim, e) == -1)
        return -1;
    return 0;
}

/* To ex and gs: the sum is made where the streams take it in. place: as in expert_args. */
static int
down(struct backend *b, const struct layer *l, int n, const struct expert_weights *place,
     struct err *e)
{
    struct cuda_scratch *s = &b->s;
    const int slots = n * b->c.n_experts_used;
    const uint16_t *shared = s->gg + (size_t)slots * b->c.moe_inter;
    struct linear_args all = linear_job(&l->shared.w2, shared, s->gs, n);
    struct expert_args routed = {
        .shape = l->experts[0].w2,
        .w = {l->w2},
        .first = s->first,
        .active = s->active,
        .place = place,
        .x = s->gg,
        .y = {s->ex},
        .n_mats = 1,
        .max_active = slots < b->c.n_experts ? slots : b->c.n_experts,
        .quant = is_quantised(&l->experts[0].w2) && quantises_itself(&l->experts[0].w2, n),
        .one_row = one_row_each(l, n),
        .many = n > 8 ? 1 + slots / b->c.n_experts : 0};

    all.quant = is_quantised(&l->shared.w2) && quantises_itself(&l->shared.w2, n);
    if (routed.shape.packed != NULL && l->shared.w2.packed != NULL &&
        is_quantised(&l->experts[0].w2) == is_quantised(&l->shared.w2)) {
        routed.one = l->shared.w2;
        routed.x_one = shared;
        routed.y_one = s->gs;
        routed.rows_one = n;
        return expert_linear_cuda(&b->rk, &routed, e);
    }
    if (expert_linear_cuda(&b->rk, &routed, e) == -1)
        return -1;
    return linear_cuda(&b->rk, &all, 1, e);
}

int
cuda_moe(struct backend *b, const struct layer *l, const struct cuda_rows *r,
         const uint16_t *x, struct err *e)
{
    const struct expert *like = &l->experts[0];
    const bool in_one =
        like->w2.packed != NULL &&
        experts_row_can(&like->w1, r->n, b->c.n_experts, b->c.n_experts_used);

    if (gate_and_shared(b, l, r->n, x, e) == -1)
        return -1;
    if (in_one) {
        if (up_row(b, l, r, x, e) == -1)
            return -1;
    } else {
        const struct route_args a = route(b, l, r);

        if (route_cuda(&b->rk, &a, e) == -1 || up(b, l, r->n, x, e) == -1 ||
            between(b, r->n, e) == -1)
            return -1;
    }
    if (rounded(b, l, r->n, e) == -1)
        return -1;
    return down(b, l, r->n, in_one ? b->s.second : NULL, e);
}
