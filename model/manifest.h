/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_MANIFEST_H
#define MODEL_MANIFEST_H

#include <stdint.h>

#include "model/config.h"
#include "model/tensor.h"

struct err;

/*
 * Every tensor that a checkpoint of a given config has (spec 2.2): computed, one at a time, from
 * a table of some sixty rules; never kept, since Pro has 145,116 of them.
 */
enum manifest_part {
    PART_EMBED,
    PART_HEAD, /* head, final norm, hc_head */
    PART_ATTENTION,
    PART_COMPRESSOR,
    PART_INDEXER,
    PART_NORMS, /* attn_norm, ffn_norm */
    PART_MHC,
    PART_ROUTER,
    PART_SHARED,
    PART_EXPERTS,
    PART_DRAFT, /* what a draft layer has beyond a layer */
    PART_COUNT
};

const char *manifest_part_name(enum manifest_part p);

enum { MANIFEST_OUTSIDE = -1 }; /* .layer of embed and head */

struct manifest_tensor {
    const char *name; /* valid during the call */
    enum manifest_part part;
    int layer; /* from n_layers on: draft layers */
    enum tensor_dtype dtype;
    int n_dims;
    int64_t dims[TENSOR_MAX_DIMS];
    uint64_t n_bytes;
    uint64_t n_params; /* scales and tables of ids count 0, a byte of FP4 counts 2 */
};

/* Calls fn with each tensor; a result other than 0 ends the walk and is returned. */
typedef int manifest_fn(void *arg, const struct manifest_tensor *t);
int manifest_walk(const struct model_config *c, manifest_fn *fn, void *arg);

struct manifest_sum {
    uint64_t n_tensors, n_params, n_bytes;
};

struct manifest_totals {
    struct manifest_sum all, backbone, draft,
        outside; /* backbone: without the draft layers */
    struct manifest_sum layer[MODEL_MAX_LAYERS];
    struct manifest_sum part[PART_COUNT];
    struct manifest_sum dtype[DTYPE_COUNT];
};

void manifest_total(const struct model_config *c, struct manifest_totals *out);

/* "window", "CSA", "HCA" */
const char *manifest_layer_kind(const struct model_config *c, int layer);

#endif /* MODEL_MANIFEST_H */
