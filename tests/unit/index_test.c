/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The formulas of gpu/index.h and gpu/index/ at small sizes, every value of every variable,
 * against what they mean written out naively: a second witness beside the proofs of
 * verify/, which are about all sizes. Each way of looking is shown to find something first,
 * on a formula with a bug.
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/fp.h"
#include "gpu/index.h"
#include "gpu/index/attend.h"
#include "gpu/index/attend_many.h"
#include "gpu/index/attention.h"
#include "gpu/index/choose.h"
#include "gpu/index/compress.h"
#include "gpu/index/indexer.h"
#include "gpu/index/linear.h"
#include "gpu/index/mma.h"
#include "gpu/index/moe.h"
#include "gpu/index/packed.h"
#include "gpu/index/rows.h"
#include "gpu/index/sample.h"
#include "proto/ring_index.h"

enum { MOST = 4096 };

static int hits[MOST];

static void
clear(void)
{
    memset(hits, 0, sizeof hits);
}

static void
hit(uint64_t at)
{
    assert_true(at < MOST);
    hits[at]++;
}

/* Places 0 .. n - 1 were hit once each, and no other. */
static bool
once(int n)
{
    for (int i = 0; i < MOST; i++)
        if (hits[i] != (i < n ? 1 : 0))
            return false;
    return true;
}

/* A ring that is written position after position, up to `spare` of them taken back: does
 * each query find its window? */
static bool
ring_serves(int window, int slots, int spare)
{
    int holds[64], end = 200;

    for (int i = 0; i < 64; i++)
        holds[i] = -1;
    for (int newest = 0; newest < end; newest++) {
        holds[ring_slot((uint64_t)newest, (uint64_t)slots)] = newest;
        for (int t = newest > spare ? newest - spare : 0; t <= newest; t++)
            for (int p = (int)window_first((uint64_t)t, (uint64_t)window); p <= t; p++)
                if (holds[ring_slot((uint64_t)p, (uint64_t)slots)] != p)
                    return false;
    }
    return true;
}

static void
test_rings(void **state)
{
    (void)state;
    for (int window = 1; window <= 9; window++)
        for (int spare = 0; spare <= 5; spare++) {
            const int slots = (int)window_slots((uint64_t)window, (uint64_t)spare);

            assert_true(ring_serves(window, slots, spare));
            assert_false(slots > 1 && ring_serves(window, slots - 1, spare));
        }
}

static void
test_windows_and_entries(void **state)
{
    (void)state;
    for (int window = 1; window <= 9; window++)
        for (int t = 0; t < 40; t++) {
            int n = 0;

            for (int p = 0; p <= t; p++)
                n += t - p < window;
            assert_int_equal(window_keys((uint64_t)t, (uint64_t)window), n);
            assert_int_equal(window_first((uint64_t)t, (uint64_t)window), t - n + 1);
        }
    for (int ratio = 1; ratio <= 8; ratio++)
        for (int t = 0; t < 40; t++) {
            int n = 0;

            while ((n + 1) * ratio <= t + 1)
                n++;
            assert_int_equal(entries_visible((uint64_t)t, (uint64_t)ratio), n);
            for (int topk = 0; topk < 8; topk++) {
                assert_int_equal(entries_taken(n, topk, 1), n > topk ? topk : n);
                assert_int_equal(entries_taken(n, topk, 0), n);
            }
        }
    for (int per = 1; per <= 32; per++) {
        clear();
        for (uint64_t j = 0; j < (uint64_t)per * 7; j++)
            hit(entry_page(j, (uint64_t)per) * (uint64_t)per + entry_row(j, (uint64_t)per));
        assert_true(once(per * 7));
    }
}

