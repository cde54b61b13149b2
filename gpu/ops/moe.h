/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_OPS_MOE_H
#define GPU_OPS_MOE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct err;
struct cuda_rank;

/*
 * Between an expert's matrices (spec 8): u = clamp(up, +-limit), g = min(gate, limit),
 * a = bf16(w_r * (silu(g) * u)), silu(g) = g / (1 + exp(-g)), f32 inside. a may be gate.
 */
struct swiglu_args {
    const uint16_t *gate, *up; /* bf16 [rows][dim]: w1 x and w3 x */
    const float *weight;       /* f32 [rows], or NULL for 1 */
    uint16_t *a;               /* bf16 [rows][dim] */
    int rows, dim;
    int weighted; /* CUDA: rows from here on have weight 1; 0: as weight says */
    float limit;
};

int swiglu_cuda(struct cuda_rank *rk, const struct swiglu_args *a, struct err *e);

#ifdef __cplusplus
}
#endif

#endif /* GPU_OPS_MOE_H */
