/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The host's emulation of a device (simt.h): what it computes against plain loops, and that it
 * finds what it is there to find, each bug beside the same kernel without it. What
 * AddressSanitizer has to find is run in a process of its own, in builds that have it.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/err.h"
#include "base/fp.h"
#include "tests/kernels/cuda_test.h"
#include "tests/simt/planted.h"
#include "tests/simt/simt.h"
#include "tests/test.h"

enum { THREADS = 128, PARTS = 4 };

static int
set_up(void **state)
{
    struct err e = {0};

    (void)state;
    simt_set_order(SIMT_FORWARD, 0);
    simt_set_late(true);
    simt_set_trap(0);
    if (rank_open(&rk, &e) == -1)
        fail_msg("%s", e.text);
    return 0;
}

static int
put_down(void **state)
{
    rank_close(&rk);
    simt_set_trap(0);
    return tear_down(state);
}

/* The kernel ran; its output, which the caller frees. */
static void *
output(enum planted_kernel k, enum planted bug, size_t bytes)
{
    void *out = dev_poison(bytes);
    struct err e = {0};

    done(planted_run(&rk, k, bug, out, NULL, NULL, &e), &e);
    return fetch(out, bytes);
}

/* The kernel ended the device: with these words, the place of its launch among them. */
static void
ends(enum planted_kernel k, enum planted bug, const char *words)
{
    void *out = dev_poison(4096);
    struct err e = {0};

    if (planted_run(&rk, k, bug, out, NULL, NULL, &e) == 0)
        assert_int_equal(rank_wait(&rk, &e), -1);
    if (strstr(e.text, words) == NULL || strstr(e.text, "planted.cu:") == NULL)
        fail_msg("not '%s' but '%s'", words, e.text);
    assert_true(cu_is_fatal((cudaError_t)e.sys));
    assert_int_equal(rank_wait(&rk, &e), -1); /* and it stays so */
    simt_set_trap(0);
}

static bool
neighbours_right(enum planted_kernel k, enum planted bug)
{
    int *got = output(k, bug, THREADS * sizeof *got);
    bool right = true;

    for (int t = 0; t < THREADS; t++)
        right &= got[t] == (k == PLANTED_LANES              ? t ^ 1
                            : bug == PLANTED_LOWER && t > 0 ? t - 1
                            : bug == PLANTED_LOWER          ? 0
                                                            : THREADS - 1 - t);
    free(got);
    return right;
}

static void
missing_barriers(void **state)
{
    (void)state;
    for (int o = SIMT_FORWARD; o <= SIMT_RANDOM; o++) {
        simt_set_order(o, 7);
        assert_true(neighbours_right(PLANTED_NEIGHBOURS, PLANTED_NOTHING));
        assert_false(neighbours_right(PLANTED_NEIGHBOURS, PLANTED_NO_BARRIER));
        assert_true(neighbours_right(PLANTED_LANES, PLANTED_NOTHING));
        assert_false(neighbours_right(PLANTED_LANES, PLANTED_NO_BARRIER));
        /* who looks only at those below is found out by another order */
        assert_int_equal(neighbours_right(PLANTED_NEIGHBOURS, PLANTED_LOWER),
                         o == SIMT_FORWARD);
    }
}

static void
threads_that_never_come(void **state)
{
    (void)state;
    ends(PLANTED_WAITS, PLANTED_SOME_LANES, "threads wait for others that do not come");
    ends(PLANTED_WAITS, PLANTED_SOME_WARPS,
         "64 at a barrier (0 first), 64 at one of the cluster (64)");
    ends(PLANTED_WAITS, PLANTED_LANE_GONE, "of its warp wait for it");
    free(output(PLANTED_WAITS, PLANTED_NOTHING, THREADS * sizeof(int)));
}

static void
unwritten_shared_memory(void **state)
{
    int *got = output(PLANTED_PLACES, PLANTED_UNWRITTEN, THREADS * sizeof *got);

    (void)state;
    for (int t = 0; t < THREADS; t++)
        assert_int_equal(got[t], 0); /* not what the launch before has left */
    free(got);
}