/* Positions and halves that an entry looks at (spec 6.1), in order. */
static void
test_compress(void **state)
{
    (void)state;
    for (int ratio = 1; ratio <= 5; ratio++)
        for (int overlap = 0; overlap <= 1; overlap++)
            for (int j = 0; j < 6; j++) {
                const int dim = 3, width = compress_width(dim, overlap);
                int i = 0;

                assert_int_equal(width, overlap ? 6 : 3);
                for (int p = (j - overlap) * ratio; p < (j + 1) * ratio; p++, i++) {
                    const uint64_t reach = compress_reach((uint64_t)j, ratio, i);
                    const int back = compress_back(ratio, overlap);
                    const int own = overlap && p >= j * ratio;

                    assert_int_equal(reach >= (uint64_t)back, p >= 0);
                    if (p >= 0)
                        assert_int_equal(reach - (uint64_t)back, p);
                    assert_int_equal(compress_channel(1, i, dim, ratio, overlap),
                                     own ? 4 : 1);
                }
                assert_int_equal(i, compress_count(ratio, overlap));
            }
    for (int row = 0; row < 4; row++)
        assert_int_equal(compress_row((uint64_t)row, 6), row * 12);
}

static void
test_indexer_tiles(void **state)
{
    (void)state;
    for (int heads = 1; heads <= 9; heads++) {
        clear();
        for (int t = 0; t < SCORE_KEYS * SCORE_PARTS; t++)
            for (int h = score_head(t / SCORE_KEYS, heads);
                 h < score_head(t / SCORE_KEYS + 1, heads); h++)
                hit((uint64_t)score_term(h, t % SCORE_KEYS));
        assert_true(once(heads * SCORE_KEYS));
    }
    for (int dim = 32; dim <= 128; dim *= 2) {
        const struct score_plan p = score_plan_for(3, dim);
        const int row = fp4_row(dim), n = 5;

        assert_int_equal(row, p.row);
        clear();
        for (int i = 0; i < n * row; i++) {
            const int part = piece_at(i, row, 1), line = piece_row(i, row);

            if (part < dim / 2) {
                hit((uint64_t)(line * dim + 2 * part));
                hit((uint64_t)(line * dim + 2 * part + 1));
            } else
                hit((uint64_t)(n * dim + line * (dim / 32) + part - dim / 2));
        }
        assert_true(once(n * dim + n * dim / 32));
    }
}

/* Lists of n scores of 3 values, all of them, and each k: places from counts in front are
 * those of the k best in their order. */
static bool
chooses(int n, int (*place)(int, int, int))
{
    int all = 1;

    for (int i = 0; i < n; i++)
        all *= 3;
    for (int code = 0; code < all; code++)
        for (int k = 1; k < n; k++) {
            int score[8], want[8], n_want = 0, larger = 0, limit = 3;
            int got[16], above = 0, equal = 0;

            for (int i = 0, c = code; i < n; i++, c /= 3)
                score[i] = c % 3;
            for (int found = 0; found < k;) {
                larger = found;
                limit--;
                for (int i = 0; i < n; i++)
                    found += score[i] == limit;
            }
            for (int i = 0, left = k - larger; i < n; i++)
                if (score[i] > limit || (score[i] == limit && left-- > 0))
                    want[n_want++] = i;
            memset(got, -1, sizeof got);
            for (int i = 0; i < n; i++) {
                if (score[i] > limit || (score[i] == limit && equal < k - larger))
                    got[place(above, equal, k - larger)] = i;
                above += score[i] > limit;
                equal += score[i] == limit;
            }
            if (n_want != k || memcmp(got, want, sizeof(int) * (size_t)k) != 0)
                return false;
        }
    return true;
}

static int
place_of_all_equal(int above, int equal, int rank)
{
    (void)rank;
    return above + equal;
}

static int
place(int above, int equal, int rank)
{
    return topk_place(above, equal, rank);
}

static void
test_topk(void **state)
{
    (void)state;
    for (int n = 2; n <= 7; n++)
        assert_true(chooses(n, place));
    assert_false(chooses(5, place_of_all_equal));
}

static int
butterfly_that_meets(int p, int stride)
{
    return p / stride * stride + p % stride;
}

static int
butterfly_itself(int p, int stride)
{
    return butterfly(p, stride);
}

static bool
pairs_cover(int dim, int stride, int (*low)(int, int))
{
    clear();
    for (int p = 0; p < dim / 2; p++) {
        hit((uint64_t)low(p, stride));
        hit((uint64_t)(low(p, stride) + stride));
    }
    return once(dim);
}

