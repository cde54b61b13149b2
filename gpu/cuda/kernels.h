/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CUDA_KERNELS_H
#define GPU_CUDA_KERNELS_H

#include "gpu/cuda/rank.h"
#include "gpu/ops/attention.h"
#include "gpu/ops/linear.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * What a step does besides the operations of gpu/ops: where rows come from and go to, which
 * keys a query has, which experts a row has. All pointers are the device's.
 *
 * Described once a step and sent with its tokens:
 */
struct dev_span { /* the rows of one sequence */
    uint8_t *rings;
    uint8_t *const *pages; /* [pages of the sequence] */
    uint64_t start;        /* position of row0 */
    int row0, n;
};

struct dev_row {
    uint64_t pos;
    uint32_t token;
    int span;
};

struct dev_entry { /* a compressed entry that the step completes */
    uint64_t j;
    int span, unused;
};

/* rows.cu: x[i][copies][dim] = table[rows[i].token] */
struct embed_args {
    const uint16_t *table; /* bf16 [vocab][dim] */
    const struct dev_row *rows;
    uint16_t *x;
    int n, copies, dim;
};

int embed_cuda(struct cuda_rank *rk, const struct embed_args *a, struct err *e);

/* dst[i] = src[index[i]], or for index < 0 what its span's ring holds of the row's position:
 * rows of `bytes`, a multiple of 16. rows, spans and ring only where an index is negative. */
struct gather_args {
    const void *src;
    void *dst;
    const int *index;
    const struct dev_row *rows;
    const struct dev_span *spans;
    size_t ring_at, bytes;
    int slots, n;
};

int gather_cuda(struct cuda_rank *rk, const struct gather_args *a, struct err *e);

/* Rows of the step into their sequences' rings, the last `slots` of each span: the row of
 * position p to slot p % slots. bytes: a multiple of 4. */
struct ring_args {
    const void *src; /* [n] rows */
    const struct dev_row *rows;
    const struct dev_span *spans;
    size_t ring_at, bytes;
    int slots, n;
};

int ring_store_cuda(struct cuda_rank *rk, const struct ring_args *a, struct err *e);

/* x[r][i] = bf16(x[r][i] + f[r / copies][i]) */
int add_rows_cuda(struct cuda_rank *rk, uint16_t *x, const uint16_t *f, int rows,
                  int copies, int dim, struct err *e);

/* x[i] = bf16(x[i] * s) */
int scale_cuda(struct cuda_rank *rk, uint16_t *x, size_t n, float s, struct err *e);

/* quant.cu: key rows, packed as struct attention_args says */
struct kv_pack_args {
    const uint16_t *x; /* bf16 [n][dim] */
    uint8_t *rows;     /* [n][row_bytes] */
    size_t row_bytes;
    int n, dim, rope_dim;
    enum kv_fmt fmt;
};

int kv_pack_cuda(struct cuda_rank *rk, const struct kv_pack_args *a, struct err *e);

/*
 * compress.cu (spec 6.1). raw f32 [rows][2][width]: value and score of each row of the step;
 * what came before is in the rings, [slots][2][width]. width: dim, or 2 dim with overlap.
 */
struct compress_args {
    float *raw;
    const float *ape; /* f32 [ratio][width] */
    const struct dev_row *rows;
    const struct dev_span *spans;
    const struct dev_entry *entries;
    uint16_t *out; /* bf16 [n_entries][dim] */
    size_t ring_at;
    int n_rows, n_entries, ratio, dim, overlap, slots;
};

int add_position_cuda(struct cuda_rank *rk, const struct compress_args *a, struct err *e);
int pool_cuda(struct cuda_rank *rk, const struct compress_args *a, struct err *e);

/* Finished entries to their places in pages: entry j is row j % per_page of page j / per_page. */
struct entry_args {
    const uint8_t *src; /* [n][row_bytes] */
    const struct dev_entry *entries;
    const struct dev_span *spans;
    size_t page_at, row_bytes;
    int n, per_page;
};

int entry_store_cuda(struct cuda_rank *rk, const struct entry_args *a, struct err *e);

/*
 * keys.cu: the attention jobs of rows row0 .. row0 + n - 1 of a step, with their key lists:
 * the window oldest first, then compressed rows ascending: those picked, or all.
 */
struct keys_args {
    const struct dev_row *rows;
    const struct dev_span *spans;
    const uint8_t *step_rows;    /* packed window rows of the step */
    const int *picked;           /* [step's rows][topk], or NULL: always all */
    const uint8_t **keys;        /* out [n][max_keys] */
    struct attention_args *jobs; /* out [n] */
    struct attention_args like;  /* q and o of row 0 of the step, and what jobs share */
    size_t row_bytes, ring_at, page_at;
    int row0, n, max_keys, window, ring_slots, ratio, topk;
};

int list_keys_cuda(struct cuda_rank *rk, const struct keys_args *a, struct err *e);

/* The scoring jobs of the same rows; those with no more than topk entries get n_rows 0. */
struct index_jobs_args {
    const struct dev_row *rows;
    const struct dev_span *spans;
    struct index_score_args *jobs; /* out [n] */
    struct index_score_args like;  /* q and w of row 0 of the step; score [n][max_rows] */
    size_t q_bytes;                /* of a row's queries */
    int row0, n, max_rows, ratio, topk;
};

int index_jobs_cuda(struct cuda_rank *rk, const struct index_jobs_args *a, struct err *e);

/* index.cu: picked [n][topk]: of each job's scores the topk largest, ascending indices; of
 * equal ones the first. Jobs with n_rows <= topk are left out. */
int topk_cuda(struct cuda_rank *rk, const struct index_score_args *jobs, int n, int topk,
              int *picked, struct err *e);

/*
 * moe.cu (spec 8). chosen [rows][k] ascending, weight beside it. Then every (row, expert) gets
 * a place in an order by expert, then row: slot beside chosen; first [n_experts + 1], source
 * row and weight of each place, and the experts that have any.
 */
struct route_args {
    const float *gate;    /* f32 [rows][n_experts], logits */
    const float *bias;    /* f32 [n_experts]; NULL: by table */
    const int32_t *table; /* [vocab][k] */
    const struct dev_row *token;
    int *chosen, *slot, *first, *source, *active;
    float *weight, *slot_weight;
    int rows, n_experts, k;
    float scale;
};

int route_cuda(struct cuda_rank *rk, const struct route_args *a, struct err *e);

/*
 * Matrices of the experts that have rows: y[place] = W x[source[place]], or x[place] where
 * source is NULL; bf16. w [n_mats][n_experts] on the device, shaped like `shape`; the second
 * matrix writes y2. At most max_active experts are active. Bits as in linear_cuda.
 */
struct expert_args {
    struct matrix shape;
    const struct matrix *w[2];
    const int *first, *source, *active; /* active[0]: how many, then their ids */
    const uint16_t *x;
    uint16_t *y[2];
    int n_mats, max_active, one_row; /* one_row: no expert has more than one */
};

int expert_linear_cuda(struct cuda_rank *rk, const struct expert_args *a, struct err *e);

/* f[r] = bf16(sum_i routed[slot[r][i]] + shared[r]), i ascending, f32 */
struct combine_args {
    const uint16_t *routed, *shared; /* bf16 [.][dim] */
    const int *slot;                 /* [rows][k] */
    uint16_t *f;                     /* bf16 [rows][dim] */
    int rows, k, dim;
};

int combine_cuda(struct cuda_rank *rk, const struct combine_args *a, struct err *e);

#ifdef __cplusplus
}
#endif

#endif /* GPU_CUDA_KERNELS_H */
