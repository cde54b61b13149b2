/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CUDA_LAUNCH_CUH
#define GPU_CUDA_LAUNCH_CUH

/* gpu/cuda/launch.cuh for kernels that run on the host; meanings are said there. */
#include <type_traits>

#include "gpu/cuda/rank.h"
#include "tests/simt/simt.h"

#define SHARED_TRY(kernel, bytes, e) \
    CU_TRY((cudaError_t)simt_allow_shared((const void *)(kernel), (size_t)(bytes)), e)

#define CLUSTER_TRY(kernel, e) \
    do {                       \
    } while (0)

/* A stream, and the line that launches on it. */
struct simt_from {
    cudaStream_t stream;
    const char *file;
    int line;

    simt_from(cudaStream_t s, const char *f = __builtin_FILE(), int l = __builtin_LINE())
        : stream(s), file(f), line(l)
    {
    }

    simt_from(const struct cuda_rank *rk, const char *f = __builtin_FILE(),
              int l = __builtin_LINE())
        : stream(rk->stream), file(f), line(l)
    {
    }
};

template <typename... P, typename... A>
static inline cudaError_t
simt_launch_with(const simt_from &from, bool overlaps, int cluster, void (*kernel)(P...),
                 dim3 grid, int threads, size_t shared, const A &...args)
{
    const auto thread = [kernel, args...] { kernel(P(args)...); };
    struct simt_launch l = {};

    static_assert(std::is_trivially_copyable<decltype(thread)>::value,
                  "arguments of kernels are copied");
    if (simt_may_have_shared((const void *)kernel, shared) != cudaSuccess)
        return cudaErrorInvalidValue;
    l.thread = [](const void *p) { (*(decltype(thread) *)p)(); };
    l.args = &thread;
    l.bytes = sizeof thread;
    l.file = from.file;
    l.line = from.line;
    l.grid = {grid.x, grid.y, grid.z};
    l.threads = (unsigned)threads;
    l.cluster = (unsigned)cluster;
    l.shared = shared;
    l.overlaps = overlaps;
    return (cudaError_t)simt_launch_on(from.stream, &l);
}

template <typename... P, typename... A>
static inline cudaError_t
launch_kernel(simt_from stream, void (*kernel)(P...), dim3 grid, int threads, size_t shared,
              const A &...args)
{
    return simt_launch_with(stream, false, 1, kernel, grid, threads, shared, args...);
}

template <typename... P, typename... A>
static inline cudaError_t
launch_pdl(simt_from rk, void (*kernel)(P...), dim3 grid, int threads, size_t shared,
           const A &...args)
{
    return simt_launch_with(rk, true, 1, kernel, grid, threads, shared, args...);
}

template <typename... P, typename... A>
static inline cudaError_t
launch_cluster(simt_from rk, int cluster, void (*kernel)(P...), dim3 grid, int threads,
               size_t shared, const A &...args)
{
    return simt_launch_with(rk, true, cluster, kernel, grid, threads, shared, args...);
}

#endif /* GPU_CUDA_LAUNCH_CUH */
