/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The second half of bench-cuda: whole models of made-up weights (model/synthetic.h), such as one
 * device's half of published Flash when two share it. Times are for true shapes and bytes; what the
 * model says means nothing.
 *
 * Long contexts are a prefill of 8,192 tokens whose pages are copied, so that all rows are valid and
 * lie in memory of their own. A step's time is that between events behind it and the step before:
 * steps are put on the stream without waiting, and take their token from the device.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include <cuda_profiler_api.h>

#include "base/err.h"
#include "gpu/cuda/cuda.h"
#include "gpu/cuda/kernels.h"
#include "model/weights.h"
#include "tools/benchmarks/cuda.h"

enum { PREFILL = 8192, STEPS = 220, WARM = 20, MAX_BATCH = 64, TIMES = 512 };

static void
fail_if(int r, const struct err *e)
{
    if (r == 0)
        return;
    fprintf(stderr, "bench-cuda: %s\n", e->text);
    exit(EX_SOFTWARE);
}

static void
cuda_is(cudaError_t err)
{
    if (err == cudaSuccess)
        return;
    fprintf(stderr, "bench-cuda: %s\n", cudaGetErrorString(err));
    exit(EX_SOFTWARE);
}

static int
by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static uint32_t
some_token(const struct backend *b)
{
    static uint64_t s = 0x9e3779b97f4a7c15;

    s ^= s << 13;
    s ^= s >> 7;
    s ^= s << 17;
    return (uint32_t)((s >> 20) % (uint64_t)b->c.vocab_size);
}

/* `total` tokens in steps of `chunk`; seconds. */
static double
prefill(struct backend *b, uint32_t seq, uint32_t total, uint32_t chunk)
{
    uint32_t *text = malloc(total * sizeof *text);
    struct err e = {0};
    double from;

    for (uint32_t i = 0; i < total; i++)
        text[i] = some_token(b);
    from = cuda_bench_now();
    for (uint32_t at = 0; at < total; at += chunk) {
        struct step_seq in = {.seq = seq,
                              .n_tokens = total - at < chunk ? total - at : chunk,
                              .tokens = text + at};

        fail_if(backend_cuda.step(b, &(struct step){.n_seqs = 1, .seqs = &in}, &e), &e);
    }
    from = cuda_bench_now() - from;
    free(text);
    return from;
}

/* A sequence of PREFILL tokens becomes one of len, by copies of its pages. */
static void
extend(struct backend *b, uint32_t seq, uint64_t len)
{
    struct cuda_seq *q = &b->seqs[seq];
    const size_t had = (size_t)(q->len / KV_PAGE_TOKENS);
    struct err e = {0};

    if (len <= q->len)
        return;
    len = len / KV_PAGE_TOKENS * KV_PAGE_TOKENS;
    fail_if(cuda_pages_add(b, q, len / KV_PAGE_TOKENS - q->n_pages, &e), &e);
    for (size_t i = had; i < q->n_pages; i++)
        cuda_is(cudaMemcpyAsync(cuda_page_of(b, q->pages[i]),
                                cuda_page_of(b, q->pages[i % had]), b->at.page_bytes,
                                cudaMemcpyDeviceToDevice, b->rk.stream));
    q->len = q->high = len;
    fail_if(rank_wait(&b->rk, &e), &e);
}

/* Temperature 1, top-p 0.95. */
static const struct draw usual = {.scale = 1, .seed = 1, .top_p = 0.95f};

