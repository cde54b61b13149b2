/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The token that comes next, drawn where the logits are: that of model/sampler.c for the same row,
 * since weights are integers, whose sums are the same in any order (docs/SAMPLING.md).
 *
 * A row is cut into slices, a block each. best_kernel finds the largest logit. draw_kernel makes the
 * weights and counts them in bins, from the best to the worst; each block also leaves its logits in
 * the order of their bins. The block that comes last for a row has everybody's bins: top-k, top-p
 * and the draw each want the fewest best candidates that come to something. Which bin the last of
 * them is in, the bins say; and that one's members, some hundred, are compared with each other.
 */
#include <float.h>

#include "base/err.h"
#include "gpu/cuda/device.cuh"
#include "gpu/cuda/kernels.h"
#include "gpu/index/sample.h"
#include "model/draw.h"

enum {
    THREADS = SAMPLE_THREADS,
    WARPS = THREADS / WARP,
    SMALL = 2, /* logits a thread, of one row or a few */
    LARGE = 8, /* and of many */
    MANY_ROWS = 4,
    BINS = SAMPLE_BINS,
    OWN = SAMPLE_OWN,
    FEW = 1024, /* members of a bin that there is room for */
    MANY = 32,  /* more are not compared all with all */
    DIGIT = 10, /* bits: as many values as there are bins */
    READERS = SAMPLE_READERS,
};

using word = unsigned long long;

/* A logit and its token in one number that is larger for the better candidate. */
static __device__ __forceinline__ word
key_of(float x, int id)
{
    const uint32_t u = __float_as_uint(x);

    return (word)(u >> 31 ? ~u : u | 0x80000000u) << 32 | (0xffffffffu - (uint32_t)id);
}

static __device__ __forceinline__ float
logit_of(word key)
{
    const uint32_t u = (uint32_t)(key >> 32);

    return __uint_as_float(u >> 31 ? u & 0x7fffffffu : ~u);
}

static __device__ __forceinline__ uint32_t
token_of(word key)
{
    return 0xffffffffu - (uint32_t)key;
}

/* As logits_clean does it, and one zero only: equal logits have equal bits. */
static __device__ __forceinline__ float
clean(float x)
{
    if (isnan(x))
        return -INFINITY;
    return x > FLT_MAX ? FLT_MAX : x == 0.0f ? 0.0f : x;
}

/* model/logits.c's, operation by operation. */
static __device__ __forceinline__ word
weight_of(float x, double max, double scale)
{
    const double to_integer = 0x1.8p52, log2e = 0x1.71547652b82fep+0, integers = 0x1p52;
    const double ln2_high = 0x1.62e42ffp-1, ln2_low = -0x1.718432a1b0e26p-35;
    const double y = ((double)x - max) * scale;

    if (!(y >= -708.0))
        return 0;

    const double shifted = y * log2e + to_integer, k = shifted - to_integer;
    const double r = (y - k * ln2_high) - k * ln2_low, r2 = r * r, r4 = r2 * r2;
    const double a = (1.0 + r) + r2 * (0x1p-1 + r * (1.0 / 6));
    const double b = (1.0 / 24 + r * (1.0 / 120)) + r2 * (1.0 / 720 + r * (1.0 / 5040));
    const double c = (1.0 / 40320 + r * (1.0 / 362880)) +
                     r2 * (1.0 / 3628800 + r * (1.0 / 39916800)) + r4 * (1.0 / 479001600);
    const double p = a + r4 * (b + r4 * c);
    const double w =
        __longlong_as_double((long long)((word)__double_as_longlong(p) +
                                         ((word)__double_as_longlong(shifted) << 52)));

    return (word)__double_as_longlong(w * LOGITS_UNIT + integers) -
           (word)__double_as_longlong(integers);
}

/* What is known of some logits. */
struct found {
    word best;
    float least; /* number */
    uint32_t odd;
};

struct totals {
    word one, strong; /* weights at temperature 1; those that min-p leaves */
    uint32_t arrived;
};

