/* SPDX-License-Identifier: Apache-2.0 */
/* Which table of operations runs: chosen once, when a model is opened. */
#include "config.h"

#include <string.h>

#include "base/err.h"
#include "gpu/cpu/ops.h"
#include "gpu/cpu/reference.h"

const struct cpu_ops cpu_ops_reference = {
    .name = "reference",
    .detail = "plain C",
    .usable = reference_usable,
    .packed_bytes = reference_packed_bytes,
    .pack = reference_pack,
    .linear = reference_linear,
    .attention = reference_attention,
    .index_scores = reference_index_scores,
    .act_quant = reference_act_quant,
    .index_quant = reference_index_quant,
    .rmsnorm = reference_rmsnorm,
    .head_norm = reference_head_norm,
    .rope = reference_rope,
    .hc_pre = reference_hc_pre,
    .hc_post = reference_hc_post,
    .swiglu = reference_swiglu,
};

/* Fastest first. */
static const struct cpu_ops *const tables[] = {
#ifdef HAVE_AVX512
    &cpu_ops_avx512,
#endif
#ifdef HAVE_AVX2
    &cpu_ops_avx2,
#endif
    &cpu_ops_portable,
    &cpu_ops_reference,
};

const struct cpu_ops *
cpu_ops_find(const char *isa, struct err *e)
{
    const int n = (int)(sizeof tables / sizeof tables[0]);
    const int any = isa == NULL || strcmp(isa, "auto") == 0;
    char names[64] = "";

    for (int i = 0; i < n; i++) {
        if (!tables[i]->usable())
            continue;
        if (any || strcmp(isa, tables[i]->name) == 0)
            return tables[i];
        strncat(names, " ", sizeof names - strlen(names) - 1);
        strncat(names, tables[i]->name, sizeof names - strlen(names) - 1);
    }
    err_set(e, ERR_NOT_FOUND, 0, "this processor runs no \"%s\" operations; it runs:%s",
            isa, names);
    return NULL;
}
