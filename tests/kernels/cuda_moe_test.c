/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The experts' sublayer of one row whose table names an expert twice, which a checkpoint may do:
 * cuda_moe against the same matrices by the reference of the CPU backend. Where one kernel has all
 * of a row's experts, and where their inputs are so many that they take the way of many rows.
 */
#include "config.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/fp.h"
#include "gpu/cpu/ops.h"
#include "gpu/cuda/cuda.h"
#include "tests/kernels/cuda_test.h"
#include "tests/test.h"

enum { EXPERTS = 6, USED = 4, INTER = 64 };

struct layers {
    struct layer host, device;
    struct expert host_experts[EXPERTS], experts[EXPERTS];
};

/* BF16 on both sides, packed on the device. */
static void
matrix_make(struct matrix *host, struct matrix *device, int out, int in)
{
    const struct matrix m = {.kind = MATRIX_BF16,
                             .out = out,
                             .in = in,
                             .w = rnd_bf16((size_t)out * (size_t)in, 0.2f)};
    int *odd = dev(&(int){0}, sizeof *odd);
    struct err e = {0};

    *host = *device = m;
    device->w = dev(m.w, (size_t)out * (size_t)in * 2);
    if (matrix_packed_bytes(&m) == 0)
        return;
    device->packed = dev_poison(matrix_packed_bytes(&m));
    done(matrix_pack_cuda(&rk, device, 0, out, device->w, NULL, odd, &e), &e);
}

static void
expert_make(struct expert *host, struct expert *device, int hidden)
{
    matrix_make(&host->w1, &device->w1, INTER, hidden);
    matrix_make(&host->w2, &device->w2, hidden, INTER);
    matrix_make(&host->w3, &device->w3, INTER, hidden);
}

static void
expert_free(struct expert *host)
{
    free((void *)(uintptr_t)host->w1.w);
    free((void *)(uintptr_t)host->w2.w);
    free((void *)(uintptr_t)host->w3.w);
}

static void
layers_make(struct layers *l, int hidden)
{
    struct matrix list[3][EXPERTS];

    memset(l, 0, sizeof *l);
    matrix_make(&l->host.gate, &l->device.gate, EXPERTS, hidden);
    expert_make(&l->host.shared, &l->device.shared, hidden);
    for (int i = 0; i < EXPERTS; i++) {
        expert_make(&l->host_experts[i], &l->experts[i], hidden);
        list[0][i] = l->experts[i].w1;
        list[1][i] = l->experts[i].w2;
        list[2][i] = l->experts[i].w3;
    }
    l->host.experts = l->host_experts;
    l->device.experts = l->experts;
    l->device.w1 = dev(list[0], sizeof list[0]);
    l->device.w2 = dev(list[1], sizeof list[1]);
    l->device.w3 = dev(list[2], sizeof list[2]);
}

static void
layers_free(struct layers *l)
{
    free((void *)(uintptr_t)l->host.gate.w);
    expert_free(&l->host.shared);
    for (int i = 0; i < EXPERTS; i++)
        expert_free(&l->host_experts[i]);
}

static void
product(const struct matrix *w, const uint16_t *x, void *y, int f32)
{
    cpu_ops_reference.linear(&(struct linear_args){.w = w,
                                                   .x = x,
                                                   .y = y,
                                                   .rows = 1,
                                                   .x_stride = w->in,
                                                   .y_stride = w->out,
                                                   .y_f32 = f32},
                             1);
}

static void
one_expert(const struct expert *m, const uint16_t *x, float weight, uint16_t *y)
{
    uint16_t gate[INTER], up[INTER];

    product(&m->w1, x, gate, 0);
    product(&m->w3, x, up, 0);
    cpu_ops_reference.swiglu(&(struct swiglu_args){.gate = gate,
                                                   .up = up,
                                                   .weight = &weight,
                                                   .a = gate,
                                                   .rows = 1,
                                                   .dim = INTER,
                                                   .limit = 7.0f});
    product(&m->w2, gate, y, 0);
}

