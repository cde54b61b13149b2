/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_SIMT_DEVICE_COOPERATIVE_GROUPS_H
#define TESTS_SIMT_DEVICE_COOPERATIVE_GROUPS_H

/* What the kernels use of CUDA's header of this name: clusters. */
#include "tests/simt/simt.h"

namespace cooperative_groups
{
struct cluster_group {
    unsigned block_rank() const
    {
        return simt_rank();
    }

    void sync() const
    {
        simt_cluster_barrier();
    }

    template <typename T> T *map_shared_rank(T *shared, int rank) const
    {
        return (T *)simt_of_rank(shared, (unsigned)rank);
    }
};

static inline cluster_group
this_cluster()
{
    return cluster_group();
}
} // namespace cooperative_groups

#endif /* TESTS_SIMT_DEVICE_COOPERATIVE_GROUPS_H */
