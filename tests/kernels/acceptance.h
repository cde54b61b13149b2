/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_KERNELS_ACCEPTANCE_H
#define TESTS_KERNELS_ACCEPTANCE_H

#include "tests/kernels/golden.h"

/* What makes an implementation right, as acceptance.c says it. Each prints its figures. */
struct accepted {
    struct golden g;
    struct backend *b; /* the CPU's */
    const char *isa;
};

bool layers_pass(struct accepted *f);
bool prefill_and_draft_pass(struct accepted *f);
bool token_by_token_pass(struct accepted *f);

#endif /* TESTS_KERNELS_ACCEPTANCE_H */
