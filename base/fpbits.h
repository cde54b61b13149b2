/* SPDX-License-Identifier: Apache-2.0 */
#ifndef BASE_FPBITS_H
#define BASE_FPBITS_H

/*
 * Number formats as bits of f32: one text for C, for kernels, and for the prover
 * (verify/formats.cc), which puts terms in place of words. Included by fp.h.
 */
#ifndef FP_WORD
#    define FP_WORD                   uint32_t
#    define FP_LONG                   uint64_t
#    define FP_IF(condition, yes, no) ((condition) ? (yes) : (no))
#endif

/* Rounded to nearest, ties to even. NaN stays NaN: the carry must not run into the sign. */
FP_INLINE FP_WORD
fpbits_f32_to_bf16(FP_WORD u)
{
    return FP_IF((u & 0x7fffffff) > 0x7f800000, u >> 16 | 0x40,
                 (u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* 2^(b - 127): 0 is subnormal in f32, 255 is NaN. */
FP_INLINE FP_WORD
fpbits_e8m0_to_f32(FP_WORD b)
{
    return FP_IF(b == 0, 0x00400000, FP_IF(b == 255, 0x7fc00000, b << 23));
}

/* The exponent byte of the smallest power of two that is at least u > 0, finite. */
FP_INLINE FP_WORD
fpbits_f32_to_e8m0_up(FP_WORD u)
{
    return (u >> 23) + FP_IF((u & 0x7fffff) == 0, 0, 1);
}

/* Two e2m1 codes of a byte, low one first, as two f16 that are 2^14 too small: exponent and
 * mantissa fall on the lowest exponent bits of f16. */
FP_INLINE FP_WORD
fpbits_e2m1_pair_to_f16(FP_WORD b)
{
    return (b & 0x7) << 9 | (b & 0x8) << 12 | (b & 0x70) << 21 | (b & 0x80) << 24;
}

/* Two e2m1 codes of a byte, low one first, as two bytes: int8 of twice their values. */
FP_INLINE FP_WORD
fpbits_e2m1_pair_twice(FP_WORD b)
{
    const FP_LONG table = 0x0c08060403020100; /* 0 0.5 1 1.5 2 3 4 6, doubled */
    FP_WORD lo = (FP_WORD)(table >> (FP_LONG)((b & 7) * 8)) & 0xff;
    FP_WORD hi = (FP_WORD)(table >> (FP_LONG)((b >> 4 & 7) * 8)) & 0xff;

    lo = FP_IF((b & 0x08) != 0, 0 - lo, lo);
    hi = FP_IF((b & 0x80) != 0, 0 - hi, hi);
    return (lo & 0xff) | (hi & 0xff) << 8;
}

/* 16 bits that order like the numbers whose bf16 is u: negative ones turn around. */
FP_INLINE FP_WORD
fpbits_bf16_order(FP_WORD u)
{
    return FP_IF((u & 0x8000) != 0, ~u & 0xffff, u | 0x8000);
}

#endif /* BASE_FPBITS_H */