static void
test_rows(void **state)
{
    (void)state;
    for (int dim = 2; dim <= 256; dim *= 2)
        for (int stride = 1; stride < dim; stride *= 2)
            assert_true(pairs_cover(dim, stride, butterfly_itself));
    assert_false(pairs_cover(8, 2, butterfly_that_meets));

    for (int dim = 1; dim <= 40; dim++)
        for (int group = 1; group <= 9; group++) {
            const int groups = ceil_div(dim, group);

            clear();
            for (int id = 0; id < 3 * groups; id++) {
                const int first = group_first(id, groups, group);

                for (int i = first; i < group_end(first, group, dim); i++)
                    hit((uint64_t)(group_row(id, groups) * dim + i));
            }
            assert_true(once(3 * dim));
        }
    for (int dim = 8; dim <= 2048; dim += 8) {
        const int threads = row_threads(dim, 8, 128);

        assert_int_equal(threads % 32, 0);
        assert_true(threads <= 128 && (threads == 128 || threads * 8 >= dim));
    }
    for (int heads = 1; heads <= 4; heads++) {
        clear();
        for (int p = 0; p < heads * 3; p++) {
            hit(rope_pair(p, 3, 10) % 10 + rope_pair(p, 3, 10) / 10 * 6);
            hit(rope_pair(p, 3, 10) % 10 + 1 + rope_pair(p, 3, 10) / 10 * 6);
        }
        assert_true(once(heads * 6));
    }
    clear();
    for (int block = 0; block < 5; block++)
        for (int t = 0; t < 3 * ROW_WARP; t += ROW_WARP)
            hit((uint64_t)warp_item(block, 3, t));
    assert_true(once(15));
}

static void
test_streams(void **state)
{
    (void)state;
    for (int hc = 1; hc <= 8; hc++) {
        clear();
        for (int i = 0; i < hc; i++) {
            hit((uint64_t)i);
            hit((uint64_t)mix_post(hc, i));
        }
        for (int i = 0; i < hc * hc; i++)
            hit((uint64_t)mix_comb(hc, i));
        assert_true(once(2 * hc + hc * hc));
        for (int i = 0; i < hc; i++)
            for (int j = 0; j < hc; j++) {
                assert_int_equal(comb_line(i * hc + j, hc, 1), i * hc);
                if (hc > 1)
                    assert_int_equal(comb_line(i * hc + j, hc, hc), j);
            }
    }
}

static void
test_attention(void **state)
{
    (void)state;
    for (int heads = 1; heads <= 5; heads++)
        for (int keys = 1; keys <= 40; keys++) {
            clear();
            for (int h = 0; h < heads; h++) {
                for (int k = 0; k < keys; k++)
                    hit(weight_cell(h, keys, k));
                hit(weight_cell(heads, keys, h));
            }
            assert_true(once((int)weight_scratch(heads, keys)));
        }
    for (int nope = 0; nope <= 256; nope += 32) {
        const struct key_parts p = key_parts_of(nope + 64, nope);

        clear();
        for (int c = 0; c < nope + 64; c++) {
            hit((uint64_t)(c < nope ? c : key_wide(p, c)));
            if (c >= nope)
                hit((uint64_t)(key_wide(p, c) + 1));
            if (c < nope && c % KEY_GROUP == 0)
                hit((uint64_t)key_scale(p, c));
        }
        assert_true(once(nope + 128 + (nope + KEY_GROUP - 1) / KEY_GROUP));
    }
}

