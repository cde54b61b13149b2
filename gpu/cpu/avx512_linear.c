/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrix products on weights in panels (panel.h) with AVX-512: the only file that reads weights.
 *
 * A tile is `rows` rows of x by `panels` panels. Codes become bf16 in registers, by table (the
 * values are exact there), and vdpbf16ps adds two products to each of 16 outputs. A block of 128
 * inputs (32 of FP4) is summed from zero and enters the total by one fma with the block's
 * scale, as in spec 3.4. Whatever the tile's size, an output sees the same instructions in the
 * same order, so its bits depend on its own row and weights only.
 *
 * One row: bound by memory; 4 panels side by side hide the 6 cycles of a vdpbf16ps. Many rows: 8
 * by 2 panels, 16 sums; expanding the codes costs a tenth then, less than a pass through a
 * scratch of expanded weights. vdpbf16ps takes subnormals for zero and rounds to nearest: at
 * 2^-126 neither matters to a sum that started at products of normal numbers.
 */
#include "config.h"

#include <immintrin.h>
#include <string.h>

#include "gpu/cpu/avx512.h"
#include "gpu/cpu/avx512_math.h"
#include "gpu/cpu/panel.h"

/* How far in front of a step its weights are fetched. The processor's own prefetch does not
 * follow two panels of four, and stops at pages: 8 rows of FP8 from memory run at 136 GFLOP/s
 * a core without this and 280 with it, one row of FP4 at 23 and 33 GB/s; 2 KB ahead reaches
 * half of that, 16 KB no more. */
enum { MAX_ROWS = 8, AHEAD = 8192 };

/* bf16 of the 128 non-negative e4m3 codes, in high and low bytes; the sign is or-ed in. The
 * codes below 8 are subnormal in e4m3 and normal in bf16; 127 is NaN. */
#define BF16_OF(c)                          \
    ((c) == 0     ? 0x0000                  \
     : (c) == 1   ? 0x3b00                  \
     : (c) < 4    ? 0x3b80 + 0x40 * ((c)-2) \
     : (c) < 8    ? 0x3c00 + 0x20 * ((c)-4) \
     : (c) == 127 ? 0x7fc0                  \
                  : ((c) << 4) + (120 << 7))
#define EIGHT(f, c) \
    f(c), f(c + 1), f(c + 2), f(c + 3), f(c + 4), f(c + 5), f(c + 6), f(c + 7)
#define CODES(f)                                                                      \
    EIGHT(f, 0), EIGHT(f, 8), EIGHT(f, 16), EIGHT(f, 24), EIGHT(f, 32), EIGHT(f, 40), \
        EIGHT(f, 48), EIGHT(f, 56), EIGHT(f, 64), EIGHT(f, 72), EIGHT(f, 80),         \
        EIGHT(f, 88), EIGHT(f, 96), EIGHT(f, 104), EIGHT(f, 112), EIGHT(f, 120)
#define HIGH(c) (uint8_t)(BF16_OF(c) >> 8)
#define LOW(c)  (uint8_t)(BF16_OF(c) & 0xff)

const uint8_t avx512_fp8_high[128] __attribute__((aligned(64))) = {CODES(HIGH)};
const uint8_t avx512_fp8_low[128] __attribute__((aligned(64))) = {CODES(LOW)};

/* bf16 of the 16 e2m1 codes, twice: vpermw looks at five bits of an index. */
static const uint16_t fp4_words[32] __attribute__((aligned(64))) = {
    0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0, 0x8000, 0xbf00, 0xbf80,
    0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0, 0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040,
    0x4080, 0x40c0, 0x8000, 0xbf00, 0xbf80, 0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0,
};

