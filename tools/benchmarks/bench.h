/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TOOLS_BENCHMARKS_BENCH_H
#define TOOLS_BENCHMARKS_BENCH_H

#include <stdbool.h>

#include "gpu/cpu/cpu.h"
#include "tools/benchmarks/samples.h"

struct err;

/* The parts of bench-cpu. One thread calls them; what they measure uses all threads. */

/* machine.c: bytes/s that all threads together read from an array far larger than the caches */
int measure_bandwidth(struct samples *out);

/* machine.c: the best rate that OpenBLAS reaches, flop/s; 0 if it is not built in. `name` says
 * which of its kernels. OpenBLAS chooses kernels once for a process, and an older one does not
 * know this processor: each choice runs in a process of its own (main called as --gemm). */
double measure_gemm(const char *self, char *name, int size);
int gemm_child(void);

/* model.c: what one token costs by arithmetic, at position pos of a sequence */
struct cost {
    double bytes; /* that a decode step must read: weights, cache rows */
    double flops; /* linears, attention, indexer */
};

void token_cost(const struct backend *b, uint64_t pos, bool head, struct cost *out);

/* model.c: a backend whose weights are made up: one layer of a published shape */
struct backend *flash_layer(int ratio, const char *isa, int threads, struct err *e);

#endif /* TOOLS_BENCHMARKS_BENCH_H */
