/* SPDX-License-Identifier: Apache-2.0 */
/* The table for processors with AVX-512 including VBMI, VNNI and BF16: Zen 4, Sapphire Rapids and
 * later. Older AVX-512 lacks the bf16 product that all of this is built on and takes avx2. */
#include "config.h"

#include "gpu/cpu/avx512.h"
#include "gpu/cpu/panel.h"
#include "gpu/cpu/reference.h"

/* The compiler's run-time asks the operating system too: no feature counts whose registers are
 * not saved at a context switch. */
static bool
usable(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni") &&
           __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("fma");
}

const struct cpu_ops cpu_ops_avx512 = {
    .name = "avx512",
    .detail = "avx512 vbmi vnni bf16",
    .usable = usable,
    .packed_bytes = panel_packed_bytes,
    .pack = panel_pack,
    .linear = avx512_linear,
    .attention = avx512_attention,
    .index_scores = avx512_index_scores,
    .act_quant = avx512_act_quant,
    .index_quant = avx512_index_quant,
    .rmsnorm = avx512_rmsnorm,
    .head_norm = avx512_head_norm,
    .rope = avx512_rope,
    .hc_pre = avx512_hc_pre,
    .hc_post = avx512_hc_post,
    .swiglu = avx512_swiglu,
};
