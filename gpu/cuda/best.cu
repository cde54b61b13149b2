/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The k best of a query's scores (spec 7.5), by one block; the plain twin is in index.cu.
 *
 * The k-th largest of the units' largest scores is no more than the k-th largest score: at least k
 * scores are as large as that. So only units with one that large are looked at, which are some k
 * of thousands, whatever the length. Both k-th largest ones are found by counting from the top, a
 * place for each value: what is chosen lies close together. What is in front of a thread then says
 * where its own go: ascending indices, of equal scores the first.
 */
#include "base/err.h"
#include "gpu/cuda/device.cuh"
#include "gpu/cuda/kernels.h"
#include "gpu/index.h"
#include "gpu/index/choose.h"
#include "gpu/index/indexer.h"
#include "model/kvsize.h"

enum {
    EIGHTS = CHOOSE_EIGHTS,
    UNIT = CHOOSE_UNIT,
    PLACES = 1024, /* values that are counted at a time */
    LEAST_THREADS = 256,
    ABOVE = 1 << 20, /* more than there are scores */
    RATIO = MODEL_CSA_RATIO,
};

/* Key i of the 8 in v. */
static __device__ __forceinline__ int
one_of(const uint4 &v, int i)
{
    const uint32_t w = i / 2 == 0 ? v.x : i / 2 == 1 ? v.y : i / 2 == 2 ? v.z : v.w;

    return (int)(i % 2 == 0 ? w & 0xffff : w >> 16);
}

/* Bit i: key i of the 8 in v is at least `limit`, of which there are two in a word. */
static __device__ __forceinline__ uint32_t
at_least(const uint4 &v, uint32_t limits)
{
    const uint32_t w[] = {v.x, v.y, v.z, v.w};
    uint32_t bits = 0;

#pragma unroll
    for (int i = 0; i < 4; i++) {
        bool high, low;

        __vibmax_u16x2(w[i], limits, &high, &low);
        bits |= (low ? 1u << 2 * i : 0u) | (high ? 2u << 2 * i : 0u);
    }
    return bits;
}

static __device__ __forceinline__ uint4
larger_of(const uint4 &x, const uint4 &y)
{
    return make_uint4(__vmaxu2(x.x, y.x), __vmaxu2(x.y, y.y), __vmaxu2(x.z, y.z),
                      __vmaxu2(x.w, y.w));
}

/* What the threads in front have, and all together. All threads; sum is not used by then. */
template <int THREADS>
static __device__ __forceinline__ uint32_t
in_front(uint32_t mine, int *sum, uint32_t *all)
{
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    uint32_t upto = mine;

#pragma unroll
    for (int d = 1; d < WARP; d *= 2) {
        const uint32_t v = __shfl_up_sync(~0u, upto, d);

        upto += lane >= d ? v : 0;
    }
    if (lane == WARP - 1)
        sum[warp] = (int)upto;
    __syncthreads();
    const uint32_t other = lane < THREADS / WARP ? (uint32_t)sum[lane] : 0;

    *all = __reduce_add_sync(~0u, other);
    return __reduce_add_sync(~0u, lane < warp ? other : 0) + upto - mine;
}

/* The largest of all threads; most is not used by then. */
template <int THREADS>
static __device__ __forceinline__ int
block_most(int mine, int *most)
{
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const uint32_t of_warp = __reduce_max_sync(~0u, (uint32_t)mine);

    if (lane == 0)
        most[warp] = (int)of_warp;
    __syncthreads();
    return (int)__reduce_max_sync(~0u, lane < THREADS / WARP ? (uint32_t)most[lane] : 0);
}

/* The first place up to which there are k, and how many of k are its own; all that there are.
 * Places are 0 then. All threads. */
