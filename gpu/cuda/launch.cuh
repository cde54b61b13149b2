/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CUDA_LAUNCH_CUH
#define GPU_CUDA_LAUNCH_CUH

/*
 * The one place where kernels are launched. tests/simt/device/gpu/cuda/launch.cuh is this header
 * again, for kernels that run on the host.
 */
#include "gpu/cuda/rank.h"

/* Once for each kernel that wants more than 48 KB: the attribute sticks. */
#define SHARED_TRY(kernel, bytes, e)                                                 \
    CU_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, \
                                (int)(bytes)),                                       \
           e)

/* The same for clusters of more than 8 blocks, which a device need not have. */
#define CLUSTER_TRY(kernel, e)                                                           \
    CU_TRY(                                                                              \
        cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), \
        e)

/* Blocks in clusters of so many (0: none) along x; overlap: see launch_pdl. */
template <typename... P, typename... A>
static inline cudaError_t
launch_with(cudaStream_t stream, bool overlap, int cluster, void (*kernel)(P...), dim3 grid,
            int threads, size_t shared, const A &...args)
{
    cudaLaunchAttribute at[2] = {};
    cudaLaunchConfig_t c = {};

    c.gridDim = grid;
    c.blockDim = dim3(threads);
    c.dynamicSmemBytes = shared;
    c.stream = stream;
    c.attrs = at;
    if (cluster > 0) {
        at[c.numAttrs].id = cudaLaunchAttributeClusterDimension;
        at[c.numAttrs].val.clusterDim.x = cluster;
        at[c.numAttrs].val.clusterDim.y = at[c.numAttrs].val.clusterDim.z = 1;
        c.numAttrs++;
    }
    if (overlap) {
        at[c.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        at[c.numAttrs].val.programmaticStreamSerializationAllowed = 1;
        c.numAttrs++;
    }
    return cudaLaunchKernelEx(&c, kernel, P(args)...);
}

template <typename... P, typename... A>
static inline cudaError_t
launch_kernel(cudaStream_t stream, void (*kernel)(P...), dim3 grid, int threads,
              size_t shared, const A &...args)
{
    return launch_with(stream, false, 0, kernel, grid, threads, shared, args...);
}

/*
 * A launch that may begin before the kernel in front of it on the stream is done. Such a kernel
 * calls pdl_wait() in every block, before it touches anything that a kernel in front of it wrote or
 * reads, so that the end of one still means the end of all before.
 */
template <typename... P, typename... A>
static inline cudaError_t
launch_pdl(const struct cuda_rank *rk, void (*kernel)(P...), dim3 grid, int threads,
           size_t shared, const A &...args)
{
    return launch_with(rk->stream, true, 0, kernel, grid, threads, shared, args...);
}

/* The same in clusters: grid.x is a multiple of their size. */
template <typename... P, typename... A>
static inline cudaError_t
launch_cluster(const struct cuda_rank *rk, int cluster, void (*kernel)(P...), dim3 grid,
               int threads, size_t shared, const A &...args)
{
    return launch_with(rk->stream, true, cluster, kernel, grid, threads, shared, args...);
}

#endif /* GPU_CUDA_LAUNCH_CUH */
