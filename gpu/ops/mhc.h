/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_OPS_MHC_H
#define GPU_OPS_MHC_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct err;
struct cuda_rank;

/*
 * Hyper-connections (spec 4): hc streams a token. The mixing matrix comes out of `linear` with
 * an F32 matrix on the flattened streams; then
 *   m *= 1/sqrt(mean(x^2) + norm_eps)
 *   pre_i  = sigmoid(m_i * scale_0 + base_i) + hc_eps
 *   post_i = 2 sigmoid(m_{hc+i} * scale_1 + base_{hc+i})
 *   comb   = Sinkhorn of (m * scale_2 + base), first index the source stream
 *   y = bf16(sum_i pre_i x_i)
 * and, when only pre exists (n_mix == hc, the head), post and comb are NULL.
 */
struct hc_pre_args {
    const uint16_t *x; /* bf16 [rows][hc][dim] */
    const float *m; /* f32 [rows][n_mix], n_mix = hc or 2 hc + hc^2: as linear left them */
    const float *scale; /* f32 [3], or [1] for the head */
    const float *base;  /* f32 [n_mix] */
    uint16_t *y;        /* bf16 [rows][dim] */
    float *post;        /* f32 [rows][hc] */
    float *comb;        /* f32 [rows][hc][hc] */
    int rows, hc, dim, n_mix, iters;
    float norm_eps, hc_eps;
};

int hc_pre_cuda(struct cuda_rank *rk, const struct hc_pre_args *a, struct err *e);

/* out[j] = bf16(post_j f + sum_i comb[i][j] x[i]), i ascending; out may be x. */
struct hc_post_args {
    const uint16_t *x;        /* bf16 [rows][hc][dim] */
    const uint16_t *f;        /* bf16 [rows][dim] */
    const float *post, *comb; /* as hc_pre left them */
    uint16_t *out;            /* bf16 [rows][hc][dim] */
    int rows, hc, dim;
};

int hc_post_cuda(struct cuda_rank *rk, const struct hc_post_args *a, struct err *e);

#ifdef __cplusplus
}
#endif

#endif /* GPU_OPS_MHC_H */
