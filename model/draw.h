/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_DRAW_H
#define MODEL_DRAW_H

#include <math.h>
#include <stdint.h>

#include "model/logits.h"
#include "model/philox.h"

/*
 * Drawing a token from a row of logits, as far as it depends on nothing but the row: what a device
 * can do beside the step that makes the row (docs/SAMPLING.md, steps 4 to 8), and the formulas that
 * it shares with model/sampler.c, so that both draw the same token. For C and CUDA.
 */
#ifdef __CUDACC__
#    define DRAW_FN static __host__ __device__ inline
#else
#    define DRAW_FN static inline
#endif

struct draw {
    double scale; /* 1 / temperature; 0: the largest logit, the lowest id of equal ones */
    uint64_t seed;
    uint64_t least; /* weights below are not drawn; 0: off */
    float top_p;    /* 1: off */
    uint32_t top_k; /* 0: off */
};

/* What came of it. */
struct drawn {
    uint64_t weights; /* of all logits at temperature 1 */
    float max, logit; /* the largest, and the chosen one's */
    uint32_t token;
    uint32_t odd; /* 1: not all logits are finite numbers */
};

/* A part of the sum of weights, rounded up. */
DRAW_FN uint64_t
draw_share(float part, uint64_t sum)
{
    return (uint64_t)ceil((double)part * (double)sum);
}

/* 53 random bits for position pos; the part of `all` that they are. */
DRAW_FN uint64_t
draw_random(uint64_t seed, uint64_t pos)
{
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    const uint32_t counter[4] = {(uint32_t)pos, (uint32_t)(pos >> 32), 0, 0};
    uint32_t out[4];

    philox4x32(key, counter, out);
    return ((uint64_t)out[1] << 32 | out[0]) >> 11;
}

DRAW_FN uint64_t
draw_passed(uint64_t all, uint64_t random)
{
    return (uint64_t)((unsigned __int128)all * random >> 53);
}

/* The log of the sum of exp over a row, by its largest logit and its weights at temperature 1. */
DRAW_FN double
draw_log_sum(float max, uint64_t weights)
{
    return (double)max + log((double)weights / LOGITS_UNIT);
}

#endif /* MODEL_DRAW_H */
