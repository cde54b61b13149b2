/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CUDA_KERNELS_H
#define GPU_CUDA_KERNELS_H

#include "gpu/cuda/rank.h"
#include "gpu/ops/attention.h"
#include "gpu/ops/linear.h"
#include "model/draw.h"

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

/* rows.cu: x[i][copies][dim] = table[rows[i].token]; a token TOKEN_DRAWN becomes drawn[i] first. */
#define TOKEN_DRAWN 0xffffffffu

struct embed_args {
    const uint16_t *table;      /* bf16 [vocab][dim] */
    const struct dev_row *rows; /* tokens may change */
    const uint32_t *drawn;      /* or NULL */
    uint16_t *x;
    int n, copies, dim;
};

int embed_cuda(struct cuda_rank *rk, const struct embed_args *a, struct err *e);

/* sample.cu: the next token of each row of x f32 [rows][n], drawn for position pos: to token [rows],
 * and with what goes with it to drawn [rows]. work: [rows][row_bytes], of sample_bytes(n) each. */
struct dev_draw {
    struct draw d;
    uint64_t pos;
};

struct sample_args {
    const float *x;
    const struct dev_draw *draw; /* [rows] */
    uint32_t *token;
    struct drawn *drawn;
    uint8_t *work;
    size_t row_bytes;
    int rows, n;
};

size_t sample_bytes(int n);
int sample_cuda(struct cuda_rank *rk, const struct sample_args *a, struct err *e);

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

/* Pieces of a state between where they are kept and their places in a staging buffer, on any
 * stream; out: to the buffer. The list is empty afterwards. It is a kernel's argument. */
enum { COPY_SEGMENTS = 160 };

struct copy_segment {
    uint8_t *own;
    uint64_t at, bytes;
};

struct copy_list {
    uint8_t *staging;
    int n;
    struct copy_segment seg[COPY_SEGMENTS];
};

int copy_list_cuda(cudaStream_t stream, struct copy_list *l, bool out, struct err *e);

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
    /* inputs_cuda only: how many entries the step completes, their angles, their norm, places */
    const int *count;
    const float *cs, *norm;
    size_t page_at;
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
 * streams.cu: hyper-connections around sublayers (spec 4). First x [rows][hc][dim] takes in a
 * sublayer's output (if post is given), f or what combine_args would make of the experts' rows, and
 * parts of the next mixing matrix are made of it (if fn is): f32 [rows][n_mix + 1][streams_chunks],
 * the last a sum of squares. Then y = norm(mix of the streams), and, if there is yq, yq =
 * act_quant(y).
 *
 * through: for timing half of a model. Of two devices each would send the other its part of the
 * sublayer's output, in bf16, when its own is added up, and wait for what comes; so the output is
 * written there and what goes on is read from there.
 */
struct streams_mix_args {
    uint16_t *x;
    const float *post, *comb; /* as streams_in left them */
    const uint16_t *f;        /* bf16 [rows][dim], or NULL: */
    const uint16_t *routed, *shared;
    const int *slot;
    const float *fn;   /* f32 [n_mix][hc * dim] */
    uint16_t *through; /* bf16 [rows][dim], or NULL */
    float *part;
    int rows, hc, dim, n_mix, k;
};

struct streams_in_args {
    const uint16_t *x;
    const float *part, *scale, *base, *norm;
    uint16_t *y, *yq;
    float *post, *comb;
    int rows, hc, dim, n_mix, iters, chunks;
    float norm_eps, hc_eps;
};

int streams_chunks(int hc, int dim);
int streams_mix_cuda(struct cuda_rank *rk, const struct streams_mix_args *a, struct err *e);
int streams_in_cuda(struct cuda_rank *rk, const struct streams_in_args *a, struct err *e);

/*
 * inputs.cu: between wq_a, wkv, the compressors and wq_b. qr is normed in place, qrq is the same
 * rounded; kv is normed, rotated and packed to keys; entries are pooled, normed, rotated, packed
 * and stored in pages; the indexer's weights are scaled. keep: rows go to the rings at once, which
 * they may if no sequence has more rows than a ring has spare slots; else inputs_keep_cuda does
 * that when attention is done. comp.ratio 0: no compressor; n_weights 0: no indexer.
 */
