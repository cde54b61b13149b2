/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include "tests/kernels/cuda_test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/fp.h"
#include "tests/test.h"

struct cuda_rank rk;
static void *owned[256]; /* device memory of the running test */
static int n_owned;

void
cuda_ok(cudaError_t err)
{
    if (err != cudaSuccess)
        fail_msg("%s", cudaGetErrorString(err));
}

/* An operation has been put on the stream: it worked. */
void
done(int r, const struct err *e)
{
    struct err later = {0};

    if (r == -1)
        fail_msg("%s", e->text);
    if (rank_wait(&rk, &later) == -1)
        fail_msg("%s", later.text);
}

void *
dev_poison(size_t bytes)
{
    void *p;

    cuda_ok(cudaMalloc(&p, bytes + 64));
    cuda_ok(cudaMemset(p, 0xa5, bytes + 64));
    cuda_ok(cudaDeviceSynchronize()); /* it is done beside our stream */
    assert_true(n_owned < (int)(sizeof owned / sizeof owned[0]));
    owned[n_owned++] = p;
    return p;
}

void *
dev(const void *host, size_t bytes)
{
    void *p = dev_poison(bytes);

    cuda_ok(cudaMemcpy(p, host, bytes, cudaMemcpyHostToDevice));
    cuda_ok(cudaDeviceSynchronize());
    return p;
}

/* Back, and nothing behind it was touched (unless it was never poisoned). */
void *
fetch(const void *p, size_t bytes)
{
    uint8_t *host = malloc(bytes + 64);

    cuda_ok(cudaMemcpy(host, p, bytes + 64, cudaMemcpyDeviceToHost));
    for (size_t i = bytes; i < bytes + 64; i++)
        assert_int_equal(host[i], 0xa5);
    return host;
}

int
tear_down(void **state)
{
    (void)state;
    while (n_owned > 0)
        cudaFree(owned[--n_owned]);
    return 0;
}

uint32_t
rnd(void)
{
    static uint64_t s = 88172645463325252ull;

    s ^= s << 13;
    s ^= s >> 7;
    s ^= s << 17;
    return (uint32_t)(s >> 16);
}

float
rnd_float(float size)
{
    return size * (float)(int)(rnd() % 20001 - 10000) / 10000.0f;
}

uint16_t *
rnd_bf16(size_t n, float size)
{
    uint16_t *x = malloc(n * 2);

    for (size_t i = 0; i < n; i++)
        x[i] = f32_to_bf16(rnd() % 16 == 0 ? ldexpf(rnd_float(size), (int)(rnd() % 24) - 22)
                                           : rnd_float(size));
    return x;
}

float *
rnd_f32(size_t n, float size)
{
    float *x = malloc(n * 4);

    for (size_t i = 0; i < n; i++)
        x[i] = rnd_float(size);
    return x;
}

void *
poison(size_t bytes)
{
    return memset(malloc(bytes), 0xa5, bytes);
}

/* Elements off by more than rel of the wanted value and abs; NaN equals NaN. */
int
far_bf16(const uint16_t *got, const uint16_t *want, size_t n, float rel, float abs)
{
    int far = 0;

    for (size_t i = 0; i < n; i++) {
        const float g = bf16_to_f32(got[i]), w = bf16_to_f32(want[i]);

        if (isnan(g) || isnan(w) || isinf(w))
            far += isnan(w) ? !isnan(g) : g != w;
        else
            far += !(fabsf(g - w) <= rel * fabsf(w) + abs);
    }
    return far;
}
