/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CPU_AVX512_H
#define GPU_CPU_AVX512_H

#include "gpu/cpu/ops.h"

void avx512_linear(const struct linear_args *a, int n);

#endif /* GPU_CPU_AVX512_H */
