/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench-cuda [MODEL]: what the kernels reach on this device, at the shapes of published Flash,
 * and tokens a second of a model.
 * bench-cuda --sample: of drawing tokens alone.
 * bench-cuda --synthetic DIR [--seed S] [--half] [--layers N] [--experts N] [--profile LEN
 * [--rows N]] [--kv-bytes N]: of made-up weights of the shapes in DIR/config.json (synthetic.c).
 *
 * Times are of CUDA events around many launches, the median of several such rounds after one to
 * warm up. Matrices are copied until they are several times the second-level cache and taken in
 * turn, so that each launch reads memory. Contents are random codes, never zeros. Bandwidth is
 * weights read; its share is of what a kernel that only reads gets (probe.cu), measured first.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <time.h>

#include "base/err.h"
#include "gpu/cuda/cuda.h"
#include "model/weights.h"
#include "tools/benchmarks/cuda.h"
#include "tools/benchmarks/probe.h"

enum { ROUNDS = 9, BIG = 512 << 20, NOISE = 16 << 20, MAX_COPIES = 512 };

static struct cuda_rank rk;
static double read_rate; /* bytes/s */
static uint8_t *noise;   /* host, [NOISE] random */

static void
ok(cudaError_t err)
{
    if (err == cudaSuccess)
        return;
    fprintf(stderr, "bench-cuda: %s\n", cudaGetErrorString(err));
    exit(EX_SOFTWARE);
}

static void
done(int r, const struct err *e)
{
    if (r == 0)
        return;
    fprintf(stderr, "bench-cuda: %s\n", e->text);
    exit(EX_SOFTWARE);
}

double
cuda_bench_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int
by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static uint64_t
rnd(void)
{
    static uint64_t s = 88172645463325252ull;

    s ^= s << 13;
    s ^= s >> 7;
    s ^= s << 17;
    return s;
}

/* Device memory with noise in it: bytes as they come, or bf16 numbers below 1. */
static void *
memory(size_t bytes)
{
    uint8_t *p;

    ok(cudaMalloc((void **)&p, bytes));
    for (size_t at = 0; at < bytes; at += NOISE)
        ok(cudaMemcpy(p + at, noise, bytes - at < NOISE ? bytes - at : NOISE,
                      cudaMemcpyHostToDevice));
    ok(cudaDeviceSynchronize()); /* copies are done beside our stream */
    return p;
}

static uint16_t *
numbers(size_t n)
{
    uint16_t *host = malloc(n * 2), *p;

    for (size_t i = 0; i < n; i++)
        host[i] = (uint16_t)((rnd() & 0x80ff) | 0x3e00);
    ok(cudaMalloc((void **)&p, n * 2));
    ok(cudaMemcpy(p, host, n * 2, cudaMemcpyHostToDevice));
    ok(cudaDeviceSynchronize());
    free(host);
    return p;
}

/* Seconds of one launch(arg, i), of `n` in a row. */
typedef void launch_fn(const void *arg, int i);

static double
measure(launch_fn *f, const void *arg, int n)
{
    cudaEvent_t from, to;
    double v[ROUNDS];

    ok(cudaEventCreate(&from));
    ok(cudaEventCreate(&to));
    for (int r = -1; r < ROUNDS; r++) {
        float ms;

        ok(cudaEventRecord(from, rk.stream));
        for (int i = 0; i < n; i++)
            f(arg, i);
        ok(cudaEventRecord(to, rk.stream));
        ok(cudaEventSynchronize(to));
        ok(cudaEventElapsedTime(&ms, from, to));
        if (r >= 0)
            v[r] = (double)ms * 1e-3 / n;
    }
    ok(cudaEventDestroy(from));
    ok(cudaEventDestroy(to));
    qsort(v, ROUNDS, sizeof v[0], by_value);
    return v[ROUNDS / 2];
}

