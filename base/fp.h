/* SPDX-License-Identifier: Apache-2.0 */
#ifndef BASE_FP_H
#define BASE_FP_H

#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * The small number formats of the model, to and from f32 (spec 2.3, 3.2, 3.3). All narrowing
 * is round to nearest, ties to even; all widening is exact. Inline, because they sit in the
 * innermost loops of the plain paths; the fast paths have their own and are compared with
 * these, over all inputs where that is possible.
 */
#ifdef __CUDACC__
#    define FP_INLINE static __host__ __device__ inline
#else
#    define FP_INLINE static inline
#endif

extern const float fp_e4m3_table[256]; /* 1-4-3, bias 7, no infinities, NaN 0x7f and 0xff */
extern const float fp_e2m1_table[16];  /* bit 3 is the sign */

/*
 * What is done to bits alone is written for FP_WORD, a word of at least 32 bits, with FP_IF where
 * a value depends on a condition: so the prover (verify/formats.cc) reads the same text.
 */
#include "base/fpbits.h"

FP_INLINE uint32_t
f32_bits(float f)
{
    uint32_t u;

    memcpy(&u, &f, sizeof u);
    return u;
}

FP_INLINE float
f32_from_bits(uint32_t u)
{
    float f;

    memcpy(&f, &u, sizeof f);
    return f;
}

FP_INLINE float
bf16_to_f32(uint16_t b)
{
    return f32_from_bits((uint32_t)b << 16);
}

FP_INLINE uint16_t
f32_to_bf16(float f)
{
    return (uint16_t)fpbits_f32_to_bf16(f32_bits(f));
}

/* To bf16 and back: the rounding that a bf16 tensor in the middle of a formula stands for. */
FP_INLINE float
bf16_round(float f)
{
    return bf16_to_f32(f32_to_bf16(f));
}

static inline float
e4m3_to_f32(uint8_t b)
{
    return fp_e4m3_table[b];
}

/* Beyond 448 saturates; callers clamp before, as the reference does. */
FP_INLINE uint8_t
f32_to_e4m3(float f)
{
    uint32_t u = f32_bits(f);
    const uint8_t sign = (uint8_t)(u >> 24 & 0x80);

    u &= 0x7fffffff;
    if (u > 0x7f800000)
        return sign | 0x7f;
    if (u >= 0x43e00000) /* 448 */
        return sign | 0x7e;
    if (u < 0x3c800000) /* below 2^-6 steps are 2^-9, which is one ulp of 2^14 */
        return (uint8_t)(sign | (f32_bits(f32_from_bits(u) + 16384.0f) - 0x46800000));
    u += 0x7ffff + (u >> 20 & 1);
    return (uint8_t)(sign | ((u >> 20) - (120u << 3)));
}

/* 2^(b - 127); 255 is NaN, 0 is 2^-127, which is subnormal in f32. */
FP_INLINE float
e8m0_to_f32(uint8_t b)
{
    return f32_from_bits(fpbits_e8m0_to_f32(b));
}

/* The smallest power of two that is at least t (t > 0, finite), as an E8M0 byte. */
FP_INLINE uint8_t
f32_to_e8m0_up(float t)
{
    return (uint8_t)fpbits_f32_to_e8m0_up(f32_bits(t));
}

static inline float
e2m1_to_f32(uint8_t code)
{
    return fp_e2m1_table[code & 15];
}

/* Ties go to the even code: 0.25 0.75 1.25 1.75 2.5 3.5 5 become 0 1 1 2 2 4 4. */
FP_INLINE uint8_t
f32_to_e2m1(float f)
{
    const uint8_t sign = (uint8_t)(f32_bits(f) >> 28 & 8);
    const float a = f32_from_bits(f32_bits(f) & 0x7fffffff);

    return (uint8_t)(sign | ((a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) +
                             (a > 2.5f) + (a >= 3.5f) + (a > 5.0f)));
}

#ifdef __cplusplus
}
#endif

#endif /* BASE_FP_H */