/* Keys of a tile by warps that load them and teams that multiply them, bytes of one, slots. */
static void
test_attend_many(void **state)
{
    (void)state;
    for (int eights = 1; eights <= 2; eights++) {
        clear();
        for (int warp = 0; warp < 16; warp++)
            for (int t = 0; t < eights; t++) {
                hit((uint64_t)many_load(warp, t, eights));
                hit((uint64_t)many_load(warp, t, eights) + 1);
            }
        assert_true(once(many_tile(eights)));
        clear();
        for (int team = 0; team < MANY_TEAMS; team++)
            for (int t = 0; t < eights; t++)
                for (int i = 0; i < 8; i++)
                    hit((uint64_t)(many_eight(team, t, eights) + i));
        assert_true(once(many_tile(eights)));
        clear();
        for (int i = 0; i < MANY_STAGES * MANY_TEAMS * 2 * eights * ATTEND_SLICES * 32; i++)
            hit((uint64_t)many_slice(i / 32 / ATTEND_SLICES / eights / 2 / MANY_TEAMS,
                                     i / 32 / ATTEND_SLICES / eights / 2 % MANY_TEAMS,
                                     i / 32 / ATTEND_SLICES % (2 * eights),
                                     i / 32 % ATTEND_SLICES, i % 32, eights));
        assert_true(once(many_slice(MANY_STAGES, 0, 0, 0, 0, eights)));
        for (int n = 1; n <= 700; n++)
            assert_true(many_cap(n, eights) >= n &&
                        many_cap(n, eights) < n + many_tile(eights));
    }
    clear();
    for (int i = 0; i < MANY_UNITS * 16; i++)
        hit((uint64_t)i);
    for (int piece = 0; piece < MANY_WIDE; piece++) {
        assert_int_equal(many_wide(0, piece), many_behind(piece));
        for (int i = 0; i < 16; i++)
            hit((uint64_t)(many_wide(0, piece) + i));
    }
    assert_true(once(MANY_NOPE + MANY_WIDE * 16));
    for (int first = 0; first < 40; first++)
        for (int i = 0; i < 17; i++)
            assert_int_equal(many_slot(first % 17, i, 17), (first + i) % 17);
}

/* Parts of lists of any length, words of a key, dims of blocks and warps. */
static void
test_attend(void **state)
{
    (void)state;
    for (int n = 1; n <= 700; n++) {
        clear();
        for (int rank = 0; rank < ATTEND_PARTS; rank++) {
            const int first = attend_first(n, rank), end = attend_first(n, rank + 1);

            assert_true(end - first <= attend_part(n));
            for (int i = first; i < end; i++)
                hit((uint64_t)i);
        }
        assert_true(once(n));
    }
    for (int codes = 1; codes <= 56; codes++) {
        clear();
        for (int at = 0; at < codes + 16; at++)
            for (int i = 0; i < (at < codes ? 8 : 4); i++)
                hit((uint64_t)(attend_element(at, codes) + i));
        assert_true(once(codes * 8 + 64));
    }
    for (int dim = 64; dim <= 512; dim += 64) {
        const int dims = attend_tiles(dim) * 8;

        clear();
        for (int rank = 0; rank < ATTEND_PARTS; rank++)
            for (int i = 0; i < ATTEND_PAIRS; i++) {
                const int c = attend_dims(rank, dims / 8, 0) + attend_pair(i);

                if (attend_pair(i) < dims && c < dim) {
                    hit((uint64_t)c);
                    hit((uint64_t)c + 1);
                }
            }
        assert_true(once(dim));
        clear();
        for (int warp = 0; warp < ATTEND_HEADS; warp++)
            for (int t = 0; t < attend_tiles(dim); t++)
                if (attend_dims(warp, attend_tiles(dim), t) < dim)
                    hit((uint64_t)attend_dims(warp, attend_tiles(dim), t) / 8);
        assert_true(once(dim / 8));
        clear();
        for (int rank = 0; rank < ATTEND_PARTS; rank++)
            for (int h = 0; h < ATTEND_HEADS; h++)
                hit((uint64_t)attend_sent(rank, h));
        assert_true(once(ATTEND_PARTS * ATTEND_HEADS));
    }
}

/* All outputs, and all chunks of their inputs, of every split. */
static void
test_linear(void **state)
{
    (void)state;
    for (int split = 1; split <= LINEAR_WARPS; split *= 2)
        for (int out = 1; out <= 20; out++)
            for (int chunks = 1; chunks <= 100; chunks += 33) {
                clear();
                for (int tile = 0; tile < linear_tiles(out, split); tile++)
                    for (int t = 0; t < LINEAR_WARPS * LINEAR_LANES; t++) {
                        const int warp = t / LINEAR_LANES, lane = t % LINEAR_LANES;
                        const int o = linear_output(tile, warp, split);

                        for (int c = linear_chunk(warp, lane, split); c < chunks && o < out;
                             c += linear_step(split))
                            hit((uint64_t)(o * chunks + c));
                    }
                assert_true(once(out * chunks));
            }
    for (int out = 1; out < 40000; out += 997)
        for (int chunks = 1; chunks < 4096; chunks *= 2)
            assert_int_equal(LINEAR_WARPS % linear_split(out, chunks), 0);
    for (int o = 0; o < 4; o++)
        for (int k = 0; k < 64; k += 32) {
            assert_int_equal(linear_weight(o, 64, 4, k), o * 32 + k / 2);
            assert_int_equal(linear_weight(o, 64, 32, k), o * 256 + k * 4);
            assert_int_equal(linear_fp4_scales(o, 64), o * 2);
            assert_int_equal(linear_fp8_scales(o * 128, 200), o * 2);
        }
}