static void
launch_copy(const void *arg, int i)
{
    uint8_t *const *p = arg;

    (void)i;
    ok(cudaMemcpyAsync(p[0], p[1], 4 * (size_t)BIG, cudaMemcpyDeviceToDevice, rk.stream));
}

static void
launch_read(const void *arg, int i)
{
    uint8_t *const *p = arg;
    struct err e = {0};

    (void)i;
    done(probe_read(&rk, p[1], 4 * (size_t)BIG, (uint32_t *)(void *)p[0], &e), &e);
}

static void
bench_copy(void)
{
    uint8_t *p[2] = {memory(4 * (size_t)BIG), memory(4 * (size_t)BIG)};

    const double copy = 2.0 * 4.0 * BIG / measure(launch_copy, p, 5);

    read_rate = 4.0 * BIG / measure(launch_read, p, 5);
    printf("%-34s %9s %9.0f GB/s\n", "device-to-device copy", "", copy * 1e-9);
    printf("%-34s %9s %9.0f GB/s\n", "reading only", "", read_rate * 1e-9);
    cudaFree(p[0]);
    cudaFree(p[1]);
}

struct linear_case {
    const char *name;
    enum matrix_kind kind;
    int out, in;
};

struct linear_run {
    struct matrix m[MAX_COPIES];
    struct linear_args a;
    int copies;
};

static void
launch_linear(const void *arg, int i)
{
    const struct linear_run *r = arg;
    struct linear_args a = r->a;
    struct err e = {0};

    a.w = &r->m[i % r->copies];
    done(linear_cuda(&rk, &a, 1, &e), &e);
}

/* Those that can be, in place of the row-major ones: `n` of one shape. */
static uint8_t *
pack_all(struct matrix *m, int n)
{
    const size_t bytes = matrix_packed_bytes(m), each = (bytes + 4095) / 4096 * 4096 + 4096;
    const size_t codes = m->kind == MATRIX_FP4 ? (size_t)m->out * m->in / 2 : 0;
    struct err e = {0};
    uint8_t *at;
    int *odd;

    if (bytes == 0)
        return NULL;
    ok(cudaMalloc((void **)&at, (size_t)n * each));
    ok(cudaMalloc((void **)&odd, sizeof *odd));
    for (int i = 0; i < n; i++) {
        m[i].packed = at + (size_t)i * each;
        done(matrix_pack_cuda(&rk, &m[i], 0, m[i].out, m[i].w, m[i].scale, odd, &e), &e);
        if (m[i].kind == MATRIX_FP4)
            m[i].scale = (const uint8_t *)m[i].packed + codes;
    }
    ok(cudaDeviceSynchronize());
    cudaFree(odd);
    return at;
}

static void
bench_linear(const struct linear_case *c)
{
    static const int rows[] = {1, 4, 16, 64, 512};
    static struct linear_run r;
    const double n = (double)c->out * c->in;
    const double codes = c->kind == MATRIX_F32    ? 4 * n
                         : c->kind == MATRIX_BF16 ? 2 * n
                         : c->kind == MATRIX_FP8  ? n
                                                  : n / 2;
    const double scales = c->kind == MATRIX_FP8   ? n / 16384
                          : c->kind == MATRIX_FP4 ? n / 32
                                                  : 0;
    const size_t each = ((size_t)(codes + scales) + 4095) / 4096 * 4096 + 4096;
    uint8_t *w;

    r.copies = (int)((size_t)BIG / each) + 1;
    r.copies = r.copies < MAX_COPIES ? r.copies : MAX_COPIES;
    w = memory((size_t)r.copies * each);
    for (int i = 0; i < r.copies; i++) {
        uint8_t *at = w + (size_t)i * each;

        r.m[i] = (struct matrix){.kind = c->kind,
                                 .out = c->out,
                                 .in = c->in,
                                 .w = at,
                                 .scale = at + (size_t)codes};
    }
    pack_all(r.m, r.copies);
    r.a = (struct linear_args){.x = numbers((size_t)512 * c->in),
                               .x_stride = c->in,
                               .y_stride = c->out,
                               .y_f32 = 1};
    r.a.y = memory((size_t)512 * c->out * 4);
    for (int k = 0; k < 5; k++) {
        double t;

        if (n > 2e8 && rows[k] > 64)
            continue;
        r.a.rows = rows[k];
        t = measure(launch_linear, &r, rows[k] > 16 ? 4 : 40);
        printf("%-22s %4d rows %9.1f us %9.0f GB/s %5.0f%% %9.1f TFLOP/s\n", c->name,
               rows[k], t * 1e6, (codes + scales) / t * 1e-9,
               (codes + scales) / t / read_rate * 100.0, 2.0 * n * rows[k] / t * 1e-12);
    }
    cudaFree(w);
    cudaFree((void *)(uintptr_t)r.a.x);
    cudaFree(r.a.y);
}

