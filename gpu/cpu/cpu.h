/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CPU_CPU_H
#define GPU_CPU_CPU_H

#include "gpu/backend.h"
#include "gpu/cpu/ops.h"
#include "gpu/cpu/rope.h"
#include "gpu/index.h"
#include "gpu/network.h"
#include "model/kvlayout.h"
#include "model/kvsize.h"

/*
 * Inside the CPU backend: a loaded model, sequences, and one step on its way through the
 * layers. One thread owns all of it; the operations share their loops out (pool.h).
 */
enum {
    MAX_STEP_TOKENS = 512,
    DRAFT_SLOTS = MAX_REWIND + 1,
    ALIGN = 64,
};

struct page {
    uint32_t refs; /* sequences that hold it; written only when 1 */
    uint8_t *rows;
};

/*
 * A sequence. Rings are indexed by position: window rows have window + MAX_REWIND slots,
 * compressor inputs as many as a block looks back plus MAX_REWIND, so that going back a
 * little is a change of `len` and nothing else. What a slot holds is overwritten only
 * MAX_REWIND positions after it was last needed; `high` is the furthest that any write came,
 * `floor` where the rings begin that kv_set has filled: they hold what a sequence of that length
 * looks back at, and nothing for a shorter one.
 */
struct seq {
    bool open;
    bool coming; /* kv_in has begun, kv_set is to come: n_come whole pages are here */
    uint64_t len, high, floor, n_come;
    uint8_t *rings; /* [seq_bytes] */
    struct page **pages;
    size_t n_pages, cap_pages;
};

/* The rows of a step that belong to one sequence: a run of tokens. */
struct span {
    struct seq *seq;
    int row0, n;
    uint64_t start; /* position of row0 */
};

/* What a layer must know about the rows it is given. */
struct rows {
    int n, n_spans;
    const struct span *spans;
    const uint32_t *token; /* [n] */
    const uint64_t *pos;   /* [n] */
    const float *cs[2];    /* f32 [n][rope_dim/2][2]; plain, and of compressed layers */
};

/* A compressed entry that a step completes. */
struct entry_ref {
    const struct span *span;
    uint64_t j;
};

/* Memory of one step, made at open for MAX_STEP_TOKENS rows (T). */
struct scratch {
    uint16_t *x;                 /* bf16 [T][hc][d], the streams */
    uint16_t *y;                 /* bf16 [T][d], a sublayer's input; *yq: quantised */
    uint16_t *yq;                /* bf16 [T][d] */
    uint16_t *f;                 /* bf16 [T][d], a sublayer's output */
    float *mix;                  /* f32 [T][2 hc + hc^2] */
    float *post;                 /* f32 [T][hc] */
    float *comb;                 /* f32 [T][hc][hc] */
    uint16_t *qr;                /* bf16 [T][q_lora] */
    uint16_t *q;                 /* bf16 [T][H][D] */
    uint16_t *o;                 /* bf16 [T][H][D] */
    uint16_t *z;                 /* bf16 [T][groups * o_lora] */
    uint16_t *kv;                /* bf16 [T][D] */
    uint8_t *rows;               /* packed [T] window rows of this step */
    float *raw;                  /* f32 [T][2][width of the main compressor] */
    float *iraw;                 /* f32 [T][2][width of the indexer's] */
    uint16_t *iq;                /* bf16 [T][index heads][index dim] */
    uint8_t *iqp;                /* packed, the same */
    uint16_t *iw;                /* bf16 [T][index heads] */
    uint16_t *entry;             /* bf16 [T][D], compressed entries being made */
    float *entry_cs;             /* f32 [T][rope_dim] */
    uint8_t *entry_p;            /* packed [T] index rows */
    struct entry_ref *entry_ref; /* [T] */
    uint64_t *entry_pos;         /* [T] first position of the entry's block */
    float *gate;                 /* f32 [T][E] */
    int *chosen;                 /* [T][k] expert ids, ascending */
    float *weight;               /* f32 [T][k], beside chosen */
    int *slot;                   /* [T][k] row in the gathered order, beside chosen */
    int *first;                  /* [E + 1] first gathered row of each expert */
    float *gweight;              /* f32 [T * k] in the gathered order */
    uint16_t *gx;                /* bf16 [T * k][d] gathered inputs, then expert outputs */
    uint16_t *gg,
        *gu;      /* bf16 [T * k + T][I]: gate and up; the shared expert's at the end */
    uint16_t *gs; /* bf16 [T][d] shared expert's output */
    struct linear_args *jobs; /* [2 E + 16] */
    struct attention_args *att;
    uint16_t *head_x;            /* bf16 [T][hc][d] */
    float **head_out;            /* [T] where each row's logits go */
    float *logits;               /* f32 [LOGIT_ROWS][vocab] */
    uint16_t *draft_x, *draft_h; /* bf16 [T][hc][d] */
    float *cs[3];                /* f32 [T][rope_dim]: rows.cs; the third: draft rows */
    uint64_t *pos, *draft_pos;
    uint32_t *token, *draft_token;
    struct span *spans, *draft_spans; /* [max_seqs] */

    /* These grow with the longest sequence, before a step begins. */
    const uint8_t **keys;   /* [KEY_ROWS][cap_keys] */
    const uint8_t **blocks; /* [cap_pages] */
    float *scores;          /* f32 [INDEX_ROWS][cap_scores] */
    int *picked;            /* [KEY_ROWS][index_topk] */
    size_t cap_keys, cap_pages, cap_scores;
};

