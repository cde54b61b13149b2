/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GCC's vectors, compiled for several processors; the build never fuses a product into a sum
 * (-ffp-contract=off), so they agree to the last bit.
 */
#include "config.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "model/logits.h"

typedef float v16f __attribute__((vector_size(64)));
typedef int32_t v16i __attribute__((vector_size(64)));
typedef float v8f __attribute__((vector_size(32)));
typedef double v8d __attribute__((vector_size(64)));
typedef uint64_t v8u __attribute__((vector_size(64)));

#define INLINE static inline __attribute__((always_inline)) void

/* Sanitizers run before the functions that pick a clone are there. */
#ifdef EACH_PROCESSOR /* a test's */
#elif defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#    define EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#    define EACH_PROCESSOR
#endif

enum { LANES = 16, HALF = LANES / 2 };

/* Vectors go by address: how they are passed by value depends on the processor. */
INLINE
choose(v16f *to, const v16i *where, const v16f *one, const v16f *other)
{
    *to = (v16f)(((v16i)*one & *where) | ((v16i)*other & ~*where));
}

/* `n` of x, up to LANES, cleaned; the rest is -inf. */
INLINE
load(v16f *v, const float *x, uint32_t n)
{
    const v16f none = (v16f){0} - INFINITY, most = (v16f){0} + FLT_MAX;
    v16i where;

    if (n >= LANES) {
        memcpy(v, x, sizeof *v);
    } else {
        *v = none;
        memcpy(v, x, n * sizeof *x);
    }
    where = *v == *v;
    choose(v, &where, v, &none);
    where = *v < most;
    choose(v, &where, v, &most);
}

INLINE
store(void *to, const void *from, size_t bytes, bool whole, size_t part)
{
    if (whole)
        memcpy(to, from, bytes);
    else
        memcpy(to, from, part);
}

INLINE
take_larger(v16f *max, const v16f *v)
{
    const v16i where = *v > *max;

    choose(max, &where, v, max);
}

/* The largest of all lanes, by halves, in every lane. */
INLINE
spread_largest(v16f *v)
{
    const v16i lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

    for (int d = HALF; d > 0; d /= 2) {
        const v16f other = __builtin_shuffle(*v, lane ^ d);

        take_larger(v, &other);
    }
}

/*
 * y to exp(y), y <= 0: 2^k * exp(r), k the nearest integer to y / ln 2, |r| <= ln 2 / 2. ln 2 in
 * two parts, the first with 32 bits, so that k times it is exact. Taylor's sum up to r^12 / 12!;
 * r^13 / 13! is below 1.7e-16.
 */
INLINE
exp_lanes(v8d *y)
{
    const double to_integer = 0x1.8p52, log2e = 0x1.71547652b82fep+0;
    const double ln2_high = 0x1.62e42ffp-1, ln2_low = -0x1.718432a1b0e26p-35;
    const v8u there = (v8u)(*y >= -708.0);
    const v8d shifted = *y * log2e + to_integer, k = shifted - to_integer;
    const v8d r = (*y - k * ln2_high) - k * ln2_low, r2 = r * r, r4 = r2 * r2;
    const v8d a = (1.0 + r) + r2 * (0x1p-1 + r * (1.0 / 6));
    const v8d b = (1.0 / 24 + r * (1.0 / 120)) + r2 * (1.0 / 720 + r * (1.0 / 5040));
    const v8d c = (1.0 / 40320 + r * (1.0 / 362880)) +
                  r2 * (1.0 / 3628800 + r * (1.0 / 39916800)) + r4 * (1.0 / 479001600);
    const v8d p = a + r4 * (b + r4 * c);

    *y = (v8d)(((v8u)p + ((v8u)shifted << 52)) & there);
}

/* exp((x - max) * scale) of the 16 from x on, where n are left. */
INLINE
weights_of(v8d w[2], const float *x, uint32_t n, double max, double scale)
{
    v16f v;

    load(&v, x, n);
    for (int i = 0; i < 2; i++) {
        v8f half;

        memcpy(&half, (const char *)&v + (size_t)i * sizeof half, sizeof half);
        w[i] = (__builtin_convertvector(half, v8d) - max) * scale;
        exp_lanes(&w[i]);
    }
}

EACH_PROCESSOR float
logits_max(const float *x, uint32_t n)
{
    v16f max = (v16f){0} - INFINITY, v;

    for (uint32_t i = 0; i < n; i += LANES) {
        load(&v, x + i, n - i);
        take_larger(&max, &v);
    }
    spread_largest(&max);
    return max[0];
}

EACH_PROCESSOR bool
logits_finite(const float *x, uint32_t n)
{
    v16f bad = {0}, v; /* x * 0 is 0, or NaN for good */
    float sum = 0;
    uint32_t i = 0;

    for (; n - i >= LANES; i += LANES) {
        memcpy(&v, x + i, sizeof v);
        bad += v * 0.0f;
    }
    for (; i < n; i++)
        sum += x[i] * 0.0f;
    for (int k = 0; k < LANES; k++)
        sum += bad[k];
    return sum == 0;
}

EACH_PROCESSOR float
logits_clean(const float *x, uint32_t n, float *out, float *block_max)
{
    v16f max = (v16f){0} - INFINITY, all = max, v;

    for (uint32_t i = 0; i < n; i += LANES) {
        const uint32_t left = n - i;

        load(&v, x + i, left);
        store(out + i, &v, sizeof v, left >= LANES, left * sizeof *out);
        take_larger(&max, &v);
        if (left > LANES && (i + LANES) % LOGITS_BLOCK != 0)
            continue;
        spread_largest(&max);
        block_max[i / LOGITS_BLOCK] = max[0];
        take_larger(&all, &max);
        max = (v16f){0} - INFINITY;
    }
    return all[0];
}

/* Numbers from 0 to 1 in units, rounded. */
INLINE
integers_of(v8u *to, const v8d *w)
{
    const double integers = 0x1p52; /* from here on a unit is the lowest bit */

    *to = (v8u)(*w * LOGITS_UNIT + integers) - (v8u)((v8d){0} + integers);
}

EACH_PROCESSOR uint64_t
logits_sum(const float *x, uint32_t n, float max, double scale)
{
    v8d w[2];
    v8u all = {0}, k[2];
    uint64_t sum = 0;

    for (uint32_t i = 0; i < n; i += LANES) {
        weights_of(w, x + i, n - i, (double)max, scale);
        integers_of(&k[0], &w[0]);
        integers_of(&k[1], &w[1]);
        all += k[0] + k[1];
    }
    for (int i = 0; i < HALF; i++)
        sum += all[i];
    return sum;
}

EACH_PROCESSOR void
logits_weights(const float *x, uint32_t n, float max, double scale, uint64_t *w)
{
    v8d v[2];
    v8u k[2];

    for (uint32_t i = 0; i < n; i += LANES) {
        const uint32_t left = n - i;

        weights_of(v, x + i, left, (double)max, scale);
        integers_of(&k[0], &v[0]);
        integers_of(&k[1], &v[1]);
        store(w + i, k, sizeof k, left >= LANES, left * sizeof *w);
    }
}
