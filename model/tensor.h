/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_TENSOR_H
#define MODEL_TENSOR_H

#include <stdint.h>

enum tensor_dtype {
    DTYPE_F8_E4M3,
    DTYPE_F8_E8M0,
    DTYPE_I8,
    DTYPE_BF16,
    DTYPE_F32,
    DTYPE_I64,
    DTYPE_I32,
    DTYPE_COUNT
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

const char *dtype_name(enum tensor_dtype t); /* as safetensors spells it */
int dtype_bytes(enum tensor_dtype t);        /* of one element */

/* "BF16 [4, 128]" into s; cut if it does not fit. Returns s. */
char *tensor_shape_text(enum tensor_dtype t, int n_dims, const int64_t *dims, char *s,
                        int len);

#endif /* MODEL_TENSOR_H */
