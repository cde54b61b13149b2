/* SPDX-License-Identifier: Apache-2.0 */
/* The table for any processor: what the compiler makes of vectors of 8 floats. */
#include "config.h"

#include "gpu/cpu/vec_linear.h"

#include "gpu/cpu/vec_attention.h"

static bool
usable(void)
{
    return true;
}

const struct cpu_ops cpu_ops_portable = {
    .name = "portable",
    .detail = "vectors of the compiler",
    .usable = usable,
    .packed_bytes = vec_packed_bytes,
    .pack = panel_pack,
    .linear = vec_linear,
    .attention = vec_attention,
    .index_scores = vec_index_scores,
    .act_quant = reference_act_quant,
    .index_quant = reference_index_quant,
    .rmsnorm = reference_rmsnorm,
    .head_norm = reference_head_norm,
    .rope = reference_rope,
    .hc_pre = reference_hc_pre,
    .hc_post = reference_hc_post,
    .swiglu = reference_swiglu,
};
