/* SPDX-License-Identifier: Apache-2.0 */
/* The table for processors with AVX2, FMA and F16C: Haswell, Zen and later. */
#include "config.h"

#include "gpu/cpu/vec_linear.h"

#include "gpu/cpu/vec_attention.h"

static bool
usable(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}

const struct cpu_ops cpu_ops_avx2 = {
    .name = "avx2",
    .detail = "avx2 fma f16c",
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
