/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <math.h>

#include "kvstore/gdsf.h"

static double
worth(const struct gdsf *g, const struct gdsf_item *i, double cost, uint64_t bytes)
{
    /* A clock that went astray must not make something immortal. */
    if (!(cost > 0) || !isfinite(cost))
        return g->level;
    return g->level + i->frequency * cost / (double)(bytes > 0 ? bytes : 1);
}

void
gdsf_use(const struct gdsf *g, struct gdsf_item *i, double cost, uint64_t bytes,
         uint64_t now_ns)
{
    if (now_ns > i->used_ns) {
        const double gone = (double)(now_ns - i->used_ns) / 1e9;

        i->frequency *= exp2(-gone / GDSF_HALF_LIFE_S);
        i->used_ns = now_ns;
    }
    i->frequency += 1;
    i->worth = worth(g, i, cost, bytes);
}

void
gdsf_weigh(const struct gdsf *g, struct gdsf_item *i, double cost, uint64_t bytes)
{
    i->worth = worth(g, i, cost, bytes);
}

bool
gdsf_before(const struct gdsf_item *a, const struct gdsf_item *b)
{
    return a->worth < b->worth || (a->worth == b->worth && a->used_ns < b->used_ns);
}

void
gdsf_evicted(struct gdsf *g, const struct gdsf_item *i)
{
    if (i->worth > g->level)
        g->level = i->worth;
}
