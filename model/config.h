/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_CONFIG_H
#define MODEL_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;

enum {
    MODEL_MAX_LAYERS = 128, /* backbone and draft layers together */
    MODEL_MAX_HC = 8,
    MODEL_CSA_RATIO = 4, /* overlapping blocks and an indexer; larger ratios: neither */
    MODEL_MAX_RATIO = 128,
};

struct buf;

/*
 * What config.json says, every key checked (spec 1.1). Plain data: copy it freely.
 * Nothing of a particular model is a constant anywhere else in the program.
 */
struct model_config {
    int vocab_size, hidden;             /* V, d */
    int n_layers, n_hash_layers, n_mtp; /* backbone; first ones routed by table; draft */
    int n_heads, head_dim, rope_dim;    /* H, D, rotated dims at the end of a head */
    int q_lora_rank, o_groups, o_lora_rank;
    int window; /* keys of the sliding window, itself included */
    int index_n_heads, index_head_dim, index_topk;
    int n_experts, n_experts_used, moe_inter; /* E, top-k, I */
    int ratio[MODEL_MAX_LAYERS]; /* 0 window only, 4 CSA, 8..128 HCA; draft last */
    int hc_mult, hc_sinkhorn_iters;
    int bos_id, eos_id;
    bool quantized;   /* FP8 linears with 128x128 scales; else BF16 */
    bool fp4_experts; /* as config.json says; the tensors' dtype decides when loading */
    int64_t max_positions;
    double rope_theta, compress_rope_theta;
    double yarn_factor, yarn_beta_fast, yarn_beta_slow;
    int64_t yarn_original_positions;
    float route_scale, swiglu_limit, rms_eps, hc_eps;
};

/*
 * DIR/config.json. ERR_DAMAGED for what is missing, malformed or of the wrong type,
 * ERR_MODEL_MISMATCH for another architecture or a value that fathom cannot run; both name the key
 * and say what is wanted.
 */
int model_config_load(struct model_config *c, const char *dir, struct err *e);

/* The same from memory; `text` need not end in a NUL. For tests and fuzzing. */
int model_config_parse(struct model_config *c, const char *text, size_t len, struct err *e);

/* Everything in c, one key=value a line in a fixed order, appended: equal text, equal model. */
int model_config_text(const struct model_config *c, struct buf *out, struct err *e);

#endif /* MODEL_CONFIG_H */