/* Every weight of a small matrix, from its packed place back to where it came from. */
static void
test_packed(void **state)
{
    (void)state;
    for (int loads = 1; loads <= 4; loads *= 2) {
        const int tiles = 2, chunks = 3, in = chunks * PACK_K, per = 8 / loads;
        static int seen[2 * PACK_M][3 * PACK_K];
        int n = 0;

        memset(seen, 0, sizeof seen);
        clear();
        for (uint64_t i = 0; i < (uint64_t)(tiles * chunks * loads * PACK_LANES);
             i++, n++) {
            const int tile = packed_tile(i, loads, chunks), lane = packed_lane(i);
            const int chunk = packed_chunk(i, loads, chunks), load = packed_load(i, loads);

            hit(packed_vector(tile, chunks, chunk, loads, load, lane));
            for (int w = 0; w < 4; w++)
                for (int k = 0; k < per; k++)
                    seen[packed_output(tile, lane, w)]
                        [packed_input(chunk, lane, loads, load, w) + k]++;
        }
        assert_true(once(n));
        for (int o = 0; o < tiles * PACK_M; o++)
            for (int k = 0; k < in; k++)
                assert_int_equal(seen[o][k], 1);
    }
    for (int split = 1; split <= PACK_WARPS; split *= 2) {
        const int size = 2 * PACK_M * PACK_N;

        clear();
        for (int part = 0; part < split; part++)
            for (int c = packed_first_chunk(13, part, split);
                 c < packed_first_chunk(13, part + 1, split); c++)
                hit((uint64_t)c);
        assert_true(once(13));
        clear();
        for (int block = 0; block < 3; block++)
            for (int warp = 0; warp < PACK_WARPS; warp += split)
                for (int m = 0; m < 2; m++)
                    hit((uint64_t)(packed_first_tile(block, warp, split, 2) + m));
        assert_true(once(3 * PACK_WARPS / split * 2));
        clear();
        for (int at = 0; at < packed_outputs(split, 2); at++)
            for (int i = 0; i < split * PACK_N; i++)
                hit((uint64_t)packed_sum(at / (2 * PACK_M) * split + i / PACK_N, 2, PACK_N,
                                         0, at % (2 * PACK_M), i % PACK_N));
        assert_true(once(PACK_WARPS * size));
    }
    for (int split = 1; split < PACK_WARPS; split *= 2) {
        const int half = packed_pair_half(split), outs = half * PACK_M;

        /* a thread's output and the tiles whose sums it takes, of both matrices */
        clear();
        for (int block = 0; block < 3; block++)
            for (int sum = 0; sum < 2 * outs; sum++) {
                const int warp = sum / PACK_M * split, t = sum % outs;
                const int o = packed_pair_output(block, half, t);

                assert_int_equal(packed_pair_tile(block, warp, split), o / PACK_M);
                hit((uint64_t)(packed_pair_matrix(warp) * 3 * outs + o));
            }
        assert_true(once(2 * 3 * outs));
    }
}

