/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CUDA_CUDA_H
#define GPU_CUDA_CUDA_H

#include "gpu/backend.h"
#include "gpu/cuda/kernels.h"
#include "gpu/network.h"
#include "gpu/ops/mhc.h"
#include "gpu/ops/moe.h"
#include "gpu/ops/norm.h"
#include "gpu/ops/quant.h"
#include "model/kvlayout.h"
#include "model/kvsize.h"

/*
 * Inside the CUDA backend: the same model, sequences and steps as gpu/cpu/cpu.h has, on one
 * device. Host structs hold device pointers. A step is work put on one stream in order; the
 * host waits once, when the logits are on their way back. One thread owns all of it.
 *
 * Device memory is one arena, planned when a model is opened: opening runs twice over the same
 * code, first to add up sizes, then to hand out addresses.
 */
enum {
    CUDA_STEP_TOKENS = 1024,
    CUDA_ALIGN = 256, /* of everything in the arena */
    CUDA_RATIOS = 8,  /* different ratios of one model */
    CUDA_LOGIT_ROWS = 64,
    CUDA_GRAPHS = 96,
    CUDA_ROW_ALIGN = 16, /* rows that kernels load 16 bytes at a time */
};

struct arena {
    uint8_t *base; /* NULL while sizes are added up */
    size_t used, size;
};

/*
 * A sequence: rings in its own part of the arena, pages from the pool, by number. Rules are
 * those of the CPU backend (struct seq): rings have spare slots, so that going back a little
 * is a change of len; a page is written only while one sequence holds it.
 */
struct cuda_seq {
    bool open;
    bool coming, busy; /* kv_in has begun, kv_set is to come; copies are under way */
    uint64_t len, high, floor, n_come;
    cudaEvent_t copied; /* NULL before the first copy */
    uint32_t *pages;    /* numbers in the pool, [cap_pages] of the backend */
    size_t n_pages;
    size_t clean; /* entries of the device's table that are right */
};

/* The rows of a step that belong to one sequence. */
struct cuda_span {
    struct cuda_seq *seq;
    uint32_t id;
    int row0, n;
    uint64_t start;
};

/* What a layer must know about the rows it is given; pointers are the device's. */
struct cuda_rows {
    int n, n_spans;
    const struct cuda_span *span; /* host */
    const struct dev_span *spans;
    const struct dev_row *rows;
    const float *cs[2]; /* f32 [n][rope_dim]; plain, and of compressed layers */

    struct {
        const int *count; /* device: how many, at most n */
        const struct dev_entry *entries;
        const float *cs; /* f32 [n][rope_dim] of the entries' first positions */
    } entry[CUDA_RATIOS];

    int most;         /* rows of one sequence */
    uint64_t longest; /* positions of the longest sequence, this step included */
};

/* Rows whose logits are wanted, and where they go. */
struct head_rows {
    const int *index; /* device */
    float **out;      /* host, each f32 [vocab]; NULL: they stay on the device */
    int n;
    bool stay;                    /* all of them do */
    bool draw;                    /* a token from each, to scratch */
    const struct dev_draw *draws; /* device */
};

struct cuda_step {
    struct cuda_rows r, d; /* the step's rows; those of the draft block */
    const int *pairs; /* device: of each draft row the row in front of it, or -1: kept */
    struct head_rows head, draft_head;
    bool draft_wanted;
};

/* What the host tells the device about a step: built in pinned memory, sent in one copy. Two
 * buffers, so that the next one can be built while the copy of the last goes on. */
struct upload {
    uint8_t *host, *dev, *buffer[2];
    size_t used, size;
};

/* A step of so many sequences, a token each, none longer than that. */
struct cuda_graph {
    int rows;
    uint64_t longest, used; /* used: when last */
    cudaGraphExec_t exec;   /* NULL before the second step of its shape */
};

