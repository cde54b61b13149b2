/* SPDX-License-Identifier: Apache-2.0 */
/* What the device gives to a kernel that only reads: the rate that shares are of. */
#include "gpu/cuda/device.cuh"
#include "tools/benchmarks/probe.h"

enum { THREADS = 512, LOADS = 8 };

/* Blocks take stretches of THREADS * LOADS * 16 bytes in turn. What is read is added up and
 * written only if it has one value of many, so that no load can be left out. */
static __global__ void __launch_bounds__(THREADS)
read_kernel(const uint4 *p, size_t stretches, uint32_t *out)
{
    uint32_t sum = 0;

    for (size_t s = blockIdx.x; s < stretches; s += gridDim.x) {
        uint4 v[LOADS];

#pragma unroll
        for (int i = 0; i < LOADS; i++)
            v[i] = __ldcs(p + (s * LOADS + i) * THREADS + threadIdx.x);
#pragma unroll
        for (int i = 0; i < LOADS; i++)
            sum ^= v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
    }
    if (sum == 0x12345678)
        *out = sum;
}

int
probe_read(struct cuda_rank *rk, const void *p, size_t bytes, uint32_t *out, struct err *e)
{
    read_kernel<<<rk->sms * 4, THREADS, 0, rk->stream>>>(
        (const uint4 *)p, bytes / (THREADS * LOADS * sizeof(uint4)), out);
    CU_TRY(cudaGetLastError(), e);
    return 0;
}