/* One step of a panel as 1, 2 or 4 vectors of bf16 pairs (f32: as it is). */
INLINE void
expand(enum matrix_kind kind, const uint8_t *p, __m512i *v)
{
    const __m512i b = _mm512_loadu_si512(p);

    if (kind == MATRIX_FP8) {
        widen_fp8(b, &v[0], &v[1]);
    } else if (kind == MATRIX_FP4) {
        const __m512i table = _mm512_load_si512(fp4_words);

        v[0] = _mm512_permutexvar_epi16(b, table);
        v[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(b, 4), table);
        v[2] = _mm512_permutexvar_epi16(_mm512_srli_epi16(b, 8), table);
        v[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(b, 12), table);
    } else {
        v[0] = b;
    }
}

/* Two inputs of a row, to all outputs. f32: as f32, the first for lanes 0-7, the second 8-15. */
INLINE __m512i
pair_of(enum matrix_kind kind, const uint16_t *x)
{
    int32_t both;

    memcpy(&both, x, sizeof both);
    if (kind == MATRIX_F32) {
        const __m512i shift =
            _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 16, 16, 16, 16, 16, 16, 16, 16);

        return _mm512_and_si512(_mm512_sllv_epi32(_mm512_set1_epi32(both), shift),
                                _mm512_set1_epi32((int)0xffff0000));
    }
    return _mm512_set1_epi32(both);
}

INLINE __m512
product(enum matrix_kind kind, __m512 sum, __m512i w, __m512i x)
{
    if (kind == MATRIX_F32)
        return _mm512_fmadd_ps(_mm512_castsi512_ps(w), _mm512_castsi512_ps(x), sum);
    return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x);
}

/* 16 block scales of FP4, 2^(b-127); 0 and 255 do not fit the shift. */
INLINE __m512
fp4_scale(const uint8_t *p)
{
    const __m512i b = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
    __m512i s = _mm512_slli_epi32(b, 23);

    s = _mm512_mask_mov_epi32(s, _mm512_testn_epi32_mask(b, b),
                              _mm512_set1_epi32(0x00400000));
    s = _mm512_mask_mov_epi32(s, _mm512_cmpeq_epi32_mask(b, _mm512_set1_epi32(255)),
                              _mm512_set1_epi32(0x7fc00000));
    return _mm512_castsi512_ps(s);
}

/* Sixteen outputs of one row (f32: eight, halves to be added), those that exist. */
INLINE void
store(const struct linear_args *a, enum matrix_kind kind, __m512 y, size_t at, int outs)
{
    if (kind == MATRIX_F32) {
        const __m256 sum = _mm256_add_ps(
            _mm512_castps512_ps256(y),
            _mm256_castsi256_ps(_mm512_extracti64x4_epi64(_mm512_castps_si512(y), 1)));

        y = _mm512_zextps256_ps512(sum);
    }

    const __mmask16 m = (__mmask16)((1u << outs) - 1);

    if (a->y_f32)
        _mm512_mask_storeu_ps((float *)a->y + at, m, y);
    else
        _mm256_mask_storeu_epi16((uint16_t *)a->y + at, m, (__m256i)_mm512_cvtneps_pbh(y));
}

