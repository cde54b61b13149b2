/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_SIMT_PLANTED_H
#define TESTS_SIMT_PLANTED_H

#include <stdint.h>

#include "gpu/cuda/rank.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Kernels for simt_test (planted.cu) and the bugs that they have on demand. */
enum planted_kernel {
    PLANTED_NEIGHBOURS,
    PLANTED_LANES,
    PLANTED_PLACES,
    PLANTED_WAITS,
    PLANTED_CLUSTER,
    PLANTED_PRODUCT,
    PLANTED_WARP,
    PLANTED_COPIES,
    PLANTED_COUNT,
    PLANTED_TOO_MUCH, /* shared memory that nobody has allowed */
};

enum planted {
    PLANTED_NOTHING,
    PLANTED_NO_BARRIER,
    PLANTED_LOWER, /* no barrier either; the order of threads hides it */
    PLANTED_STATIC_END,
    PLANTED_DYNAMIC_END,
    PLANTED_GLOBAL_END,
    PLANTED_UNWRITTEN,
    PLANTED_SOME_LANES,
    PLANTED_SOME_WARPS,
    PLANTED_LANE_GONE,
    PLANTED_LEFT_EARLY,
    PLANTED_NO_WAIT,
    PLANTED_EARLY,
    PLANTED_LEFT_OPEN,
};

/* out: device memory, as large as the kernel's output (planted.cu); a, b: of the product. */
int planted_run(struct cuda_rank *rk, enum planted_kernel k, enum planted bug, void *out,
                const uint16_t *a, const uint16_t *b, struct err *e);

#ifdef __cplusplus
}
#endif

#endif /* TESTS_SIMT_PLANTED_H */
