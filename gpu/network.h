/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_NETWORK_H
#define GPU_NETWORK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gpu/ops/attention.h"
#include "gpu/ops/linear.h"
#include "model/config.h"

struct err;

/*
 * The model as a backend computes it: weights by their places in a layer, and where the caches of
 * each layer lie in a sequence. The structs are the host's; what their pointers name is in the
 * memory that the backend computes in.
 */
enum {
    MAX_REWIND = 16
}; /* spare slots of every ring: a sequence goes back so far by its len */

struct mixer { /* hyper-connections around one sublayer, or of the head */
    struct matrix fn;
    const float *base, *scale;
};

struct compressor {
    int ratio, dim;
    bool overlap; /* ratio 4: a token counts in two neighbouring entries, with two halves */
    int width;    /* dim, or 2 dim with overlap */
    struct matrix wkv, wgate;
    const float *ape;  /* f32 [ratio][width] */
    const float *norm; /* f32 [dim] */
    size_t ring_at;    /* in a sequence: f32 [slots][2][width], value and score */
    int slots;
    size_t page_at; /* in a page: the rows of this compressor */
    size_t row;     /* bytes of one */
};

struct expert {
    struct matrix w1, w2, w3;
};

struct layer {
    int ratio;
    int ratio_id; /* CUDA: which of the ratios of the model */
    bool indexed; /* ratio 4: the indexer chooses among the compressed rows */
    struct mixer hc_attn, hc_ffn;
    const float *attn_norm, *ffn_norm, *q_norm, *kv_norm; /* f32 [d] [d] [q_lora] [D] */
    const float *sink;                                    /* f32 [H] */
    struct matrix wq_a, wq_b, wkv, wo_b;
    struct matrix *wo_a; /* [o_groups], each [o_lora][H / groups * D] */
    struct compressor comp, index_comp;
    struct matrix index_wq_b, index_weights;
    struct matrix gate;
    const float *gate_bias;            /* f32 [E]; NULL in a layer routed by table */
    const int32_t *gate_table;         /* [vocab][n_experts_used], or NULL */
    struct expert shared, *experts;    /* [E], all of the same types */
    const struct matrix *w1, *w2, *w3; /* CUDA: the experts' on the device, [E] */
    size_t ring_at;                    /* in a sequence: packed window rows [ring_slots] */
};

struct draft { /* the MTP block, spec 10.1 */
    struct layer layer;
    struct matrix e_proj, h_proj;
    const float *enorm, *hnorm, *norm;
    struct mixer hc_head;
    size_t
        ring_at; /* in a sequence: bf16 [MAX_REWIND + 1][hc][d], states before the head */
};

struct network {
    const uint16_t *embed; /* bf16 [vocab][d] */
    struct matrix head;
    const float *norm;
    struct mixer hc_head;
    struct layer *layers; /* [n_layers] */
    struct draft *draft;  /* NULL unless asked for */
    void *memory;         /* of all arrays, network_new's */
};

/* Bytes of caches, and where they lie (spec 9, docs/KVFORMAT.md has the form that is kept). */
struct network_places {
    size_t row, index_row; /* of packed rows */
    int ring_slots;
    size_t seq_bytes, page_bytes;
    int min_dense_ratio; /* smallest ratio of a layer without an indexer; 0 if none */
};

/* Arrays, ratios and widths as c says; no weights yet. network_free takes a zeroed one too. */
int network_new(struct network *net, const struct model_config *c, bool draft,
                struct err *e);
void network_free(struct network *net);

/* Sets every ring_at, slots, page_at and row. align: of each ring, a power of two. */
void network_place(struct network *net, const struct model_config *c, enum kv_fmt fmt,
                   size_t align, struct network_places *out);

static inline bool
is_quantised(const struct matrix *w)
{
    return w->kind == MATRIX_FP8 || w->kind == MATRIX_FP4;
}

/* x as the matrix wants it: rounded to FP8 in front of FP8 and FP4 (spec 3.4). */
static inline const uint16_t *
input_for(const struct matrix *w, const uint16_t *x, const uint16_t *quantised)
{
    return is_quantised(w) ? quantised : x;
}

#endif /* GPU_NETWORK_H */
