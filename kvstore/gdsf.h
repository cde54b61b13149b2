/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVSTORE_GDSF_H
#define KVSTORE_GDSF_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Who goes first when a tier is full: greedy dual size frequency (Cao and Irani; platform.md
 * 3.8). Each item is worth H = L + frequency x cost / bytes, where cost is the seconds that it
 * takes to bring it back from where it would go. The one of the least H goes, and L becomes its
 * H: what nobody has asked for since is so overtaken by and by, whatever it cost. The frequency
 * halves every GDSF_HALF_LIFE_S, so that last week's favourite is one like any other.
 *
 * No clock, no list: pure functions, which the owner of the items calls. Any thread.
 */
enum { GDSF_HALF_LIFE_S = 6 * 3600 };

struct gdsf {
    double level; /* L; begin with {0} */
};

struct gdsf_item { /* begin with {0} */
    double frequency;
    double worth;     /* H */
    uint64_t used_ns; /* when it was used last */
};

/* It was used now; so much it would cost to bring it back (seconds, bytes). */
void gdsf_use(const struct gdsf *g, struct gdsf_item *i, double cost, uint64_t bytes,
              uint64_t now_ns);

/* Something about it has changed but nobody used it: moved to another tier, or grown. */
void gdsf_weigh(const struct gdsf *g, struct gdsf_item *i, double cost, uint64_t bytes);

/* Whether a goes before b: of equal worth the one that was used longer ago. */
bool gdsf_before(const struct gdsf_item *a, const struct gdsf_item *b);

/* It goes. */
void gdsf_evicted(struct gdsf *g, const struct gdsf_item *i);

#endif /* KVSTORE_GDSF_H */
