/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_KERNELS_ACCEPTANCE_H
#define TESTS_KERNELS_ACCEPTANCE_H

#include "tests/kernels/golden.h"

/* What makes an implementation right, as acceptance.c says it. Each prints its figures. */
struct accepted {
    struct golden g;
    struct backend *cpu; /* the CPU's, for the head on golden states */
    struct backend *b;   /* of golden_ops; the same, if those are the CPU's */
    const char *isa;     /* what messages call it */
};

bool layers_pass(struct accepted *f); /* the CPU's */
bool layer_passes(const struct accepted *f, int l, const uint16_t *got);
bool prefill_and_draft_pass(struct accepted *f);
bool token_by_token_pass(struct accepted *f);

#endif /* TESTS_KERNELS_ACCEPTANCE_H */
