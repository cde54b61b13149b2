/* SPDX-License-Identifier: Apache-2.0 */
/* Key rows, packed and unpacked without loss of a bit (spec 15.3). */
#include "config.h"

#include <math.h>
#include <string.h>

#include "base/fp.h"
#include "gpu/cpu/kvrow.h"
#include "model/kvsize.h"

static int
scales_at(int dim, int rope_dim)
{
    return dim - rope_dim + 2 * rope_dim;
}

void
kv_row_pack(enum kv_fmt fmt, const uint16_t *x, int dim, int rope_dim, uint8_t *row)
{
    const int nope = dim - rope_dim;
    uint8_t *scale = row + scales_at(dim, rope_dim);

    if (fmt == KV_BF16) {
        memcpy(row, x, (size_t)dim * 2);
        return;
    }
    memset(scale, 0, kv_row_size(fmt, dim, rope_dim) - scales_at(dim, rope_dim));
    memcpy(row + nope, x + nope, (size_t)rope_dim * 2);
    for (int g = 0; g * KV_GROUP < nope; g++) {
        const int i0 = g * KV_GROUP, i1 = i0 + KV_GROUP < nope ? i0 + KV_GROUP : nope;
        float amax = 1e-4f;

        for (int i = i0; i < i1; i++)
            amax = fmaxf(amax, fabsf(bf16_to_f32(x[i])));
        scale[g] = f32_to_e8m0_up(amax * (1.0f / 448.0f));
        for (int i = i0; i < i1; i++)
            row[i] = f32_to_e4m3(bf16_to_f32(x[i]) / e8m0_to_f32(scale[g]));
    }
}

void
kv_row_unpack(enum kv_fmt fmt, const uint8_t *row, int dim, int rope_dim, float *x)
{
    const int nope = fmt == KV_BF16 ? 0 : dim - rope_dim;
    const uint8_t *scale = row + scales_at(dim, rope_dim);

    for (int i = 0; i < nope; i++)
        x[i] = e4m3_to_f32(row[i]) * e8m0_to_f32(scale[i / KV_GROUP]);
    for (int i = nope; i < dim; i++) {
        uint16_t b;

        memcpy(&b, row + nope + (size_t)(i - nope) * 2, sizeof b);
        x[i] = bf16_to_f32(b);
    }
}