/* n sequences, a token a step. */
static double
decode(struct backend *b, uint32_t n, const char *what)
{
    static double step[STEPS], host[STEPS];
    static const uint32_t drawn = TOKEN_DRAWN;
    cudaEvent_t at[STEPS + WARM];
    struct step_seq share[MAX_BATCH];
    const struct step s = {.n_seqs = n, .seqs = share};
    struct drawn sink[MAX_BATCH];
    uint32_t first[MAX_BATCH];
    struct err e = {0};

    for (uint32_t i = 0; i < n; i++) {
        first[i] = some_token(b);
        share[i] = (struct step_seq){.seq = i,
                                     .n_tokens = 1,
                                     .tokens = &first[i],
                                     .draw = &usual,
                                     .drawn = &sink[i]};
    }
    for (int k = 0; k < STEPS + WARM; k++) {
        double from;

        cuda_is(cudaEventCreate(&at[k]));
        if (k >= 2)
            cuda_is(cudaEventSynchronize(at[k - 2])); /* its buffer is free */
        from = cuda_bench_now();
        fail_if(cuda_reserve(b, &s, &e), &e);
        fail_if(cuda_forward_begin(b, &s, k % 2, &e), &e);
        if (k >= WARM)
            host[k - WARM] = cuda_bench_now() - from;
        cuda_is(cudaEventRecord(at[k], b->rk.stream));
        for (uint32_t i = 0; i < n; i++)
            share[i].tokens = &drawn;
    }
    fail_if(rank_wait(&b->rk, &e), &e);
    for (int k = 0; k < STEPS; k++) {
        float ms;

        cuda_is(cudaEventElapsedTime(&ms, at[k + WARM - 1], at[k + WARM]));
        step[k] = (double)ms * 1e-3;
    }
    for (int k = 0; k < STEPS + WARM; k++)
        cudaEventDestroy(at[k]);
    qsort(step, STEPS, sizeof *step, by_size);
    qsort(host, STEPS, sizeof *host, by_size);
    printf("%-26s %9.1f us a step (p99 %.1f), %7.1f tokens/s; host %.1f us\n", what,
           step[STEPS / 2] * 1e6, step[STEPS * 99 / 100] * 1e6, n / step[STEPS / 2],
           host[STEPS / 2] * 1e6);
    fflush(stdout);
    return step[STEPS / 2];
}

/* The same through the backend's border: a row of logits to the host, or only its token. */
static void
decode_by_host(struct backend *b, const struct draw *draw)
{
    float *logits = malloc((size_t)b->c.vocab_size * sizeof *logits);
    uint32_t token = some_token(b);
    struct drawn drawn;
    struct step_seq share = {.seq = 0,
                             .n_tokens = 1,
                             .tokens = &token,
                             .n_logits = draw == NULL,
                             .logits = logits,
                             .draw = draw,
                             .drawn = &drawn};
    double v[TIMES];
    struct err e = {0};

    for (int k = 0; k < STEPS; k++) {
        const double from = cuda_bench_now();

        fail_if(backend_cuda.step(b, &(struct step){.n_seqs = 1, .seqs = &share}, &e), &e);
        v[k] = cuda_bench_now() - from;
        token = some_token(b);
    }
    qsort(v, STEPS, sizeof *v, by_size);
    printf("%-26s %9.1f us a step (p99 %.1f)\n",
           draw == NULL ? "  logits to the host" : "  its token to the host",
           v[STEPS / 2] * 1e6, v[STEPS * 99 / 100] * 1e6);
    free(logits);
}

static void
swap_out_and_in(struct backend *b, uint64_t len)
{
    struct kv_layout *l = &b->layout;
    const size_t n = (size_t)(b->seqs[0].len / KV_PAGE_TOKENS),
                 bytes = n * b->at.page_bytes;
    const size_t state = (size_t)kv_state_bytes(l, b->seqs[0].len), all = bytes + state;
    uint8_t *host = aligned_alloc(4096, (all + 4095) / 4096 * 4096);
    const uint64_t pos = b->seqs[0].len;
    double best[3] = {1e9, 1e9, 1e9};
    struct err e = {0};

    memset(host, 1, all);
    cuda_kv_memory(b, host, (all + 4095) / 4096 * 4096);
    for (int k = 0; k < 4; k++) {
        double from = cuda_bench_now();

        cuda_is(
            cudaMemcpyAsync(host, b->pool, bytes, cudaMemcpyDeviceToHost, b->rk.stream));
        fail_if(rank_wait(&b->rk, &e), &e);
        best[2] = cuda_bench_now() - from < best[2] ? cuda_bench_now() - from : best[2];
        from = cuda_bench_now();
        fail_if(backend_cuda.kv_out(b, 0, 0, n, host, host + bytes, &e), &e);
        while (backend_cuda.kv_busy(b, 0, &e) == 1)
            ;
        best[0] = cuda_bench_now() - from < best[0] ? cuda_bench_now() - from : best[0];
        fail_if(backend_cuda.seq_open(b, 1, &e), &e);
        from = cuda_bench_now();
        fail_if(backend_cuda.kv_in(b, 1, n, host, &e), &e);
        fail_if(backend_cuda.kv_set(b, 1, pos, host + bytes, &e), &e);
        while (backend_cuda.kv_busy(b, 1, &e) == 1)
            ;
        best[1] = cuda_bench_now() - from < best[1] ? cuda_bench_now() - from : best[1];
        backend_cuda.seq_close(b, 1);
    }
    printf(
        "%7llu tokens: %.1f MB, state %.2f MB; one copy %.1f GB/s; out %.1f ms = %.1f GB/s "
        "(%.0f%%), in %.1f ms = %.1f GB/s (%.0f%%)\n",
        (unsigned long long)len, (double)all * 1e-6, (double)state * 1e-6,
        (double)bytes / best[2] * 1e-9, best[0] * 1e3, (double)all / best[0] * 1e-9,
        (double)all / best[0] / ((double)bytes / best[2]) * 100.0, best[1] * 1e3,
        (double)all / best[1] * 1e-9,
        (double)all / best[1] / ((double)bytes / best[2]) * 100.0);
    fflush(stdout);
    cudaHostUnregister(b->pinned);
    b->pinned = NULL;
    free(host);
}