/* A row's scratch memory. */
struct work {
    word *list;         /* [slices][of a slice]: keys in the order of their bins */
    word *sum;          /* [BINS] */
    struct found *part; /* [slices] */
    struct totals *all;
    uint32_t *count; /* [BINS] */
    uint16_t *end;   /* [slices][BINS]: where a bin ends in the list */
};

static_assert(sizeof(struct found) == SAMPLE_FOUND &&
                  sizeof(struct totals) == SAMPLE_TOTALS,
              "gpu/index/sample.h");

static size_t
bytes_of(int n, int slice)
{
    return sample_plan_for(ceil_div(n, slice), slice).bytes;
}

size_t
sample_bytes(int n)
{
    const size_t small = bytes_of(n, SMALL * THREADS), large = bytes_of(n, LARGE * THREADS);

    return small > large ? small : large;
}

static __device__ __forceinline__ struct work
work_of(const struct sample_args &a, int row, int slices, int slice)
{
    struct work w;

    w.list = (word *)(a.work + row_start(row, a.row_bytes));
    w.sum = w.list + row_start(slices, slice);
    w.part = (struct found *)(w.sum + BINS);
    w.all = (struct totals *)(w.part + slices);
    w.count = (uint32_t *)(w.all + 1);
    w.end = (uint16_t *)(w.count + BINS);
    return w;
}

static __device__ __forceinline__ struct found
better_of(struct found a, struct found b)
{
    a.best = b.best > a.best ? b.best : a.best;
    a.least = fminf(a.least, b.least);
    a.odd |= b.odd;
    return a;
}

/* Everybody's, in every thread. */
static __device__ __forceinline__ struct found
block_found(struct found f)
{
    __shared__ struct found part[WARPS];
    const int lane = threadIdx.x % WARP;

    for (int d = WARP / 2; d > 0; d /= 2)
        f = better_of(f, {__shfl_xor_sync(~0u, f.best, d), __shfl_xor_sync(~0u, f.least, d),
                          __shfl_xor_sync(~0u, f.odd, d)});
    if (lane == 0)
        part[threadIdx.x / WARP] = f;
    __syncthreads();
    f = part[lane % WARPS];
    for (int d = WARPS / 2; d > 0; d /= 2)
        f = better_of(f, {__shfl_xor_sync(~0u, f.best, d), __shfl_xor_sync(~0u, f.least, d),
                          __shfl_xor_sync(~0u, f.odd, d)});
    return f;
}

template <int EACH>
static __global__ void __launch_bounds__(THREADS)
best_kernel(const __grid_constant__ struct sample_args a)
{
    const int slice = blockIdx.x, row = blockIdx.y, slices = gridDim.x;
    const float *x = a.x + row_start(row, a.n);
    const struct work w = work_of(a, row, slices, EACH * THREADS);
    struct found f = {0, FLT_MAX, 0};

    pdl_go();
    pdl_wait();
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int id = grid_item(slice, EACH * THREADS, grid_item(i, THREADS, threadIdx.x));

        if (id < a.n) {
            const float raw = x[id], v = clean(raw);

            f = better_of(f, {key_of(v, id), v == -INFINITY ? FLT_MAX : v,
                              (uint32_t) !(fabsf(raw) <= FLT_MAX)});
        }
    }
    f = block_found(f);
    if (threadIdx.x == 0)
        w.part[slice] = f;
    for (int i = grid_item(slice, THREADS, threadIdx.x); i < BINS; i += slices * THREADS) {
        w.count[i] = 0;
        w.sum[i] = 0;
    }
    if (slice == 0 && threadIdx.x == 0)
        *w.all = {0, 0, 0};
}

/* Candidates: how many, and their weight. */
struct heap {
    word w;
    uint32_t n;
};