static void
clusters(void **state)
{
    const size_t bytes = (size_t)3 * 2 * PARTS * PARTS * sizeof(int);

    (void)state;
    for (int o = SIMT_FORWARD; o <= SIMT_RANDOM; o++) {
        int *got, wrong = 0;

        simt_set_order(o, 3);
        got = output(PLANTED_CLUSTER, PLANTED_NOTHING, bytes);
        for (int i = 0; i < 3 * 2 * PARTS * PARTS; i++) {
            const int block = i / PARTS % (2 * PARTS),
                      of = block / PARTS * PARTS + i % PARTS;

            assert_int_equal(got[i], of * 101);
        }
        free(got);
        got = output(PLANTED_CLUSTER, PLANTED_NO_BARRIER, bytes);
        for (int i = 0; i < 3 * 2 * PARTS * PARTS; i++)
            wrong += got[i] < 0; /* from memory that nobody had written yet */
        assert_true(wrong > 0);
        free(got);
    }
    simt_set_order(SIMT_FORWARD, 0);
    ends(PLANTED_CLUSTER, PLANTED_NO_WAIT, "no thread has called pdl_wait");
}

static void
left_early(void **state)
{
    (void)state;
    simt_set_order(SIMT_RANDOM, 5);
    free(output(PLANTED_CLUSTER, PLANTED_NOTHING, 3 * 2 * PARTS * PARTS * sizeof(int)));
    simt_set_order(SIMT_FORWARD, 0);
    ends(PLANTED_CLUSTER, PLANTED_LEFT_EARLY, "looks at a block that has ended");
}

static void
products(void **state)
{
    uint16_t *a = rnd_bf16(256, 2.0f), *b = rnd_bf16(128, 2.0f);
    float *out = dev_poison(128 * sizeof *out), *got;
    struct err e = {0};

    (void)state;
    done(planted_run(&rk, PLANTED_PRODUCT, PLANTED_NOTHING, out, dev(a, 512), dev(b, 256),
                     &e),
         &e);
    got = fetch(out, 128 * sizeof *got);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            double want = 0;

            for (int k = 0; k < 16; k++)
                want += (double)bf16_to_f32(a[i * 16 + k]) *
                        (double)bf16_to_f32(b[k * 8 + j]);
            assert_true(got[i * 8 + j] == (float)want);
        }
    free(a);
    free(b);
    free(got);
}

/* Nothing is there before it is waited for, and all of it is waited for. */
static void
copies_beside(void **state)
{
    enum { LANES = 32, WORDS = 2 * LANES * 4 };

    static const enum planted bugs[] = {PLANTED_NOTHING, PLANTED_EARLY};

    uint32_t x[LANES * 4];
    struct err e = {0};

    (void)state;
    for (uint32_t i = 0; i < LANES * 4; i++)
        x[i] = i;
    for (int b = 0; b < 2; b++) {
        uint32_t *out = dev_poison(WORDS * sizeof *out), *got;

        done(planted_run(&rk, PLANTED_COPIES, bugs[b], out, dev(x, sizeof x), NULL, &e),
             &e);
        got = fetch(out, WORDS * sizeof *got);
        for (uint32_t i = 0; i < WORDS; i++) {
            const uint32_t lane = i / 4 % LANES ^ 1, second = i / 4 / LANES;
            const uint32_t want = second && lane % 2 == 1 ? 0 : lane * 4 + i % 4;

            assert_int_equal(got[i], second && b == 1 ? UINT32_MAX : want);
        }
        free(got);
    }
    ends(PLANTED_COPIES, PLANTED_LEFT_OPEN, "ends while copies of it are under way");
}

static void
operations_of_a_warp(void **state)
{
    double *got = output(PLANTED_WARP, PLANTED_NOTHING, 11 * 32 * sizeof *got);

    (void)state;
    for (int t = 0; t < 32; t++) {
        const double want[] = {5,
                               t ^ 9,
                               t + 7 < 32 ? t + 7 : t,
                               t >= 7 ? t - 7 : t,
                               0x49249249,
                               496,
                               32,
                               0x77225500,
                               -1 + 2 + 3 + 8 + 10,
                               0xff00ffff,
                               (double)f32_from_bits(0x40404000)};

        for (int i = 0; i < 11; i++)
            assert_true(got[i * 32 + t] == want[i]);
    }
    free(got);
}

