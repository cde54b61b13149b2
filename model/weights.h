/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_WEIGHTS_H
#define MODEL_WEIGHTS_H

#include <stdint.h>

#include "model/config.h"

struct err;

enum tensor_dtype {
    DTYPE_F8_E4M3,
    DTYPE_F8_E8M0,
    DTYPE_I8,
    DTYPE_BF16,
    DTYPE_F32,
    DTYPE_I64
};

enum { TENSOR_MAX_DIMS = 4 };

/*
 * A tensor where it lies in the mapped file: row-major, little-endian, `data` aligned to
 * nothing in particular (published files start payloads on 4- or 8-byte boundaries).
 * I8 holds two FP4 values a byte, low nibble first.
 */
struct tensor {
    const char *name;
    enum tensor_dtype dtype;
    int n_dims;
    int64_t dims[TENSOR_MAX_DIMS];
    const void *data;
    uint64_t n_bytes;
};

struct weights; /* a checkpoint directory, mapped; read-only, any thread may look up */

/*
 * Maps DIR/model.safetensors or the shards of DIR/model.safetensors.index.json and compares
 * them with the manifest of c. Every missing, extra or misshaped tensor goes to report() (may be
 * NULL), one call each; any of them is ERR_DAMAGED.
 */
typedef void weights_report_fn(void *arg, const char *line);
struct weights *weights_open(const char *dir, const struct model_config *c,
                             weights_report_fn *report, void *arg, struct err *e);
void weights_close(struct weights *w);

/* NULL if the checkpoint has no tensor of that name. The result lives as long as w. */
const struct tensor *weights_find(const struct weights *w, const char *name);
const struct tensor *weights_findf(const struct weights *w, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

uint64_t weights_bytes(const struct weights *w); /* tensor payload */

/* 32 bytes that name this model: config, every tensor's name, dtype and shape, and sampled
 * payload bytes of each. Equal fingerprints: caches may be exchanged. */
void weights_fingerprint(const struct weights *w, uint8_t out[32]);

#endif /* MODEL_WEIGHTS_H */