/* What the threads in front of this one have; *all: everybody. */
static __device__ __forceinline__ struct heap
sum_before(struct heap v, struct heap *all)
{
    __shared__ struct heap part[WARPS];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    struct heap upto = v, before = {0, 0};

    for (int d = 1; d < WARP; d *= 2) {
        const word w = __shfl_up_sync(~0u, upto.w, d);
        const uint32_t n = __shfl_up_sync(~0u, upto.n, d);

        upto.w += lane >= d ? w : 0;
        upto.n += lane >= d ? n : 0;
    }
    __syncthreads(); /* part may still be read from the call before */
    if (lane == WARP - 1)
        part[warp] = upto;
    __syncthreads();
    *all = {0, 0};
    for (int i = 0; i < WARPS; i++) {
        before.w += i < warp ? part[i].w : 0;
        before.n += i < warp ? part[i].n : 0;
        all->w += part[i].w;
        all->n += part[i].n;
    }
    return {before.w + upto.w - v.w, before.n + upto.n - v.n};
}

/* Bins, and what candidates of better bins come to. */
struct bins {
    struct heap own[OWN], before[OWN];
};

/* Makes what comes before; `front` is in front of all of them. */
static __device__ __forceinline__ struct heap
line_up(struct bins *b, struct heap front)
{
    struct heap mine = {0, 0}, all;

    for (int i = 0; i < OWN; i++) {
        mine.w += b->own[i].w;
        mine.n += b->own[i].n;
    }
    mine = sum_before(mine, &all);
    for (int i = 0; i < OWN; i++) {
        b->before[i] = {front.w + mine.w, front.n + mine.n};
        mine.w += b->own[i].w;
        mine.n += b->own[i].n;
    }
    return all;
}

/* What the last block is looking for: the last of the fewest best candidates that come to `worth`,
 * in number or in weight. */
struct goal {
    word worth;
    bool count;
};

/* Where that is: one of n members of a bin whose keys begin with `prefix`, behind others. */
struct place {
    int bin, shift;
    word prefix;
    uint32_t n;
    struct heap front;
};

/* A candidate, and what it and all better ones weigh. */
struct picked {
    word key, weight;
};

struct member {
    word key, weight;
};

/* What the threads of the last block share. */
struct shared {
    uint32_t count[BINS];
    word sum[BINS];
    struct member member[FEW], close[FEW];
    struct place at;
    struct picked picked;
    uint32_t n;
};

/* What a row is, and how it is to be drawn from. */
struct task {
    struct work w;
    struct draw d;
    double max, per; /* bins for a logit's distance from the largest */
    uint64_t random;
    int slices, slice; /* slice: logits of one */
};

/* Which bin, from the best on; of equal logits the same. Its members in smaller bins, likewise. */
static __device__ __forceinline__ int
bin_of(const struct task &k, float x)
{
    const double bin = (k.max - (double)x) * k.per;

    return bin < BINS - 1 ? (int)bin : BINS - 1;
}

static __device__ __forceinline__ int
small_bin_of(const struct task &k, float x, int bin)
{
    const double small = ((k.max - (double)x) * k.per - bin) * BINS;

    return small < BINS - 1 ? (int)small : BINS - 1;
}

static __device__ __forceinline__ word
worth_of(struct heap h, bool count)
{
    return count ? h.n : h.w;
}

/* The bin where the goal is, if it is one of this thread's; values of digits are bins, too. */
static __device__ __forceinline__ void
find_goal(struct shared &s, const struct bins &b, struct goal g)
{
    for (int i = 0; i < OWN; i++) {
        const word before = worth_of(b.before[i], g.count);

        if (before < g.worth && g.worth <= before + worth_of(b.own[i], g.count)) {
            s.at.bin = sample_bin(threadIdx.x, i);
            s.at.n = b.own[i].n;
            s.at.front = b.before[i];
        }
    }
    if (threadIdx.x == 0)
        s.n = 0;
}