template <int THREADS>
static __device__ __forceinline__ uint32_t
find_place(int *place, int *sum, int *found, int k)
{
    enum { EACH = PLACES / THREADS };

    int *own = place + (int)threadIdx.x * EACH, here[EACH], mine = 0;
    uint32_t all;

#pragma unroll
    for (int i = 0; i < EACH; i++) {
        here[i] = own[i];
        own[i] = 0;
        mine += here[i];
    }
    int before = (int)in_front<THREADS>((uint32_t)mine, sum, &all);

    if (before < k && before + mine >= k)
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            if (before < k && before + here[i] >= k) {
                found[0] = (int)threadIdx.x * EACH + i;
                found[1] = k - before;
            }
            before += here[i];
        }
    __syncthreads();
    return all;
}

/* The k-th largest of what each(f) calls f with, in all threads at least k, none above top; *rest:
 * its rank among equals. Places are 0, before and after. */
template <int THREADS, typename E>
static __device__ __forceinline__ int
find_kth(int *place, int *sum, int *most, int *found, E each, int top, int k, int *rest)
{
    for (;;) {
        int next = 0;

        each([&](int v) {
            if ((unsigned)(top - v) < PLACES)
                atomicAdd(&place[top - v], 1);
        });
        __syncthreads();
        const uint32_t all = find_place<THREADS>(place, sum, found, k);

        if (all >= (uint32_t)k)
            break;
        k -= (int)all;
        each([&](int v) { next = v <= top - PLACES ? max(next, v) : next; });
        top = block_most<THREADS>(next, most);
    }
    *rest = found[1];
    return top - found[0];
}

/* Of a query's units those with a score of at least `least`, to list, ascending; how many. tops:
 * the thread's eights of largest scores. */
template <int THREADS>
static __device__ __forceinline__ int
list_units(const uint4 *tops, int each, int own, int units, int least, int *sum,
           uint16_t *list)
{
    uint32_t bits = 0, all;

#pragma unroll 1
    for (int e = 0; e < each && (own + e) * 8 < units; e++)
        bits |= at_least(tops[e], (uint32_t)least * 0x10001) << e * 8;
    const int left = units - own * 8;

    if (left < 32)
        bits &= left <= 0 ? 0 : (1u << left) - 1;
    int at = (int)in_front<THREADS>(__popc(bits), sum, &all);

    for (; bits != 0; bits &= bits - 1)
        list[at++] = (uint16_t)(own * 8 + __ffs((int)bits) - 1);
    __syncthreads();
    return (int)all;
}

/* A thread's units of those that are listed. If there is one, it is in v all the time. */
struct owned {
    const uint16_t *score, *list;
    int first, end;
    uint4 v[UNIT / 8];
};

static __device__ __forceinline__ int
owned_load(struct owned &o, int unit)
{
    const int at = o.list[unit] * UNIT;

#pragma unroll
    for (int i = 0; i < UNIT / 8; i++)
        o.v[i] = ((const uint4 *)(o.score + at))[i];
    return at;
}

/* f(bits of the unit's scores that are at least `limit`, where it begins), ascending. */
template <typename F>
static __device__ __forceinline__ void
each_unit(struct owned &o, int limit, F f)
{
    const uint32_t limits = (uint32_t)limit * 0x10001;

#pragma unroll 1
    for (int u = o.first; u < o.end; u++) {
        const int at = o.end - o.first > 1 ? owned_load(o, u) : o.list[u] * UNIT;

        f(at_least(o.v[0], limits) | at_least(o.v[1], limits) << 8, at);
    }
}

