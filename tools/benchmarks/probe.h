/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TOOLS_BENCHMARKS_PROBE_H
#define TOOLS_BENCHMARKS_PROBE_H

#include <stdint.h>

#include "gpu/cuda/rank.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Reads `bytes`, a multiple of 64 KiB. out: device, hardly ever written. */
int probe_read(struct cuda_rank *rk, const void *p, size_t bytes, uint32_t *out,
               struct err *e);

#ifdef __cplusplus
}
#endif

#endif /* TOOLS_BENCHMARKS_PROBE_H */
