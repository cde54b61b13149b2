/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_PHILOX_H
#define MODEL_PHILOX_H

#include <stdint.h>

/*
 * Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3",
 * SC 2011): a block function of (key, counter) without state. That is why it is here: the
 * draw at a position needs nothing that was drawn before it, so a restart, a fork or a batch
 * cannot change it. For C and CUDA; known-answer vectors in tests.
 */
#ifdef __CUDACC__
#    define PHILOX_FN static __host__ __device__ inline
#else
#    define PHILOX_FN static inline
#endif

/* Four 32-bit words. */
PHILOX_FN void
philox4x32(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4])
{
    uint32_t k0 = key[0], k1 = key[1];
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];

    for (int round = 0; round < 10; round++) {
        const uint64_t a = (uint64_t)0xD2511F53 * c0;
        const uint64_t b = (uint64_t)0xCD9E8D57 * c2;

        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)a;
        k0 +=
            0x9E3779B9; /* the golden ratio and sqrt(3) - 1: the key schedule of the paper */
        k1 += 0xBB67AE85;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

#endif /* MODEL_PHILOX_H */