/* The same in the bins of s, whose members are behind p's front. */
static __device__ __forceinline__ void
find_among(struct shared &s, const struct place &p, struct goal g)
{
    struct bins b;

    __syncthreads();
    for (int i = 0; i < OWN; i++)
        b.own[i] = {s.sum[sample_bin(threadIdx.x, i)], s.count[sample_bin(threadIdx.x, i)]};
    line_up(&b, p.front);
    find_goal(s, b, g);
    __syncthreads();
}

static __device__ __forceinline__ void
empty_bins(struct shared &s)
{
    for (int i = threadIdx.x; i < BINS; i += THREADS) {
        s.count[i] = 0;
        s.sum[i] = 0;
    }
}

static __device__ __forceinline__ void
put(struct shared &s, int bin, word weight)
{
    atomicAdd(&s.count[bin], 1u);
    atomicAdd(&s.sum[bin], weight);
}

/* f(key, weight) for all members of a place's bin whose keys have its prefix. */
template <typename F>
static __device__ __forceinline__ void
each_member(const struct task &k, const struct place &p, F f)
{
#pragma unroll 1
    for (int slice = threadIdx.x / READERS; slice < k.slices; slice += THREADS / READERS) {
        const uint16_t *end = k.w.end + row_start(slice, BINS) + p.bin;
        const int from = p.bin > 0 ? __ldcg(end - 1) : 0, to = __ldcg(end);

#pragma unroll 1
        for (int i = from + threadIdx.x % READERS; i < to; i += READERS) {
            const word key = __ldcg(k.w.list + row_start(slice, k.slice) + i);

            if (p.shift == 64 || key >> p.shift == p.prefix)
                f(key, weight_of(logit_of(key), k.max, k.d.scale));
        }
    }
}

/* A bin of too many: those of one value of the next bits of their keys. */
static __device__ void
narrow(struct shared &s, const struct task &k, struct place *p, struct goal g)
{
    const int bits = p->shift < DIGIT ? p->shift : DIGIT, shift = p->shift - bits;
    const uint32_t most = (1u << bits) - 1;

    empty_bins(s);
    __syncthreads();
    each_member(k, *p, [&](word key, word weight) {
        put(s, most - ((uint32_t)(key >> shift) & most), weight);
    });
    find_among(s, *p, g);
    p->prefix = (p->shift == 64 ? 0 : p->prefix << bits) | (most - (uint32_t)s.at.bin);
    p->shift = shift;
    p->n = s.at.n;
    p->front = s.at.front;
    __syncthreads();
}

/* Of n members, in memory by now, those of one of the small bins: a few. */
static __device__ __forceinline__ void
close_in(struct shared &s, const struct task &k, struct place *p, struct goal g)
{
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < p->n; i += THREADS)
        put(s, small_bin_of(k, logit_of(s.member[i].key), p->bin), s.member[i].weight);
    find_among(s, *p, g);
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < p->n; i += THREADS)
        if (small_bin_of(k, logit_of(s.member[i].key), p->bin) == s.at.bin)
            s.close[atomicAdd(&s.n, 1u)] = s.member[i];
    p->n = s.at.n;
    p->front = s.at.front;
    __syncthreads();
}

/* The goal's candidate; the goal is 1 at least, and no more than all come to. */
static __device__ __forceinline__ struct picked
pick(struct shared &s, const struct task &k, const struct bins &b, struct goal g)
{
    const struct member *m = s.member;
    struct place p;

    find_goal(s, b, g);
    empty_bins(s);
    __syncthreads();
    p = s.at;
    p.shift = 64;
    p.prefix = 0;
    __syncthreads();
    while (p.n > FEW)
        narrow(s, k, &p, g);
    if (p.shift < 64)
        empty_bins(s);
    each_member(k, p, [&](word key, word weight) {
        s.member[atomicAdd(&s.n, 1u)] = {key, weight};
    });
    __syncthreads();
    if (p.n > MANY) {
        close_in(s, k, &p, g);
        m = s.close;
    }
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < p.n; i += THREADS) {
        const struct member mine = m[i];
        struct heap upto = p.front;

        for (uint32_t j = 0; j < p.n; j++)
            if (m[j].key >= mine.key) {
                upto.w += m[j].weight;
                upto.n++;
            }
        if (worth_of(upto, g.count) >= g.worth &&
            worth_of({upto.w - mine.weight, upto.n - 1}, g.count) < g.worth)
            s.picked = {mine.key, upto.w};
    }
    __syncthreads();
    return s.picked;
}