/* Experts of one layer of Flash: 6 of 256 for one row; w1 and w3. */
struct expert_run {
    struct expert_args a;
    int *active; /* device, [16][8] */
};

static void
launch_experts(const void *arg, int i)
{
    const struct expert_run *r = arg;
    struct expert_args a = r->a;
    struct err e = {0};

    a.active = r->active + i % 16 * 8;
    done(expert_linear_cuda(&rk, &a, &e), &e);
}

static void
bench_experts(void)
{
    enum { EXPERTS = 256, OUT = 2048, IN = 4096, K = 6 };

    const size_t codes = (size_t)OUT * IN / 2, each = codes + codes / 16;
    static struct matrix m[2][EXPERTS];
    int first[EXPERTS + 1], active[16][8], source[EXPERTS] = {0};
    struct expert_run r = {.a = {.n_mats = 2, .max_active = K, .one_row = 1}};
    uint8_t *w = memory(2 * EXPERTS * each);
    double t;

    for (int i = 0; i < 2 * EXPERTS; i++)
        m[i / EXPERTS][i % EXPERTS] =
            (struct matrix){.kind = MATRIX_FP4,
                            .out = OUT,
                            .in = IN,
                            .w = w + (size_t)i * each,
                            .scale = w + (size_t)i * each + codes};
    pack_all(m[0], EXPERTS);
    pack_all(m[1], EXPERTS);
    for (int i = 0; i <= EXPERTS; i++)
        first[i] = i; /* each has one place; only active ones run */
    for (int i = 0; i < 16; i++) {
        active[i][0] = K;
        for (int k = 0; k < K; k++)
            active[i][1 + k] = k * 42 + (int)(rnd() % 40);
    }
    r.a.shape = m[0][0];
    for (int i = 0; i < 2; i++) {
        struct matrix *at = memory(sizeof m[i]);

        ok(cudaMemcpy(at, m[i], sizeof m[i], cudaMemcpyHostToDevice));
        r.a.w[i] = at;
        r.a.y[i] = memory((size_t)EXPERTS * OUT * 2);
    }
    int *lists = memory(sizeof first + sizeof active + sizeof source);

    ok(cudaMemcpy(lists, first, sizeof first, cudaMemcpyHostToDevice));
    r.a.first = lists;
    r.active = lists + EXPERTS + 1;
    ok(cudaMemcpy(r.active, active, sizeof active, cudaMemcpyHostToDevice));
    ok(cudaMemcpy(r.active + 16 * 8, source, sizeof source, cudaMemcpyHostToDevice));
    r.a.source = r.active + 16 * 8;
    r.a.x = numbers(IN);
    ok(cudaDeviceSynchronize());
    t = measure(launch_experts, &r, 48);
    printf("%-22s %4d row  %9.1f us %9.0f GB/s %5.0f%%\n", "experts w1 w3, 6 of 256", 1,
           t * 1e6, 2.0 * K * (double)each / t * 1e-9,
           2.0 * K * (double)each / t / read_rate * 100.0);
    cudaFree(w);
}

