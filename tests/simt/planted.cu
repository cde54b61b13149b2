/* SPDX-License-Identifier: Apache-2.0 */
/* Small kernels for simt_test: some right, some with a known bug, each as kernels here may have. */
#include "base/err.h"
#include "gpu/cuda/device.cuh"
#include "tests/simt/planted.h"

#include <cooperative_groups.h>

namespace cg = cooperative_groups;

enum { THREADS = 128, PARTS = 4 };

/* out[t] = t of thread 127 - t, or of the one below. */
static __global__ void __launch_bounds__(THREADS)
neighbours_kernel(int *out, enum planted bug)
{
    __shared__ int s[THREADS];
    const int t = threadIdx.x,
              from = bug == PLANTED_LOWER ? max(t - 1, 0) : THREADS - 1 - t;

    s[t] = t;
    if (bug != PLANTED_NO_BARRIER && bug != PLANTED_LOWER)
        __syncthreads();
    out[t] = s[from];
}

/* The same within a warp. */
static __global__ void __launch_bounds__(THREADS)
lanes_kernel(int *out, enum planted bug)
{
    LAUNCH_SHARED(16, int, s);
    const int t = threadIdx.x;

    s[t] = t;
    if (bug != PLANTED_NO_BARRIER)
        __syncwarp();
    out[t] = s[t ^ 1];
}

/* Places that are not its own, and what nobody has written. */
static __global__ void __launch_bounds__(THREADS)
places_kernel(int *out, enum planted bug)
{
    LAUNCH_SHARED(16, int, d);
    __shared__ int s[THREADS];
    const int t = threadIdx.x;

    d[t] = s[t] = t;
    if (bug == PLANTED_STATIC_END)
        s[t + 1] = t;
    if (bug == PLANTED_DYNAMIC_END)
        d[t + 1] = t;
    if (bug == PLANTED_UNWRITTEN)
        out[t] = s[(t + 1) % THREADS] == t + 1;
    else
        out[bug == PLANTED_GLOBAL_END ? t + 1 : t] = t;
}

static __global__ void __launch_bounds__(THREADS)
waits_kernel(int *out, enum planted bug)
{
    const int t = threadIdx.x;

    if (bug == PLANTED_SOME_LANES ? t < 16 : t < THREADS / 2)
        __syncthreads();
    else if (bug == PLANTED_SOME_LANES || bug == PLANTED_SOME_WARPS)
        cg::this_cluster().sync();
    out[t] = bug == PLANTED_LANE_GONE && t % WARP == 3 ? 0 : __shfl_xor_sync(~0u, t, 1);
}

/* A block's number from each block of the cluster. */
static __global__ void __launch_bounds__(THREADS)
cluster_kernel(int *out, enum planted bug)
{
    __shared__ int s;
    LAUNCH_SHARED(16, int, d);
    cg::cluster_group cluster = cg::this_cluster();
    const int rank = (int)cluster.block_rank(), t = threadIdx.x;

    if (bug != PLANTED_NO_WAIT)
        pdl_wait();
    if (t == 0)
        s = d[1] = (int)blockIdx.x;
    if (bug != PLANTED_NO_BARRIER)
        cluster.sync();
    if (t < PARTS)
        out[(blockIdx.y * gridDim.x + blockIdx.x) * PARTS + t] =
            cluster.map_shared_rank(&s, t)[0] * 100 + cluster.map_shared_rank(d, t)[1];
    if (bug != PLANTED_LEFT_EARLY && rank >= 0)
        cluster.sync();
}

/* c [16][8] = a [16][16] times b [16][8], by one warp, from row-major bf16. */
static __global__ void __launch_bounds__(WARP)
product_kernel(const uint16_t *a, const uint16_t *b, float *c)
{
    __shared__ __align__(16) uint16_t s[16 * 16 + 16 * 8];
    const int lane = threadIdx.x;
    float sum[4] = {};
    uint32_t x[4], y[4];

    for (int i = lane; i < 16 * 16; i += WARP)
        s[i] = a[i];
    for (int i = lane; i < 16 * 8; i += WARP)
        s[16 * 16 + i] = b[i];
    __syncwarp();
    ldmatrix(x, s + lane % 16 * 16 + lane / 16 * 8);
    ldmatrix_trans(y, s + 16 * 16 + lane % 16 * 8);
    mma_bf16(sum, x, y[0], y[1]);
    for (int i = 0; i < 4; i++)
        c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}