/* What the linker calls in place of the kernels of hyper-connections, and those themselves. */
int __real_streams_mix_cuda(struct cuda_rank *rk, const struct streams_mix_args *a,
                            struct err *e);
int __real_streams_in_cuda(struct cuda_rank *rk, const struct streams_in_args *a,
                           struct err *e);
int __wrap_streams_mix_cuda(struct cuda_rank *rk, const struct streams_mix_args *a,
                            struct err *e);
int __wrap_streams_in_cuda(struct cuda_rank *rk, const struct streams_in_args *a,
                           struct err *e);

static bool without_streams;

int
__wrap_streams_mix_cuda(struct cuda_rank *rk, const struct streams_mix_args *a,
                        struct err *e)
{
    return without_streams ? 0 : __real_streams_mix_cuda(rk, a, e);
}

int
__wrap_streams_in_cuda(struct cuda_rank *rk, const struct streams_in_args *a, struct err *e)
{
    return without_streams ? 0 : __real_streams_in_cuda(rk, a, e);
}

static void
forget_graphs(struct backend *b)
{
    for (int i = 0; i < CUDA_GRAPHS; i++) {
        if (b->graphs[i].exec != NULL)
            cudaGraphExecDestroy(b->graphs[i].exec);
        b->graphs[i] = (struct cuda_graph){0};
    }
}

/* A step at 1k of which something is left out. */
static double
decode_without(struct backend *b, bool exchange, bool streams, const char *what)
{
    const bool was = b->exchange;
    struct err e = {0};
    double t;

    fail_if(backend_cuda.seq_open(b, 0, &e), &e);
    prefill(b, 0, 1024, CUDA_STEP_TOKENS);
    b->exchange = was && !exchange;
    without_streams = streams;
    forget_graphs(b);
    t = decode(b, 1, what);
    forget_graphs(b);
    b->exchange = was;
    without_streams = false;
    backend_cuda.seq_close(b, 0);
    return t;
}

/*
 * What hyper-connections and the exchange take of a step: by how much it is shorter without them,
 * all other kernels doing the same work on rows that mean nothing. A sum of times of kernels alone
 * would count the launch of each and what a step hides behind others.
 */
static void
shares(struct backend *b)
{
    const double all = decode_without(b, false, false, "once more, all of it");
    const double alone = decode_without(b, true, false, "  without exchange");
    const double rest = decode_without(b, true, true, "  nor hyper-connections");

    printf("hyper-connections %.1f us, %.1f%% of a step; exchange %.1f us, %.1f%%\n",
           (alone - rest) * 1e6, (alone - rest) / all * 100, (all - alone) * 1e6,
           (all - alone) / all * 100);
    fflush(stdout);
}