/* Work is done when it is waited for, in order; pinned memory is read then, other memory before. */
static void
streams_and_graphs(void **state)
{
    const size_t n = (size_t)3 * 5 * 7 * THREADS, bytes = n * sizeof(int);
    int *out = dev_poison(bytes), *pinned, *host = calloc(n, sizeof *host), *got;
    struct err e = {0};
    cudaGraphExec_t exec;
    cudaGraph_t graph;
    cudaEvent_t event;

    (void)state;
    cuda_ok(cudaMallocHost((void **)&pinned, bytes));
    memset(pinned, 0, bytes);
    for (int late = 0; late < 2; late++) {
        simt_set_late(late);
        cuda_ok(cudaMemcpyAsync(out, pinned, bytes, cudaMemcpyHostToDevice, rk.stream));
        pinned[3] = 10; /* too early, if it runs late */
        done(planted_run(&rk, PLANTED_COUNT, PLANTED_NOTHING, out, NULL, NULL, &e), &e);
        got = fetch(out, bytes);
        for (size_t i = 0; i < n; i++)
            assert_int_equal(got[i], late && i == 3 ? 11 : 1);
        free(got);
        pinned[3] = 0;
        cuda_ok(cudaMemcpyAsync(out, host, bytes, cudaMemcpyHostToDevice, rk.stream));
        host[3] = 10;
        cuda_ok(cudaStreamBeginCapture(rk.stream, cudaStreamCaptureModeThreadLocal));
        assert_int_equal(
            planted_run(&rk, PLANTED_COUNT, PLANTED_NOTHING, out, NULL, NULL, &e), 0);
        assert_int_equal(
            planted_run(&rk, PLANTED_COUNT, PLANTED_LOWER, out, NULL, NULL, &e), 0);
        cuda_ok(cudaStreamEndCapture(rk.stream, &graph));
        cuda_ok(cudaGraphInstantiate(&exec, graph, 0));
        cuda_ok(cudaGraphDestroy(graph));
        for (int i = 0; i < 4; i++)
            cuda_ok(cudaGraphLaunch(exec, rk.stream));
        cuda_ok(cudaEventCreate(&event));
        cuda_ok(cudaEventRecord(event, rk.stream));
        assert_int_equal(cudaEventQuery(event), late ? cudaErrorNotReady : cudaSuccess);
        while (cudaEventQuery(event) == cudaErrorNotReady)
            ;
        got = fetch(out, bytes);
        for (size_t i = 0; i < n; i++)
            assert_int_equal(got[i], 12);
        free(got);
        host[3] = 0;
        cuda_ok(cudaGraphExecDestroy(exec));
        cuda_ok(cudaEventDestroy(event));
    }
    assert_int_equal(cudaMemcpy(pinned, host, 4, cudaMemcpyDeviceToHost),
                     cudaErrorInvalidValue);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidValue);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    assert_int_equal(
        planted_run(&rk, PLANTED_TOO_MUCH, PLANTED_NOTHING, out, NULL, NULL, &e), -1);
    cuda_ok(cudaFreeHost(pinned));
    free(host);
}

static void
traps(void **state)
{
    int *out = dev_poison(THREADS * sizeof *out);
    struct err e = {0};

    (void)state;
    simt_set_trap(2);
    done(planted_run(&rk, PLANTED_LANES, PLANTED_NOTHING, out, NULL, NULL, &e), &e);
    assert_int_equal(planted_run(&rk, PLANTED_LANES, PLANTED_NOTHING, out, NULL, NULL, &e),
                     0);
    assert_int_equal(rank_wait(&rk, &e), -1);
    assert_int_equal(e.sys, cudaErrorIllegalAddress);
    assert_int_equal(planted_run(&rk, PLANTED_LANES, PLANTED_NOTHING, out, NULL, NULL, &e),
                     -1);
}

/* How a process ends that runs the kernel: true if AddressSanitizer has ended it. */
static bool
ends_process(enum planted bug)
{
    int status;
    pid_t pid;

    fflush(NULL);
    pid = fork();
    if (pid == 0) {
        int *out;
        struct err e = {0};

        if (freopen("/dev/null", "w", stderr) == NULL ||
            cudaMalloc((void **)&out, THREADS * sizeof *out) != cudaSuccess ||
            planted_run(&rk, PLANTED_PLACES, bug, out, NULL, NULL, &e) == -1 ||
            rank_wait(&rk, &e) == -1)
            _exit(99);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_false(WIFEXITED(status) && WEXITSTATUS(status) == 99);
    return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

static void
memory_of_others(void **state)
{
    (void)state;
    assert_false(ends_process(PLANTED_NOTHING));
#ifdef __SANITIZE_ADDRESS__
    assert_true(ends_process(PLANTED_STATIC_END));
    assert_true(ends_process(PLANTED_DYNAMIC_END));
    assert_true(ends_process(PLANTED_GLOBAL_END));
#else
    ends(PLANTED_PLACES, PLANTED_DYNAMIC_END, "behind 512 bytes of shared memory");
    print_message("# without AddressSanitizer\n");
#endif
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, set_up, put_down)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(missing_barriers),
        TEST(threads_that_never_come),
        TEST(unwritten_shared_memory),
        TEST(clusters),
        TEST(left_early),
        TEST(products),
        TEST(operations_of_a_warp),
        TEST(copies_beside),
        TEST(streams_and_graphs),
        TEST(traps),
        TEST(memory_of_others),
    };

    return cmocka_run_group_tests_name("simt", tests, NULL, NULL);
}