struct inputs_args {
    uint16_t *qr, *qrq;
    const float *q_norm, *kv_norm, *cs;
    const uint16_t *kv;
    uint8_t *keys;
    uint16_t *weights;
    const struct dev_row *rows;
    const struct dev_span *spans;
    struct compress_args comp, index;
    struct streams_in_args back; /* packed_inputs_cuda only: as in queries_args */
    size_t ring_at;
    int n, q_dim, dim, rope_dim, row_bytes, ring_slots, n_weights, keep;
    enum kv_fmt fmt;
    float eps, weight_scale;
};

int inputs_cuda(struct cuda_rank *rk, const struct inputs_args *a, struct err *e);
int inputs_keep_cuda(struct cuda_rank *rk, const struct inputs_args *a, struct err *e);

/* Queries of attention normed and rotated in place, those of the indexer rotated and packed; beside
 * it what the way back into the streams needs. */
struct queries_args {
    uint16_t *q;        /* bf16 [rows][n_heads][dim] */
    const uint16_t *iq; /* bf16 [rows][n_index][index_dim] */
    uint8_t *iqp;
    const float *cs;
    const struct streams_in_args *back; /* host, or NULL */
    int rows, n_heads, dim, n_index, index_dim, rope_dim;
    double per_dim; /* 1 / dim */
    float eps;
};

int queries_cuda(struct cuda_rank *rk, const struct queries_args *a, struct err *e);

/*
 * choose.cu: for rows 0 .. n - 1 of a step that see more than topk compressed rows, at most
 * max_rows: scores (16 bits that order like them), the largest ones of units of them behind, and
 * the topk best to picked [n][topk], ascending: these best_cuda takes (best.cu), of the scores.
 */
struct choose_args {
    const struct dev_row *rows;
    const struct dev_span *spans;
    const uint8_t *q;    /* [n][n_heads] packed, or of few rows as the product left them: */
    const uint16_t *raw; /* bf16 [n][n_heads][dim], or NULL; with angles cs [n][rope_dim] */
    const float *cs;
    const uint16_t *w; /* bf16 [n][n_heads] */
    uint16_t *score;   /* [n][choose_stride(max_rows)], aligned to 16 */
    int *picked;
    size_t page_at;
    int n, n_spans, n_heads, dim, topk, max_rows, rope_dim;
};

enum { CHOOSE_RAW_ROWS = 4 }; /* more are packed once, not by each block */

bool choose_takes_raw(int rows, int dim, int rope_dim);
bool choose_can(int n_heads, int dim, int topk, uint64_t most, size_t shared_bytes);
int choose_cuda(struct cuda_rank *rk, const struct choose_args *a, struct err *e);
int best_cuda(struct cuda_rank *rk, const struct choose_args *a, struct err *e);

/*
 * attend.cu: attention of rows 0 .. n - 1 of a step over their keys (lists as in keys_args), and
 * o rotated back. attend_can: shapes, and keys a row at most.
 */
struct attend_args {
    const struct dev_row *rows;
    const struct dev_span *spans;
    const uint8_t *step_rows;
    const int *picked;
    const uint16_t *q;
    uint16_t *o;
    const float *sink, *cs;
    size_t row_bytes, ring_at, page_at;
    int n, n_heads, dim, rope_dim, window, ring_slots, ratio, topk, max_keys;
    bool raw;              /* q is as the product left it: to be normed and rotated */
    double per_dim, scale; /* 1 / dim, of scores */
    float eps;
    float *scratch; /* for long lists; or none */
    size_t scratch_bytes;
};

enum { ATTEND_RAW_ROWS = 4 }; /* more are normed once, not by each block of a cluster */

bool attend_can(const struct attend_args *like, int max_keys, size_t shared_bytes);
int attend_cuda(struct cuda_rank *rk, const struct attend_args *a, struct err *e);

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
struct streams_in_args;

struct route_args {
    const float *gate;    /* f32 [rows][n_experts], logits */
    const float *bias;    /* f32 [n_experts]; NULL: by table */
    const int32_t *table; /* [vocab][k] */
    const struct dev_row *token;
    int *chosen, *slot, *first, *source, *active;
    float *weight, *slot_weight;
    const struct streams_in_args *back; /* host, or NULL: as in inputs_args */
    int rows, n_experts, k;
    float scale;
};