struct attention_run {
    struct attention_args *jobs, like;
    float *score;
    int n;
};

static void
launch_attention(const void *arg, int i)
{
    const struct attention_run *r = arg;
    struct err e = {0};

    (void)i;
    done(attention_cuda(&rk, r->jobs, r->n, &r->like, r->score, &e), &e);
}

static void
bench_attention(int n, int n_keys)
{
    enum { HEADS = 64, DIM = 512, ROPE = 64, ROW = 584 };

    const size_t bytes = (size_t)n_keys * ROW;
    uint8_t *rows = memory(bytes + 8);
    struct attention_args *jobs = malloc((size_t)n * sizeof *jobs);
    const uint8_t **keys = malloc((size_t)n_keys * sizeof *keys), **keys_at;
    struct attention_run r = {.n = n};
    uint16_t *q = numbers((size_t)n * HEADS * DIM), *o = numbers((size_t)n * HEADS * DIM);
    double t;

    for (int i = 0; i < n_keys; i++)
        keys[i] = rows + (size_t)i * ROW;
    keys_at = memory((size_t)n_keys * sizeof *keys);
    ok(cudaMemcpy(keys_at, keys, (size_t)n_keys * sizeof *keys, cudaMemcpyHostToDevice));
    for (int i = 0; i < n; i++)
        jobs[i] = (struct attention_args){.q = q + (size_t)i * HEADS * DIM,
                                          .keys = keys_at,
                                          .sink = memory(HEADS * 4),
                                          .o = o + (size_t)i * HEADS * DIM,
                                          .n_keys = n_keys,
                                          .n_heads = HEADS,
                                          .dim = DIM,
                                          .rope_dim = ROPE};
    r.like = jobs[0];
    r.jobs = memory((size_t)n * sizeof *jobs);
    ok(cudaMemcpy(r.jobs, jobs, (size_t)n * sizeof *jobs, cudaMemcpyHostToDevice));
    r.score = memory(attention_scratch(&r.like) * (size_t)n * 4);
    ok(cudaDeviceSynchronize());
    t = measure(launch_attention, &r, 10);
    printf("%-22s %4d rows %9.1f us %31.1f TFLOP/s\n",
           n_keys == 640 ? "attention, 640 keys" : "attention, 8320 keys", n, t * 1e6,
           4.0 * HEADS * DIM * n_keys * n / t * 1e-12);
    free(jobs);
    free(keys);
    cudaFree(rows);
    cudaFree(r.score);
}

struct index_run {
    struct index_score_args *job, like;
    int *picked;
};

static void
launch_scores(const void *arg, int i)
{
    const struct index_run *r = arg;
    struct err e = {0};

    (void)i;
    done(index_scores_cuda(&rk, r->job, 1, &r->like, 0, &e), &e);
}

static void
launch_topk(const void *arg, int i)
{
    const struct index_run *r = arg;
    struct err e = {0};

    (void)i;
    done(topk_cuda(&rk, r->job, 1, 512, r->picked, &e), &e);
}

static void
bench_index(int n)
{
    enum { HEADS = 64, DIM = 128, ROW = 68, BLOCK = 32 };

    uint8_t *rows = memory((size_t)n * ROW);
    const uint8_t **blocks = malloc((size_t)n / BLOCK * sizeof *blocks), **at;
    struct index_run r = {.picked = memory(512 * 4)};
    double t, bytes = (double)n * ROW;

    for (int i = 0; i < n / BLOCK; i++)
        blocks[i] = rows + (size_t)i * BLOCK * ROW;
    at = memory((size_t)n / BLOCK * sizeof *blocks);
    ok(cudaMemcpy(at, blocks, (size_t)n / BLOCK * sizeof *blocks, cudaMemcpyHostToDevice));
    r.like = (struct index_score_args){.q = memory(HEADS * ROW),
                                       .w = numbers(HEADS),
                                       .blocks = at,
                                       .score = memory((size_t)n * 4),
                                       .n_rows = n,
                                       .block_rows = BLOCK,
                                       .n_heads = HEADS,
                                       .dim = DIM};
    r.job = memory(sizeof r.like);
    ok(cudaMemcpy(r.job, &r.like, sizeof r.like, cudaMemcpyHostToDevice));
    ok(cudaDeviceSynchronize());
    t = measure(launch_scores, &r, 20);
    printf("%-22s %6d keys %7.1f us %9.0f GB/s %5.0f%%\n", "index scores", n, t * 1e6,
           bytes / t * 1e-9, bytes / t / read_rate * 100.0);
    t = measure(launch_topk, &r, 20);
    printf("%-22s %6d keys %7.1f us\n", "top 512", n, t * 1e6);
    free(blocks);
    cudaFree(rows);
}

