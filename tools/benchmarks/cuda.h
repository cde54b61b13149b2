/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TOOLS_BENCHMARKS_CUDA_H
#define TOOLS_BENCHMARKS_CUDA_H

#include <stdbool.h>
#include <stdint.h>

/* The parts of bench-cuda. */

double cuda_bench_now(void); /* seconds */

struct synthetic_bench {
    const char *dir; /* with config.json */
    uint64_t seed, kv_bytes;
    uint64_t profile; /* not 0: only one step at that length, between profiler marks */
    int layers;       /* the first so many; 0: all */
    int experts;      /* made of each layer, the others being aliases; 0: all */
    int rows;         /* of the step to profile */
    bool half;        /* what one of two devices has */
};

void bench_synthetic(const struct synthetic_bench *s);

#endif /* TOOLS_BENCHMARKS_CUDA_H */
