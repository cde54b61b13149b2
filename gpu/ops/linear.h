/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_OPS_LINEAR_H
#define GPU_OPS_LINEAR_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct err;
struct cuda_rank;

enum matrix_kind {
    MATRIX_BF16, /* w: bf16 [out][in] */
    MATRIX_F32,  /* w: f32 [out][in] */
    MATRIX_FP8,  /* w: e4m3 [out][in], scale: e8m0 [ceil(out/128)][ceil(in/128)] */
    MATRIX_FP4,  /* w: e2m1 [out][in/2], low nibble first, scale: e8m0 [out][in/32] */
};

/*
 * A weight as the checkpoint has it: row-major, in the mapped file, bf16 and f32 aligned to
 * their size (the loader copies what is not). The value of an element is code * scale, which
 * is exact in bf16 for FP8 and FP4. `packed` belongs to whoever computes: NULL, or the same
 * matrix in a layout of its own (struct cpu_ops, pack).
 */
struct matrix {
    enum matrix_kind kind;
    int out, in;
    const void *w;
    const uint8_t *scale; /* NULL for bf16 and f32 */
    void *packed;
};

/*
 * y[r][o] = sum_k x[r][k] * W[o][k], accumulated in f32; to bf16 or left in f32 (spec 3.4).
 *
 * Activation quantisation is an operation of its own (act_quant): x is then already q*s, which
 * is exact in bf16, and the mathematical value of this sum is that of the reference's scaled
 * FP8 product. A group of wo_a is a matrix of its own, with x starting at the group's columns.
 *
 * The bits of y[r][o] depend on row r of x and row o of W alone: not on rows, nor on what
 * other jobs are in the same call, nor on the number of threads.
 */
struct linear_args {
    const struct matrix *w;
    const uint16_t *x; /* bf16 [rows][x_stride], the first w->in of each row */
    void *y;           /* bf16 or f32 [rows][y_stride], the first w->out of each row */
    int rows;          /* may be 0 */
    int x_stride, y_stride;
    int y_f32; /* 1: y is f32, else bf16 */
    int quant; /* CUDA, packed matrices, at most 8 rows: act_quant x by 128 on the way */
};

/* Pointers inside are the device's; the args and the matrix they name are the host's. Inputs
 * in multiples of 32, matrices and rows of x aligned to 16 bytes. */
int linear_cuda(struct cuda_rank *rk, const struct linear_args *a, int n, struct err *e);

#ifdef __cplusplus
}
#endif

#endif /* GPU_OPS_LINEAR_H */