/* Tokens a second of whole steps, host time included: n sequences, each a token a step. */
static void
bench_decode(struct backend *b, uint32_t n, uint32_t context, int steps)
{
    const size_t vocab = (size_t)b->c.vocab_size;
    float *logits = malloc(n * vocab * sizeof *logits);
    struct step_seq share[64];
    uint32_t token[64], text[CUDA_STEP_TOKENS];
    struct step s = {.n_seqs = n, .seqs = share};
    double v[1024];
    struct err e = {0};

    for (uint32_t i = 0; i < n; i++) {
        struct step_seq in = {.seq = i, .tokens = text};
        const struct step one = {.n_seqs = 1, .seqs = &in};

        done(backend_cuda.seq_open(b, i, &e), &e);
        for (uint32_t at = 0; at < context; at += in.n_tokens) {
            in.n_tokens = context - at < 256 ? context - at : 256;
            for (uint32_t t = 0; t < in.n_tokens; t++)
                text[t] = (uint32_t)(rnd() % vocab);
            done(backend_cuda.step(b, &one, &e), &e);
        }
        share[i] = (struct step_seq){.seq = i,
                                     .n_tokens = 1,
                                     .tokens = &token[i],
                                     .n_logits = 1,
                                     .logits = logits + i * vocab};
    }
    for (int k = 0; k < steps; k++) {
        const double from = cuda_bench_now();

        for (uint32_t i = 0; i < n; i++)
            token[i] = (uint32_t)(rnd() % vocab);
        done(backend_cuda.step(b, &s, &e), &e);
        v[k] = cuda_bench_now() - from;
    }
    qsort(v, (size_t)steps, sizeof v[0], by_value);
    printf("decode, batch %2u at %5u %9.0f us a step (p99 %.0f), %.0f tokens/s\n", n,
           context, v[steps / 2] * 1e6, v[steps * 99 / 100] * 1e6, n / v[steps / 2]);
    for (uint32_t i = 0; i < n; i++)
        backend_cuda.seq_close(b, i);
    free(logits);
}

static void
bench_prefill(struct backend *b, uint32_t chunk, uint32_t total)
{
    uint32_t *text = malloc(total * sizeof *text);
    struct err e = {0};
    double from;

    for (uint32_t i = 0; i < total; i++)
        text[i] = (uint32_t)(rnd() % (uint64_t)b->c.vocab_size);
    done(backend_cuda.seq_open(b, 0, &e), &e);
    from = cuda_bench_now();
    for (uint32_t at = 0; at < total; at += chunk) {
        struct step_seq in = {.seq = 0, .n_tokens = chunk, .tokens = text + at};
        const struct step one = {.n_seqs = 1, .seqs = &in};

        done(backend_cuda.step(b, &one, &e), &e);
    }
    from = cuda_bench_now() - from;
    printf("prefill, %u tokens by %3u %9.1f ms, %.0f tokens/s\n", total, chunk, from * 1e3,
           total / from);
    backend_cuda.seq_close(b, 0);
    free(text);
}