struct cuda_scratch {
    uint32_t *token;          /* [CUDA_LOGIT_ROWS]: drawn from each row of logits */
    struct drawn *drawn;      /* [T] of the head's rows */
    uint8_t *sample;          /* [CUDA_LOGIT_ROWS][sample_bytes] */
    uint16_t *x, *y, *yq, *f; /* bf16 [T][hc][d], then [T][d] */
    float *post, *comb, *part;
    uint16_t *qr, *q, *o, *z, *kv;
    uint8_t *rows;     /* packed [T] window rows of this step */
    float *raw, *iraw; /* f32 [T][2][width] of the compressors */
    uint16_t *iq, *iw;
    uint8_t *iqp;
    uint16_t *entry;  /* bf16 [T][D] */
    uint8_t *entry_p; /* packed */
    float *gate, *weight, *slot_weight;
    int *chosen, *slot, *first, *source, *active;
    struct expert_weights *second; /* [k]: w2 of one row's experts */
    uint16_t *ex;                  /* bf16 [T * k][d] expert outputs */
    uint16_t *gg, *gu;             /* bf16 [T * k + T][I], the shared expert's at the end */
    uint16_t *gs;                  /* bf16 [T][d] */
    struct attention_args *att;
    struct index_score_args *index;
    int *picked;   /* [T][topk] */
    float *score;  /* score_bytes: attention's scores and key lists, a few rows at a time */
    float *iscore; /* iscore_bytes: the indexer's */
    size_t score_bytes, iscore_bytes;
    uint16_t *head_x;            /* bf16 [T][hc][d] */
    float *logits;               /* f32 [CUDA_LOGIT_ROWS][vocab] */
    uint16_t *draft_x, *draft_h; /* bf16 [T][hc][d] */
};

struct backend {
    struct model_config c;
    struct cuda_rank rk;
    struct arena arena;
    uint32_t max_seqs;
    int experts_made; /* 0, or how many of a layer there are: the rest are aliases */
    uint64_t kv_bytes, kv_limit, kv_used, weight_bytes;
    enum kv_fmt fmt;
    bool plain_attention, plain_index; /* attend.cu, choose.cu cannot do this model */
    bool exchange; /* for timing: what two devices would exchange goes by way of memory */
    struct network_places at;
    size_t page_stride; /* of pages in the pool */
    struct kv_layout layout;
    cudaStream_t stream[2]; /* copies out, copies in */
    cudaEvent_t before;
    void *pinned;        /* the arena, locked */
    bool pageable;       /* it could not be */
    uint8_t *staging[2]; /* device, [layout.state_most] each way */
    int ratios[CUDA_RATIOS], n_ratios;
    float *freq[2]; /* host, f32 [rope_dim/2] */

    struct network net;

    struct cuda_seq *seqs;
    struct cuda_span *spans, *draft_spans; /* [max_seqs] */
    struct linear_args *jobs;              /* [o_groups + 16] */
    float **head_out, **draft_out;         /* [T] */
    struct drawn **head_drawn;             /* [T], of the head's rows: host, or NULL */
    uint32_t *head_seq;                    /* [T], of the same: whose they are */
    const uint32_t **tokens;               /* [max_seqs] of each span */
    uint64_t *pos;                         /* [T] */
    uint8_t *rings;                        /* device, [max_seqs][seq_bytes] */
    uint8_t *pool;                         /* device, [n_pool][page_bytes] */
    uint8_t **tables;                /* device, [max_seqs][cap_pages] page addresses */
    uint8_t **table_host;            /* pinned, the same */
    uint32_t *page_refs, *page_free; /* [n_pool]; [n_free] numbers of free pages */
    size_t n_pool, n_free, cap_pages;
    struct cuda_graph graphs[CUDA_GRAPHS];
    uint64_t n_steps;
    bool no_graphs;     /* tests: every step as it is */
    int decoded;        /* rows of logits that the last step, a replayed one, has made */
    int kept;           /* rows of logits of the last step that are still in scratch */
    float *logits_host; /* pinned, [CUDA_LOGIT_ROWS][vocab] */
    struct drawn *drawn_host;    /* pinned, [T] */
    struct streams_in_args back; /* of the sublayer that is under way */
    struct upload up;
    struct cuda_scratch s;

    void *mem[32]; /* host memory that lives until close */
    int n_mem;
};

/* Host memory until close, zeroed; NULL with *e set. */
void *cuda_host(struct backend *b, size_t n, size_t size, struct err *e);

/* n elements of the arena; never NULL once the arena has its memory. */
void *arena_take(struct arena *a, size_t n, size_t size);

/* load.c: without `copy` it only adds up sizes */
int cuda_load(struct backend *b, const struct weights *w, bool copy, struct err *e);

/* plan.c */
int cuda_model_plan(struct backend *b, bool draft, struct err *e);
void cuda_scratch_plan(struct backend *b);

