/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bit tricks of the small number formats (base/fpbits.h), for all inputs, against what
 * the formats mean: IEEE 754 as Z3 knows it, or the value written out bit by bit (spec 2.3,
 * 3.2, 3.3).
 */
#include <cmath>

#include "verify/prove.hh"

#define FP_INLINE                 static inline
#define FP_WORD                   verify::Bits<32>
#define FP_LONG                   verify::Bits<64>
#define FP_IF(condition, yes, no) verify::choose((condition), FP_WORD(yes), FP_WORD(no))

namespace formula
{
#include "base/fpbits.h"
}

namespace verify
{

using namespace formula;
using Word = Bits<32>;

namespace
{

Z3_ast
as_float(Word u, unsigned exponent, unsigned mantissa)
{
    const Z3_ast bits = Z3_mk_extract(context(), exponent + mantissa, 0, u.a);

    return Z3_mk_fpa_to_fp_bv(context(), bits,
                              Z3_mk_fpa_sort(context(), exponent, mantissa + 1));
}

Bool
is_nan(Z3_ast f)
{
    return {Z3_mk_fpa_is_nan(context(), f)};
}

/* Equal as bits: zeros have signs. */
Bool
same(Z3_ast x, Z3_ast y)
{
    return {Z3_mk_eq(context(), x, y)};
}

Z3_ast
f32_number(double v)
{
    return Z3_mk_fpa_numeral_double(context(), v, Z3_mk_fpa_sort_32(context()));
}

/* Every f32 goes to the bf16 that IEEE 754 rounds it to, and NaN to a NaN. */
void
bf16_rounds(const Config &, Statement &s)
{
    const Word u = Word::unknown("u");
    const Word b = s.mutant ? (u + 0x8000) >> 16 : fpbits_f32_to_bf16(u);
    const Z3_ast wide = as_float(u, 8, 23), narrow = as_float(b, 8, 7);
    const Z3_ast rounded =
        Z3_mk_fpa_to_fp_float(context(), Z3_mk_fpa_round_nearest_ties_to_even(context()),
                              wide, Z3_mk_fpa_sort(context(), 8, 8));

    s.claim(same(narrow, rounded)); /* all NaNs are one value here */
    s.claim(implies(!is_nan(wide), !is_nan(narrow)));
    s.claim(b < 0x10000);
}

/* 2^(b - 127): the byte plus one doubles the value, 127 is 1, 255 is NaN. */
void
e8m0_is_power(const Config &, Statement &s)
{
    const Word b = Word::unknown("b");
    const Z3_ast mode = Z3_mk_fpa_round_nearest_ties_to_even(context());
    const Z3_ast one = as_float(fpbits_e8m0_to_f32(127), 8, 23);
    const Z3_ast here = as_float(fpbits_e8m0_to_f32(b), 8, 23);
    const Z3_ast next =
        as_float(s.mutant ? (b + 1) << 23 : fpbits_e8m0_to_f32(b + 1), 8, 23);

    s.assume(b < 255);
    s.claim(same(one, f32_number(1.0)));
    s.claim(same(next, Z3_mk_fpa_mul(context(), mode, here, f32_number(2.0))) || b == 254);
    s.claim(implies(b == 254, is_nan(next)));
    if (s.mutant)
        s.assume(b == 254);
}

/* The smallest power of two at least t, for every t from 2^-126 to 2^127. */
void
e8m0_up_is_least(const Config &, Statement &s)
{
    const Word u = Word::unknown("u"), e = fpbits_f32_to_e8m0_up(u);
    const Z3_ast t = as_float(u, 8, 23);
    const Z3_ast at = as_float(fpbits_e8m0_to_f32(e), 8, 23);
    const Z3_ast below = as_float(fpbits_e8m0_to_f32(e - 1), 8, 23);

    s.assume(u >= 0x00800000 && u <= 0x7f000000);
    s.claim({Z3_mk_fpa_leq(context(), t, s.mutant ? below : at)});
    s.claim({Z3_mk_fpa_lt(context(), below, t)});
}

const double e2m1[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6}; /* and their negatives */

/* From both nibbles, 2^14 too small as f16, and exact there times 2^14. What lies above
 * the byte has no part in it (device.cuh, e2m1_quad). */
void
e2m1_by_place(const Config &, Statement &s)
{
    const Word b = Word::unknown("b"), halves = fpbits_e2m1_pair_to_f16(b);
    const Z3_ast mode = Z3_mk_fpa_round_nearest_ties_to_even(context());

    for (int hi = 0; hi < 2; hi++) {
        const Word code = (b >> (hi ? 4 : 0)) & 15;
        const Z3_ast half = as_float(hi ? halves >> 16 : halves & 0xffff, 5, 10);
        const Z3_sort f16 = Z3_mk_fpa_sort_16(context());
        const Z3_ast up = Z3_mk_fpa_mul(context(), mode, half,
                                        Z3_mk_fpa_numeral_double(context(), 16384, f16));

        for (unsigned c = 0; c < 16; c++) {
            const double v = s.mutant && c == 7 ? 8 : e2m1[c & 7];

            s.claim(implies(code == c, same(up, Z3_mk_fpa_numeral_double(
                                                    context(), c < 8 ? v : -v, f16))));
        }
    }
}

/* Both codes of a byte as int8 of twice their values; a zero has no sign there. */
void
e2m1_twice(const Config &, Statement &s)
{
    const Word b = Word::unknown("b"), pair = fpbits_e2m1_pair_twice(b);

    s.assume(b < 256);
    s.claim(pair < 0x10000);
    for (int hi = 0; hi < 2; hi++)
        for (unsigned c = 0; c < 16; c++) {
            const double v = (c < 8 ? 2 : -2) * (s.mutant && c == 15 ? 8 : e2m1[c & 7]);
            const Word code = (b >> (hi ? 4 : 0)) & 15, got = (pair >> (hi ? 8 : 0)) & 0xff;

            s.claim(implies(code == c, got == (static_cast<int>(v) & 0xff)));
        }
}

/* The 16 bits order as the numbers do; of zeros the negative one comes first, and no score
 * is one: sums that begin with 0 do not end with -0. */
void
bf16_order(const Config &, Statement &s)
{
    const Word u = Word::unknown("u"), v = Word::unknown("v");
    const Z3_ast x = as_float(u, 8, 7), y = as_float(v, 8, 7);
    const Word key = s.mutant ? (u ^ 0x8000) & 0xffff : fpbits_bf16_order(u);
    const Bool less = key < fpbits_bf16_order(v), spec = Z3_mk_fpa_lt(context(), x, y);

    s.assume(u < 0x10000 && v < 0x10000 && !is_nan(x) && !is_nan(y));
    s.claim(implies(spec, less));
    s.claim(implies(less, spec || (u == 0x8000 && v == 0)));
    s.claim(key < 0x10000);
}

/* The value of a bf16 times 2^up. */
Z3_ast
raised(Word half, double up)
{
    const Z3_ast mode = Z3_mk_fpa_round_nearest_ties_to_even(context());
    const Z3_ast wide = Z3_mk_fpa_to_fp_float(context(), mode, as_float(half, 8, 7),
                                              Z3_mk_fpa_sort_32(context()));

    return Z3_mk_fpa_mul(context(), mode, wide, f32_number(std::ldexp(1, int(up))));
}

/* Each of four e4m3 codes, packed and unpacked, is its value at 2^-120; 0x7f and 0xff are NaN and
 * matrices that have them are not packed. */
void
e4m3_packed(const Config &, Statement &s)
{
    const Word codes = Word::unknown("codes");
    Word pair[2];

    fpbits_e4m3_unpack(s.mutant ? codes : fpbits_e4m3_pack(codes), &pair[0], &pair[1]);
    for (int i = 0; i < 4; i++) {
        const Word code = codes >> (8 * i) & 0xff;
        const Word half = pair[i / 2] >> (16 * (i % 2)) & 0xffff;

        s.claim(half == ((code & 0x80) << 8 | (code & 0x7f) << 4));
    }

    const Word one = Word::unknown("one");
    const Z3_ast value = raised((one & 0x80) << 8 | (one & 0x7f) << 4, 120);

    s.assume(one < 256);
    for (unsigned c = 0; c < 256; c++) {
        const int e = c >> 3 & 15, m = c & 7;
        const double size = e == 0 ? std::ldexp(m, -9) : std::ldexp(8 + m, e - 10);

        if ((c & 0x7f) != 0x7f)
            s.claim(implies(one == c, same(value, f32_number(c < 128 ? size : -size))));
    }
}

/* The same of eight e2m1 codes, at 2^-126. */
void
e2m1_packed(const Config &, Statement &s)
{
    const Word codes = Word::unknown("codes");
    Word pair[4];

    fpbits_e2m1_unpack(fpbits_e2m1_pack(s.mutant ? codes ^ 1 : codes), pair);
    for (int i = 0; i < 8; i++) {
        const Word code = codes >> (4 * i) & 15;
        const Word half = pair[i / 2] >> (16 * (i % 2)) & 0xffff;

        s.claim(half == ((code & 8) << 12 | (code & 7) << 6));
    }

    const Word one = Word::unknown("one");
    const Z3_ast value = raised((one & 8) << 12 | (one & 7) << 6, 126);

    s.assume(one < 16);
    for (unsigned c = 0; c < 16; c++)
        s.claim(implies(one == c, same(value, f32_number(c < 8 ? e2m1[c] : -e2m1[c & 7]))));
}

/* Codes as they are: eight e2m1 (choose.cu), two e4m3 in the upper bytes (attend.cu). */
void
codes_widened(const Config &, Statement &s)
{
    const Word w = Word::unknown("w"), high = Word::unknown("high");
    const Word e = fpbits_e4m3_high(high);
    Word pair[4];

    fpbits_e2m1_widen(s.mutant ? w >> 1 : w, pair);
    for (int i = 0; i < 8; i++) {
        const Word code = w >> (4 * i) & 15, half = pair[i % 4] >> (16 * (i / 4)) & 0xffff;

        s.claim(half == ((code & 8) << 12 | (code & 7) << 6));
    }
    for (int i = 0; i < 2; i++) {
        const Word code = high >> (16 * i + 8) & 0xff, half = e >> (16 * i) & 0xffff;

        s.assume((high >> (16 * i) & 0xff) == 0);
        s.claim(half == ((code & 0x80) << 8 | (code & 0x7f) << 4));
    }
}

} // namespace

const std::vector<Obligation> formats = {
    {"formats", "bf16-rounds", "f32 to bf16 is IEEE 754's rounding for all 2^32 inputs",
     false, bf16_rounds},
    {"formats", "e8m0-is-power", "byte b means 2^(b - 127), 255 NaN", false, e8m0_is_power},
    {"formats", "e8m0-up-is-least",
     "the scale taken is the least power of two that is enough", false, e8m0_up_is_least},
    {"formats", "e2m1-by-place", "both FP4 codes of a byte by their place in two f16",
     false, e2m1_by_place},
    {"formats", "e2m1-twice", "both FP4 codes of a byte as integers, twice their values",
     false, e2m1_twice},
    {"formats", "e4m3-packed", "packed FP8 codes are bf16 of their values, 2^120 too small",
     false, e4m3_packed},
    {"formats", "e2m1-packed", "packed FP4 codes are bf16 of their values, 2^126 too small",
     false, e2m1_packed},
    {"formats", "bf16-order", "16 bits order like the bf16 numbers that they are made of",
     false, bf16_order},
    {"formats", "codes-widened", "codes as they lie in rows become bf16 as packed ones do",
     false, codes_widened},
};

} // namespace verify
