/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CPU_AVX512_MATH_H
#define GPU_CPU_AVX512_MATH_H

#include <immintrin.h>
#include <stdint.h>

/*
 * What the AVX-512 files share: 16 numbers at a time between the formats, e^x, and sums in one
 * fixed order. Only files compiled with AVX512_CFLAGS may include this.
 */
#define INLINE static inline __attribute__((always_inline))

/* bf16 of the 128 non-negative e4m3 codes, as high and low bytes; 64-byte aligned. */
extern const uint8_t avx512_fp8_high[128], avx512_fp8_low[128];

INLINE __m512
widen(__m256i b)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16));
}

INLINE __m512
load_bf16(const uint16_t *p)
{
    return widen(_mm256_loadu_si256((const __m256i *)p));
}

/* Round to nearest even; NaN stays NaN, subnormals become zeros. */
INLINE __m256i
narrow(__m512 v)
{
    return (__m256i)_mm512_cvtneps_pbh(v);
}

INLINE void
store_bf16(uint16_t *p, __m512 v)
{
    _mm256_storeu_si256((__m256i *)p, narrow(v));
}

INLINE __m512
round_bf16(__m512 v)
{
    return widen(narrow(v));
}

/* 64 e4m3 codes to bf16: bytes 0-7 of each quarter to *lo, 8-15 to *hi. */
INLINE void
widen_fp8(__m512i b, __m512i *lo, __m512i *hi)
{
    const __m512i sign = _mm512_set1_epi8((char)0x80);
    __m512i h = _mm512_permutex2var_epi8(_mm512_load_si512(avx512_fp8_high), b,
                                         _mm512_load_si512(avx512_fp8_high + 64));
    const __m512i l = _mm512_permutex2var_epi8(_mm512_load_si512(avx512_fp8_low), b,
                                               _mm512_load_si512(avx512_fp8_low + 64));

    h = _mm512_ternarylogic_epi32(h, b, sign, 0xf8); /* h | (b & sign) */
    *lo = _mm512_unpacklo_epi8(l, h);
    *hi = _mm512_unpackhi_epi8(l, h);
}

/* Pairs of halves, then of quarters ...: one order, whatever the compiler. */
INLINE float
sum16(__m512 v)
{
    const __m256 a = _mm256_add_ps(
        _mm512_castps512_ps256(v),
        _mm256_castsi256_ps(_mm512_extracti64x4_epi64(_mm512_castps_si512(v), 1)));
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));

    return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
}

/*
 * e^x within 1.2 units in the last place: x = n ln 2 + r, |r| <= 0.35, a polynomial of degree 6
 * in r (relative error 2^-26), times 2^n. Overflows to inf and underflows through the
 * subnormals to 0 as it should; NaN stays.
 */
INLINE __m512
exp16(__m512 x)
{
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(0x1.715476p+0f)),
                                          _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.62e4p-1f), x), p;

    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.7f7d1cp-20f), r);
    p = _mm512_set1_ps(0x1.6c16c2p-10f);                       /* 1/720 */
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.111112p-7f)); /* 1/120 */
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.555556p-5f)); /* 1/24 */
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.555556p-3f)); /* 1/6 */
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r);
    p = _mm512_add_ps(p, _mm512_set1_ps(1.0f));
    p = _mm512_scalef_ps(p, n);
    /* inf - inf above is NaN: -inf and what lies far below give 0, +inf gives inf. */
    p = _mm512_mask_mov_ps(p, _mm512_cmp_ps_mask(x, _mm512_set1_ps(-110.0f), _CMP_LT_OQ),
                           _mm512_setzero_ps());
    return _mm512_mask_mov_ps(p, _mm512_cmp_ps_mask(x, _mm512_set1_ps(89.0f), _CMP_GT_OQ),
                              _mm512_set1_ps(__builtin_inff()));
}

#endif /* GPU_CPU_AVX512_MATH_H */
