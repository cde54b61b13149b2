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

/*
 * Codes as packed weights have them (gpu/cuda/packed.cuh), so that few operations make bf16 of
 * them by their bits alone, in pairs, the first element below: an e4m3's exponent and fraction fall
 * on the lowest of bf16's, 2^120 too small, an e2m1's 2^126.
 */

/* Four e4m3 codes, the first one lowest: in each half of the word one of the first two where bf16
 * has its bits, and one of the others in what is left, its sign and four lower bits 4 too far to the
 * right, the others 4 to the left. */
FP_INLINE FP_WORD
fpbits_e4m3_pack(FP_WORD c)
{
    return (c & 0x80) << 8 | (c & 0x7f) << 4 | (c & 0x8000) << 16 | (c & 0x7f00) << 12 |
           (c >> 12 & 0x800) | (c >> 16 & 0xf) | (c >> 8 & 0x7000) | (c >> 4 & 0x8000000) |
           (c >> 8 & 0xf0000) | (c & 0x70000000);
}

/* Codes 0 and 1, and 2 and 3. */
FP_INLINE void
fpbits_e4m3_unpack(FP_WORD w, FP_WORD *first, FP_WORD *second)
{
    *first = w & 0x87f087f0;
    *second = (w << 4 & 0x80f080f0) | (w >> 4 & 0x07000700);
}

/* Eight e2m1 codes, the first one lowest: two of them to each place that unpacking looks at, all
 * four bits of a code one shift away from where they go, but of the last two. */
FP_INLINE FP_WORD
fpbits_e2m1_pack(FP_WORD codes)
{
    /* places of a code's size, bits 0, 1 and 2, and sign, in the word of an even one */
    const int at[4][4] = {{6, 7, 8, 15}, {2, 3, 4, 11}, {28, 29, 30, 5}, {0, 1, 10, 9}};
    FP_WORD w = 0;

    for (int i = 0; i < 8; i++)
        for (int b = 0; b < 4; b++)
            w = w | (codes >> (4 * i + b) & 1) << (at[i / 2][b] + 16 * (i % 2)) % 32;
    return w;
}

/* Codes 2 i and 2 i + 1 to p[i]. */
FP_INLINE void
fpbits_e2m1_unpack(FP_WORD w, FP_WORD *p)
{
    p[0] = w & 0x81c081c0;
    p[1] = w << 4 & 0x81c081c0;
    p[2] = (w << 10 | w >> 22) & 0x81c081c0;
    p[3] = (w << 6 & 0x80c080c0) | (w >> 2 & 0x01000100);
}

/* The same of eight codes as they are, the first one lowest: codes i and i + 4 to p[i]. */
FP_INLINE void
fpbits_e2m1_widen(FP_WORD w, FP_WORD *p)
{
    p[0] = (w << 6 & 0x01c001c0) | (w << 12 & 0x80008000);
    p[1] = (w << 2 & 0x01c001c0) | (w << 8 & 0x80008000);
    p[2] = (w >> 2 & 0x01c001c0) | (w << 4 & 0x80008000);
    p[3] = (w >> 6 & 0x01c001c0) | (w & 0x80008000);
}

/* Two e4m3 codes, each in the upper byte of its half. */
FP_INLINE FP_WORD
fpbits_e4m3_high(FP_WORD w)
{
    return (w >> 4 & 0x07f007f0) | (w & 0x80008000);
}

#endif /* BASE_FPBITS_H */
