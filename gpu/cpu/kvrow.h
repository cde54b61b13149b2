/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CPU_KVROW_H
#define GPU_CPU_KVROW_H

#include <stddef.h>
#include <stdint.h>

#include "gpu/ops/attention.h"

/* Key rows as they are kept (struct attention_args). Rounding happens in pack, and only there:
 * FP8 per 64 of the first dim - rope_dim elements (spec 3.3), the rotated ones as they are. */
void kv_row_pack(enum kv_fmt fmt, const uint16_t *x, int dim, int rope_dim, uint8_t *row);
void kv_row_unpack(enum kv_fmt fmt, const uint8_t *row, int dim, int rope_dim, float *x);

#endif /* GPU_CPU_KVROW_H */
