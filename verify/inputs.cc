/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between the projections of attention (gpu/cuda/inputs.cu): blocks of 512 threads have a row each
 * in shared memory, a warp has a head of the queries. A step has up to 1,024 rows. Stages: stages.cc.
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

enum { STEP_ROWS = 1024, THREADS = 512, WARPS = 16, HEAD_WARPS = 8, FP8_GROUP = 128 };

/* A row's groups of 128 (queries) and 64 (keys) go to warps in turn: each element is one lane's,
 * under its own group's scale. */
void
groups_once(const Config &k, Statement &s)
{
    struct {
        int dim, group;
    } const uses[] = {{k.c.q_lora_rank, FP8_GROUP},
                      {k.c.head_dim - k.c.rope_dim, KEY_GROUP}};

    for (const auto &u : uses) {
        const std::string n = std::to_string(u.group);
        const Int groups = ceil_div(u.dim, u.group);
        const auto g = s.two("g" + n, 0, groups - 1), lane = s.two("lane" + n, 0, 31);
        const auto turn = s.two("turn" + n, 0, u.group / 32 - 1);
        const auto at = [&](Int of, Int l, Int times) {
            return of * u.group + l + times * 32;
        };
        const auto in = [&](Int of, Int l, Int times) {
            return at(of, l, times) < group_end(of * u.group, u.group, u.dim);
        };
        const Int x = at(g.x, lane.x, turn.x), c = s.any("c" + n, 0, u.dim - 1);
        const Int of = c / u.group;

        s.claim(implies(in(g.x, lane.x, turn.x) && in(g.y, lane.y, turn.y) &&
                            x == at(g.y, lane.y, turn.y),
                        g.x == g.y && lane.x == lane.y && turn.x == turn.y));
        s.claim(implies(in(g.x, lane.x, turn.x), x < u.dim && x / u.group == g.x));
        s.claim(of < groups && c < group_end(of * u.group, u.group, u.dim));
        s.claim(at(of, c % 32, c % u.group / 32) == (s.mutant ? c + 1 : c));
        s.claim(g.x % WARPS + g.x / WARPS * WARPS == g.x); /* warp, turn */
    }
}

/* pack_row: codes, bf16, scales and zeros lie behind one another and fill the row; each byte is
 * one thread's. */
void
bytes_once(const Config &k, Statement &s)
{
    const int dim = k.c.head_dim, nope = dim - k.c.rope_dim;
    const struct key_parts p = key_parts_of(dim, nope);
    const Int groups = ceil_div(nope, KEY_GROUP), row = kv_row_bytes(dim, k.c.rope_dim);
    const auto g = s.two("g", 0, groups - 1), i = s.two("i", nope, dim - 1);
    const Int code = s.any("code", 0, nope - 1), zero = s.any("zero", 0, row - 1);
    const Int scale = key_scale(p, g.x * KEY_GROUP), wide = key_wide(p, i.x);

    s.assume(zero >= p.scales + groups - (s.mutant ? 1 : 0));
    s.alone(scale, key_scale(p, g.y * KEY_GROUP), g.x == g.y);
    s.claim(
        implies(i.x != i.y, wide + 2 <= key_wide(p, i.y) || key_wide(p, i.y) + 2 <= wide));
    s.claim(code < wide && wide + 2 <= scale && scale < zero && p.scales + groups <= row);
    s.claim(wide >= nope && key_wide(p, nope) == nope &&
            key_wide(p, dim - 1) + 2 == p.scales);
    s.claim(row % 4 == 0); /* keep_kernel moves words */
}

/* Rows: each is where the one before ends, all inside; entries' angles and places by their number
 * of the step. */
void
rows_apart(const Config &k, Statement &s)
{
    const int row = static_cast<int>(kv_row_bytes(k.c.head_dim, k.c.rope_dim));

    for (const int width :
         {k.c.q_lora_rank, k.c.head_dim, k.c.rope_dim, k.c.index_n_heads, row}) {
        const std::string n = std::to_string(width);
        const auto r = s.two("row" + n, 0, STEP_ROWS - 1), c = s.two("c" + n, 0, width - 1);
        const Int x = row_start(r.x, width) + c.x;

        s.alone(x, row_start(r.y, width) + (s.mutant ? c.y + 1 : c.y),
                r.x == r.y && c.x == c.y);
        s.claim(x < Int(STEP_ROWS) * width);
    }
}

/* queries_kernel: each head of each row is one warp's, the indexer's behind the others; two
 * elements a lane at a time, aligned; pairs of the rotated end; the warps' rows in shared memory
 * and the packed rows are apart. */
