/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Weights in panels: the layout that all fast tables share, and how a list of products is dealt
 * out to threads. Packing happens once, when a model is loaded.
 */
#include "config.h"

#include <string.h>

#include "base/fp.h"
#include "gpu/cpu/panel.h"
#include "gpu/cpu/pool.h"
#include "gpu/cpu/reference.h"

enum {
    PARALLEL_FROM = 32 *
                    1024, /* bytes of weights times rows: less is not worth a second core */
    MAX_JOBS = 1024,
};

bool
panel_takes(const struct matrix *w)
{
    const int whole = w->kind == MATRIX_FP4 ? PANEL_FP4_BLOCK : panel_inputs(w->kind);

    return w->out > 0 && w->in > 0 && w->in % whole == 0;
}

static size_t
panel_bytes(const struct matrix *w)
{
    return (size_t)(w->in / panel_inputs(w->kind)) * PANEL_STEP;
}

static size_t
scale_bytes(const struct matrix *w)
{
    const size_t in_blocks = ((size_t)w->in + PANEL_BLOCK - 1) / PANEL_BLOCK;

    switch (w->kind) {
    case MATRIX_FP8:
        return ((size_t)w->out + PANEL_BLOCK - 1) / PANEL_BLOCK * in_blocks * sizeof(float);
    case MATRIX_FP4: return (size_t)panel_count(w) * 16 * (size_t)(w->in / PANEL_FP4_BLOCK);
    default: return 0;
    }
}

size_t
panel_packed_bytes(const struct matrix *w)
{
    return panel_takes(w) ? (size_t)panel_count(w) * panel_bytes(w) + scale_bytes(w) : 0;
}

void
panel_group_at(const struct matrix *w, int group, struct panel_group *g)
{
    const int panels = panel_count(w), first = group * PANEL_GROUP;
    const uint8_t *base = w->packed, *scales = base + (size_t)panels * panel_bytes(w);
    const size_t in_blocks = ((size_t)w->in + PANEL_BLOCK - 1) / PANEL_BLOCK;

    g->n = panels - first < PANEL_GROUP ? panels - first : PANEL_GROUP;
    g->out0 = first * panel_outputs(w->kind);
    g->outs = w->out - g->out0 < g->n * panel_outputs(w->kind)
                  ? w->out - g->out0
                  : g->n * panel_outputs(w->kind);
    g->w = base + (size_t)first * panel_bytes(w);
    g->scale8 = (const float *)scales + (size_t)(g->out0 / PANEL_BLOCK) * in_blocks;
    g->scale4 = scales + (size_t)first * 16 * (size_t)(w->in / PANEL_FP4_BLOCK);
}

/* One panel's step from row-major weights; outputs beyond the last are zeros. */
static void
pack_step(const struct matrix *w, int o0, int k0, uint8_t *dst)
{
    const int outs = w->out - o0 < panel_outputs(w->kind) ? w->out - o0
                                                          : panel_outputs(w->kind);
    uint16_t words[PANEL_STEP / 2] = {0};

    memset(dst, 0, PANEL_STEP);
    for (int n = 0; n < outs; n++) {
        const size_t at = (size_t)(o0 + n) * w->in + k0;

        switch (w->kind) {
        case MATRIX_BF16: memcpy(dst + n * 4, (const uint16_t *)w->w + at, 4); break;
        case MATRIX_F32:
            memcpy(dst + n * 4, (const float *)w->w + at, 4);
            memcpy(dst + 32 + n * 4, (const float *)w->w + at + 1, 4);
            break;
        case MATRIX_FP8:
            for (int k = 0; k < 4; k++)
                dst[n / 4 * 16 + k / 2 * 8 + n % 4 * 2 + k % 2] =
                    ((const uint8_t *)w->w)[at + k];
            break;
        case MATRIX_FP4:
            for (int k = 0; k < 8; k += 2) {
                const uint8_t both = ((const uint8_t *)w->w)[(at + k) / 2];

                words[2 * n] |= (uint16_t)((both & 15) << (2 * k));
                words[2 * n + 1] |= (uint16_t)((both >> 4) << (2 * k));
            }
            break;
        }
    }
    if (w->kind == MATRIX_FP4)
        memcpy(dst, words, sizeof words);
}

