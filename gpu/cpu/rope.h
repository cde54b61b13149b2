/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CPU_ROPE_H
#define GPU_CPU_ROPE_H

#include "model/config.h"

/* Angles of a step's positions, made on the host for every backend: cos and sin of libm. */
void rope_frequencies(const struct model_config *c, bool compressed, float *freq);
void rope_table(const float *freq, int pairs, const uint64_t *pos, int n, float *cs);

#endif /* GPU_CPU_ROPE_H */
