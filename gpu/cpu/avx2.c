/* SPDX-License-Identifier: Apache-2.0 */
/* The table for processors with AVX2, FMA and F16C: Haswell, Zen and later. */
#include "config.h"

#include <cpuid.h>

#include "gpu/cpu/vec_linear.h"

#include "gpu/cpu/vec_attention.h"

/* F16C is asked from the processor itself: clang 14 knows no name for it. Its registers are
 * those of AVX, for which the operating system was asked with avx2. */
static bool
usable(void)
{
    unsigned a, b, c, d;

    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0;
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
