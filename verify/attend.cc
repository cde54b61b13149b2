/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention by clusters (gpu/cuda/attend.cu): 16 blocks of 16 warps share a row and 16 heads.
 * Stages of shared memory: queries and a tile of keys are unpacked, a barrier, slices of scores, a
 * barrier, scores; when all keys are through, maxima, weights and values, with barriers (of the
 * cluster where blocks write to each other) between; at the end sums come to where queries and slices
 * were. Lists of up to the window and all entries of the longest session, as long as what they need
 * fits.
 */
#include "verify/formulas.hh"
#include "verify/prove.hh"

extern "C" {
#include "model/kvsize.h"
}

namespace verify
{

using namespace formula;

namespace
{

enum { WARPS = 16, KEYS_AT_ONCE = 4 };

static_assert((int)WARPS == (int)ATTEND_PARTS, "block w adds up what warps w have");

Int
most_keys(const Config &k)
{
    return Int(k.c.window) + Int(k.c.max_positions) / MODEL_CSA_RATIO;
}

int
attend_part_most(const Config &k)
{
    return (int)((k.c.window + k.c.max_positions / MODEL_CSA_RATIO) / 256 + 1);
}

/* Each key is in one part, and a part fits what is planned for the longest list. */
void
parts_cover(const Config &k, Statement &s)
{
    const Int most = s.any("max_keys", 1, most_keys(k)), n = s.any("n", 1, most_keys(k));
    const Int key = s.any("key", 0, most_keys(k) - 1);
    Int parts = 0;

    s.assume(n <= most && key < n);
    for (int rank = 0; rank < ATTEND_PARTS; rank++) {
        const Int first = attend_first(n, rank), end = attend_first(n, rank + 1);

        parts = parts +
                choose(key >= first && (s.mutant ? key <= end : key < end), Int(1), Int(0));
        s.claim(end >= first);
    }
    s.claim(parts == 1);
    s.claim(attend_part(most) % 16 == 0);
    for (int rank = 0; rank < ATTEND_PARTS; rank++) {
        const Int first = attend_first(n, rank), end = attend_first(n, rank + 1);

        s.claim((end - first + 15) / 16 * 16 <= attend_part(most));
    }
}

/* Each key of a part is in one piece, and pieces are what kernels have room for. */
void
pieces_cover(const Config &k, Statement &s)
{
    const Int part = s.any("part", 1, attend_part_most(k)) * 16;
    const Int at = s.any("at", 0, attend_part_most(k) * 16 - 1);
    const Int pieces = attend_pieces(part), piece = attend_piece(part);

    s.assume(at < part);
    s.claim(piece % 16 == 0 && piece >= 16 && piece <= ATTEND_PIECE - (s.mutant ? 16 : 0));
    s.claim(at / piece < pieces);
    s.claim(implies(part <= ATTEND_PIECE, pieces == 1 && piece == part));
}

/* Parts of shared memory follow one another; rows begin at multiples of 16 bytes where
 * ldmatrix and vectors want it; what other blocks send fits where queries and slices were.
 */
void
plan_is_apart(const Config &k, Statement &s)
{
    const int dim = k.c.head_dim;
    const Int most = s.any("max_keys", 1, most_keys(k)), cap = attend_part(most);
    const Int sent = attend_sent(ATTEND_PARTS, 0);
    const struct attend_plan p = attend_plan_for(dim, most);

    s.claim(p.q >= attend_row(p.tile, dim) * 2 + (s.mutant ? 2 : 0));
    s.claim(p.in >= attend_row(p.tile, dim) * 2);
    s.claim(p.slice >= p.q + attend_row(ATTEND_HEADS, dim) * 2);
    s.claim(p.score >= p.slice + attend_row_f32(ATTEND_SLICES * ATTEND_HEADS, p.tile) * 4);
    s.claim(p.score >= p.in + attend_row_f32(sent, attend_tiles(dim) * 8) * 4);
    s.claim(p.p >= p.score + attend_row_f32(ATTEND_HEADS, cap) * 4);
    s.claim(p.den >= p.p + attend_row(ATTEND_HEADS, cap) * 2);
    s.claim(p.tops >= p.den + sent * 8);
    s.claim(p.rest >= p.tops + sent * 4);
    s.claim(p.bytes >= p.rest + ATTEND_HEADS * 4);
    s.claim(p.tile % 16 == 0 && p.tile >= 16 && p.tile <= ATTEND_TILE);
    s.claim(p.q % 16 == 0 && p.slice % 16 == 0 && p.in % 16 == 0 && p.score % 16 == 0 &&
            p.p % 16 == 0 && p.den % 8 == 0);
    s.claim(attend_row_f32(1, p.tile) * 4 % 8 == 0);
    s.claim(attend_row(1, cap) * 2 % 16 == 0);
    s.claim(attend_row(1, dim) * 2 % 16 == 0);
}

/* Scores and weights of a head end where the next head's begin, keys of a tile likewise. */
void
cells_apart(const Config &k, Statement &s)
{
    const Int most = s.any("max_keys", 1, most_keys(k)), cap = attend_part(most);
    const Int key = s.any("key", 0, most_keys(k)), c = s.any("c", 0, k.c.head_dim - 1);

    s.assume(key < cap);
    for (int h = 0; h < ATTEND_HEADS; h++) {
        s.claim(attend_row_f32(h, cap) + key <
                attend_row_f32(h + 1, cap) - (s.mutant ? 5 : 0));
        s.claim(attend_row(h, cap) + key < attend_row(h + 1, cap));
    }
    for (int n = 0; n < ATTEND_TILE; n++)
        s.claim(attend_row(n, k.c.head_dim) + c < attend_row(n + 1, k.c.head_dim));
}

/* load_tile: each element of a key is unpacked from one word, aligned; words and the scales
 * behind them are inside the packed row. Each key of the tile is one warp's, once. */
void
unpack_covers(const Config &k, Statement &s)
{
    const int dim = k.c.head_dim, nope = dim - k.c.rope_dim, codes = nope / 8;
    const int words = codes + k.c.rope_dim / 4;
    const struct key_parts parts = key_parts_of(dim, nope);
    const auto at = s.two("at", 0, words - 1);
    const Int c = s.any("c", 0, dim - 1), group = s.any("group", 0, 7);
    const Int x = attend_element(at.x, codes), y = attend_element(at.y, codes);
    const auto wide = [&](Int word) { return choose(word < codes, Int(8), Int(4)); };
    const Int of = choose(c < nope, c / 8, codes + (c - nope) / 4);

    s.claim(implies(at.x != at.y, x + wide(at.x) <= y || y + wide(at.y) <= x));
    s.claim(x + wide(at.x) <= dim && implies(at.x < codes, x * 2 % 16 == 0) &&
            x * 2 % 8 == 0);
    s.claim(attend_element(of, codes) <= c && c < attend_element(of, codes) + wide(of));
    s.claim(implies(at.x < codes, at.x * 8 == x)); /* bytes of the row */
    s.claim(implies(at.x >= codes,
                    Int(key_wide(parts, choose(at.x >= codes, x, nope))) == at.x * 8));
    s.claim(parts.scales == words * 8);
    s.claim(Int(words) * 8 + 8 <=
            Int(kv_row_bytes(dim, k.c.rope_dim)) - (s.mutant ? 1 : 0));
    s.claim(implies(at.x < codes && group == at.x / 8,
                    key_scale(parts, x) == words * 8 + group));
    s.claim(Int(words) <= 3 * 32); /* lanes take three each */
    s.claim(implies(at.x < codes, at.x / 8 < 8));

    const auto warp = s.two("warp", 0, WARPS - 1), u = s.two("u", 0, KEYS_AT_ONCE - 1),
               turn = s.two("turn", 0, ATTEND_TILE / (WARPS * KEYS_AT_ONCE) - 1);
    const auto key = [](Int w, Int one, Int times) {
        return w + times * (WARPS * KEYS_AT_ONCE) + one * WARPS;
    };
    const Int want = s.any("key", 0, ATTEND_TILE - 1);

    s.alone(key(warp.x, u.x, turn.x), key(warp.y, u.y, turn.y),
            warp.x == warp.y && u.x == u.y && turn.x == turn.y);
    s.claim(key(want % WARPS, want / WARPS % KEYS_AT_ONCE, want / (WARPS * KEYS_AT_ONCE)) ==
            want);
}

/* Values: each 8 dims are one warp's, and go to one block as pairs; at the end each pair of dims of each head is one
 * thread's of one block. */
void
dims_once(const Config &k, Statement &s)
{
    const int dim = k.c.head_dim, tiles = (dim / 8 + WARPS - 1) / WARPS;
    const auto warp = s.two("warp", 0, WARPS - 1), t = s.two("t", 0, tiles - 1);
    const Int eight = s.any("eight", 0, dim / 8 - 1), lane = s.any("lane", 0, 31);
    const Int c = attend_dims(warp.x, tiles, t.x) + mma_col(lane, 0);

    s.alone(attend_dims(warp.x, tiles, t.x), attend_dims(warp.y, tiles, t.y),
            warp.x == warp.y && t.x == t.y);
    s.claim(attend_tiles(dim) == tiles);
    s.claim(attend_dims(eight / tiles, tiles, eight % tiles) == eight * 8 &&
            eight / tiles < WARPS);
    const int dims = tiles * 8;
    const auto rank = s.two("rank", 0, ATTEND_PARTS - 1);
    const auto h = s.two("head", 0, ATTEND_HEADS - 1);
    const auto of = s.two("thread", 0, WARPS * 32 - 1);
    const Int pair = s.any("pair", 0, dims / 2 - 1);

    /* what a warp has lies in its block's row from the first on */
    s.claim(attend_dims(warp.x, tiles, t.x) + mma_col(lane, 0) -
                attend_dims(warp.x, tiles, 0) + 2 <=
            dims);
    s.claim(c % 2 == 0);
    s.claim((attend_row_f32(1, dims) * 4) % 8 == 0);
    s.alone(attend_sent(rank.x, h.x), attend_sent(rank.y, h.y),
            rank.x == rank.y && h.x == h.y);
    s.claim(attend_sent(rank.x, h.x) < attend_sent(ATTEND_PARTS, 0));
    s.claim(implies(attend_pair(of.x) == attend_pair(of.y) &&
                        attend_pair_head(of.x) == attend_pair_head(of.y),
                    of.x == of.y));
    s.claim(attend_pair(of.x) % 2 == 0);
    s.claim(attend_pair(h.x * ATTEND_PAIRS + pair) == 2 * pair &&
            attend_pair_head(h.x * ATTEND_PAIRS + pair) == h.x &&
            h.x * ATTEND_PAIRS + pair < WARPS * (s.mutant ? 8 : 32));
}

/* Fragments of the tensor cores: each of a product's 16 by 8 is one lane's; what lanes hand to
 * ldmatrix is aligned to 16 bytes and inside the tile, the queries, the weights. */
void
fragments_inside(const Config &k, Statement &s)
{
    const int dim = k.c.head_dim;
    const auto lane = s.two("lane", 0, 31), i = s.two("i", 0, 3);
    const Int row = s.any("row", 0, 15), col = s.any("col", 0, 7);
    const Int most = s.any("max_keys", 1, most_keys(k)), cap = attend_part(most);
    const Int n = s.any("n", 1, ATTEND_TILE / 16) * 16;
    const Int t = s.any("t", 0, ATTEND_TILE / 8), d = s.any("d", 0, dim / 32 - 1) * 32;
    const Int k0 = s.any("k0", 0, most_keys(k) / 16) * 16, v = s.any("v", 0, 3) * 16;
    const Int d0 = s.any("d0", 0, (dim / 8 + WARPS - 1) / WARPS * WARPS - 1) * 8;

    s.claim(implies(mma_row(lane.x, i.x) == mma_row(lane.y, i.y) &&
                        mma_col(lane.x, i.x) == mma_col(lane.y, s.mutant ? i.y / 2 : i.y),
                    lane.x == lane.y && i.x == i.y));
    s.claim(mma_row(lane.x, i.x) < 16 && mma_col(lane.x, i.x) < 8);
    s.claim(mma_row(row % 8 * 4 + col / 2, row / 8 * 2 + col % 2) == row &&
            mma_col(row % 8 * 4 + col / 2, row / 8 * 2 + col % 2) == col);

    /* rows are apart by multiples of 16 bytes (plan-is-apart), so columns alone count */
    const Int key = t * 8 + quad_row(lane.x, 8), query = quad_row(lane.x, 16);
    const Int at =
        choose(d0 + quad_at(lane.x, 16) < dim - 8, d0 + quad_at(lane.x, 16), dim - 8);

    s.assume(t < n / 8 && k0 + 16 <= cap && v + 16 <= n);
    s.claim(key < n && d + quad_at(lane.x, 8) + 8 <= dim && quad_at(lane.x, 8) % 8 == 0);
    s.claim(query < ATTEND_HEADS && d + 16 + quad_at(lane.x, 16) + 8 <= dim);
    s.claim(k0 + quad_at(lane.x, 16) + 8 <= cap && (k0 + quad_at(lane.x, 16)) % 8 == 0);
    s.claim(v + query < n && at + 8 <= dim && at % 8 == 0);
}

} // namespace

const std::vector<Obligation> attend = {
    {"attend", "parts-cover", "each key of a list is in one part, and parts fit", true,
     parts_cover},
    {"attend", "pieces-cover", "each key of a part is in one piece, and pieces fit", true,
     pieces_cover},
    {"attend", "plan-is-apart", "parts of shared memory are disjoint, rows aligned", true,
     plan_is_apart},
    {"attend", "cells-apart", "scores, weights, sums and keys have rows of their own", true,
     cells_apart},
    {"attend", "unpack-covers", "each element of a key is unpacked once, from inside it",
     true, unpack_covers},
    {"attend", "dims-once", "each dim is one warp's, each output one block's", true,
     dims_once},
    {"attend", "fragments-inside", "lanes' fragments are their own, aligned, inside", true,
     fragments_inside},
};

} // namespace verify