/* Steps 5 to 8, by the last block of a row; one loop, so that their code is there once: it is read
 * once a step. */
static __device__ __forceinline__ word
chosen_key(struct shared &s, const struct task &k)
{
    enum { BY_NUMBER, BY_SHARE, BY_CHANCE, STEPS };

    struct picked found = {0, 0};
    struct heap all;
    struct bins b;

    for (int i = 0; i < OWN; i++)
        b.own[i] = {__ldcg(k.w.sum + threadIdx.x * OWN + i),
                    __ldcg(k.w.count + threadIdx.x * OWN + i)};
    all = line_up(&b, {0, 0});
#pragma unroll 1
    for (int step = BY_NUMBER; step < STEPS; step++) {
        struct goal g = {k.d.top_k, step == BY_NUMBER};

        if (step == BY_SHARE) {
            g.worth = draw_share(k.d.top_p, all.w);
            g.worth = g.worth > 0 ? g.worth : 1;
        }
        if (step == BY_CHANCE) {
            /* those that min-p leaves are some of the best, too */
            const word strong = __ldcg(&k.w.all->strong);

            all.w = k.d.least > 0 && strong < all.w ? strong : all.w;
            g.worth = draw_passed(all.w, k.random) + 1;
        } else if (step == BY_NUMBER ? k.d.top_k == 0 || k.d.top_k >= all.n
                                     : k.d.top_p >= 1 || g.worth >= all.w) {
            continue;
        }
        found = pick(s, k, b, g);
        all.w = found.weight;
    }
    return found.key;
}

/* What a slice has of the row's sums. */
struct part {
    word one, strong;
};

/* The weights of this block's slice: everybody's sums; its list. */
template <int EACH>
static __device__ __forceinline__ void
weigh(struct shared &s, const struct task &k, const float *x, int slice)
{
    __shared__ struct part part[WARPS];
    const struct work &w = k.w;
    const int lane = threadIdx.x % WARP;
    struct part mine = {0, 0};
    word weight[EACH];
    int bin[EACH];
    struct heap n = {0, 0}, all;

    __syncthreads(); /* bins are empty */
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const word one = weight_of(x[i], k.max, 1.0);

        weight[i] = k.d.scale == 1.0 ? one
                    : k.d.scale > 0  ? weight_of(x[i], k.max, k.d.scale)
                                     : 0;
        bin[i] = bin_of(k, x[i]);
        mine.one += one;
        mine.strong += weight[i] >= k.d.least ? weight[i] : 0;
        if (weight[i] > 0)
            put(s, bin[i], weight[i]);
    }
    for (int d = WARP / 2; d > 0; d /= 2) {
        mine.one += __shfl_xor_sync(~0u, mine.one, d);
        mine.strong += __shfl_xor_sync(~0u, mine.strong, d);
    }
    if (lane == 0)
        part[threadIdx.x / WARP] = mine;
    __syncthreads();
    if (threadIdx.x < WARP) {
        mine = part[lane % WARPS];
        for (int d = WARPS / 2; d > 0; d /= 2) {
            mine.one += __shfl_xor_sync(~0u, mine.one, d);
            mine.strong += __shfl_xor_sync(~0u, mine.strong, d);
        }
        if (lane == 0) {
            atomicAdd(&w.all->one, mine.one);
            atomicAdd(&w.all->strong, mine.strong);
        }
    }
    if (k.d.scale == 0)
        return;
    for (int i = 0; i < OWN; i++) {
        const int own = sample_bin(threadIdx.x, i);

        if (s.count[own] > 0) {
            atomicAdd(&w.count[own], s.count[own]);
            atomicAdd(&w.sum[own], s.sum[own]);
        }
        n.n += s.count[own];
    }
    n = sum_before(n, &all);
    for (int i = 0; i < OWN; i++) {
        const int own = sample_bin(threadIdx.x, i);
        const uint32_t from = n.n;

        n.n += s.count[own];
        s.count[own] = from;
        w.end[row_start(slice, BINS) + own] = (uint16_t)n.n;
    }
    __syncthreads();
    for (int i = 0; i < EACH; i++)
        if (weight[i] > 0)
            w.list[row_start(slice, EACH * THREADS) + atomicAdd(&s.count[bin[i]], 1u)] =
                key_of(x[i], grid_item(slice, EACH * THREADS,
                                       grid_item(i, THREADS, threadIdx.x)));
}