enum {
    KEY_ROWS = 64,  /* query rows whose key lists are made at a time */
    INDEX_ROWS = 8, /* query rows whose index scores are held at a time */
    LOGIT_ROWS = 16,
};

struct backend {
    struct model_config c;
    const struct cpu_ops *ops;
    int n_threads;
    uint32_t max_seqs;
    uint64_t kv_limit, kv_used, weight_bytes;
    enum kv_fmt fmt;
    struct network_places at;
    float *freq[2]; /* f32 [rope_dim/2]: plain, and of compressed layers */
    struct kv_layout layout;

    struct network net;

    struct seq *seqs; /* [max_seqs] */
    struct scratch s;

    struct arena {
        void **p;
        size_t n, cap;
    } mem; /* what mem_get gave */
};

/* Memory that lives until close: zeroed, aligned; NULL with *e set if there is none. */
void *mem_get(struct backend *b, size_t n, size_t size, struct err *e);

/* How the weights come in: b->c and b->ops are set; b->net is to be. */
typedef int cpu_load_fn(struct backend *b, const void *arg, bool draft, struct err *e);

/* backend_cpu.open with another source of weights: benchmarks make theirs up. */
struct backend *cpu_open_with(const struct model_config *c, const struct backend_opts *o,
                              cpu_load_fn *load, const void *arg, struct err *e);

/* load.c; arg: struct weights */
cpu_load_fn load_model;

/* scratch.c */
int scratch_plan(struct backend *b, struct err *e);
int scratch_reserve(struct backend *b, uint64_t longest, struct err *e);
void scratch_free(struct backend *b); /* what scratch_reserve made */

/* state.c */
int state_open(struct backend *b, uint32_t seq, struct err *e);
int state_fork(struct backend *b, uint32_t from, uint32_t to, struct err *e);
void state_close(struct backend *b, uint32_t seq);
int state_rewind(struct backend *b, uint32_t seq, uint64_t len, struct err *e);
int state_reserve(struct backend *b, const struct step *s, struct err *e);
int state_find(const struct backend *b, uint32_t seq, struct err *e); /* it must be open, */
int state_find_whole(const struct backend *b, uint32_t seq,
                     struct err *e); /* and not coming */
int state_grow(struct backend *b, struct seq *q,
               size_t want); /* -1: no memory; state_cut */
void state_cut(struct backend *b, struct seq *q, size_t n_pages);

/* kv.c */
int kv_out(struct backend *b, uint32_t seq, uint64_t first, uint64_t n, uint8_t *pages,
           uint8_t *state, struct err *e);
int kv_in(struct backend *b, uint32_t seq, uint64_t n, const uint8_t *pages, struct err *e);
int kv_set(struct backend *b, uint32_t seq, uint64_t len, const uint8_t *state,
           struct err *e);
int kv_busy(struct backend *b, uint32_t seq, struct err *e);

static inline uint8_t *
page_row(const struct seq *q, const struct compressor *c, uint64_t j)
{
    const uint64_t per_page = (uint64_t)(KV_PAGE_TOKENS / c->ratio);

    return q->pages[entry_page(j, per_page)]->rows + c->page_at +
           entry_row(j, per_page) * c->row;
}

/* The layers. `x` bf16 [n][hc][d] is changed in place. */
void layer_forward(struct backend *b, const struct layer *l, const struct rows *r,
                   uint16_t *x);

/* Only what later tokens need of the layer: its window rows. */
void layer_keys_only(struct backend *b, const struct layer *l, const struct rows *r,
                     const uint16_t *x);
void mix_in(struct backend *b, const struct mixer *m, const uint16_t *x, int n,
            uint16_t *y);
void attention_forward(struct backend *b, const struct layer *l, const struct rows *r,
                       const uint16_t *x, uint16_t *f);
void attention_keys(struct backend *b, const struct layer *l, const struct rows *r);
void attention_store(struct backend *b, const struct layer *l, const struct rows *r);
void compress(struct backend *b, const struct compressor *c, const struct rows *r,
              float *raw, bool index);
void index_pick(struct backend *b, const struct layer *l, const struct span *s, int row0,
                int n, int *picked);
void moe_forward(struct backend *b, const struct layer *l, const struct rows *r,
                 const uint16_t *x, uint16_t *f);
void draft_forward(struct backend *b, const struct step *s, const struct rows *r);

/* Rows wanted, x bf16 [n][hc][d], to out[i] f32 [vocab] each. */
void head_forward(struct backend *b, const struct mixer *hc, const float *norm,
                  const uint16_t *x, int n, float *const *out);
void embed_rows(const struct backend *b, const uint32_t *token, int n, int copies,
                uint16_t *x);
void forward(struct backend *b, const struct step *s);

/* The k largest of score [n] (bf16 values), ascending indices; ties: lower index. k < n. */
void topk_rows(const float *score, int n, int k, int *picked);

/*
 * Known bugs of other engines (spec 14), to be switched on one at a time in the library that
 * tests/kernels/mutants_test links; in the product MUTANT() is the constant false.
 */
enum mutant {
    MUTANT_NONE,
    MUTANT_NO_INVERSE_ROPE,
    MUTANT_PLAIN_ROPE,
    MUTANT_COMB_NOT_TRANSPOSED,
    MUTANT_SINK_IN_NUMERATOR,
    MUTANT_NO_OVERLAP,
    MUTANT_TOPK_RECENT,
    MUTANTS
};

#ifdef FATHOM_MUTANTS
extern enum mutant cpu_mutant;
#    define MUTANT(m) (cpu_mutant == (m))
#else
#    define MUTANT(m) false
#endif

#endif /* GPU_CPU_CPU_H */
