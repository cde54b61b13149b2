/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_HISTOGRAM_H
#define DAEMON_HISTOGRAM_H

#include <stddef.h>
#include <stdint.h>

/*
 * How long something took, counted in fixed steps from 100 us to a minute: the same steps
 * everywhere, so that histograms can be added and compared. One thread; all zeros is empty.
 */
enum { HISTOGRAM_STEPS = 18 };

struct histogram {
    uint64_t n[HISTOGRAM_STEPS + 1]; /* n[i]: at most histogram_ns[i], and more than the one
                                        before; the last: longer than all */
    uint64_t sum_ns;
};

/* 1, 2.5, 5 times each power of ten, in nanoseconds. */
static const uint64_t histogram_ns[HISTOGRAM_STEPS] = {
    100000,     250000,     500000,     1000000,     2500000,     5000000,
    10000000,   25000000,   50000000,   100000000,   250000000,   500000000,
    1000000000, 2500000000, 5000000000, 10000000000, 30000000000, 60000000000,
};

static inline void
histogram_add(struct histogram *h, uint64_t ns)
{
    size_t i = 0;

    while (i < HISTOGRAM_STEPS && ns > histogram_ns[i])
        i++;
    h->n[i]++;
    h->sum_ns += ns;
}

#endif /* DAEMON_HISTOGRAM_H */