/* Grids and rows; places of experts' rows as moe.cu gives them; fragments of tensor cores. */
static void
test_grids(void **state)
{
    (void)state;
    for (int n = 1; n < 40; n++)
        for (int each = 1; each < 9; each++) {
            clear();
            for (int b = 0; b < ceil_div(n, each); b++)
                for (int t = 0; t < each; t++)
                    if (grid_item(b, each, t) < n)
                        hit((uint64_t)grid_item(b, each, t));
            assert_true(once(n));
            assert_int_equal(row_start((uint64_t)n, (uint64_t)each), n * each);
        }
    for (int n = 1; n < 200; n++) {
        assert_true(whole_warps(n) >= n && whole_warps(n) < n + 32);
        assert_int_equal(whole_warps(n) % 32, 0);
    }
    for (int slots = 1; slots < 9; slots++)
        for (int slot = 0; slot < slots; slot++)
            for (int n = 0; n <= slots; n++) {
                const int head =
                    (int)ring_head((uint64_t)slot, (uint64_t)n, (uint64_t)slots);

                for (int i = 0; i < n; i++)
                    assert_int_equal(i < head ? slot + i : i - head, (slot + i) % slots);
            }
    clear();
    for (int expert = 0, first = 0; expert < 5; first += expert++)
        for (int before = 0; before < expert; before++)
            hit((uint64_t)moe_place(first, before));
    assert_true(once(10));
    clear();
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++)
            hit((uint64_t)(mma_row(lane, i) * 8 + mma_col(lane, i)));
    assert_true(once(128));
    for (int rows = 8; rows <= 16; rows += 8) {
        clear();
        for (int lane = 0; lane < 32; lane++)
            for (int e = 0; e < 8; e++)
                hit((uint64_t)(quad_row(lane, rows) * (256 / rows) + quad_at(lane, rows) +
                               e));
        assert_true(once(256));
    }
}

static void
test_choose(void **state)
{
    (void)state;
    for (int groups = 1; groups <= 4; groups *= 2)
        for (int heads = 1; heads <= 20; heads++) {
            const int eights = choose_eights(heads);

            assert_true(eights * 8 >= heads && eights * 8 < heads + 16 && eights % 2 == 0);
            clear();
            for (int e = 0; e < eights; e++)
                for (int g = 0; g < groups; g++)
                    for (int l = 0; l < 32; l++)
                        hit((uint64_t)choose_query(e, groups, g, l));
            assert_true(once(eights * groups * 32));
        }
    clear();
    for (int block = 0; block < 3; block++)
        for (int warp = 0; warp < CHOOSE_WARPS; warp++)
            for (int lane = 0; lane < 32; lane++)
                hit((uint64_t)choose_key(choose_first(block, warp), lane % 4, lane));
    assert_true(once(3 * CHOOSE_WARPS * CHOOSE_KEYS));
    for (int n = 1; n < 3000; n += 7) {
        const int units = choose_units(n), eights = (units + 7) / 8;
        const int each = choose_each(eights, 16);

        assert_true(units * CHOOSE_UNIT >= n && (units - 1) * CHOOSE_UNIT < n);
        assert_true(choose_tops(n) >= n && choose_stride(n) == choose_tops(n) + eights * 8);
        assert_true(choose_own(16, each) >= eights && choose_own(1, each) == each);
    }
    clear();
    for (int four = 0; four < 8; four++)
        for (int pair = 0; pair < 4; pair++)
            hit((uint64_t)(choose_term(four, pair) - pair * 2));
    assert_true(once(32) && choose_term(7, 3) == CHOOSE_TERMS - 1);
}

/* A row's scratch memory by 8 bytes: each part in its place, and all of it taken. */
static void
test_sample(void **state)
{
    (void)state;
    clear();
    for (int thread = 0; thread < SAMPLE_THREADS; thread++)
        for (int i = 0; i < SAMPLE_OWN; i++)
            hit((uint64_t)sample_bin(thread, i));
    assert_true(once(SAMPLE_BINS));
    for (uint64_t slices = 1; slices < 6; slices++)
        for (uint64_t slice = 4; slice < 64; slice *= 2) {
            const struct sample_plan p = sample_plan_for(slices, slice);
            const uint64_t all[][3] = {
                {0, slices * slice, 8},         {p.sum, SAMPLE_BINS, 8},
                {p.part, slices, SAMPLE_FOUND}, {p.all, 1, SAMPLE_TOTALS},
                {p.count, SAMPLE_BINS, 4},      {p.end, slices * SAMPLE_BINS, 2}};

            clear();
            for (size_t i = 0; i < sizeof all / sizeof *all; i++)
                for (uint64_t at = 0; at < all[i][1] * all[i][2]; at += 8)
                    hit((all[i][0] + at) / 8);
            assert_true(once((int)(p.bytes / 8) - 1)); /* to the next 16 */
        }
}

