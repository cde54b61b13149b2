/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_KERNELS_CPU_TABLES_H
#define TESTS_KERNELS_CPU_TABLES_H

#include "base/err.h"
#include "gpu/cpu/ops.h"
#include "tests/test.h"

/* The tables of operations that are built in and that this processor runs; 0 is reference. */
static inline const struct cpu_ops *
cpu_table(int i)
{
    static const char *const names[] = {"reference", "portable", "avx2", "avx512"};
    struct err e = {0};

    for (size_t k = 0; k < sizeof names / sizeof names[0]; k++) {
        const struct cpu_ops *t = cpu_ops_find(names[k], &e);

        if (t != NULL && i-- == 0)
            return t;
    }
    return NULL;
}

static inline int
cpu_tables_n(void)
{
    int n = 0;

    while (cpu_table(n) != NULL)
        n++;
    return n;
}

#endif /* TESTS_KERNELS_CPU_TABLES_H */
