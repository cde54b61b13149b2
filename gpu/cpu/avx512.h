/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CPU_AVX512_H
#define GPU_CPU_AVX512_H

#include "gpu/cpu/ops.h"

void avx512_linear(const struct linear_args *a, int n);
void avx512_attention(const struct attention_args *a, int n);
void avx512_index_scores(const struct index_score_args *a, int n);
void avx512_act_quant(const struct act_quant_args *a);
void avx512_index_quant(const struct index_quant_args *a);
void avx512_rmsnorm(const struct rmsnorm_args *a);
void avx512_head_norm(const struct head_norm_args *a);
void avx512_rope(const struct rope_args *a);
void avx512_hc_pre(const struct hc_pre_args *a);
void avx512_hc_post(const struct hc_post_args *a);
void avx512_swiglu(const struct swiglu_args *a);

#endif /* GPU_CPU_AVX512_H */