/* Rows r .. r + rows - 1 by panels p .. p + panels - 1 of the group. */
INLINE void
tile(enum matrix_kind kind, const int rows, const int panels, const struct linear_args *a,
     const struct panel_group *g, int r, int p)
{
    const int in = a->w->in, step = panel_inputs(kind), outputs = panel_outputs(kind);
    const int block = kind == MATRIX_FP4 ? PANEL_FP4_BLOCK : PANEL_BLOCK;
    const size_t xs = (size_t)a->x_stride;
    const uint16_t *x = a->x + (size_t)r * xs;
    const uint8_t *w = g->w + (size_t)p * PANEL_STEP;
    __m512 total[MAX_ROWS][PANEL_GROUP], sum[MAX_ROWS][PANEL_GROUP];

#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < panels; j++)
            total[i][j] = _mm512_setzero_ps();

    for (int k0 = 0, b = 0; k0 < in; k0 += block, b++) {
        const int k1 = k0 + block < in ? k0 + block : in;

#pragma GCC unroll 8
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
            for (int j = 0; j < panels; j++)
                sum[i][j] = _mm512_setzero_ps();

        for (int k = k0; k < k1; k += step) {
            __m512i v[PANEL_GROUP][4];

#pragma GCC unroll 4
            for (int j = 0; j < panels; j++) {
                _mm_prefetch((const char *)w + j * PANEL_STEP + AHEAD, _MM_HINT_T0);
                expand(kind, w + j * PANEL_STEP, v[j]);
            }
#pragma GCC unroll 4
            for (int s = 0; s < step / 2; s++) {
#pragma GCC unroll 8
                for (int i = 0; i < rows; i++) {
                    const __m512i xk = pair_of(kind, x + i * xs + k + 2 * s);

#pragma GCC unroll 4
                    for (int j = 0; j < panels; j++)
                        sum[i][j] = product(kind, sum[i][j], v[j][s], xk);
                }
            }
            w += (size_t)g->n * PANEL_STEP;
        }

#pragma GCC unroll 4
        for (int j = 0; j < panels; j++) {
            const __m512 scale =
                kind == MATRIX_FP8 ? _mm512_set1_ps(g->scale8[b])
                : kind == MATRIX_FP4
                    ? fp4_scale(g->scale4 +
                                ((size_t)b * (size_t)g->n + (size_t)(p + j)) * 16)
                    : _mm512_set1_ps(1.0f);

#pragma GCC unroll 8
            for (int i = 0; i < rows; i++)
                total[i][j] = _mm512_fmadd_ps(sum[i][j], scale, total[i][j]);
        }
    }

#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < panels; j++) {
            const int o = (p + j) * outputs;

            store(a, kind, total[i][j], (size_t)(r + i) * a->y_stride + g->out0 + o,
                  g->outs - o < outputs ? g->outs - o : outputs);
        }
}

typedef void tile_fn(const struct linear_args *a, const struct panel_group *g, int r,
                     int p);

#define TILE(kind, rows, panels)                                                           \
    static void tile_##kind##_##rows##_##panels(const struct linear_args *a,               \
                                                const struct panel_group *g, int r, int p) \
    {                                                                                      \
        tile(MATRIX_##kind, rows, panels, a, g, r, p);                                     \
    }
#define TILES(kind)  \
    TILE(kind, 1, 1) \
    TILE(kind, 1, 2) \
    TILE(kind, 1, 4) \
    TILE(kind, 2, 1) \
    TILE(kind, 2, 2) \
    TILE(kind, 2, 4) \
    TILE(kind, 4, 1) TILE(kind, 4, 2) TILE(kind, 4, 4) TILE(kind, 8, 1) TILE(kind, 8, 2)
TILES(BF16)
TILES(F32)
TILES(FP8)
TILES(FP4)

/* [log2 rows][log2 panels] */
#define ROW(kind, rows)                                                              \
    {                                                                                \
        tile_##kind##_##rows##_1, tile_##kind##_##rows##_2, tile_##kind##_##rows##_4 \
    }
#define TABLE(kind)                  \
    [MATRIX_##kind] = {ROW(kind, 1), \
                       ROW(kind, 2), \
                       ROW(kind, 4), \
                       {tile_##kind##_8_1, tile_##kind##_8_2, NULL}}
static tile_fn *const tiles[4][4][3] = {TABLE(BF16), TABLE(F32), TABLE(FP8), TABLE(FP4)};

static void
run_group(const struct linear_args *a, const struct panel_group *g)
{
    for (int r = 0; r < a->rows;) {
        const int left = a->rows - r;
        const int rows_log = left >= 8 ? 3 : left >= 4 ? 2 : left >= 2 ? 1 : 0;

        for (int p = 0; p < g->n;) {
            const int wide = g->n - p >= 4 && rows_log < 3;
            const int panels_log = wide ? 2 : g->n - p >= 2 ? 1 : 0;

            tiles[a->w->kind][rows_log][panels_log](a, g, r, p);
            p += 1 << panels_log;
        }
        r += 1 << rows_log;
    }
}

void
avx512_linear(const struct linear_args *a, int n)
{
    panel_linear(a, n, run_group);
}