static void
pack_scales(const struct matrix *w, uint8_t *dst)
{
    const size_t blocks = (size_t)w->in / PANEL_FP4_BLOCK;
    const int panels = panel_count(w);

    if (w->kind == MATRIX_FP8)
        for (size_t i = 0; i < scale_bytes(w) / sizeof(float); i++)
            ((float *)dst)[i] = e8m0_to_f32(w->scale[i]);
    if (w->kind != MATRIX_FP4)
        return;
    for (int o = 0; o < panels * 16; o++) {
        const int p = o / 16, first = p / PANEL_GROUP * PANEL_GROUP;
        const int n = panels - first < PANEL_GROUP ? panels - first : PANEL_GROUP;
        uint8_t *at = dst + (size_t)first * 16 * blocks + (p - first) * 16 + o % 16;

        for (size_t b = 0; b < blocks; b++)
            at[b * n * 16] = o < w->out ? w->scale[(size_t)o * blocks + b] : 127;
    }
}

struct packing {
    const struct matrix *w;
    uint8_t *dst;
};

static void
pack_panels(const void *arg, int p, int end)
{
    const struct packing *a = arg;
    const struct matrix *w = a->w;
    const int panels = panel_count(w), step = panel_inputs(w->kind);

    for (; p < end; p++) {
        const int first = p / PANEL_GROUP * PANEL_GROUP;
        const int n = panels - first < PANEL_GROUP ? panels - first : PANEL_GROUP;
        uint8_t *at = a->dst + (size_t)first * panel_bytes(w) +
                      (size_t)(p - first) * PANEL_STEP;

        for (int k = 0; k < w->in; k += step) {
            pack_step(w, p * panel_outputs(w->kind), k, at);
            at += (size_t)n * PANEL_STEP;
        }
    }
}

void
panel_pack(const struct matrix *w, void *dst)
{
    const struct packing a = {.w = w, .dst = dst};

    pool_run(panel_count(w), 4, pack_panels, &a);
    pack_scales(w, (uint8_t *)dst + (size_t)panel_count(w) * panel_bytes(w));
}

static int
groups_of(const struct linear_args *a)
{
    if (a->w->packed == NULL || a->rows == 0)
        return 0;
    return (panel_count(a->w) + PANEL_GROUP - 1) / PANEL_GROUP;
}

struct products {
    const struct linear_args *a;
    const int *start; /* [jobs + 1] first item of each job; an item is a group */
    int jobs;
    panel_group_fn *run;
};

static void
run_groups(const void *arg, int first, int end)
{
    const struct products *p = arg;
    int job = 0;

    for (int step = MAX_JOBS; step > 0; step /= 2)
        if (job + step < p->jobs && p->start[job + step] <= first)
            job += step;
    for (int i = first; i < end; i++) {
        struct panel_group g;

        while (i >= p->start[job + 1])
            job++;
        panel_group_at(p->a[job].w, i - p->start[job], &g);
        p->run(&p->a[job], &g);
    }
}

void
panel_linear(const struct linear_args *a, int n, panel_group_fn *run)
{
    int start[MAX_JOBS + 1] = {0};
    struct products p = {.start = start, .run = run};
    size_t work = 0;

    for (; n > MAX_JOBS; n -= MAX_JOBS, a += MAX_JOBS)
        panel_linear(a, MAX_JOBS, run);
    p.a = a;
    p.jobs = n;
    for (int i = 0; i < n; i++) {
        if (a[i].w->packed == NULL)
            reference_linear(&a[i], 1);
        start[i + 1] = start[i] + groups_of(&a[i]);
        if (start[i + 1] > start[i])
            work += panel_packed_bytes(a[i].w) * (size_t)a[i].rows;
    }
    pool_run(start[n], work < PARALLEL_FROM ? start[n] : 1, run_groups, &p);
}
