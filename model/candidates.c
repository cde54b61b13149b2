/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <math.h>
#include <stdlib.h>

#include "model/candidates.h"
#include "model/logits.h"

enum { FEW = 32 }; /* are sorted */

/* What is counted up while walking down the order, and when it is enough. */
enum until { COUNT, AT, ABOVE };

static bool
better(const struct candidate *a, const struct candidate *b)
{
    return a->x > b->x || (a->x == b->x && a->id < b->id);
}

static int
by_rank(const void *a, const void *b)
{
    return better(a, b) ? -1 : 1; /* no two are equal: ids differ */
}

static double
worth(const struct candidate *c, enum until until)
{
    return until == COUNT ? 1 : c->w;
}

static bool
enough(double sum, double goal, enum until until)
{
    return until == ABOVE ? sum > goal : sum >= goal;
}

static struct candidate
middle(const struct candidate *c, uint32_t lo, uint32_t hi)
{
    const struct candidate *a = &c[lo], *b = &c[lo + (hi - lo) / 2], *d = &c[hi - 1];

    if (better(a, b) == better(b, d))
        return *b;
    return better(b, a) == better(a, d) ? *a : *d;
}

/* Those no worse than the pivot to the front; where they end, and what they are worth. */
static uint32_t
part(struct candidate *c, uint32_t lo, uint32_t hi, struct candidate pivot,
     enum until until, double *sum)
{
    uint32_t end = lo;

    *sum = 0;
    for (uint32_t i = lo; i < hi; i++) {
        const struct candidate one = c[i];

        if (better(&pivot, &one))
            continue;
        *sum += worth(&one, until);
        c[i] = c[end];
        c[end++] = one;
    }
    return end;
}

static void
add_up(struct candidates *k)
{
    k->sum = 0;
    for (uint32_t i = 0; i < k->n; i++)
        k->sum += k->c[i].w;
}

/*
 * Narrows down where the walk would end: halves that come before it are added up as a whole, in
 * the order in which they happen to lie, which depends on the row alone.
 */
static void
cut(struct candidates *k, double goal, enum until until)
{
    struct candidate *c = k->c;
    uint32_t lo = 0, hi = k->n;
    double sum = 0, front;

    while (hi - lo > FEW) {
        const uint32_t end = part(c, lo, hi, middle(c, lo, hi), until, &front);

        if (enough(sum + front, goal, until)) {
            hi = end;
        } else {
            sum += front;
            lo = end;
        }
    }
    qsort(c + lo, hi - lo, sizeof *c, by_rank);
    while (lo < hi && (lo == 0 || !enough(sum, goal, until)))
        sum += worth(&c[lo++], until);
    k->n = lo;
    add_up(k);
}

void
candidates_cut_at(struct candidates *k, double sum)
{
    cut(k, sum, AT);
}

void
candidates_cut_above(struct candidates *k, double sum)
{
    cut(k, sum, ABOVE);
}

void
candidates_keep(struct candidates *k, uint32_t n)
{
    cut(k, (double)n, COUNT);
}

void
candidates_drop(struct candidates *k, double least)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < k->n; i++)
        if (k->c[i].w >= least)
            k->c[n++] = k->c[i];
    k->n = n;
    add_up(k);
}

void
candidates_gather(struct candidates *k, double least)
{
    /* A block whose largest is below has none; rounded down, so that none is missed. */
    const double below = least > 0 ? (double)k->max + (log(least) - 1e-9) / k->scale
                                   : -(double)INFINITY;
    double w[LOGITS_BLOCK];

    k->n = 0;
    k->sum = 0;
    k->all = true;
    for (uint32_t at = 0; at < k->vocab; at += LOGITS_BLOCK) {
        const uint32_t left = k->vocab - at, n = left < LOGITS_BLOCK ? left : LOGITS_BLOCK;

        if ((double)k->block_max[at / LOGITS_BLOCK] < below) {
            k->all = false;
            continue;
        }
        logits_weights(k->x + at, n, k->max, k->scale, w);
        for (uint32_t i = 0; i < n; i++) {
            if (w[i] < least || w[i] == 0) {
                k->all = k->all && w[i] == 0;
                continue;
            }
            k->sum += w[i];
            k->c[k->n++] = (struct candidate){.w = w[i], .x = k->x[at + i], .id = at + i};
        }
    }
}
