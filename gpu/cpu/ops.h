/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CPU_OPS_H
#define GPU_CPU_OPS_H

#include <stdbool.h>
#include <stddef.h>

#include "gpu/ops/attention.h"
#include "gpu/ops/linear.h"
#include "gpu/ops/mhc.h"
#include "gpu/ops/moe.h"
#include "gpu/ops/norm.h"
#include "gpu/ops/quant.h"

struct err;

/*
 * The operations in which a step spends its time, once for each kind of processor. The
 * backend picks a table at open and calls nothing else for them.
 *
 * Functions share their work out among threads (pool.h) themselves, over outputs only: the order
 * in which one output is summed is fixed, so that its bits depend neither on the thread count
 * nor on the other rows and jobs of a call (gpu/backend.h promises this of whole steps). Two
 * tables may differ in bits. Nothing here allocates for the caller or fails; scratch is on the
 * stack or per thread.
 *
 * `reference` is plain C in the order of the paper and is what the others are tested against.
 * A table may point at functions of reference for what it has no better way to do.
 */
struct cpu_ops {
    const char *name;   /* "reference", "portable", "avx2", "avx512" */
    const char *detail; /* for struct backend_info */
    bool (*usable)(void);

    /* Once for each weight when it is loaded: how many bytes the table's own layout takes (0:
     * it computes from w->w), and the re-layout into dst, 64-byte aligned, which becomes
     * w->packed. A packed matrix must not need w->w and w->scale again. */
    size_t (*packed_bytes)(const struct matrix *w);
    void (*pack)(const struct matrix *w, void *dst);

    /* n jobs at once, one parallel region: an expert's matrices, the groups of wo_a, heads. */
    void (*linear)(const struct linear_args *a, int n);
    void (*attention)(const struct attention_args *a, int n);
    void (*index_scores)(const struct index_score_args *a, int n);

    void (*act_quant)(const struct act_quant_args *a);
    void (*index_quant)(const struct index_quant_args *a);
    void (*rmsnorm)(const struct rmsnorm_args *a);
    void (*head_norm)(const struct head_norm_args *a);
    void (*rope)(const struct rope_args *a);
    void (*hc_pre)(const struct hc_pre_args *a);
    void (*hc_post)(const struct hc_post_args *a);
    void (*swiglu)(const struct swiglu_args *a);
};

extern const struct cpu_ops cpu_ops_reference;
extern const struct cpu_ops cpu_ops_portable;
extern const struct cpu_ops cpu_ops_avx2;   /* if HAVE_AVX2 */
extern const struct cpu_ops cpu_ops_avx512; /* if HAVE_AVX512 */

/* By name; "auto" or NULL is the fastest that this processor can run. ERR_NOT_FOUND names
 * those that it can. */
const struct cpu_ops *cpu_ops_find(const char *isa, struct err *e);

#endif /* GPU_CPU_OPS_H */