/* out [11][WARP]: what each operation gives. */
static __global__ void __launch_bounds__(WARP)
warp_kernel(double *out)
{
    const int t = threadIdx.x;
    double *at = out + t;

    at[0 * WARP] = __shfl_sync(~0u, (double)t, 5);
    at[1 * WARP] = __shfl_xor_sync(~0u, (double)t, 9);
    at[2 * WARP] = __shfl_down_sync(~0u, t, 7);
    at[3 * WARP] = __shfl_up_sync(~0u, (float)t, 7);
    at[4 * WARP] = __ballot_sync(~0u, t % 3 == 0);
    at[5 * WARP] = warp_sum((double)t);
    at[6 * WARP] = block_sum(1.0);
    at[7 * WARP] = __byte_perm(0x33221100, 0x77665544, 0x7250);
    at[8 * WARP] = __dp4a((int)0xff020304, (int)0x01010102, 10);
    at[9 * WARP] = __vcmpeq4(0x11223344, 0x11003344);
    at[10 * WARP] = __uint_as_float(times_bf16x2(0x3fc04000, 0x40003f80));
}

/* out [2][WARP][4]: x of the lane beside, by copies in two groups, of which the second is waited for
 * after the first was read; and zeros from odd lanes of the second. */
static __global__ void __launch_bounds__(WARP)
copies_kernel(const uint32_t *x, uint32_t *out, enum planted bug)
{
    LAUNCH_SHARED(16, uint32_t, s);
    const int t = threadIdx.x;

    for (int i = 0; i < 2; i++) {
        copy_async(s + (i * WARP + t) * 4, x + t * 4, i == 0 || t % 2 == 0);
        copies_close();
    }
    for (int i = 0; i < 2; i++) {
        if (bug == PLANTED_EARLY || i == 0)
            copies_wait<1>();
        else if (bug != PLANTED_LEFT_OPEN)
            copies_wait<0>();
        __syncwarp();
        for (int j = 0; j < 4; j++)
            out[(i * WARP + t) * 4 + j] = s[(i * WARP + (t ^ 1)) * 4 + j];
    }
    __syncwarp(); /* all have read */
    if (bug == PLANTED_EARLY)
        copies_wait<0>();
}

/* Each place of the grid adds one to its number. */
static __global__ void __launch_bounds__(THREADS)
count_kernel(int *out, int add)
{
    const size_t block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;

    out[block * blockDim.x + threadIdx.x] += add;
}

int
planted_run(struct cuda_rank *rk, enum planted_kernel k, enum planted bug, void *out,
            const uint16_t *a, const uint16_t *b, struct err *e)
{
    const size_t room = THREADS * sizeof(int);
    int *ints = (int *)out;

    switch (k) {
    case PLANTED_NEIGHBOURS:
        CU_TRY(launch_kernel(rk->stream, neighbours_kernel, dim3(1), THREADS, 0, ints, bug),
               e);
        break;
    case PLANTED_LANES:
        CU_TRY(launch_kernel(rk->stream, lanes_kernel, dim3(1), THREADS, room, ints, bug),
               e);
        break;
    case PLANTED_PLACES:
        CU_TRY(launch_kernel(rk->stream, places_kernel, dim3(1), THREADS, room, ints, bug),
               e);
        break;
    case PLANTED_WAITS:
        CU_TRY(launch_kernel(rk->stream, waits_kernel, dim3(1), THREADS, 0, ints, bug), e);
        break;
    case PLANTED_CLUSTER:
        CU_TRY(launch_cluster(rk, PARTS, cluster_kernel, dim3(2 * PARTS, 3), THREADS, 32,
                              ints, bug),
               e);
        break;
    case PLANTED_PRODUCT:
        CU_TRY(
            launch_kernel(rk->stream, product_kernel, dim3(1), WARP, 0, a, b, (float *)out),
            e);
        break;
    case PLANTED_WARP:
        CU_TRY(launch_kernel(rk->stream, warp_kernel, dim3(1), WARP, 0, (double *)out), e);
        break;
    case PLANTED_COPIES:
        CU_TRY(launch_kernel(rk->stream, copies_kernel, dim3(1), WARP, 2 * room,
                             (const uint32_t *)(a != NULL ? a : out), (uint32_t *)out, bug),
               e);
        break;
    case PLANTED_COUNT:
        CU_TRY(launch_kernel(rk->stream, count_kernel, dim3(3, 5, 7), THREADS, 0, ints,
                             bug == PLANTED_NOTHING ? 1 : 2),
               e);
        break;
    case PLANTED_TOO_MUCH:
        CU_TRY(
            launch_kernel(rk->stream, lanes_kernel, dim3(1), THREADS, 49 * 1024, ints, bug),
            e);
    }
    return 0;
}