/* Bins for what lies between a row's largest logit and its least number: all of it, or as far down
 * as there are weights. Roughly, if in all blocks the same. */
static __device__ __forceinline__ double
bins_per(double span, double reach)
{
    const float all = (float)(span < reach ? span : reach);

    return all > 0.0f ? fminf(BINS / all, 1e30f) : 0.0f;
}

template <int EACH>
static __global__ void __launch_bounds__(THREADS, 1)
draw_kernel(const __grid_constant__ struct sample_args a)
{
    __shared__ struct shared s;
    __shared__ bool last;
    const int slice = blockIdx.x, row = blockIdx.y;
    const struct dev_draw d = a.draw[row];
    /* Weights end 32 below the best. */
    const double reach = d.d.scale > 0 ? 32 / d.d.scale : 0;
    struct task k = {work_of(a, row, gridDim.x, EACH * THREADS),
                     d.d,
                     0,
                     0,
                     draw_random(d.d.seed, d.pos),
                     (int)gridDim.x,
                     EACH * THREADS};
    struct found f = {0, FLT_MAX, 0};
    float x[EACH], max;

    pdl_go();
    empty_bins(s);
    pdl_wait();
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int id = grid_item(slice, EACH * THREADS, grid_item(i, THREADS, threadIdx.x));

        x[i] = id < a.n ? clean(a.x[row_start(row, a.n) + id]) : -INFINITY;
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < k.slices; i += THREADS)
        f = better_of(f, k.w.part[i]);
    f = block_found(f);
    max = logit_of(f.best);
    k.max = (double)max;
    k.per = bins_per(k.max - (double)f.least, reach);
    weigh<EACH>(s, k, x, slice);
    __syncthreads();
    if (threadIdx.x == 0)
        last = arrive(&k.w.all->arrived) == gridDim.x - 1;
    __syncthreads();
    if (!last)
        return;
    if (k.d.scale > 0 && max > -INFINITY)
        f.best = chosen_key(s, k);
    if (threadIdx.x == 0) {
        a.token[row] = token_of(f.best);
        a.drawn[row] = {__ldcg(&k.w.all->one), max, logit_of(f.best), token_of(f.best),
                        f.odd};
    }
}

template <int EACH>
static int
sample(struct cuda_rank *rk, const struct sample_args *a, struct err *e)
{
    const dim3 grid(ceil_div(a->n, EACH * THREADS), a->rows);

    CU_TRY(launch_pdl(rk, best_kernel<EACH>, grid, THREADS, 0, *a), e);
    CU_TRY(launch_pdl(rk, draw_kernel<EACH>, grid, THREADS, 0, *a), e);
    return 0;
}

int
sample_cuda(struct cuda_rank *rk, const struct sample_args *a, struct err *e)
{
    if (a->n < 1 || a->n > LOGITS_MOST)
        return err_set(e, ERR_INTERNAL, 0, "sample: rows of %d", a->n);
    if (a->rows == 0)
        return 0;
    return a->rows < MANY_ROWS ? sample<SMALL>(rk, a, e) : sample<LARGE>(rk, a, e);
}
