/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_OPS_NORM_H
#define GPU_OPS_NORM_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct err;
struct cuda_rank;

/* out[r][i] = bf16(x[r][i] / sqrt(mean_i(x[r][i]^2) + eps) * w[i]), f32 inside (spec 3.1).
 * out may be x. */
struct rmsnorm_args {
    const uint16_t *x; /* bf16 [rows][dim] */
    const float *w;    /* f32 [dim] */
    uint16_t *out;     /* bf16 [rows][dim] */
    int rows, dim;     /* CUDA: dim a multiple of 8, at most 16384 */
    float eps;
};

int rmsnorm_cuda(struct cuda_rank *rk, const struct rmsnorm_args *a, struct err *e);

/*
 * The query's norm, without a weight and in bf16 arithmetic (spec 5.2), in place, per head:
 *   s = bf16(mean_f32(bf16(q^2))); s = bf16(s + eps); s = bf16(1/sqrt(s)); q = bf16(q * s)
 */
struct head_norm_args {
    uint16_t *q; /* bf16 [rows][dim]; a row is one head of one token */
    int rows, dim;
    float eps;
};

int head_norm_cuda(struct cuda_rank *rk, const struct head_norm_args *a, struct err *e);

/*
 * Rotation of pairs (2i, 2i+1) among the last rope_dim of each head (spec 3.5), f32 inside, in
 * place: (a, b) -> (a cos - b sin, a sin + b cos); inverse: sin changes its sign. The first
 * product of each sum is fused into it, as compilers for GPUs do.
 */
struct rope_args {
    uint16_t *x;     /* bf16 [rows][heads][dim] */
    const float *cs; /* f32 [rows][rope_dim/2][2]: cos, sin of the row's position */
    int rows, heads, dim, rope_dim;
    int inverse;
};

int rope_cuda(struct cuda_rank *rk, const struct rope_args *a, struct err *e);

#ifdef __cplusplus
}
#endif

#endif /* GPU_OPS_NORM_H */