/* state.c */
int cuda_pool_size(struct backend *b, uint64_t bytes, struct err *e);
void cuda_pool_plan(struct backend *b);
int cuda_seq_open(struct backend *b, uint32_t seq, struct err *e);
int cuda_seq_fork(struct backend *b, uint32_t from, uint32_t to, struct err *e);
void cuda_seq_close(struct backend *b, uint32_t seq);
int cuda_seq_rewind(struct backend *b, uint32_t seq, uint64_t len, struct err *e);
int cuda_find_open(const struct backend *b, uint32_t seq, struct err *e);
int cuda_find_whole(const struct backend *b, uint32_t seq, struct err *e); /* not coming */
int cuda_pages_add(struct backend *b, struct cuda_seq *q, uint64_t n, struct err *e);
uint8_t *cuda_rings_of(const struct backend *b, uint32_t seq);
uint8_t *cuda_page_of(const struct backend *b, uint32_t page);
int cuda_reserve(struct backend *b, const struct step *s, struct err *e);
int cuda_tables_send(struct backend *b, const struct step *s, struct err *e);

/* kv.c */
int cuda_kv_open(struct backend *b, struct err *e);
void cuda_kv_close(struct backend *b);
int cuda_kv_out(struct backend *b, uint32_t seq, uint64_t first, uint64_t n, uint8_t *pages,
                uint8_t *state, struct err *e);
int cuda_kv_in(struct backend *b, uint32_t seq, uint64_t n, const uint8_t *pages,
               struct err *e);
int cuda_kv_set(struct backend *b, uint32_t seq, uint64_t len, const uint8_t *state,
                struct err *e);
int cuda_kv_busy(struct backend *b, uint32_t seq, struct err *e);
void cuda_kv_memory(struct backend *b, void *at, size_t bytes);

/* upload.c */
size_t upload_bytes(const struct backend *b);
int upload_step(struct backend *b, const struct step *s, struct cuda_step *p, int buffer,
                struct err *e);

/* The layers: x bf16 [n][hc][d], changed in place. */
int cuda_layer_forward(struct backend *b, const struct layer *l, const struct cuda_rows *r,
                       uint16_t *x, struct err *e);
int cuda_layer_keys(struct backend *b, const struct layer *l, const struct cuda_rows *r,
                    const uint16_t *x, struct err *e);
int cuda_attention(struct backend *b, const struct layer *l, const struct cuda_rows *r,
                   const uint16_t *x, uint16_t *f, struct err *e);
int cuda_keys(struct backend *b, const struct layer *l, const struct cuda_rows *r,
              struct err *e);
int cuda_moe(struct backend *b, const struct layer *l, const struct cuda_rows *r,
             const uint16_t *x, struct err *e);
int cuda_draft(struct backend *b, const struct cuda_step *p, struct err *e);

/* Rows of src bf16 [.][hc][d] that index names, to out[i] f32 [vocab] on the host each. */
int cuda_head(struct backend *b, const struct mixer *hc, const float *norm,
              const uint16_t *src, const struct head_rows *h, struct err *e);
int cuda_forward_begin(struct backend *b, const struct step *s, int upload, struct err *e);
int cuda_forward(struct backend *b, const struct step *s, struct err *e);
int cuda_seq_row(struct backend *b, uint32_t seq, float *row, struct err *e);

static inline struct linear_args
linear_job(const struct matrix *w, const uint16_t *x, void *y, int rows)
{
    return (struct linear_args){
        .w = w, .x = x, .y = y, .rows = rows, .x_stride = w->in, .y_stride = w->out};
}

/* The product rounds x on the way (struct linear_args, quant). */
static inline bool
quantises_itself(const struct matrix *w, int rows)
{
    return w->packed != NULL && rows <= 8;
}

static inline int
quantise(struct backend *b, const uint16_t *x, uint16_t *y, int rows, int dim,
         struct err *e)
{
    return act_quant_cuda(
        &b->rk,
        &(struct act_quant_args){
            .x = x, .y = y, .rows = rows, .dim = dim, .stride = dim, .group = 128},
        e);
}

static inline int
norm_rows(struct backend *b, const uint16_t *x, const float *w, uint16_t *out, int rows,
          int dim, struct err *e)
{
    return rmsnorm_cuda(
        &b->rk,
        &(struct rmsnorm_args){
            .x = x, .w = w, .out = out, .rows = rows, .dim = dim, .eps = b->c.rms_eps},
        e);
}

#endif /* GPU_CUDA_CUDA_H */
