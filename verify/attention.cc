/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention's kernels (gpu/cuda/attention.cu). score_kernel: 32 keys by 32 heads a block of
 * 8 warps; its tiles are filled by all threads, a barrier, read by all, a barrier.
 * softmax_kernel: a warp a head. value_kernel: 128 dims by 8 heads a block, tiles as above.
 * Lists of keys are as long as those of keys.cc at most.
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

enum {
    TILE_KEYS = 32,
    TILE_HEADS = 32,
    TILE_DIMS = 256,
    TILE_PAD = 4,
    QUADS = TILE_DIMS / 4,
    WARPS = 8,
    WARP_HEADS = TILE_HEADS / WARPS,
    VALUE_HEADS = 8,
    VALUE_DIMS = 128,
};

Int
most_keys(const Config &k)
{
    return Int(k.c.window) + Int(k.c.max_positions) / MODEL_CSA_RATIO;
}

/* A packed row: each byte has one owner, and 4 elements at a time are aligned, of one kind
 * and under one scale. */
void
key_parts_apart(const Config &k, Statement &s)
{
    const int dim = k.c.head_dim, nope = dim - k.c.rope_dim;
    const Int bytes = kv_row_bytes(dim, k.c.rope_dim);
    const struct key_parts p = key_parts_of(dim, nope);
    const Int code = s.any("code", 0, nope - 1), wide = s.any("wide", nope, dim - 1);
    const auto c = s.two("c", 0, nope - 1);
    const Int quad = s.any("quad", 0, dim / 4 - 1) * 4;
    const Int at = key_wide(p, wide), scale = key_scale(p, c.x);

    s.apart(code, 1, at, 2);
    s.apart(code, 1, scale, 1);
    s.apart(at, s.mutant ? 3 : 2, scale, 1);
    s.claim(code < bytes && at + 2 <= bytes && scale < bytes);
    s.claim(implies(scale == key_scale(p, c.y), c.x / KEY_GROUP == c.y / KEY_GROUP));
    s.claim(implies(quad < nope,
                    quad + 3 < nope && key_scale(p, quad) == key_scale(p, quad + 3)));
    s.claim(implies(quad >= nope, Int(key_wide(p, quad)) % 8 == 0));
    s.claim(bytes % 8 == 0);
}

/* load_tiles fills both tiles: each quad by one piece, aligned to 16 bytes. */
void
tiles_once(const Config &, Statement &s)
{
    for (const int stride : {TILE_DIMS + TILE_PAD, +TILE_DIMS}) {
        const std::string n = std::to_string(stride);
        const auto i = s.two("i" + n, 0, TILE_KEYS * QUADS - 1);
        const Int line = s.any("k" + n, 0, TILE_KEYS - 1),
                  c = s.any("c" + n, 0, TILE_DIMS - 1);
        const auto at = [&](Int x) {
            return Int(piece_row(x, QUADS)) * stride + piece_at(x, QUADS, s.mutant ? 3 : 4);
        };
        const Int of = line * QUADS + c / 4;

        s.claim(implies(i.x != i.y, at(i.x) + 4 <= at(i.y) || at(i.y) + 4 <= at(i.x)));
        s.claim(at(i.x) * 4 % 16 == 0 && at(i.x) + 4 <= TILE_KEYS * stride);
        s.claim(of < TILE_KEYS * QUADS && at(of) + c % 4 == line * stride + c);
    }
}

/* A job's scores and denominators: cells of different heads and keys are different, and
 * inside the job's scratch, however long the list. Each head's end where the next one's
 * begin. */
void
cells_apart(const Config &k, Statement &s)
{
    const int heads = k.c.n_heads;
    const Int most = s.any("max_keys", 1, most_keys(k));
    const auto key = s.two("key", 0, most_keys(k) - 1);

    s.assume(key.x < most && (s.mutant ? key.y <= most : key.y < most));
    for (int h = 0; h < heads; h++) {
        s.alone(weight_cell(h, most, key.x), weight_cell(h, most, key.y), key.x == key.y);
        s.claim(weight_cell(h, most, key.y) < weight_cell(h + 1, most, 0));
        s.claim(weight_cell(heads, most, h) < weight_scratch(heads, most));
    }
}