static int
bench_model(const char *dir)
{
    const struct backend_opts o = {.max_seqs = 64, .kv_bytes = (uint64_t)4 << 30};
    struct backend_info info;
    struct model_config c;
    struct weights *w;
    struct backend *b = NULL;
    struct err e = {0};
    double from = cuda_bench_now();

    if (model_config_load(&c, dir, &e) == -1)
        done(-1, &e);
    w = weights_open(dir, &c, NULL, NULL, &e);
    if (w != NULL)
        b = backend_cuda.open(&c, w, &o, &e);
    if (b == NULL)
        done(-1, &e);
    backend_cuda.info(b, &info);
    printf("%s: %s; weights %.1f MB, page %llu B, sequence %llu B, open %.0f ms\n", dir,
           info.detail, (double)info.weight_bytes * 1e-6,
           (unsigned long long)info.page_bytes, (unsigned long long)info.seq_fixed_bytes,
           (cuda_bench_now() - from) * 1e3);
    bench_decode(b, 1, 100, 300);
    bench_decode(b, 1, 4000, 300);
    bench_decode(b, 8, 1000, 200);
    bench_decode(b, 64, 500, 200);
    bench_prefill(b, 128, 4096);
    bench_prefill(b, 512, 4096);
    backend_cuda.close(b);
    weights_close(w);
    return 0;
}

static int
parse(int argc, char **argv, struct synthetic_bench *s)
{
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;

        if (strcmp(argv[i], "--half") == 0) {
            s->half = true;
            continue;
        }
        if (value == NULL)
            return -1;
        if (strcmp(argv[i], "--synthetic") == 0)
            s->dir = value;
        else if (strcmp(argv[i], "--seed") == 0)
            s->seed = strtoull(value, NULL, 10);
        else if (strcmp(argv[i], "--layers") == 0)
            s->layers = atoi(value);
        else if (strcmp(argv[i], "--experts") == 0)
            s->experts = atoi(value);
        else if (strcmp(argv[i], "--rows") == 0)
            s->rows = atoi(value);
        else if (strcmp(argv[i], "--profile") == 0)
            s->profile = strtoull(value, NULL, 10);
        else if (strcmp(argv[i], "--kv-bytes") == 0)
            s->kv_bytes = strtoull(value, NULL, 10);
        else
            return -1;
        i++;
    }
    return s->dir != NULL && s->rows > 0 && s->rows <= CUDA_STEP_TOKENS ? 0 : -1;
}

static void
launch_sample(const void *arg, int i)
{
    struct err e = {0};

    (void)i;
    done(sample_cuda(&rk, arg, &e), &e);
}

/* Tokens from rows of 129,280 logits, about normal. */
static void
bench_sample(int rows, const char *what, float deviation, struct draw d)
{
    enum { VOCAB = 129280 };

    const size_t n = (size_t)rows * VOCAB;
    float *x = malloc(n * sizeof *x);
    struct dev_draw draw[64];
    struct sample_args a = {.row_bytes = sample_bytes(VOCAB), .rows = rows, .n = VOCAB};
    void *p[5] = {memory(n * sizeof *x), memory(sizeof draw), memory(64 * sizeof(uint32_t)),
                  memory(64 * sizeof(struct drawn)), memory((size_t)rows * a.row_bytes)};
    char name[64];

    for (size_t i = 0; i < n; i++) {
        float sum = 0;

        for (int k = 0; k < 12; k++)
            sum += (float)(rnd() >> 8) * 0x1p-24f;
        x[i] = (sum - 6) * deviation;
    }
    for (int i = 0; i < 64; i++)
        draw[i] = (struct dev_draw){.d = d, .pos = (uint64_t)i};
    ok(cudaMemcpy(p[0], x, n * sizeof *x, cudaMemcpyHostToDevice));
    ok(cudaMemcpy(p[1], draw, sizeof draw, cudaMemcpyHostToDevice));
    a.x = p[0];
    a.draw = p[1];
    a.token = p[2];
    a.drawn = p[3];
    a.work = p[4];
    snprintf(name, sizeof name, "sample %s, deviation %.1f", what, (double)deviation);
    printf("%-34s rows=%-3d %9.2f us\n", name, rows, measure(launch_sample, &a, 100) * 1e6);
    for (int i = 0; i < 5; i++)
        cudaFree(p[i]);
    free(x);
}

