/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_OPS_ATTENTION_H
#define GPU_OPS_ATTENTION_H

#include <stddef.h>
#include <stdint.h>

#include "model/kvsize.h"

#ifdef __cplusplus
extern "C" {
#endif

struct err;
struct cuda_rank;

enum {
    KV_GROUP = 64,        /* elements of a key row that share an FP8 scale */
    ATTENTION_CHUNK = 64, /* keys to unpack at a time; has no part in the result */
    ATTENTION_MAX_DIM = 1024,
    ATTENTION_MAX_HEADS = 256,
};

/*
 * A packed key row, bit-exact for what the model keeps (spec 15.3, layout P). With
 * nope = dim - rope_dim:
 *   e4m3 [nope], bf16 [rope_dim], e8m0 [ceil(nope/64)], zeros up to kv_row_bytes(dim, rope_dim)
 * 584 bytes at 512/64. Element i < nope is code[i] * 2^(scale[i/64] - 127). Key and value are
 * the same row. Where a model keeps keys in bf16, fmt is KV_BF16 and the row is bf16 [dim].
 */
enum kv_fmt { KV_PACKED, KV_BF16 };

static inline size_t
kv_row_size(enum kv_fmt fmt, int dim, int rope_dim)
{
    return fmt == KV_BF16 ? (size_t)dim * 2 : (size_t)kv_row_bytes(dim, rope_dim);
}

/*
 * One query position over its keys (spec 5.6):
 *   s_k = (q . key_k) * dim^-0.5;  m = max_k s_k;  p_k = exp(s_k - m)
 *   o = bf16(sum_k bf16(p_k) * key_k / (sum_k p_k + exp(sink - m)))
 * The sink is in no maximum and adds to no numerator. One maximum over all keys, not an online
 * softmax in chunks: p is rounded to bf16, so the maximum under which that happens shows in the
 * result, and the golden answers agree bit for bit with this form and not with chunks of 64.
 * n_keys >= 1. All jobs of a call share dims and fmt; the bits of o depend on the job alone.
 */
struct attention_args {
    const uint16_t *q; /* bf16 [n_heads][dim], normed and rotated */
    const uint8_t *const
        *keys;         /* [n_keys] rows: the window oldest first, then compressed */
    const float *sink; /* f32 [n_heads] */
    uint16_t *o;       /* bf16 [n_heads][dim], not q */
    int n_keys, n_heads, dim, rope_dim;
    enum kv_fmt fmt;
};

/* a [n] lies on the device; like: what the jobs share, n_keys the most of any. score: f32 at
 * least attention_scratch(like) elements a job. Rows of keys aligned to 8 bytes. */
int attention_cuda(struct cuda_rank *rk, const struct attention_args *a, int n,
                   const struct attention_args *like, float *score, struct err *e);
size_t attention_scratch(const struct attention_args *like);

/*
 * Index scores of one query position over all compressed rows that it can see (spec 7.4):
 *   d_hj = bf16(q_h . k_j);  score_j = bf16(sum_h bf16(max(d_hj, 0) * w_h)), h ascending, f32
 * The 32-element parts of a dot product are exact in f32; they add up in ascending order.
 * Rows are packed as index_quant leaves them, n_rows of them in blocks of block_rows.
 */
struct index_score_args {
    const uint8_t *q;  /* [n_heads] packed rows */
    const uint16_t *w; /* bf16 [n_heads], may be negative */
    const uint8_t *const
        *blocks;  /* [ceil(n_rows / block_rows)], each rows one behind another */
    float *score; /* f32 [n_rows], each a bf16 value */
    int n_rows, block_rows, n_heads, dim;
};

/* a [n] lies on the device; like: what the jobs share, n_rows the most of any. Rows begin
 * block_at bytes into each block. */
int index_scores_cuda(struct cuda_rank *rk, const struct index_score_args *a, int n,
                      const struct index_score_args *like, size_t block_at, struct err *e);

#ifdef __cplusplus
}
#endif

#endif /* GPU_OPS_ATTENTION_H */
