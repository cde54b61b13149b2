/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CUDA_PTX_CUH
#define GPU_CUDA_PTX_CUH

/*
 * All that kernels say in PTX, and what else of their language a host compiler has no word for.
 * Kernels are tested without a device too: tests/simt/device/gpu/cuda/ptx.cuh is this header
 * again, for threads that are made of fibers.
 */
#include <stdint.h>

/* The shared memory that a launch has asked for. */
#define LAUNCH_SHARED(align, type, name) \
    extern __shared__ __align__(align)   \
    type name[]

/* x, which the compiler does not know for x: what depends on it stays behind. */
static __device__ __forceinline__ int
unknown(int x)
{
    asm volatile("" : "+r"(x));
    return x;
}

static __device__ __forceinline__ float
unknown(float x)
{
    asm volatile("" : "+f"(x));
    return x;
}

/* An address of device memory: what it takes to find it stays in front. */
template <typename T>
static __device__ __forceinline__ T *
unknown(T *p)
{
    asm volatile("" : "+l"(p));
    __builtin_assume(__isGlobal(p));
    return p;
}

/* 16 bytes that are read once. */
static __device__ __forceinline__ uint4
load_once(const uint4 *p)
{
    uint4 v;

    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}

/* Constants that are to be on their way from here on, in front of a pdl_wait: ptxas moves loads that
 * are said to be of constants behind it where it likes to, these it does not. */
static __device__ __forceinline__ float
load_ahead(const float *p)
{
    float v;

    asm volatile("ld.global.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory");
    return v;
}

static __device__ __forceinline__ float4
load_ahead(const float4 *p)
{
    float4 v;

    asm volatile("ld.global.L1::no_allocate.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}

/* 8 or 2 bytes that lie beside what another kernel may still write: not by way of L1, where they would
 * stay as they are. */
static __device__ __forceinline__ uint2
load_beside(const uint2 *p)
{
    uint2 v;

    asm volatile("ld.global.cg.v2.u32 {%0, %1}, [%2];"
                 : "=r"(v.x), "=r"(v.y)
                 : "l"(p)
                 : "memory");
    return v;
}

static __device__ __forceinline__ uint16_t
load_beside(const uint16_t *p)
{
    uint16_t v;

    asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(v) : "l"(p) : "memory");
    return v;
}

/* 16 bytes begin their way to shared memory, or zeros if they are not there. Nothing may read or
 * write there before copies_wait; from then on this thread sees them, others behind a barrier. */
static __device__ __forceinline__ void
copy_async(void *to, const void *from, bool there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from),
                   "r"(there ? 16 : 0)
                 : "memory");
}

/* Copies that this thread has begun since the call before are one group. */
static __device__ __forceinline__ void
copies_close(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* All groups of this thread but the last N are done. */
template <int N>
static __device__ __forceinline__ void
copies_wait(void)
{
    asm volatile("cp.async.wait_group %0;" : : "n"(N) : "memory");
}

/* Where p points begins its way to the second cache. */
static __device__ __forceinline__ void
prefetch_l2(const void *p)
{
    asm volatile("prefetch.global.L2 [%0];" : : "l"(p));
}

/* c[16][8] += a[16][16] b[16][8], a warp's. Lane 4 g + t has c[g][2 t], c[g][2 t + 1] and the same
 * of row g + 8; pairs of a: rows g, g + 8 at columns 2 t, then both 8 columns on; pairs of b: rows
 * 2 t and 2 t + 8 of column g. */
static __device__ __forceinline__ void
mma_bf16(float *c, const uint32_t *a, uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* 1 / sqrt(x) and 1 / x by one instruction each, a place or so off; x is no subnormal. */
static __device__ __forceinline__ float
inverse_root(float x)
{
    float y;

    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

static __device__ __forceinline__ float
inverse(float x)
{
    float y;

    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Two products of bf16. */
static __device__ __forceinline__ uint32_t
times_bf16x2(uint32_t x, uint32_t factor)
{
    uint32_t y;

    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(x), "r"(factor));
    return y;
}

/* Two numbers rounded to bf16, negative ones to 0. */
static __device__ __forceinline__ uint32_t
relu_bf16_pair(float low, float high)
{
    uint32_t y;

    asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

/* Four 8 x 8 matrices of 16-bit elements from shared memory: lanes 8 i .. 8 i + 7 name the rows of
 * matrix i, lane 4 g + t gets elements 2 t and 2 t + 1 of row g of each. */
static __device__ __forceinline__ void
ldmatrix(uint32_t *r, const void *p)
{
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(p);

    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

/* The same with rows and columns exchanged. */
static __device__ __forceinline__ void
ldmatrix_trans(uint32_t *r, const void *p)
{
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(p);

    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

/* How many blocks were here before: *n, and one more from now on. What the block has written in
 * front of its last barrier is there to see for those that come later. */
static __device__ __forceinline__ uint32_t
arrive(uint32_t *n)
{
    uint32_t before;

    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
                 : "=r"(before)
                 : "l"(n)
                 : "memory");
    return before;
}

/* The thread is here: with cluster_begun, so that it may go on in between. Orders nothing. */
static __device__ __forceinline__ void
cluster_begin(void)
{
    asm volatile("barrier.cluster.arrive.relaxed;");
}

/* All threads of the cluster have said so: their shared memory is there to be written to. */
static __device__ __forceinline__ void
cluster_begun(void)
{
    asm volatile("barrier.cluster.wait;" ::: "memory");
}

/*
 * All kernels in front of this one are done, and what they wrote is there to see. ptxas moves a
 * bare wait in front of loads of constants, which are to be under way by then, but nothing across
 * a branch: the condition always holds (a grid has a third dimension), which ptxas does not know.
 */
static __device__ __forceinline__ void
pdl_wait(void)
{
    asm volatile("{\n\t"
                 ".reg .pred p;\n\t"
                 "setp.ne.u32 p, %0, 0;\n\t"
                 "@p griddepcontrol.wait;\n\t"
                 "}"
                 :
                 : "r"(gridDim.z)
                 : "memory");
}

/* The kernel behind this one may begin. */
static __device__ __forceinline__ void
pdl_go(void)
{
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

#endif /* GPU_CUDA_PTX_CUH */