static void
all_contexts(struct backend *b)
{
    static const uint64_t lengths[] = {1024, 32768, 131072, 1048576 - 1024};
    struct err e = {0};
    char what[64];

    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        fail_if(backend_cuda.seq_open(b, 0, &e), &e);
        prefill(b, 0, lengths[i] < PREFILL ? (uint32_t)lengths[i] : PREFILL,
                CUDA_STEP_TOKENS);
        extend(b, 0, lengths[i]);
        snprintf(what, sizeof what, "batch 1 at %llu", (unsigned long long)lengths[i]);
        decode(b, 1, what);
        if (i == 0) {
            decode_by_host(b, NULL);
            decode_by_host(b, &usual);
        }
        if (i == 2)
            printf("append of 128 tokens at 128k %10.1f ms\n",
                   prefill(b, 0, 128, 128) * 1e3);
        if (i >= 2)
            swap_out_and_in(b, lengths[i]);
        backend_cuda.seq_close(b, 0);
        if (i == 0)
            shares(b);
    }
}

static void
batches(struct backend *b)
{
    static const uint32_t sizes[] = {2, 4, 8, 16, 32, 64};
    struct err e = {0};
    char what[64];

    fail_if(backend_cuda.seq_open(b, 0, &e), &e);
    printf("prefill of %d by %d: ", PREFILL, CUDA_STEP_TOKENS);
    printf("%.0f tokens/s\n", PREFILL / prefill(b, 0, PREFILL, CUDA_STEP_TOKENS));
    for (uint32_t i = 1; i < MAX_BATCH; i++)
        fail_if(backend_cuda.seq_fork(b, 0, i, &e), &e);
    for (uint32_t i = 0; i < MAX_BATCH; i++)
        extend(b, i, 32768);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        snprintf(what, sizeof what, "batch %u at 32k", sizes[i]);
        decode(b, sizes[i], what);
    }
    for (uint32_t i = 0; i < MAX_BATCH; i++)
        backend_cuda.seq_close(b, i);
}

/* One step as it is, for a profiler that is told to wait for it. */
static void
profile(struct backend *b, uint64_t len, int again)
{
    struct err e = {0};

    fail_if(backend_cuda.seq_open(b, 0, &e), &e);
    prefill(b, 0, len < PREFILL ? (uint32_t)len : PREFILL, CUDA_STEP_TOKENS);
    extend(b, 0, len);
    b->no_graphs = true;
    prefill(b, 0, (uint32_t)again, (uint32_t)again);
    cudaProfilerStart();
    prefill(b, 0, (uint32_t)again, (uint32_t)again);
    cudaProfilerStop();
    b->no_graphs = false;
    backend_cuda.seq_close(b, 0);
}

void
bench_synthetic(const struct synthetic_bench *s)
{
    const struct backend_opts o = {.max_seqs = MAX_BATCH,
                                   .kv_bytes = s->kv_bytes,
                                   .experts_made = (uint32_t)s->experts};
    struct backend_info info;
    struct model_config c;
    struct weights *w;
    struct backend *b;
    struct err e = {0};
    double from = cuda_bench_now();

    fail_if(model_config_load(&c, s->dir, &e), &e);
    if (s->half) {
        c.n_heads /= 2;
        c.o_groups /= 2;
        c.moe_inter /= 2;
        c.vocab_size /= 2;
    }
    if (s->layers > 0 && s->layers < c.n_layers) {
        c.ratio[s->layers] = c.ratio[c.n_layers];
        c.n_layers = s->layers;
    }
    w = weights_synthetic(&c, s->seed, &e);
    b = w != NULL ? backend_cuda.open(&c, w, &o, &e) : NULL;
    fail_if(b != NULL ? 0 : -1, &e);
    b->exchange = s->half;
    backend_cuda.info(b, &info);
    printf("%s%s, %d layers, seed %llu: weights %.2f GB, page %llu B = %.1f B a token, "
           "sequence %.2f MB, all %.2f GB, open %.1f s\n",
           s->dir, s->half ? ", one of two devices" : "", c.n_layers,
           (unsigned long long)s->seed, (double)info.weight_bytes * 1e-9,
           (unsigned long long)info.page_bytes, (double)info.page_bytes / 128.0,
           (double)info.seq_fixed_bytes * 1e-6, (double)b->arena.size * 1e-9,
           cuda_bench_now() - from);
    fflush(stdout);
    if (s->profile > 0)
        profile(b, s->profile, s->rows);
    else {
        all_contexts(b);
        batches(b);
    }
    backend_cuda.close(b);
    weights_close(w);
}