int route_cuda(struct cuda_rank *rk, const struct route_args *a, struct err *e);

/*
 * Matrices of the experts that have rows: y[place] = W x[source[place]], or x[place] where
 * source is NULL; bf16. w [n_mats][n_experts] on the device, shaped like `shape`; the second
 * matrix writes y2. At most max_active experts are active. Bits as in linear_cuda.
 */
struct expert_weights { /* of a packed matrix */
    const void *packed;
    const uint8_t *scale;
};

struct expert_args {
    struct matrix shape;
    const struct matrix *w[2];
    const int *first, *source, *active; /* active[0]: how many, then their ids */
    /* One row, packed matrices: what experts_row_cuda has left of w for each of max_active places,
     * instead of the three above; or NULL. */
    const struct expert_weights *place;
    const uint16_t *x;
    uint16_t *y[2];
    int n_mats, max_active;
    int quant; /* x is to be rounded to FP8 first: packed ones with few rows only */
    /* If rows_one is not 0, another matrix beside them: y_one = one x_one for so many rows. */
    struct matrix one;
    const uint16_t *x_one;
    uint16_t *y_one;
    int rows_one;
    int one_row,
        many; /* hints: no expert has more than one; so many on average, if some may have
                          more than 8 */
};

int expert_linear_cuda(struct cuda_rank *rk, const struct expert_args *a, struct err *e);

/*
 * experts_row.cu: for one row, all between the gate and w2: route_cuda, w1 and w3 of the chosen
 * experts by expert_linear_cuda, swiglu_cuda of theirs and of the shared expert's. gate and up are
 * [k + 1][shape.out], of which the shared expert's are given, in the last row; to `gate`.
 */
struct experts_row_args {
    struct route_args route; /* rows: 1 */
    struct matrix shape;
    const struct matrix *w[2]; /* as in expert_args: w1, w3 */
    const uint16_t *x;
    uint16_t *gate;
    const uint16_t *up;
    const struct matrix *w2;
    struct expert_weights *second; /* out [k]: w2 of the chosen ones */
    float limit;
};

bool experts_row_can(const struct matrix *shape, int rows, int n_experts, int k);
int experts_row_cuda(struct cuda_rank *rk, const struct experts_row_args *a, struct err *e);

/*
 * packed.cu: matrices re-laid-out for tensor cores (matrix.packed; then .w is not looked at, and
 * .scale of FP4 is where packing left its scales: right behind the codes).
 * matrix_packed_bytes: 0 if the shape cannot be packed. matrix_pack_cuda packs rows row0 ..
 * row0 + rows - 1, multiples of 16, given row-major with their FP4 scales; *odd (device) becomes 1
 * if a weight is no number.
 */
size_t matrix_packed_bytes(const struct matrix *m);
int matrix_pack_cuda(struct cuda_rank *rk, const struct matrix *m, int row0, int rows,
                     const void *w, const uint8_t *scale, int *odd, struct err *e);

/* rows.cu: elements first .. first + n - 1 of a made-up tensor, as they lie in a file. */
struct synthetic;
int synthetic_cuda(struct cuda_rank *rk, const struct synthetic *s, uint64_t first,
                   uint64_t n, void *out, struct err *e);

/* linear_cuda and expert_linear_cuda when all matrices are packed. */
int packed_linear_cuda(struct cuda_rank *rk, const struct linear_args *a, int n,
                       struct err *e);
int packed_expert_cuda(struct cuda_rank *rk, const struct expert_args *a, struct err *e);

/* The same as inputs_cuda and then these products of the queries' row, in one kernel, and what the
 * way back into the streams needs: of at most 8 rows, all packed. x is in->qr, which stays as it is;
 * quant: as ever. */
bool packed_inputs_can(const struct linear_args *a, int n, const struct inputs_args *in);
int packed_inputs_cuda(struct cuda_rank *rk, const struct linear_args *a, int n,
                       const struct inputs_args *in, struct err *e);

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
