/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CPU_REFERENCE_H
#define GPU_CPU_REFERENCE_H

#include "gpu/cpu/ops.h"

/*
 * The plain C operations, by name, so that another table can take those that it has no better
 * way to do. Formulas are at the args structs in gpu/ops/.
 */
bool reference_usable(void);
size_t reference_packed_bytes(const struct matrix *w);
void reference_pack(const struct matrix *w, void *dst);
void reference_linear(const struct linear_args *a, int n);
void reference_attention(const struct attention_args *a, int n);
void reference_index_scores(const struct index_score_args *a, int n);
void reference_act_quant(const struct act_quant_args *a);
void reference_index_quant(const struct index_quant_args *a);
void reference_rmsnorm(const struct rmsnorm_args *a);
void reference_head_norm(const struct head_norm_args *a);
void reference_rope(const struct rope_args *a);
void reference_hc_pre(const struct hc_pre_args *a);
void reference_hc_post(const struct hc_post_args *a);
void reference_swiglu(const struct swiglu_args *a);

/* The part of hc_pre behind the matrix: from one row of m (already times 1/rms) to pre [hc]
 * and, unless n_mix == hc, post [hc] and comb [hc][hc]. */
void hc_coefficients(const struct hc_pre_args *a, const float *m, float *pre, float *post,
                     float *comb);

#endif /* GPU_CPU_REFERENCE_H */
