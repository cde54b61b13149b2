/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <math.h>
#include <stdlib.h>

#include "model/candidates.h"
#include "model/logits.h"

enum { FEW = 32 }; /* are sorted */

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

static uint64_t
worth(const struct candidate *c, bool count)
{
    return count ? 1 : c->w;
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
part(struct candidate *c, uint32_t lo, uint32_t hi, struct candidate pivot, bool count,
     uint64_t *sum)
{
    uint32_t end = lo;

    *sum = 0;
    for (uint32_t i = lo; i < hi; i++) {
        const struct candidate one = c[i];

        if (better(&pivot, &one))
            continue;
        *sum += worth(&one, count);
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

/* The fewest best that are worth `goal`: halves that come in front of the last of them are added up
 * as a whole. */
static void
cut(struct candidates *k, uint64_t goal, bool count)
{
    struct candidate *c = k->c;
    uint32_t lo = 0, hi = k->n;
    uint64_t sum = 0, front;

    while (hi - lo > FEW) {
        const uint32_t end = part(c, lo, hi, middle(c, lo, hi), count, &front);

        if (sum + front >= goal) {
            hi = end;
        } else {
            sum += front;
            lo = end;
        }
    }
    qsort(c + lo, hi - lo, sizeof *c, by_rank);
    while (lo < hi && (lo == 0 || sum < goal))
        sum += worth(&c[lo++], count);
    k->n = lo;
    add_up(k);
}

void
candidates_cut(struct candidates *k, uint64_t sum)
{
    cut(k, sum, false);
}

void
candidates_keep(struct candidates *k, uint32_t n)
{
    cut(k, n, true);
}

void
candidates_drop(struct candidates *k, uint64_t least)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < k->n; i++)
        if (k->c[i].w >= least)
            k->c[n++] = k->c[i];
    k->n = n;
    add_up(k);
}

void
candidates_gather(struct candidates *k, uint64_t least)
{
    /* A block whose largest is below has none; half a unit and a little lower, since weights are
     * rounded. */
    const double below = (double)k->max +
                         (log(((double)least - 0.6) / LOGITS_UNIT) - 1e-9) / k->scale;
    uint64_t w[LOGITS_BLOCK];

    k->n = 0;
    k->sum = 0;
    k->all = true;
    for (uint32_t at = 0; at < k->vocab; at += LOGITS_BLOCK) {
        const uint32_t left = k->vocab - at, n = left < LOGITS_BLOCK ? left : LOGITS_BLOCK;

        if ((double)k->block_max[at / LOGITS_BLOCK] < below) {
            k->all = k->all && least == 1;
            continue;
        }
        logits_weights(k->x + at, n, k->max, k->scale, w);
        for (uint32_t i = 0; i < n; i++) {
            if (w[i] < least) {
                k->all = k->all && w[i] == 0;
                continue;
            }
            k->sum += w[i];
            k->c[k->n++] = (struct candidate){.w = w[i], .x = k->x[at + i], .id = at + i};
        }
    }
}