/* Grid: rows. each: eights of units of a thread. */
template <int THREADS>
static __global__ void __launch_bounds__(THREADS)
best_kernel(const __grid_constant__ struct choose_args a, int each)
{
    LAUNCH_SHARED(16, uint16_t, list);
    __shared__ int place[PLACES], sum[WARP], most[WARP], found[2];
    const int t = threadIdx.x, row = blockIdx.x;
    const int n = (int)entries_visible(a.rows[row].pos, (uint64_t)RATIO);
    const int units = choose_units(n), own = choose_own(t, each);
    const uint16_t *score = a.score + row_start(row, choose_stride(a.max_rows));
    const uint4 *tops = (const uint4 *)(score + choose_tops(a.max_rows)) + own;
    uint4 top = make_uint4(0, 0, 0, 0);
    int least = 0, rest = 0;

    pdl_go();
    if (n <= a.topk) {
        pdl_wait();
        return;
    }
#pragma unroll
    for (int i = 0; i < PLACES / THREADS; i++)
        place[t + i * THREADS] = 0;
    pdl_wait();
#pragma unroll
    for (int e = 0; e < EIGHTS; e++)
        if (e < each && (own + e) * 8 < units) {
            const uint4 v = tops[e];

            top = larger_of(top, v);
        }
    const uint32_t pair = __vmaxu2(__vmaxu2(top.x, top.y), __vmaxu2(top.z, top.w));
    const int largest = block_most<THREADS>((int)max(pair & 0xffff, pair >> 16), most);

    if (units > a.topk)
        least = find_kth<THREADS>(
            place, sum, most, found,
            [&](auto f) {
#pragma unroll
                for (int i = 0; i < 8; i++)
                    f(one_of(top, i));
            },
            largest, a.topk, &rest);
    const int listed = list_units<THREADS>(tops, each, own, units, least, sum, list);
    const int per = choose_each(listed, THREADS), begin = min(choose_own(t, per), listed);
    struct owned o = {score, list, begin, min(begin + per, listed), {}};

    if (o.first < o.end)
        owned_load(o, o.first);
    const int limit = find_kth<THREADS>(
        place, sum, most, found,
        [&](auto f) {
            each_unit(o, least, [&](uint32_t bits, int) {
#pragma unroll
                for (int i = 0; i < UNIT; i++)
                    if (bits >> i & 1)
                        f(one_of(o.v[i / 8], i % 8));
            });
        },
        largest, a.topk, &rest);
    uint32_t count = 0, all;

    each_unit(o, limit, [&](uint32_t bits, int) { count += __popc(bits); });
    if (limit < 0xffff)
        each_unit(o, limit + 1,
                  [&](uint32_t bits, int) { count += __popc(bits) * (ABOVE - 1); });
    const uint32_t front = in_front<THREADS>(count, sum, &all);
    int above = (int)(front / ABOVE), equal = (int)(front % ABOVE);
    int *picked = a.picked + row_start(row, a.topk);

    if (count != 0)
        each_unit(o, limit, [&](uint32_t bits, int at) {
            for (; bits != 0; bits &= bits - 1) {
                const int j = at + __ffs((int)bits) - 1;
                const bool is_above = score[j] > limit;

                if (is_above || equal < rest)
                    picked[topk_place(above, equal, rest)] = j;
                above += is_above ? 1 : 0;
                equal += is_above ? 0 : 1;
            }
        });
}

template <int THREADS>
static int
best(struct cuda_rank *rk, const struct choose_args *a, struct err *e)
{
    const int tops = ceil_div(choose_units(a->max_rows), 8);
    const size_t shared = (size_t)tops * 8 * sizeof(uint16_t);

    if (shared > 40 * 1024) /* beside what the kernel has anyway */
        SHARED_TRY(best_kernel<THREADS>, shared, e);
    CU_TRY(launch_pdl(rk, best_kernel<THREADS>, dim3(a->n), THREADS, shared, *a,
                      choose_each(tops, THREADS)),
           e);
    return 0;
}

int
best_cuda(struct cuda_rank *rk, const struct choose_args *a, struct err *e)
{
    const int units = choose_units(a->max_rows), some = a->topk + a->topk / 4;
    const int looked_at = units < some ? units : some; /* of equal ones there may be more */
    const int work = ceil_div(units, 8) > looked_at ? ceil_div(units, 8) : looked_at;

    if (a->topk > CHOOSE_TOPK || a->max_rows > CHOOSE_MOST)
        return err_set(e, ERR_INTERNAL, 0, "best: %d of %d", a->topk, a->max_rows);
    if (work <= LEAST_THREADS)
        return best<LEAST_THREADS>(rk, a, e);
    return work <= CHOOSE_THREADS / 2 ? best<CHOOSE_THREADS / 2>(rk, a, e)
                                      : best<CHOOSE_THREADS>(rk, a, e);
}