/* A ring of records, byte by byte: each record in one piece, over none of the last `n`. */
static void
test_records(void **state)
{
    (void)state;
    for (uint64_t n = 1; n < 4; n++)
        for (uint64_t most = 0; most < 40; most += 5) {
            const uint64_t data = ring_data_bytes(n, ring_record_bytes(most));
            uint64_t head = 0;

            for (int i = 0; i < 300; i++) {
                const uint64_t need = ring_record_bytes((uint64_t)i % (most + 1));
                const uint64_t open = ring_open_at(head, need, data);

                assert_true(open >= head && open - head < need && open % 8 == 0);
                assert_true(open % data + need <= data);
                assert_int_equal(ring_left(open, data) + open % data, data);
                head = open + need;
            }
        }
}

static void
test_bits(void **state)
{
    static const int twice[8] = {0, 1, 2, 3, 4, 6, 8, 12};

    (void)state;
    for (uint32_t b = 0; b < 256; b++) {
        const uint32_t four = b * 0x01010101 ^ 0x80400102, eight = b * 0x01234567;
        uint32_t got[4];

        fpbits_e4m3_unpack(fpbits_e4m3_pack(four), &got[0], &got[1]);
        for (int i = 0; i < 4; i++) {
            const uint32_t code = four >> 8 * i & 0xff;

            assert_int_equal(got[i / 2] >> 16 * (i % 2) & 0xffff,
                             (code & 0x80) << 8 | (code & 0x7f) << 4);
        }
        for (int i = 0; i < 2; i++)
            assert_int_equal(fpbits_e4m3_high((four & 0xff00ff) << 8) >> 16 * i & 0xffff,
                             (four >> 16 * i & 0x80) << 8 | (four >> 16 * i & 0x7f) << 4);
        fpbits_e2m1_widen(eight, got);
        for (int i = 0; i < 8; i++)
            assert_int_equal(got[i % 4] >> 16 * (i / 4) & 0xffff,
                             (eight >> 4 * i & 8) << 12 | (eight >> 4 * i & 7) << 6);
        fpbits_e2m1_unpack(fpbits_e2m1_pack(eight), got);
        for (int i = 0; i < 8; i++) {
            const uint32_t code = eight >> 4 * i & 0xf;

            assert_int_equal(got[i / 2] >> 16 * (i % 2) & 0xffff,
                             (code & 8) << 12 | (code & 7) << 6);
        }
    }
    for (uint32_t b = 0; b < 256; b++) {
        const uint32_t pair = fpbits_e2m1_pair_twice(b);
        const int low = twice[b & 7], high = twice[b >> 4 & 7];

        assert_int_equal((int8_t)(pair & 0xff), b & 8 ? -low : low);
        assert_int_equal((int8_t)(pair >> 8), b & 0x80 ? -high : high);
    }
    /* neighbours suffice: numbers upwards, and the keys too */
    for (uint32_t u = 0; u < 0x7f80; u++) {
        assert_true(bf16_to_f32((uint16_t)u) < bf16_to_f32((uint16_t)(u + 1)));
        assert_true(fpbits_bf16_order(u) < fpbits_bf16_order(u + 1));
        assert_true(fpbits_bf16_order(u + 0x8000) > fpbits_bf16_order(u + 0x8001));
    }
    assert_true(fpbits_bf16_order(0x8000) < fpbits_bf16_order(0));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rings),    cmocka_unit_test(test_windows_and_entries),
        cmocka_unit_test(test_compress), cmocka_unit_test(test_indexer_tiles),
        cmocka_unit_test(test_topk),     cmocka_unit_test(test_rows),
        cmocka_unit_test(test_streams),  cmocka_unit_test(test_attention),
        cmocka_unit_test(test_attend),   cmocka_unit_test(test_attend_many),
        cmocka_unit_test(test_linear),   cmocka_unit_test(test_packed),
        cmocka_unit_test(test_bits),     cmocka_unit_test(test_grids),
        cmocka_unit_test(test_choose),   cmocka_unit_test(test_sample),
        cmocka_unit_test(test_records),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
