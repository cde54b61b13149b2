/* SPDX-License-Identifier: Apache-2.0 */
/* Names and sizes of the number formats that a checkpoint may hold. */
#include <config.h> /* not "": beside this file lies model/config.h */

#include <assert.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>

#include "model/tensor.h"

static const struct {
    const char *name;
    int bytes;
} dtypes[DTYPE_COUNT] = {
    [DTYPE_F8_E4M3] = {"F8_E4M3", 1}, [DTYPE_F8_E8M0] = {"F8_E8M0", 1},
    [DTYPE_I8] = {"I8", 1},           [DTYPE_BF16] = {"BF16", 2},
    [DTYPE_F32] = {"F32", 4},         [DTYPE_I64] = {"I64", 8},
    [DTYPE_I32] = {"I32", 4},
};

const char *
dtype_name(enum tensor_dtype t)
{
    assert((unsigned)t < DTYPE_COUNT);
    return dtypes[t].name;
}

int
dtype_bytes(enum tensor_dtype t)
{
    assert((unsigned)t < DTYPE_COUNT);
    return dtypes[t].bytes;
}

char *
tensor_shape_text(enum tensor_dtype t, int n_dims, const int64_t *dims, char *s, int len)
{
    int at = snprintf(s, (size_t)len, "%s [", dtype_name(t));

    for (int i = 0; i < n_dims && at < len; i++)
        at += snprintf(s + at, (size_t)(len - at), i == 0 ? "%" PRId64 : ", %" PRId64,
                       dims[i]);
    if (at < len)
        snprintf(s + at, (size_t)(len - at), "]");
    return s;
}
