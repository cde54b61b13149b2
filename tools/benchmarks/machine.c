/* SPDX-License-Identifier: Apache-2.0 */
/* What the machine can do: the two rates that results are shares of. */
#include "config.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef HAVE_OPENBLAS
#    include <cblas.h>
#endif

#include "gpu/cpu/pool.h"
#include "tools/benchmarks/bench.h"

enum { LINE = 64, READ_PIECE = 1 << 22, READ_PIECES = 256, READ_ROUNDS = 9 };

enum { GEMM_M = 512, GEMM_N = 2048, GEMM_K = 4096, GEMM_ROUNDS = 7 };

/* A word of each line is enough: memory moves in lines. Four streams keep loads in flight. */
static uint64_t
read_lines(const uint64_t *p, size_t lines)
{
    const size_t step = LINE / sizeof *p, quarter = lines / 4 * step;
    uint64_t a = 0, b = 0, c = 0, d = 0;

    for (size_t i = 0; i < quarter; i += step) {
        a += p[i];
        b += p[quarter + i];
        c += p[2 * quarter + i];
        d += p[3 * quarter + i];
    }
    return a + b + c + d;
}

struct reading {
    const uint8_t *p;
    _Atomic uint64_t *sum;
};

static void
read_pieces(const void *arg, int first, int end)
{
    const struct reading *r = arg;

    *r->sum +=
        read_lines((const uint64_t *)(const void *)(r->p + (size_t)first * READ_PIECE),
                   (size_t)(end - first) * READ_PIECE / LINE);
}

int
measure_bandwidth(struct samples *out)
{
    const size_t bytes = (size_t)READ_PIECES * READ_PIECE;
    uint8_t *p = aligned_alloc(1 << 21, bytes);
    _Atomic uint64_t sum = 0;
    const struct reading r = {.p = p, .sum = &sum};

    if (p == NULL)
        return -1;
    memset(p, 1, bytes);
    for (int i = 0; i < READ_ROUNDS; i++) {
        const double t = bench_now();

        pool_run(READ_PIECES, 1, read_pieces, &r);
        samples_add(out, (double)bytes / (bench_now() - t));
    }
    free(p);
    return sum == 0 ? -1 : 0;
}

/* Prints the flop/s of this process's OpenBLAS kernels, the best of a few. */
int
gemm_child(void)
{
#ifdef HAVE_OPENBLAS
    const size_t m = GEMM_M, n = GEMM_N, k = GEMM_K;
    float *a = malloc(m * k * sizeof *a), *b = malloc(n * k * sizeof *b);
    float *c = malloc(m * n * sizeof *c);
    struct samples rates = {.n = 0};

    if (a == NULL || b == NULL || c == NULL)
        return 1;
    for (size_t i = 0; i < m * k; i++)
        a[i] = (float)(i % 101) / 50.0f - 1.0f;
    for (size_t i = 0; i < n * k; i++)
        b[i] = (float)(i % 97) / 50.0f - 1.0f;
    for (int r = 0; r < GEMM_ROUNDS; r++) {
        const double t = bench_now();

        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, GEMM_M, GEMM_N, GEMM_K, 1.0f,
                    a, GEMM_K, b, GEMM_K, 0.0f, c, GEMM_N);
        samples_add(&rates, 2.0 * GEMM_M * GEMM_N * GEMM_K / (bench_now() - t));
    }
    printf("%.0f\n", samples_max(&rates));
    free(a);
    free(b);
    free(c);
    return 0;
#else
    return 1;
#endif
}

double
measure_gemm(const char *self, char *name, int size)
{
    static const char *const kernels[] = {"", "Haswell", "Zen", "SkylakeX", "Cooperlake"};
    double best = 0.0;

    snprintf(name, (size_t)size, "none");
    for (size_t i = 0; i < sizeof kernels / sizeof kernels[0]; i++) {
        char command[4096];
        double rate = 0.0;
        FILE *f;

        if (i >= 3 && !__builtin_cpu_supports("avx512f"))
            continue;
        snprintf(command, sizeof command, "OPENBLAS_NUM_THREADS=%d %s%s '%s' --gemm",
                 pool_threads(), i > 0 ? "OPENBLAS_CORETYPE=" : "", kernels[i], self);
        f = popen(command, "re");
        if (f == NULL)
            continue;
        if (fscanf(f, "%lf", &rate) == 1 && rate > best) {
            best = rate;
            snprintf(name, (size_t)size, "sgemm, %s kernels",
                     i > 0 ? kernels[i] : "its own");
        }
        pclose(f);
    }
    return best;
}
