/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TOOLS_BENCHMARKS_SAMPLES_H
#define TOOLS_BENCHMARKS_SAMPLES_H

double bench_now(void); /* seconds */

/* A handful of measurements of one thing. */
struct samples {
    double v[4096];
    int n;
};

void samples_add(struct samples *s, double v);
double samples_median(struct samples *s); /* sorts */
double samples_max(const struct samples *s);

#endif /* TOOLS_BENCHMARKS_SAMPLES_H */
