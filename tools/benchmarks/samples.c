/* SPDX-License-Identifier: Apache-2.0 */
/* Measurements of one thing, and the clock that they are taken with. */
#include "config.h"

#include <stdlib.h>
#include <time.h>

#include "tools/benchmarks/samples.h"

double
bench_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void
samples_add(struct samples *s, double v)
{
    if (s->n < (int)(sizeof s->v / sizeof s->v[0]))
        s->v[s->n++] = v;
}

static int
compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

double
samples_median(struct samples *s)
{
    qsort(s->v, (size_t)s->n, sizeof s->v[0], compare);
    return s->n > 0 ? s->v[s->n / 2] : 0.0;
}

double
samples_max(const struct samples *s)
{
    double m = 0.0;

    for (int i = 0; i < s->n; i++)
        m = s->v[i] > m ? s->v[i] : m;
    return m;
}
