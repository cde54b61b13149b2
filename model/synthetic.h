/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_SYNTHETIC_H
#define MODEL_SYNTHETIC_H

#include <stdint.h>

#include "model/tensor.h"

/*
 * Weights that are made up: true shapes without files, for measuring and for tests of shapes that
 * no checkpoint here has. An element depends on the seed, its tensor's name and its place alone,
 * so that a device can make what a host would make, in any order. Never zeros; of a size that
 * keeps activations in range, whatever the shape: a matrix has a standard deviation of about one
 * over the root of its inputs.
 *
 * struct synthetic is what the name and shape come to; the functions below are for C and CUDA.
 */
enum synthetic_kind {
    SYNTHETIC_FP4,  /* two codes a byte */
    SYNTHETIC_FP8,  /* e4m3, about normal, root mean square 4.5 */
    SYNTHETIC_E8M0, /* `exponent`, or one more */
    SYNTHETIC_BF16, /* offset + size times something about normal */
    SYNTHETIC_F32,
    SYNTHETIC_IDS, /* i64 [.][row], all different in a row, below `most` */
};

struct synthetic {
    uint64_t key;
    enum synthetic_kind kind;
    int exponent, row, most;
    float offset, size;
};

struct synthetic synthetic_of(const struct tensor *t, uint64_t seed);

/* Elements first .. first + n - 1 (FP4: bytes) of t, as they lie in a file. */
void synthetic_fill(const struct synthetic *s, uint64_t first, uint64_t n, void *out);

#ifdef __CUDACC__
#    define SYNTHETIC_FN static __host__ __device__ inline
#else
#    define SYNTHETIC_FN static inline
#endif

SYNTHETIC_FN uint64_t
synthetic_hash(uint64_t key, uint64_t i)
{
    uint64_t x = key + i * UINT64_C(0x9e3779b97f4a7c15);

    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

SYNTHETIC_FN uint8_t
synthetic_byte(const struct synthetic *s, uint64_t i)
{
    const uint64_t h = synthetic_hash(s->key, i);
    int e = 9;

    if (s->kind == SYNTHETIC_FP4)
        return (uint8_t)h;
    if (s->kind == SYNTHETIC_E8M0)
        return (uint8_t)(s->exponent + (int)(h & 1));
    for (uint64_t bits = h; e > 1 && (bits & 1) == 0; bits >>= 1)
        e--;
    return (uint8_t)((h >> 56 & 0x80) | (uint64_t)(e << 3) | (h >> 20 & 7));
}

/* A sum of four uniform numbers has a deviation of 37837 times a step. */
SYNTHETIC_FN float
synthetic_number(const struct synthetic *s, uint64_t i)
{
    const uint64_t h = synthetic_hash(s->key, i);
    const int sum = (int)(h & 0xffff) + (int)(h >> 16 & 0xffff) + (int)(h >> 32 & 0xffff) +
                    (int)(h >> 48);

    return s->offset + s->size * ((float)(sum - 131070) * (1.0f / 37837.0f));
}

SYNTHETIC_FN int64_t
synthetic_id(const struct synthetic *s, uint64_t i)
{
    const uint64_t at = i % (uint64_t)s->row, step = (uint64_t)(s->most / s->row);

    return (int64_t)((synthetic_hash(s->key, i / (uint64_t)s->row) + at * step) %
                     (uint64_t)s->most);
}

#endif /* MODEL_SYNTHETIC_H */
