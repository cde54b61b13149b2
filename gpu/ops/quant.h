/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_OPS_QUANT_H
#define GPU_OPS_QUANT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct err;
struct cuda_rank;

/*
 * FP8 activation quantisation and back (spec 3.2, 3.3 rev B): per row and group of `group`
 * elements, s = 2^ceil(log2(max(|x|, 1e-4) * fp32(1/448))), y = rne_e4m3(clamp(x/s, +-448)) * s.
 * y is exact in bf16. The last group may be short. y may be x.
 */
struct act_quant_args {
    const uint16_t *x; /* bf16 [rows][stride] */
    uint16_t *y;       /* bf16 [rows][stride] */
    int rows, dim, stride;
    int group; /* 128 in front of an FP8 or FP4 linear */
};

int act_quant_cuda(struct cuda_rank *rk, const struct act_quant_args *a, struct err *e);

/*
 * What the indexer does to its queries and keys (spec 3.6, 3.3, 7): h = bf16(H x / sqrt(dim))
 * with the Sylvester matrix H (butterflies at stride 1, 2, 4 ..., the scale last), then FP4
 * per 32 elements: s = 2^ceil(log2(max(|h|, 6 * 2^-126) * fp32(1/6))), codes
 * rne_e2m1(clamp(h/s, +-6)), the sign of a zero kept.
 * A packed row: e2m1 [dim/2] low nibble first, then e8m0 [dim/32].
 */
struct index_quant_args {
    const uint16_t *x; /* bf16 [rows][dim], rotated */
    uint8_t *y;        /* [rows][dim/2 + dim/32] */
    int rows, dim;     /* dim: a power of two, at least 32, at most 1024 */
};

int index_quant_cuda(struct cuda_rank *rk, const struct index_quant_args *a, struct err *e);

#ifdef __cplusplus
}
#endif

#endif /* GPU_OPS_QUANT_H */