static void
bench_samples(void)
{
    static const float deviations[] = {0.1f, 1, 3};
    const uint64_t least = draw_share(0.05f, (uint64_t)LOGITS_UNIT);

    for (int rows = 1; rows <= 64; rows *= 64)
        for (int i = 0; i < 3; i++) {
            const float of = deviations[i];

            bench_sample(rows, "the best", of, (struct draw){.top_p = 1});
            bench_sample(rows, "any", of, (struct draw){.scale = 1, .top_p = 1});
            bench_sample(rows, "0.95", of, (struct draw){.scale = 1, .top_p = 0.95f});
            bench_sample(rows, "0.7, 0.9, 50", of,
                         (struct draw){.scale = 1 / 0.7, .top_p = 0.9f, .top_k = 50});
            bench_sample(rows, "min 0.05", of,
                         (struct draw){.scale = 1, .top_p = 1, .least = least});
        }
}

int
main(int argc, char **argv)
{
    static const struct linear_case cases[] = {
        {"wq_a fp8 1024x4096", MATRIX_FP8, 1024, 4096},
        {"wq_b fp8 32768x1024", MATRIX_FP8, 32768, 1024},
        {"wq_b/2 fp8 16384x1024", MATRIX_FP8, 16384, 1024},
        {"wo_b fp8 4096x8192", MATRIX_FP8, 4096, 8192},
        {"wo_b/2 fp8 4096x4096", MATRIX_FP8, 4096, 4096},
        {"comp bf16 1024x4096", MATRIX_BF16, 1024, 4096},
        {"w1 fp4 2048x4096", MATRIX_FP4, 2048, 4096},
        {"w2 fp4 4096x2048", MATRIX_FP4, 4096, 2048},
        {"gate bf16 256x4096", MATRIX_BF16, 256, 4096},
        {"hc_fn f32 24x16384", MATRIX_F32, 24, 16384},
        {"head bf16 129280x4096", MATRIX_BF16, 129280, 4096},
    };
    struct synthetic_bench synthetic = {
        .seed = 1, .rows = 1, .kv_bytes = (uint64_t)20 << 30};
    struct err e = {0};

    if (argc > 1 && strcmp(argv[1], "--synthetic") == 0) {
        if (parse(argc, argv, &synthetic) == -1) {
            fprintf(stderr, "bench-cuda: the options are in tools/benchmarks/cuda.c\n");
            return EX_USAGE;
        }
        bench_synthetic(&synthetic);
        return 0;
    }
    if (rank_open(&rk, &e) == -1) {
        fprintf(stderr, "bench-cuda: %s\n", e.text);
        return EX_UNAVAILABLE;
    }
    noise = malloc(NOISE);
    for (size_t i = 0; i < NOISE; i++) {
        noise[i] = (uint8_t)(rnd() >> 24);
        if ((noise[i] & 0x7f) == 0x7f)
            noise[i] ^= 1;
    }
    printf("%s, %d SMs\n", rk.name, rk.sms);
    bench_samples();
    if (argc > 1 && strcmp(argv[1], "--sample") == 0)
        return 0;
    bench_copy();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        bench_linear(&cases[i]);
    bench_experts();
    bench_attention(1, 640);
    bench_attention(64, 640);
    bench_attention(1, 8320);
    bench_index(2048);
    bench_index(32768);
    bench_index(262144);
    fflush(stdout);
    rank_close(&rk);
    free(noise);
    return argc > 1 ? bench_model(argv[1]) : 0;
}