void
heads_once(const Config &k, Statement &s)
{
    const int heads = k.c.n_heads, index = k.c.index_n_heads, all = heads + index;
    const Int blocks = ceil_div(all, HEAD_WARPS);
    const auto b = s.two("b", 0, blocks - 1), warp = s.two("warp", 0, HEAD_WARPS - 1);
    const auto row = s.two("row", 0, STEP_ROWS - 1);
    const Int h = grid_item(b.x, HEAD_WARPS, warp.x),
              other = grid_item(b.y, HEAD_WARPS, warp.y);
    const Int want = s.any("h", 0, all - 1);
    const int longest = k.c.head_dim > k.c.index_head_dim ? k.c.head_dim
                                                          : k.c.index_head_dim;

    s.claim(want / HEAD_WARPS < blocks &&
            grid_item(want / HEAD_WARPS, HEAD_WARPS, want % HEAD_WARPS) == want);
    for (const int dim : {k.c.head_dim, k.c.index_head_dim}) {
        const std::string n = std::to_string(dim);
        const bool own = dim == k.c.head_dim;
        const Int count = own ? heads : index, at = own ? h : h - heads;
        const Int at_y = own ? other : other - heads;
        const auto lane = s.two("lane" + n, 0, 31), turn = s.two("turn" + n, 0, dim / 64);
        const Int c_x = lane.x * 2 + turn.x * 64, c_y = lane.y * 2 + turn.y * 64;
        const auto there = [&](Int i, Int c) { return i >= 0 && i < count && c < dim; };
        const auto place = [&](Int r, Int i, Int c) { return (r * count + i) * dim + c; };
        const Int safe = choose(there(at, c_x), at, 0);
        const Int nope = dim - k.c.rope_dim;
        const Int pair = choose(c_x >= nope, c_x - nope, 0) / 2;

        const Bool both = there(at, c_x) && there(at_y, c_y);
        const Bool one_head = row.x * count + at == row.y * count + at_y;

        /* one place: one head and one pair; one head: one row and warp; one pair: one lane */
        s.claim(implies(both && place(row.x, at, c_x) == place(row.y, at_y, c_y),
                        one_head && c_x == c_y));
        s.claim(implies(both && one_head, row.x == row.y && h == other));
        s.claim(implies(h == other, b.x == b.y && warp.x == warp.y));
        s.claim(implies(c_x == c_y, lane.x == lane.y && turn.x == turn.y));
        s.claim(row_start(row_start(row.x, count) + safe, dim) + c_x ==
                place(row.x, safe, c_x));
        s.claim(implies(there(at, c_x),
                        place(row.x, at, c_x) * 2 % 4 == 0 &&
                            place(row.x, at, c_x) + 2 <= Int(STEP_ROWS) * count * dim));
        s.claim(implies(c_x >= nope && c_x < dim,
                        nope + 2 * pair == c_x && 2 * pair + 1 < k.c.rope_dim));
        s.claim(implies(c_x < dim && c_y < dim && warp.x < warp.y,
                        warp.x * longest + c_x + 2 <=
                            warp.y * (s.mutant ? longest - 2 : longest) + c_y));
    }
}

/* index_pack by one warp: two codes of each group of 32 to a byte, a scale behind; and pairs of
 * its butterflies, between which its lanes wait for each other. */
void
index_bytes_once(const Config &k, Statement &s)
{
    const int dim = k.c.index_head_dim, groups = dim / FP4_GROUP;
    const auto g = s.two("g", 0, groups - 1), lane = s.two("lane", 0, 31);
    const Int row = fp4_row(dim), want = s.any("byte", 0, row - 1);
    const auto at = [](Int of, Int l) { return of * (FP4_GROUP / 2) + l / 2; };

    s.claim(implies(lane.x % 2 == 0 && (s.mutant || lane.y % 2 == 0) &&
                        at(g.x, lane.x) == at(g.y, lane.y),
                    g.x == g.y && lane.x == lane.y));
    s.claim(at(g.x, lane.x) < dim / 2 && dim / 2 + g.x < row && FP4_GROUP == 32);
    s.claim(implies(want < dim / 2, at(want / 16, want % 16 * 2) == want));
    s.claim(implies(want >= dim / 2, want - dim / 2 < groups));
    for (int stride = 1; stride < dim; stride *= 2) {
        const std::string n = std::to_string(stride);
        const auto p = s.two("p" + n, 0, dim / 2 - 1);
        const Int x = butterfly(p.x, stride), y = butterfly(p.y, stride);

        s.claim(x + stride < dim && implies(p.x != p.y, x != y && x != y + stride));
    }
}

} // namespace

const std::vector<Obligation> inputs = {
    {"inputs", "groups-once", "each element of a group is one lane's, under its scale",
     true, groups_once},
    {"inputs", "bytes-once", "codes, bf16, scales and zeros of a key fill it, apart", true,
     bytes_once},
    {"inputs", "rows-apart", "rows of the step follow one another, inside", true,
     rows_apart},
    {"inputs", "heads-once", "each pair of each head is one lane's, aligned", true,
     heads_once},
    {"inputs", "index-bytes-once", "each byte of an index row is one lane's", true,
     index_bytes_once},
};

} // namespace verify