/* Each score is one lane's of one block: keys by lanes, heads by warps, four each. */
void
scores_once(const Config &k, Statement &s)
{
    const Int n = s.any("n", 1, most_keys(k));
    const auto x = s.two("x", 0, (most_keys(k) + TILE_KEYS - 1) / TILE_KEYS - 1);
    const auto y = s.two("y", 0, (k.c.n_heads + TILE_HEADS - 1) / TILE_HEADS - 1);
    const auto t = s.two("t", 0, WARPS * 32 - 1), i = s.two("i", 0, WARP_HEADS - 1);
    const auto key = [](Int block, Int thread) { return block * TILE_KEYS + thread % 32; };
    const auto head = [&](Int block, Int thread, Int one) {
        return block * TILE_HEADS + thread / 32 * (s.mutant ? WARP_HEADS - 1 : WARP_HEADS) +
               one;
    };
    const Int of_k = s.any("key", 0, most_keys(k) - 1),
              of_h = s.any("head", 0, k.c.n_heads - 1);

    s.claim(implies(key(x.x, t.x) == key(x.y, t.y) &&
                        head(y.x, t.x, i.x) == head(y.y, t.y, i.y),
                    x.x == x.y && y.x == y.y && t.x == t.y && i.x == i.y));
    s.claim(implies(of_k < n, of_k / TILE_KEYS < (n + TILE_KEYS - 1) / TILE_KEYS));
    s.claim(head(of_h / TILE_HEADS, of_h % TILE_HEADS / WARP_HEADS * 32,
                 of_h % WARP_HEADS) == of_h);
}

/* value_kernel: each weight of its tile is filled by one piece; each output is one
 * thread's. */
void
values_once(const Config &k, Statement &s)
{
    const int dim = k.c.head_dim, heads = k.c.n_heads;
    const auto i = s.two("i", 0, TILE_KEYS * VALUE_HEADS - 1);
    const auto cell = [&](Int n) {
        return Int(piece_at(n, TILE_KEYS, 1)) *
                   (s.mutant ? VALUE_HEADS - 1 : +VALUE_HEADS) +
               piece_row(n, TILE_KEYS);
    };
    const auto x = s.two("x", 0, (dim + VALUE_DIMS - 1) / VALUE_DIMS - 1);
    const auto y = s.two("y", 0, (heads + VALUE_HEADS - 1) / VALUE_HEADS - 1);
    const auto t = s.two("t", 0, VALUE_DIMS - 1), one = s.two("one", 0, VALUE_HEADS - 1);
    const Int c_x = x.x * VALUE_DIMS + t.x, c_y = x.y * VALUE_DIMS + t.y;
    const Int h_x = y.x * VALUE_HEADS + one.x, h_y = y.y * VALUE_HEADS + one.y;
    const Bool there = c_x < dim && c_y < dim && h_x < heads && h_y < heads;

    s.alone(cell(i.x), cell(i.y), i.x == i.y);
    s.claim(cell(i.x) >= 0 && cell(i.x) < TILE_KEYS * VALUE_HEADS);
    s.claim(implies(there && head_cell(h_x, dim, c_x) == head_cell(h_y, dim, c_y),
                    x.x == x.y && y.x == y.y && t.x == t.y && one.x == one.y));
    s.claim(implies(there, head_cell(h_y, dim, c_y) < heads * dim));
}

} // namespace

const std::vector<Obligation> attention = {
    {"attention", "key-parts-apart",
     "bytes of a packed key have one owner, quads one scale", true, key_parts_apart},
    {"attention", "tiles-once", "tiles in shared memory are filled once, aligned", false,
     tiles_once},
    {"attention", "cells-apart", "scores and denominators have cells of their own", true,
     cells_apart},
    {"attention", "scores-once", "each score is one lane's, and the grid has all", true,
     scores_once},
    {"attention", "values-once", "each weight and each output is one thread's", true,
     values_once},
};

} // namespace verify