/* Outputs of the experts of `id`, which ascend, and of the shared one behind them. */
static void
expected(const struct layer *l, const int32_t *id, const uint16_t *x, uint16_t *y)
{
    float score[EXPERTS], sum = 0.0f;
    const size_t hidden = (size_t)l->gate.in;

    product(&l->gate, x, score, 1);
    for (int i = 0; i < EXPERTS; i++)
        score[i] = sqrtf(log1pf(expf(score[i])));
    for (int i = 0; i < USED; i++)
        sum += score[id[i]];
    for (int i = 0; i < USED; i++)
        one_expert(&l->experts[id[i]], x, score[id[i]] / sum * 1.5f,
                   y + (size_t)i * hidden);
    one_expert(&l->shared, x, 1.0f, y + USED * hidden);
}

/* What cuda_moe leaves of one row of that token; the caller frees it. */
static uint16_t *
on_device(const struct layer *l, uint32_t token, const uint16_t *x)
{
    const size_t hidden = (size_t)l->gate.in, all = (USED + 1) * hidden;
    const struct dev_row row = {.token = token};
    struct backend *b = calloc(1, sizeof *b);
    uint16_t *got = malloc(all * 2), *ex, *gs;
    struct err e = {0};

    b->rk = rk;
    b->c.hidden = l->gate.in;
    b->c.moe_inter = INTER;
    b->c.n_experts = EXPERTS;
    b->c.n_experts_used = USED;
    b->c.route_scale = 1.5f;
    b->c.swiglu_limit = 7.0f;
    b->s.gate = dev_poison(EXPERTS * 4);
    b->s.weight = dev_poison(USED * 4);
    b->s.slot_weight = dev_poison(USED * 4);
    b->s.chosen = dev_poison(USED * 4);
    b->s.slot = dev_poison(USED * 4);
    b->s.first = dev_poison((EXPERTS + 1) * 4);
    b->s.source = dev_poison(USED * 4);
    b->s.active = dev_poison((EXPERTS + 1) * 4);
    b->s.second = dev_poison(USED * sizeof *b->s.second);
    b->s.gg = dev_poison((USED + 1) * INTER * 2);
    b->s.gu = dev_poison((USED + 1) * INTER * 2);
    b->s.ex = dev_poison(USED * hidden * 2);
    b->s.gs = dev_poison(hidden * 2);
    done(cuda_moe(b, l, &(struct cuda_rows){.n = 1, .rows = dev(&row, sizeof row)},
                  dev(x, hidden * 2), &e),
         &e);
    ex = fetch(b->s.ex, USED * hidden * 2);
    gs = fetch(b->s.gs, hidden * 2);
    memcpy(got, ex, USED * hidden * 2);
    memcpy(got + USED * hidden, gs, hidden * 2);
    free(ex);
    free(gs);
    free(b);
    return got;
}

void
test_moe_twice(void **state)
{
    static const int32_t table[][USED] = {{0, 1, 2, 3}, {1, 4, 4, 5}, {2, 2, 2, 2}};

    static const struct {
        int hidden;
        bool in_one;
    } c[] = {{512, true}, {1088, false}};

    (void)state;
    for (size_t t = 0; t < sizeof c / sizeof c[0]; t++) {
        const size_t hidden = (size_t)c[t].hidden, all = (USED + 1) * hidden;
        uint16_t *x = rnd_bf16(hidden, 1.0f), *want = malloc(all * 2);
        struct layers l;

        layers_make(&l, c[t].hidden);
        l.device.gate_table = dev(table, sizeof table);
        assert_int_equal(experts_row_can(&l.experts[0].w1, 1, EXPERTS, USED), c[t].in_one);
        for (uint32_t token = 0; token < 3; token++) {
            uint16_t *got = on_device(&l.device, token, x);

            /* sums in another order: a place of bf16 in what is between, and again behind it */
            expected(&l.host, table[token], x, want);
            assert_int_equal(far_bf16(got, want, all, 0x1p-6f, 0x1p-7f), 0);
            expected(&l.host, table[(token + 1) % 3], x, want);
            assert_true(far_bf16(got, want, all, 0x1p-6f, 0x1p-7f) > (int)hidden);
            free(got);
        }
        layers_free(&l);
        free(x);
        free(want);
        tear_down(NULL);
    }
}
